"""The comparison of ablations: what is planned, what each ablation changes, what learns, and the table at the end."""
import json
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import json_lines, results, run
from untrained import save_untrained, small_dataset

from sensorllm_min.ablations import ABLATIONS, N_STATISTICS, window_statistics
from sensorllm_min.batch import collate
from sensorllm_min.data.examples import HarExamples, PromptFormat
from sensorllm_min.data.prepared import PreparedData
from sensorllm_min.evaluation.compare import ROWS, claim_comparison, comparison_table, plan_runs
from sensorllm_min.files import InputError
from sensorllm_min.recipe import build_model
from sensorllm_min.sensorllm import SensorLLM
from sensorllm_min.training.checkpoint import load_checkpoint
from train_har import HarSettings

SMALL = ("--train-limit", 8, "--eval-limit", 2, "--test-limit", 12, "--epochs", 1, "--batch-size", 8, "--text", "smry+Q")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, demo):
    """A small dataset and an untrained checkpoint of stage 1."""
    folder = tmp_path_factory.mktemp("compared")
    save_untrained(folder / "out/align", small_dataset(demo, folder / "data/demo"), "align")
    return folder


@pytest.fixture(scope="module")
def compared(folder):
    """One step of every run of one seed -> (what was printed, the content of comparison.json)."""
    out = run("train_har.py", "--compare", "--seeds", 1, *SMALL, cwd=folder)
    return out, json.loads((folder / "out/comparison/comparison.json").read_text())["results"]


def load(folder, row, split="test"):
    """The trained model of a row, and the examples of a split as it reads them."""
    model, recipe, _ = load_checkpoint(folder / f"out/comparison/{row}-0/best.safetensors")
    return model, HarExamples(PreparedData(folder / "data/demo"), split, PromptFormat.of(model, recipe))


def test_one_command_trains_every_row_and_each_trains_what_it_says(folder, compared):
    out, found = compared
    assert list(found) == [*ROWS] and all(len(runs) == 1 for runs in found.values())
    assert all(re.search(rf"^{row} +\d\.\d\d\d", out, re.MULTILINE) for row in found)
    learned = {name: runs[0]["trained_parameters"] for name, runs in found.items()}
    model, _ = load(folder, "full")
    size = Counter()
    for name, parameter in model.named_parameters():
        size[model.part_of(name)] += parameter.numel() * (name != "llm.lm_head.weight")
    d, d_features, hidden, classes, channels = 128, 64 + 20, 32, 5, 6

    def mlp(d_in):
        return d_in * hidden + hidden + hidden * classes + classes

    def hidden_of(width):                                     # stage 1 chose a narrow projector
        return d_features * width + width + width * d + d

    full = size["projector"] + size["head"] + size["llm"] + size["encoder"]
    assert size["projector"] == d_features * hidden + hidden + hidden * d + d
    assert learned == {
        "full": full,
        "no-stage-1": full + size["tokens"] + hidden_of(256) - hidden_of(32),
        "random-llm": full - size["llm"],
        "no-llm": size["projector"] + size["encoder"] + channels * d * classes,
        "encoder-mlp": size["encoder"] + mlp(channels * d_features),
        "statistics": mlp(channels * N_STATISTICS),
        "shuffled": full, "text-only": full, "sensors-only": full,
    }


def test_every_row_is_tested_on_the_same_windows_and_chance_comes_from_their_labels(folder, compared):
    _, found = compared
    data, prompts = PreparedData(folder / "data/demo"), load(folder, "full")[1].prompts
    train, test = (HarExamples(data, split, prompts, limit).labels() for split, limit in (("train", 8), ("test", 12)))
    chance = np.bincount(test).max() / 12
    assert chance != np.bincount(train).max() / 8                 # it would be noticed in place of the other
    assert {run["chance"] for runs in found.values() for run in runs} == {chance}


