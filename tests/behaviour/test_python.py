"""The model in Python: what a person types who has samples in an array, and the examples of the READMEs as they stand."""
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import ROOT, json_lines, launch, make_chronos, make_llama
from untrained import ALONE, three_models

import sensorllm_min
from sensorllm_min.batch import collate
from sensorllm_min.chronos_tokenizer import ChronosTokenizer
from sensorllm_min.data.examples import AlignExamples, HarExamples, sample_texts
from sensorllm_min.data.prepared import PreparedData
from sensorllm_min.evaluation import predict
from sensorllm_min.files import InputError
from sensorllm_min.generate import stream
from sensorllm_min.text_tokenizer import train_backend
from sensorllm_min.training.checkpoint import save_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory, demo):
    return three_models(demo, tmp_path_factory.mktemp("python"))


@pytest.fixture(scope="module")
def stage_1(folder):
    return sensorllm_min.load(folder / "out/align")


@pytest.fixture(scope="module")
def stage_2(folder):
    return sensorllm_min.load(folder / "out/har/best.safetensors", device="cpu", dtype="float32")


# ---- the examples of the READMEs ----

@pytest.mark.parametrize("readme", ["README.md", "sensorllm_min/README.md"])
def test_the_python_in_the_readmes_runs_as_it_stands(folder, demo, monkeypatch, capsys, readme):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(predict, "stream", lambda *args: stream(*args[:4], 5, args[5]))         # an untrained model rambles
    make_llama("weights/llama", train_backend(sample_texts(PreparedData(demo)), 300))
    make_chronos("weights/chronos")
    examples = re.findall(r"```python\n(.*?)```", (ROOT / readme).read_text(encoding="utf-8"), re.DOTALL)
    names = {}
    for example in examples:
        assert len(example.splitlines()) <= 6
        exec(example, names)
    if readme == "README.md":
        assert len(re.findall(r"^\d+\.\d to \d+\.\d s: \w+, \d+%$", capsys.readouterr().out, re.MULTILINE)) == 16
    else:
        assert names["logits"].shape == (1, *names["embeds"].shape[1:2], 300)
        assert names["features"].shape == (3, 101, 32) and names["samples"].shape == (3, 100)


@pytest.mark.parametrize("script", ["data_prep.py", "train_align.py", "train_har.py", "evaluate.py"])
def test_a_python_that_is_too_old_is_told_so_in_one_line(script):
    """Before anything is imported that such a Python lacks or cannot read."""
    code = ("import builtins, runpy, sys; sys.version_info = (3, 10, 13); sys.modules['torch'] = sys.modules['numpy'] = None; "
            f"runpy.run_path('{script}', run_name='__main__')")
    assert launch("-c", code, cwd=ROOT, expect=2) == "sensorllm-min needs Python 3.11 or newer, this is 3.10\n"


# ---- classify ----

def recording_of(folder, index):
    """A recording of the demo's test subject 9 -> (its line, samples (N, C))."""
    lines = [line for line in json_lines(folder / "recordings.jsonl") if line["subject"] == 9]
    start = lines[index]["start"]
    return lines[index], np.load(folder / "samples/9.npy")[start:start + lines[index]["length"]]


def test_a_recording_is_classified_as_its_prepared_windows_are(demo, stage_2):
    """The same windows, and probabilities to 1e-6: other batches add in another order."""
    line, samples = recording_of(demo, 3)
    end = line["start"] + line["length"]
    records = json_lines(demo / "har_test.jsonl")
    wanted = [i for i, record in enumerate(records) if record["subject"] == 9 and line["start"] <= record["start"] < end]
    examples = HarExamples(PreparedData(demo), "test", stage_2.prompts)
    expected = {}
    for i in wanted:                                              # from the prepared line, by the model alone
        batch = collate([examples[i]], stage_2.model.tokenizer.pad_id)
        with torch.no_grad():
            expected[i] = stage_2.model.class_logits(batch)[0].softmax(-1).tolist()
    found = stage_2.classify(samples, batch_size=5)
    assert [prediction.start for prediction in found] == [(records[i]["start"] - line["start"]) / 20 for i in wanted]
    assert {round(prediction.end - prediction.start, 9) for prediction in found} == {1.2}
    for i, prediction in zip(wanted, found, strict=True):
        assert list(prediction.probabilities) == list(stage_2.dataset.classes)
        assert list(prediction.probabilities.values()) == pytest.approx(expected[i], abs=1e-6)
        assert prediction.activity == max(prediction.probabilities, key=prediction.probabilities.get)


