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

from sensorllm_min.ablations import ABLATIONS
from sensorllm_min.batch import collate
from sensorllm_min.data.examples import HarExamples, PromptFormat
from sensorllm_min.data.prepared import PreparedData
from sensorllm_min.evaluation.compare import ROWS, claim_comparison, comparison_table, plan_runs
from sensorllm_min.files import InputError
from sensorllm_min.recipe import build_model
from sensorllm_min.statistics import count_statistics
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
    d, d_features, hidden, classes, channels = 128, 64 + count_statistics(6), 32, 5, 6

    def mlp(d_in):
        return d_in * hidden + hidden + hidden * classes + classes

    def hidden_of(width):                                     # stage 1 chose a narrow projector
        return d_features * width + width + width * d + d

    full = size["projector"] + size["head"] + size["llm"] + size["encoder"]
    assert size["projector"] == d_features * hidden + hidden + hidden * d + d
    assert learned == {
        "full": full,
        "no-stage-1": full + size["tokens"] + hidden_of(256) - hidden_of(32),
        "random-llm": full,
        "no-llm": size["projector"] + size["encoder"] + channels * d * classes,
        "encoder-mlp": size["encoder"] + mlp(channels * d_features),
        "statistics": mlp(channels * count_statistics(6)),
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
    (folder / "out/comparison/no-llm-0/results.json").unlink()
    again = run("train_har.py", "--compare", "--seeds", 1, *SMALL, cwd=folder)
    assert (folder / "out/comparison/full-0/results.json").stat().st_mtime_ns == before
    lines = [re.search(r"^no-llm +.*$", text, re.MULTILINE)[0].rsplit(maxsplit=1)[0] for text in (out, again)]
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
    for name in ("no-llm", "encoder-mlp", "statistics"):
        assert notices(name, other_samples) and not notices(name, other_words)


def test_statistics_are_read_alone(folder, compared):
    """No encoder and no LLM: their weights change nothing."""
    model, examples = load(folder, "statistics")
    batch = collate([examples[i] for i in (3, 30)], model.tokenizer.pad_id)
    with torch.no_grad():
        expected = model.head(model.chronos.statistics(batch).float().reshape(2, -1))
        for part in (model.encoder, model.llm, model.projector):
            for parameter in part.parameters():
                parameter.zero_()
        torch.testing.assert_close(model.class_logits(batch), expected, rtol=0, atol=1e-5)


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
    assert (weight(random) - weight(drawn[0])).abs().max() < 0.01 < (weight(drawn[0]) - weight(drawn[1])).abs().max()
    q_proj = [model.encoder.layers[0].attn.q_proj.weight for model in (align, full, random)]
    assert all((q_proj[0] - other).abs().max() < 0.01 for other in q_proj[1:])


def test_the_plan_holds_every_row_and_seed_and_refuses_other_settings(tmp_path):
    settings = HarSettings(seed=5, out=str(tmp_path / "c"), align="a", text=("smry",), compare=tuple(ROWS), seeds=2)
    runs = list(plan_runs(settings))
    assert [name for name, _ in runs] == [*ROWS] * 2 and [run.seed for _, run in runs] == [5] * len(ROWS) + [6] * len(ROWS)
    assert {run.ablate for _, run in runs} == {None, *ABLATIONS}
    assert len({run.out for _, run in runs}) == len(runs)
    changed = {name: (run.align, run.text) for name, run in runs}
    assert changed == {name: ("a", ("smry",)) for name in ROWS} | {
        "no-stage-1": ("none", ("smry",))}
    claim_comparison(settings)
    claim_comparison(replace(settings, seeds=3))                  # it resumes
    with pytest.raises(InputError, match="holds a comparison with other settings.*choose another --out"):
        claim_comparison(replace(settings, text=()))
    bare = replace(settings, align="none", text=())
    rows = {name for name, _ in plan_runs(bare)}
    assert rows == {"full", *ABLATIONS}                           # it is without stage 1 already
    with pytest.raises(InputError, match="class heads"):
        next(plan_runs(replace(settings, answer="text")))


def test_folds_test_each_person_once_and_train_on_neither_test_nor_validation(folder, tmp_path):
    settings = HarSettings(data=str(folder / "data/demo"), align="a", text=(), folds=4, out=str(tmp_path))
    tested = []
    for name, run_settings in plan_runs(settings):
        k, _ = run_settings.fold
        assert name == "full" and run_settings.seed == 0 and run_settings.align == f"a-{k + 1}"
        data = PreparedData(run_settings.data, run_settings.fold)
        parts = {split: data.subjects_of(split) for split in ("test", "val", "train")}
        assert sorted(sum(parts.values(), [])) == sorted(data.meta["subjects"]) and all(parts.values())
        for split, subjects in parts.items():
            records = data.records("har", split)
            assert {str(record["subject"]) for record in records} == set(subjects)
        tested += parts["test"]
    assert sorted(tested) == sorted(data.meta["subjects"])
    for fold in ((0, 2), (4, 4), (0, 11)):                        # the demo has 10 people
        with pytest.raises(InputError, match="has 10 people; give K/N"):
            PreparedData(folder / "data/demo", fold)


def test_a_fold_s_checkpoint_is_scored_on_the_people_of_its_fold(folder):
    """In training, in the table, and by evaluate.py; stage 1 of another fold is refused."""
    options = ("--train-limit", 8, "--eval-limit", 4, "--test-limit", 6, "--epochs", 1, "--batch-size", 8, "--align", "none")
    out = run("train_har.py", "--compare", "statistics", "--folds", 3, *options, "--out", "out/folds", cwd=folder)
    found = json.loads((folder / "out/folds/comparison.json").read_text())
    assert found["scored"] == "10 people, in 3 folds" and len(found["results"]["statistics"]) == 3
    assert "scored on 10 people, in 3 folds" in out
    for k, scores in enumerate(found["results"]["statistics"]):
        people = PreparedData(folder / "data/demo", (k, 3)).subjects_of("test")
        assert {*scores["people"]} <= {*people} and np.sum(scores["confusion"]) == scores["windows"] == 6
    run("evaluate.py", "--checkpoint", "out/folds/statistics-fold2-0", cwd=folder)
    scores = json.loads((folder / "out/folds/statistics-fold2-0/evaluation_test.json").read_text())
    assert set(scores["people"]) == set(PreparedData(folder / "data/demo", (1, 3)).subjects_of("test"))
    assert "not trained with the same --fold" in run("train_har.py", "--fold", "1/3", "--out", "out/other", cwd=folder, expect=2)


def run_of(seed, seconds=3, **people):
    """What a run leaves: {person: right windows of 4 of class 0}, all others taken for class 1."""
    right = sum(people.values())
    return {"seed": seed, "confusion": [[right, 4 * len(people) - right], [0, 4]], "trained_parameters": 7, "seconds": seconds,
            "people": {name: {"f1": hits / 4} for name, hits in people.items()}}


def test_the_table_pools_the_folds_of_a_seed_and_takes_differences_person_by_person():
    table = comparison_table({"full": [run_of(0, ann=4), run_of(0, bob=2)], "no-llm": [run_of(0, ann=3), run_of(0, bob=2)]})
    lines = [line.split() for line in table.splitlines()]
    # 6 of 8 and 8 of 8 are right: F1 of 12/14 and 16/18; people have 1 and 0.5
    assert lines[-2] == ["full", "0.873", "0.750", "0.354", "0.000", "0.000", "2.000", "0.875", "0.333", "7.000", "3.000"]
    assert lines[-1][2:7] == ["0.625", "0.177", "0.125", "0.177", "2.000"]
    seeds = comparison_table({"full": [run_of(0, ann=4, bob=4), run_of(1, ann=4, bob=0)]}).splitlines()[-1].split()
    assert seeds[1:5] == ["0.833", "0.236", "0.750", "0.354"]     # F1 of 1 and 2/3; ann 1, bob 0.5 on average


def test_an_ablation_is_evaluated_like_any_model(folder, compared):
    run("evaluate.py", "--checkpoint", "out/comparison/encoder-mlp-0", "--limit", 12, cwd=folder)
    out = folder / "out/comparison/encoder-mlp-0"
    scores = json.loads((out / "evaluation_test.json").read_text())
    assert len(json_lines(out / "predictions_test.jsonl")[1:]) == 12     # after the settings
    assert scores["macro_f1"] == pytest.approx(results(out)["macro_f1"])      # sums of other batches: the last digits
    assert "encoder-mlp" in (out / "report_test.html").read_text()