def test_an_interrupted_comparison_trains_only_what_is_missing(folder, compared):
    out, _ = compared
    before = (folder / "out/comparison/full-0/results.json").stat().st_mtime_ns
    (folder / "out/comparison/text-only-0/results.json").unlink()
    again = run("train_har.py", "--compare", "--seeds", 1, *SMALL, cwd=folder)
    assert (folder / "out/comparison/full-0/results.json").stat().st_mtime_ns == before
    lines = [re.search(r"^text-only +.*$", text, re.MULTILINE)[0].rsplit(maxsplit=1)[0] for text in (out, again)]
    assert lines[0] == lines[1]                                               # but for the seconds


def test_each_ablation_is_blind_to_what_it_says(folder, compared):
    """Logits of one batch under each ablation's checkpoint, the input disturbed: who notices?"""
    def logits(name, change=lambda batch: None):
        model, examples = load(folder, name)
        batch = collate([examples[i] for i in (3, 30)], model.tokenizer.pad_id)
        change(batch)
        with torch.no_grad():
            return model.class_logits(batch)

    def other_samples(batch):
        batch.series = batch.series.flip(0)

    def backwards(batch):
        batch.series = batch.series.flip(1)

    def other_words(batch):
        batch.ids[:, -4] = (batch.ids[:, -4] + 1) % 500

    def notices(name, change):
        return not torch.allclose(logits(name), logits(name, change), atol=1e-6)      # another summation order in fp32

    assert notices("full", other_samples) and notices("full", other_words) and notices("full", backwards)
    assert not notices("text-only", other_samples) and notices("text-only", other_words)
    for name in ("no-llm", "encoder-mlp", "statistics"):
        assert notices(name, other_samples) and not notices(name, other_words)
    assert notices("shuffled", other_samples)


def numpy_statistics(series):
    """The statistics of one series (S,) as their docstring says."""
    spectrum = np.abs(np.fft.rfft(series - series.mean())) ** 2 / len(series)
    edges = np.geomspace(1, len(spectrum), 9).round().astype(int)             # of eight bands
    bands = [spectrum[first:max(last, first + 1)].sum() for first, last in zip(edges, edges[1:])]
    quantiles = np.quantile(series, [0, 0.1, 0.25, 0.5, 0.75, 0.9, 1])
    sizes = [series.std(), np.abs(np.diff(series)).mean(), *bands]
    return [*np.arcsinh([series.mean(), *quantiles]), *np.log10(np.array(sizes) + 1e-4)]


def test_window_statistics_equal_numpy():
    """Of windows of 2 samples up; of rest, which has no energy, as well."""
    rng = np.random.default_rng(0)
    for n_samples in (2, 3, 24, 40, 500):
        series = rng.normal(size=(5, n_samples)) * np.array([[1, 100, 1e-3, 0, 3]]).T
        series += np.array([[0, 9, 1, -7, 0]]).T
        found = window_statistics(torch.tensor(series))
        assert found.shape == (5, N_STATISTICS) and found.isfinite().all()
        np.testing.assert_allclose(found, [numpy_statistics(one) for one in series], rtol=0, atol=1e-9)      # float64 sums


def test_statistics_are_of_the_series_in_usual_units_alone(folder, compared):
    """No encoder and no LLM: their weights change nothing. The units are those of the levels."""
    model, examples = load(folder, "statistics")
    batch = collate([examples[i] for i in (3, 30)], model.tokenizer.pad_id)
    series = batch.series.unflatten(0, (2, 6)).numpy()            # (B, C, S)
    means, deviations = np.array(examples.data.levels()).T[:, :, None]        # (C, 1) each
    usual = torch.tensor((series - means) / deviations)
    statistics = window_statistics(usual.flatten(0, 1)).reshape(2, -1).float()
    with torch.no_grad():
        expected = model.head(statistics)
        for part in (model.encoder, model.llm, model.projector):
            torch.testing.assert_close(model.class_logits(batch), expected, rtol=0, atol=1e-5)
            for parameter in part.parameters():
                parameter.zero_()
        torch.testing.assert_close(model.class_logits(batch), expected, rtol=0, atol=1e-5)


