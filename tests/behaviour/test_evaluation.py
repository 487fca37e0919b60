"""What people get out of a checkpoint: scores that survive a kill, a report that stands alone, answers, controls."""
import base64
import json
import os
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from argparse import Namespace

import numpy as np
import pytest
import torch
from helpers import ROOT, run

from sensorllm_min.checkpoint import load_checkpoint
from sensorllm_min.config import InputError
from sensorllm_min.controls import ROWS, controls_table, majority, planned
from sensorllm_min.data import HarExamples, Limits, PreparedData, collate
from sensorllm_min.evaluation import classify, rows_so_far, score_classes
from sensorllm_min.metrics import class_scores, confusion_of
from sensorllm_min.report import most_wrong
from sensorllm_min.sensorllm import CONTROLS
from sensorllm_min.training import Processes
from sensorllm_min.trend_text import har_answer, reasoning_text, strongest_rhythm

SMALL = ("--train-limit", 64, "--eval-limit", 16, "--test-limit", 24, "--epochs", 1, "--log-every", 2)
ALONE = Processes(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, demo):
    """Both stages on a few windows, and stage 2 once with its answer in words."""
    folder = tmp_path_factory.mktemp("evaluated")
    (folder / "data").mkdir()
    (folder / "data/demo").symlink_to(demo)
    run("train_align.py", *SMALL, "--max-new-tokens", 8, cwd=folder)
    run("train_har.py", *SMALL, cwd=folder)
    run("train_har.py", *SMALL, "--answer", "reasoning", "--test-limit", 2, "--eval-limit", 2, "--out", "out/words", cwd=folder)
    return folder


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# ---- scores of stage 1 ----