def test_the_loss_is_weighted_as_in_training(demo, folder, tmp_path):
    """The class weights are kept with the checkpoint."""
    model = sensorllm_min.load(folder / "out/har")
    examples = HarExamples(PreparedData(folder / "data/demo"), "val", model.prompts, 6)

    def losses(network):
        batches = predict.batches_of(examples, ALONE, 4)
        return [(record["label"], record["loss"]) for record in predict.answer_batches(network, batches, ALONE)]

    model.model.class_weights = torch.ones(5)
    unweighted = losses(model.model)
    model.model.class_weights = torch.tensor([0.05, 0.1, 0.15, 0.3, 0.4])
    save_checkpoint(tmp_path / "best.safetensors", model.model, model.recipe, model.progress)
    again = sensorllm_min.load(tmp_path / "best.safetensors").model
    for (label, loss), (_, plain) in zip(losses(again), unweighted, strict=True):
        assert loss == pytest.approx(plain * again.class_weights[label].item(), rel=1e-5)


# ---- describe, ask, features ----

def test_a_description_is_what_evaluating_generates(demo, stage_1):
    """For a window of the dataset, asked what it was asked there."""
    data = PreparedData(demo)
    examples, answers = AlignExamples(data, "test", stage_1.prompts), {}
    batches = [[examples[i]] for i in (3, 40, 77)]
    for record in predict.answer_batches(stage_1.model, batches, ALONE, 12):
        samples, text = data.window(record), record["generated"]
        assert stage_1.describe(samples, record["channel"], max_new_tokens=12) == text
        assert stage_1.ask(samples, record["channel"], record["question"], 12) == text
        answers[text] = stage_1.ask(samples, record["channel"], "Why?", 12)
    assert any(text and answer != text for text, answer in answers.items())


def test_features_are_those_of_encoder_and_projector(demo, stage_1):
    """Channel by channel, with the statistics of this model, through the parts themselves."""
    samples = recording_of(demo, 2)[1][:37]
    model = stage_1.model
    series = torch.tensor(samples.T.copy(), dtype=torch.float64)
    ids, observed, _, _ = model.chronos.encode(series)
    numbers = model.chronos.statistics(SimpleNamespace(
        series=series, series_lengths=torch.full((6,), 37), channels=torch.arange(6), examples=[0]))
    features = torch.cat([model.encoder(ids, observed), numbers[:, None].expand(-1, 38, -1).float()], -1)
    assert isinstance(model.chronos, ChronosTokenizer) and numbers.shape[1] > 0
    torch.testing.assert_close(torch.tensor(stage_1.features(samples)), features)
    torch.testing.assert_close(torch.tensor(stage_1.features(samples, after="projector")), model.projector(features))


def test_a_table_goes_by_name_and_a_tensor_by_value(demo, stage_1):
    samples = recording_of(demo, 2)[1][:37]
    frame = pd.DataFrame(samples, columns=[channel.token for channel in stage_1.dataset.channels])
    for given in (frame[frame.columns[::-1]], torch.tensor(samples, requires_grad=True)):
        np.testing.assert_array_equal(stage_1.features(given), stage_1.features(samples))


# ---- mistakes ----

@pytest.mark.parametrize("call,words", [
    (lambda model: model.classify(np.zeros((30, 5))), ["shape (30, 5)", "(T, 6)", "x_acc"]),
    (lambda model: model.classify(np.zeros(30)), ["shape (30,)"]),
    (lambda model: model.classify([["a"] * 6] * 30), ["<U1"]),
    (lambda model: model.classify(np.zeros((23, 6))), ["23 samples", "24 samples without a gap", "1.2 s"]),
    (lambda model: model.classify(np.full((90, 6), np.nan)), ["hold no window"]),
    (lambda model: model.describe(np.zeros((30, 6)), "x_acc"), ["stage har", "train_align.py"]),
    (lambda model: model.features(np.full((30, 6), np.nan)), ["finite"]),
    (lambda model: model.features(np.zeros((600, 6))), ["600 samples", "512"]),
    (lambda model: model.features(np.zeros((30, 6)), after="llm"), ["encoder or projector"])], ids=range(9))
def test_samples_that_do_not_fit_are_refused_in_one_line(stage_2, call, words):
    with pytest.raises(InputError) as error:
        call(stage_2)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize("options,words", [
    ({"device": "tpu"}, "no device tpu here; give one of cpu"), ({"device": "cuda:77"}, "no device cuda:77 here"),
    ({"dtype": "float16"}, "float32, bfloat16, int8"), ({"dtype": "int8"}, "int8 is for")], ids=str)
def test_what_cannot_be_loaded_is_refused_in_one_line(folder, stage_1, options, words):
    with pytest.raises(InputError, match=words):
        sensorllm_min.load(folder / "out/align", **options)
    with pytest.raises(InputError, match="--channel nose"):
        stage_1.describe(np.zeros((30, 6)), "nose")
    with pytest.raises(InputError, match="train_har.py"):
        stage_1.classify(np.zeros((30, 6)))