def test_a_shuffled_window_keeps_its_embeddings_and_has_an_order_of_its_own_in_any_batch(folder, compared):
    model, examples = load(folder, "shuffled")
    two, one = (collate([examples[i] for i in indices], model.tokenizer.pad_id) for indices in ((3, 30), (30,)))
    with torch.no_grad():
        shuffled, alone = model.embed(two), model.embed(one)
        model.__class__ = SensorLLM                               # the same weights, nothing taken away
        plain = model.embed(two)
    orders = []
    for row in range(2):
        is_sensor = two.ids[row] == model.sensor_id
        a, b = shuffled[row, is_sensor], plain[row, is_sensor]
        orders.append((a[:, None] == b).all(-1).int().argmax(1).tolist())
        assert sorted(orders[row]) == list(range(len(b))) != orders[row]
        assert torch.equal(shuffled[row, ~is_sensor], plain[row, ~is_sensor])
    assert orders[0] != orders[1]
    # another batch size sums in another order: a few roundings of float32
    torch.testing.assert_close(alone[0, one.mask[0]], shuffled[1, two.mask[1]], rtol=0, atol=1e-6)


def test_a_random_llm_is_not_that_of_stage_1_and_differs_from_seed_to_seed(folder, compared):
    """Drawn with the run's seed, frozen as drawn, and found again in its checkpoint; the encoder is stage 1's."""
    align, _, _ = load_checkpoint(folder / "out/align/best.safetensors")
    full, _ = load(folder, "full")
    random, recipe, _ = load_checkpoint(folder / "out/comparison/random-llm-0/best.safetensors")

    def weight(model):
        return model.llm.layers[0].mlp.up_proj.weight

    moved = (weight(full) - weight(align)).abs().max()            # by the one step of training
    assert 0 < moved < 0.01 < (weight(random) - weight(align)).abs().max()
    assert recipe.llm_seed == 0 and recipe.ablation == "random-llm"
    drawn = [build_model(replace(recipe, llm_seed=seed)) for seed in (0, 1)]
    assert torch.equal(weight(random), weight(drawn[0])) and not torch.equal(weight(drawn[0]), weight(drawn[1]))
    q_proj = [model.encoder.layers[0].attn.q_proj.weight for model in (align, full, random)]
    assert all((q_proj[0] - other).abs().max() < 0.01 for other in q_proj[1:])


def test_the_plan_holds_every_row_and_seed_and_refuses_other_settings(tmp_path):
    settings = HarSettings(seed=5, out=str(tmp_path / "c"), align="a", text=("smry",), compare=tuple(ROWS), seeds=2)
    runs = list(plan_runs(settings, None))
    assert [name for name, _ in runs] == [*ROWS] * 2 and [run.seed for _, run in runs] == [5] * len(ROWS) + [6] * len(ROWS)
    assert {run.ablate for _, run in runs} == {None, *ABLATIONS}
    assert len({run.out for _, run in runs}) == len(runs)
    changed = {name: (run.align, run.text) for name, run in runs}
    assert changed == {name: ("a", ("smry",)) for name in ROWS} | {
        "no-stage-1": ("none", ("smry",)), "sensors-only": ("a", ())}
    claim_comparison(settings)
    claim_comparison(replace(settings, seeds=3))                  # it resumes
    with pytest.raises(InputError, match="holds a comparison with other settings.*choose another --out"):
        claim_comparison(replace(settings, text=()))
    bare = replace(settings, align="none", text=())
    rows = {name for name, _ in plan_runs(bare, None)}
    assert rows == {"full", *ABLATIONS} - {"text-only"}           # what the full model lacks is no ablation
    with pytest.raises(InputError, match="class heads"):
        next(plan_runs(replace(settings, answer="text"), None))