def test_a_killed_evaluation_goes_on_without_a_lost_or_doubled_row(trained):
    """SIGKILL while rows are written, three times, once with a line cut in two: in the end the same bytes."""
    command = ("evaluate.py", "--checkpoint", "out/align", "--limit", 60, "--max-new-tokens", 24, "--batch-size", 4)
    rows, partial = trained / "out/align/descriptions_test.jsonl", trained / "out/align/descriptions_test.jsonl.partial"
    run(*command, cwd=trained)
    expected, scores = rows.read_bytes(), json.loads((trained / "out/align/evaluation_test.json").read_text())
    assert len(lines_of(rows)) == 60 == len({row["window"] for row in lines_of(rows)}) and not partial.exists()
    rows.unlink()
    for n_rows in (5, 17, 30):
        process = subprocess.Popen([sys.executable, ROOT / command[0], *map(str, command[1:])], cwd=trained,
                                   stdout=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": str(ROOT)})
        until = time.time() + 120
        while time.time() < until and (not partial.exists() or partial.read_bytes().count(b"\n") <= n_rows):
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not rows.exists() and not (trained / "out/align/evaluation_test.json").exists()
        if n_rows == 17:
            partial.write_bytes(partial.read_bytes()[:-25])
    done = len(lines_of(partial)) - 1
    assert f"going on where an interrupted evaluation stopped: {done} of 60" in run(*command, cwd=trained)
    assert rows.read_bytes() == expected and not partial.exists()
    assert json.loads((trained / "out/align/evaluation_test.json").read_text()) == scores
    partial.write_bytes(b'{"other": "settings"}\n' + expected[:expected.index(b"\n") + 1])
    assert rows_so_far(partial, {"some": "settings"}) == []                   # of another evaluation: begun anew
    assert "going on" not in run(*command, cwd=trained) and rows.read_bytes() == expected


def test_stage_1_scores_by_channel_and_length(trained):
    out = run("evaluate.py", "--checkpoint", "out/align", "--limit", 30, "--max-new-tokens", 8, "--show", 1, cwd=trained)
    scores = json.loads((trained / "out/align/evaluation_test.json").read_text())
    assert scores["windows"] == 30 and {"bleu_4", "rouge_l", "direction", "guess_direction", "segment_f1"} <= scores.keys()
    assert scores["overall"] is None and scores["groups"]["all"]["answers"]["direction"] == scores["direction"]
    assert sum(group["windows"] for name, group in scores["groups"].items() if "samples" in name) == 30
    assert "| direction |" in out and out.count("generated:") == 1
    table = (trained / "out/align/scores_test.md").read_text()
    assert "evaluate.py --checkpoint out/align --limit 30" in table and "| x_acc |" in table
    out = run("evaluate.py", "--checkpoint", "out/align", "--limit", 6, "--max-new-tokens", 8, "--temperature", 1, "--seed", 4,
              "--show", 0, cwd=trained)
    assert "generated:" not in out


# ---- scores of stage 2 ----

def test_the_report_stands_alone(trained):
    """One HTML file without a link to anything; its pictures are whole SVGs; every part is there, and the numbers fit."""
    run("evaluate.py", "--checkpoint", "out/har", cwd=trained)
    folder = trained / "out/har"
    page, table = (folder / "report_test.html").read_text(), (folder / "report_test.md").read_text()
    scores = json.loads((folder / "evaluation_test.json").read_text())
    assert not re.search(r'(src|href)="(?!data:)', page) and "<script" not in page and "@import" not in page
    pictures = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', page)
    wrong = most_wrong(lines_of(folder / "predictions_test.jsonl"))
    assert len(pictures) == 2 + len(wrong) and wrong
    for picture in pictures:
        assert ElementTree.fromstring(base64.b64decode(picture)).tag.endswith("svg")
    assert page.count("<img alt=") == len(pictures) == page.count("<figcaption>")
    for heading in ("What was taken for what", "Classes", "What it got most wrong", "Settings", "Data", "How to do it again"):
        assert f"<h2>{heading}</h2>" in page
    low, high = scores["intervals"]["macro_f1"]
    for words in (f"{scores['macro_f1']:.3f}", f"{low:.3f} to {high:.3f}", "python evaluate.py --checkpoint out/har", "Cohen",
                  "smry+Q", "9, 10", f"torch {torch.__version__}", "y-axis gyroscope (deg/s)"):
        assert words in page and words in table, words
    rows = lines_of(folder / "predictions_test.jsonl")
    assert len(rows) == 560 and class_scores(confusion_of(rows, 5)[:, :5])["macro_f1"] == scores["macro_f1"]
    assert low <= scores["macro_f1"] <= high and {row["subject"] for row in rows} == {9, 10}
    assert 'name=viewport' in page and "@media print" in page


def test_the_most_wrong_windows():
    def row(window, label, predicted, *probabilities):
        return {"window": window, "label": label, "predicted": predicted, "probabilities": probabilities}
    rows = [row(0, 0, 0, 0.9, 0.1, 0), row(1, 0, 1, 0.4, 0.6, 0), row(2, 0, 1, 0.1, 0.9, 0), row(3, 2, 1, 0, 0.8, 0.2)]
    assert [found["window"] for found in most_wrong(rows)] == [2, 3]          # one of each mistake, the worst
    words = [{key: value for key, value in one.items() if key != "probabilities"} for one in rows]
    assert [found["window"] for found in most_wrong(words)] == [1, 3] and most_wrong(words[:1]) == []


def test_answers_in_words(trained):
    """The prompt is a dialogue, the answer reasoning and activity; what cannot be read is counted, as wrong."""
    data = PreparedData(trained / "data/demo")
    model, tokenizer, recipe, _ = load_checkpoint(trained / "out/words/best.safetensors")
    assert recipe.answer == "reasoning" and recipe.n_classes is None and model.head is None
    examples = HarExamples(data, "test", tokenizer, recipe.limits, 6, 0, recipe.text, answer="reasoning")
    example = examples[0]
    prompt, answer = tokenizer.visible(example.prompt), tokenizer.decode(example.answer)
    assert prompt.count("<ts>") == 6 and "recognises activities from 6 sensor channels of 24 points" in prompt
    assert prompt.endswith("<|start_header_id|>assistant<|end_header_id|>\n\n")
    window = data.window(example.row)
    assert answer == reasoning_text(window, data.dataset) + f"\nActivity: {data.dataset.classes[example.label]}"
    assert har_answer(window, data.dataset, 3, False) == "Activity: Sitting"
    out = run("evaluate.py", "--checkpoint", "out/words", "--limit", 4, cwd=trained)
    scores = json.loads((trained / "out/words/evaluation_test.json").read_text())
    rows = lines_of(trained / "out/words/predictions_test.jsonl")
    assert scores["unparsable"] == sum(row["predicted"] is None for row in rows) and all("generated" in row for row in rows)
    assert "none" in out and f"{scores['unparsable']} of 4 answers name no class" in (trained / "out/words/report_test.md").read_text()


def test_words_are_scored_as_they_read(trained, monkeypatch):
    """With a model that says the truth, a wrong class, or nonsense, in turns."""
    data = PreparedData(trained / "data/demo")
    model, tokenizer, recipe, _ = load_checkpoint(trained / "out/words/best.safetensors")
    examples = HarExamples(data, "test", tokenizer, recipe.limits, 30, 0, recipe.text, answer="text")

    def said(model, tokenizer, examples, *_):
        for i in range(len(examples)):
            true = examples[i].label
            yield i, (f"Activity: {recipe.classes[true]}", f"Activity: {recipe.classes[(true + 1) % 5]}", "Perhaps.")[i % 3], True
    monkeypatch.setattr("sensorllm_min.evaluation.describe", said)
    rows = list(classify(model, tokenizer, examples, ALONE, 4))
    assert [row["predicted"] for row in rows[:3]] == [rows[0]["label"], (rows[1]["label"] + 1) % 5, None]
    monkeypatch.setattr("sensorllm_min.evaluation.mean_loss", lambda *_: 0.5)
    confusion, loss = score_classes(model, tokenizer, examples, ALONE, 4)
    assert loss == 0.5 and confusion.shape == (5, 6) and np.diag(confusion).sum() == 10 == confusion[:, 5].sum()
    assert class_scores(confusion)["accuracy"] == pytest.approx(1 / 3)


def test_reasoning_says_what_is_true(demo):
    """The channel of each unit that varies most, by how much, around what, and how fast."""
    data = PreparedData(demo)
    seconds = np.arange(60) / 20
    window = np.zeros((60, 6))
    window[:, 1] = 0.5 + 0.2 * np.sin(2 * np.pi * 3 * seconds)                # y_acc swings three times a second
    text = reasoning_text(window, data.dataset)
    assert text == ("In g, the y-axis accelerometer varies most, by 0.14 around 0.5, with its strongest rhythm at 3.0 Hz. "
                    "In deg/s, the x-axis gyroscope varies most, by 0.0 around 0.0.")
    assert strongest_rhythm(np.cos(2 * np.pi * 5 * seconds) + 9, 20) == 5


# ---- asking ----

def test_asking_about_a_window(trained):
    data = PreparedData(trained / "data/demo")
    row = data.rows("align", "test")[17]
    ask = ("evaluate.py", "--checkpoint", "out/align", "--max-new-tokens", 6)
    out = run(*ask, "--ask", "When does it rise?", "--window", 17, cwd=trained)
    assert f"subject {row['subject']}" in out and f"{row['length']} samples" in out and row["answer"] in out
    picture = trained / f"out/align/asked_test_17_{row['channel']}.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    other = next(channel.token for channel in data.dataset.channels if channel.token != row["channel"])
    out = run(*ask, "--ask", "Why?", "--window", 17, "--channel", other, cwd=trained)
    assert "the dataset says" not in out and (trained / f"out/align/asked_test_17_{other}.png").exists()
    greedy = run(*ask, "--ask", "Why?", "--window", 3, cwd=trained)
    hot = [run(*ask, "--ask", "Why?", "--window", 3, "--temperature", 5, "--seed", seed, cwd=trained) for seed in (1, 1, 2)]
    assert hot[0] == hot[1] != hot[2] and greedy != hot[0]
    done = subprocess.run([sys.executable, ROOT / "evaluate.py", "--checkpoint", "out/align", "--window", "3",
                           "--max-new-tokens", "4"], cwd=trained, input="What?\nAnd when?\n\nnever asked\n", text=True,
                          capture_output=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0 and done.stdout.count("> ") == 3, done.stderr


def test_asking_about_a_file(trained):
    (trained / "my.csv").write_text("time,x_acc,y_acc\n0,1,5\n1,2,4\n2,3,4\n")
    ask = ("evaluate.py", "--checkpoint", "out/align", "--max-new-tokens", 6, "--ask", "When?", "--csv")
    out = run(*ask, "my.csv", "--channel", "y_acc", cwd=trained)
    assert "y-axis accelerometer, 3 samples" in out and (trained / "out/align/asked_my.png").exists()
    whole = "x_acc,y_acc,z_acc,x_gyro,y_gyro,z_gyro\n" + "1,2,3,4,5,6\n" * 24
    (trained / "whole.csv").write_text(whole)
    out = run("evaluate.py", "--checkpoint", "out/har", "--csv", "whole.csv", cwd=trained)
    assert len(re.findall(r"^(?:Walking|Running|Turning|Sitting|Lying): \d+\.\d%$", out, re.MULTILINE)) == 3
    assert "(this names no class)" in run("evaluate.py", "--checkpoint", "out/words", "--window", 2, "--max-new-tokens", 3, cwd=trained)


@pytest.mark.parametrize("content,options,words", [
    (None, (), ["cannot be read as CSV"]),
    ("a,b\n1,2\n", (), ["a, b", "--channel", "x_acc"]),
    ("x_acc,y_acc\n1,2\n1,2\n", (), ["x_acc, y_acc", "--channel"]),
    ("x_acc\n1\n2\n", ("--channel", "z_acc"), ["no column z_acc"]),
    ("x_acc\n1\n2\n", ("--channel", "nose"), ["--channel nose", "z_gyro"]),
    ("x_acc\n1\n\n2\nten\n", (), ["line 4", "not a finite number"]),
    ("x_acc,y_acc\n1,2\n,3\n", ("--channel", "x_acc"), ["line 3", "missing"]),
    ("x_acc\n1\n", (), ["1 samples", "two"]),
    ("x_acc\n" + "1\n" * 600, (), ["600 samples", "context holds 512"]),
    ("x_acc\n1\n2\n", ("--checkpoint", "out/har"), ["no column y_acc"]),
    ("x_acc,y_acc,z_acc,x_gyro,y_gyro,z_gyro\n" + "1,2,3,4,5,6\n" * 5, ("--checkpoint", "out/har"), ["5 samples", "24"]),
    ("", (), ["cannot be read as CSV"]),
], ids=lambda value: "")
def test_files_that_cannot_be_asked_about(trained, tmp_path, content, options, words):
    if content is not None:
        (tmp_path / "my.csv").write_text(content)
    out = run("evaluate.py", "--checkpoint", "out/align", "--csv", tmp_path / "my.csv", *options, cwd=trained, expect=2)
    assert all(word in out for word in words) and len(out.strip().splitlines()) == 1, out


@pytest.mark.parametrize("options,words", [
    (("--window", 10**6), ["holds test windows 0 to"]), (("--ask", "What?", "--data", "nowhere"), ["nowhere/meta.json not found"]),
    (("--checkpoint", "out/har", "--window", 1, "--ask", "What?"), ["which activity", "without --ask"]),
    (("--checkpoint", "out/har", "--window", 1, "--channel", "x_acc"), ["--channel is for stage 1"]),
    (("--csv", "my.csv", "--window", 1), ["give one of them"]), (("--channel", "nose"), ["--channel nose"]),
    (("--top-p", 0), ["--top-p 0"]), (("--top-p", 2), ["--top-p 2"]),
], ids=str)
def test_questions_that_make_no_sense(trained, options, words):
    out = run("evaluate.py", *options, cwd=trained, expect=2)
    assert all(word in out for word in words) and len(out.strip().splitlines()) == 1, out


# ---- controls ----

@pytest.fixture(scope="module")
def compared(trained):
    small = ("--train-limit", 32, "--eval-limit", 8, "--test-limit", 20, "--epochs", 1, "--eval-every", 2)
    return run("train_har.py", "--controls", 2, *small, cwd=trained), small


def test_controls_in_one_command(trained, compared):
    """Every row, two seeds, in one table; what learns is what each says; the same windows for the same seed."""
    out, small = compared
    folder = trained / "out/controls"
    results = json.loads((folder / "controls.json").read_text())["results"]
    assert list(results) == [*ROWS, "majority"] and all(len(runs) == 2 for runs in results.values())
    assert "How to read it" in out and (folder / "controls.md").read_text().split("\n\n", 2)[2] in out
    for name, runs in results.items():
        assert re.search(rf"^\| {name} \|.* ± .*\|$", out, re.MULTILINE), name
    learned = {name: runs[0]["trained_parameters"] for name, runs in results.items()}
    assert learned["full"] == learned["random-llm"] == learned["shuffled"] == learned["text-only"] == learned["sensors-only"]
    d, d_encoder, hidden, classes, channels = 128, 64, 256, 5, 6
    projector = d_encoder * hidden + hidden + hidden * d + d
    assert learned["full"] == projector + d * classes and learned["no-llm"] == projector + channels * d * classes
    assert learned["encoder-mlp"] == channels * d_encoder * hidden + hidden + hidden * classes + classes
    assert learned["no-stage-1"] > 20 * learned["full"] > 0 == learned["majority"]
    for seed in (0, 1):
        assert len({run["chance"] for run in (runs[seed] for runs in results.values())}) == 1
    before = (folder / "full-0/results.json").stat().st_mtime_ns
    (folder / "text-only-1/results.json").unlink()                            # as if it had been interrupted there
    again = run("train_har.py", "--controls", 2, *small, cwd=trained)
    assert (folder / "full-0/results.json").stat().st_mtime_ns == before
    parts = [re.search(r"\| text-only \|.*\|", text)[0].rsplit("|", 3)[0] for text in (out, again)]
    assert parts[0] == parts[1]


def test_each_control_changes_what_it_says(trained, compared):
    """Logits of one batch under each control's checkpoint, with the input disturbed: who notices?"""
    data = PreparedData(trained / "data/demo")

    def logits(name, change=lambda batch: None, text=("smry", "Q")):
        model, tokenizer, recipe, _ = load_checkpoint(trained / f"out/controls/{name}-0/best.safetensors")
        examples = HarExamples(data, "test", tokenizer, Limits(512, 4096), text=recipe.text)
        batch = collate([examples[i] for i in (3, 300)], tokenizer.pad_id)
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
        return not torch.allclose(logits(name), logits(name, change), atol=1e-6)
    assert notices("full", other_samples) and notices("full", other_words) and notices("full", backwards)
    assert not notices("text-only", other_samples) and notices("text-only", other_words)
    assert notices("no-llm", other_samples) and not notices("no-llm", other_words)
    assert notices("encoder-mlp", other_samples) and not notices("encoder-mlp", other_words)
    assert notices("shuffled", other_samples)
    torch.testing.assert_close(logits("shuffled"), logits("shuffled"))        # always the same order


def test_a_shuffled_window_keeps_its_embeddings(trained, compared):
    """The same vectors in each row, in another order, which depends on the window alone."""
    data = PreparedData(trained / "data/demo")
    model, tokenizer, recipe, _ = load_checkpoint(trained / "out/controls/shuffled-0/best.safetensors")
    examples = HarExamples(data, "test", tokenizer, recipe.limits)
    two, one = (collate([examples[i] for i in indices], tokenizer.pad_id) for indices in ((3, 300), (300,)))
    with torch.no_grad():
        shuffled, alone = model.embed(two), model.embed(one)
        model.control = None
        plain = model.embed(two)
    for row in range(2):
        places = two.ids[row] == tokenizer.sensor_id
        a, b = shuffled[row, places], plain[row, places]
        assert not torch.equal(a, b) and torch.equal(a.sum(1).sort().values, b.sum(1).sort().values)
        assert torch.equal(shuffled[row, ~places], plain[row, ~places])
    torch.testing.assert_close(alone[0, one.mask[0]], shuffled[1, two.mask[1]], rtol=0, atol=1e-6)


def test_a_random_llm_is_not_stage_1_s(trained, compared):
    """Frozen as drawn, another for each seed, and found again in its checkpoint."""
    models = {name: load_checkpoint(trained / f"out/controls/{name}/best.safetensors")[0]
              for name in ("full-0", "random-llm-0", "random-llm-1")}
    weights = {name: model.llm.layers[0].mlp.up_proj.weight for name, model in models.items()}
    align = load_checkpoint(trained / "out/align/best.safetensors")[0]
    assert torch.equal(weights["full-0"], align.llm.layers[0].mlp.up_proj.weight)
    assert len({weight.sum().item() for weight in weights.values()}) == 3
    torch.testing.assert_close(models["full-0"].encoder.layers[0].attn.q_proj.weight,
                               models["random-llm-0"].encoder.layers[0].attn.q_proj.weight, rtol=0, atol=0)


def test_a_control_is_evaluated_like_any_model(trained, compared):
    run("evaluate.py", "--checkpoint", "out/controls/encoder-mlp-1", "--limit", 20, "--seed", 1, cwd=trained)
    scores = json.loads((trained / "out/controls/encoder-mlp-1/evaluation_test.json").read_text())
    results = json.loads((trained / "out/controls/encoder-mlp-1/results.json").read_text())
    assert scores["macro_f1"] == pytest.approx(results["macro_f1"])
    assert "encoder-mlp" in (trained / "out/controls/encoder-mlp-1/report_test.md").read_text()


def test_which_runs_are_planned(tmp_path):
    args = Namespace(seed=5, controls=2, out=str(tmp_path / "c"), align="a", text="smry", control=None, answer="class")
    runs = list(planned(args, ALONE))
    assert [name for name, _ in runs] == [*ROWS] * 2 and {run.seed for _, run in runs} == {5, 6}
    assert {run.control for _, run in runs} == {None, *CONTROLS}
    assert len(list(planned(Namespace(**vars(args) | {"controls": 3}), ALONE))) == 3 * len(ROWS)      # more seeds: it goes on
    with pytest.raises(InputError, match="holds a comparison with text smry, not none; choose another --out"):
        list(planned(Namespace(**vars(args) | {"text": "none"}), ALONE))
    bare = Namespace(**vars(args) | {"align": "none", "text": "none", "out": str(tmp_path / "d")})
    assert {name for name, _ in planned(bare, ALONE)} == {"full", *CONTROLS}         # what the full model lacks is no control
    with pytest.raises(InputError, match="class heads"):
        next(planned(Namespace(**vars(args) | {"answer": "text"}), ALONE))


def test_the_table_pairs_seeds():
    """Full minus a control is taken seed by seed."""
    def run_of(f1):
        return {"macro_f1": f1, "accuracy": 0.5, "balanced_accuracy": 0.5, "trained_parameters": 7, "seconds": 3}
    table = controls_table({"full": [run_of(0.5), run_of(0.7)], "no-llm": [run_of(0.4), run_of(0.6)]}, 2)
    assert "| full | the model as it is, after stage 1 | 0.600 ± 0.141 |  |" in table
    assert "| 0.500 ± 0.141 | +0.100 ± 0.000 |" in table and "2 seeds." in table and "2 of them in the test" in table
    assert "± " not in controls_table({"full": [run_of(0.5)]}, 2).split("How to read")[0]


def test_majority():
    class Labels:
        def __init__(self, *labels):
            self.all = list(labels)

        def labels(self):
            return self.all
    scores = majority(Labels(1, 1, 0), Labels(1, 0, 2, 1), 3)
    assert scores["accuracy"] == 0.5 and scores["macro_f1"] == pytest.approx(2 / 3 / 3) and scores["trained_parameters"] == 0