def test_folds_validate_each_subject_that_is_not_for_the_test_once(folder, tmp_path):
    settings = HarSettings(align="none", text=(), folds=3, out=str(tmp_path))
    data = PreparedData(folder / "data/demo")
    test, all_subjects = set(data.subjects_of("test")), set(data.meta["subjects"])
    validated = []
    for name, run_settings in plan_runs(settings, data):
        assert name == "full" and run_settings.seed == 0
        data.fold = run_settings.fold
        parts = {split: set(data.subjects_of(split)) for split in ("train", "val", "test")}
        assert set.union(*parts.values()) == all_subjects
        assert sum(map(len, parts.values())) == len(all_subjects) and parts["test"] == test
        for split, subjects in parts.items():
            records = data.records("har", split)
            assert {str(records[i]["subject"]) for i in range(len(records))} == subjects
        validated += parts["val"]
    assert sorted(validated) == sorted(all_subjects - test)
    data.fold = None
    for n_folds in (1, 9):                                        # the demo has 8 such subjects
        with pytest.raises(InputError, match="--folds"):
            next(plan_runs(replace(settings, folds=n_folds), data))
    with pytest.raises(InputError, match="stage 1 has seen"):
        next(plan_runs(replace(settings, align="out/align"), data))


def test_folds_train_and_score_without_the_test_subjects(folder):
    """The table's figures are those of the validated subjects."""
    options = ("--align", "none", "--train-limit", 8, "--eval-limit", 4, "--test-limit", 6, "--epochs", 1, "--batch-size", 8,
               "--out", "out/folds")
    run("train_har.py", "--compare", "statistics", "--folds", 2, *options, cwd=folder)
    found = json.loads((folder / "out/folds/comparison.json").read_text())["results"]
    assert list(found) == ["statistics"] and len(found["statistics"]) == 2
    data = PreparedData(folder / "data/demo")
    for k, scores in enumerate(found["statistics"]):
        model, recipe, _ = load_checkpoint(folder / f"out/folds/statistics-fold{k + 1}-0/best.safetensors")
        data.fold = (k, 2)
        labels = HarExamples(data, "val", PromptFormat.of(model, recipe), 6).labels()
        assert scores["chance"] == np.bincount(labels).max() / 6


def test_the_table_takes_differences_seed_by_seed():
    def run_of(f1):
        return {"macro_f1": f1, "accuracy": 0.5, "balanced_accuracy": 0.5, "chance_f1": 0.1, "trained_parameters": 7,
                "seconds": 3}

    table = comparison_table({"full": [run_of(0.5), run_of(0.7)], "no-llm": [run_of(0.4), run_of(0.6)]})
    lines = [line.split() for line in table.splitlines()]
    assert lines[-2] == ["full", "0.600", "0.141", "0.000", "0.000", "0.500", "0.000", "0.500", "0.000", "0.100", "7", "3.000"]
    assert lines[-1][:5] == ["no-llm", "0.500", "0.141", "0.100", "0.000"]
    alone = comparison_table({"full": [run_of(0.5)]}).splitlines()[-1].split()
    assert alone == ["full", "0.500", "0.000", "0.500", "0.500", "0.100", "7", "3.000"]        # no deviation of one run


def test_an_ablation_is_evaluated_like_any_model(folder, compared):
    run("evaluate.py", "--checkpoint", "out/comparison/encoder-mlp-0", "--limit", 12, cwd=folder)
    out = folder / "out/comparison/encoder-mlp-0"
    scores = json.loads((out / "evaluation_test.json").read_text())
    assert len(json_lines(out / "predictions_test.jsonl")[1:]) == 12     # after the settings
    assert scores["macro_f1"] == pytest.approx(results(out)["macro_f1"])      # sums of other batches: the last digits
    assert "encoder-mlp" in (out / "report_test.html").read_text()
