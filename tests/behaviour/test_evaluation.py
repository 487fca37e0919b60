"""What evaluate.py writes: seeded samples, scores of both stages, a report that stands alone, resuming after a kill."""
import base64
import json
import re
import shutil
import signal
import sys
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from helpers import Run, json_lines, quiet, results
from untrained import ALONE, evaluate_here, save_untrained, three_models

import sensorllm_min
import train_align
from sensorllm_min.data.examples import AlignExamples, HarExamples
from sensorllm_min.data.prepared import PreparedData
from sensorllm_min.data.texts import har_answer, reasoning_text, strongest_rhythm
from sensorllm_min.evaluation import predict, report
from sensorllm_min.evaluation.class_scores import class_scores, confusion_of, most_wrong
from sensorllm_min.evaluation.predict import keep_records, score_classes
from sensorllm_min.evaluation.trend_scores import TRUTH, Guess, add_word_scores, score_trends
from sensorllm_min.files import InputError

ALIGN = ("--checkpoint", "out/align")
HAR = ("--checkpoint", "out/har")
RECORDS = {"align": "descriptions", "har": "predictions", "words": "predictions", "killed": "descriptions"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, demo):
    return three_models(demo, tmp_path_factory.mktemp("evaluated"), words="reasoning")


@pytest.fixture(autouse=True)
def without_records(folder):
    """No test reads the answers of another."""
    for path in folder.glob("out/*/*_*.json*"):
        path.unlink()


@pytest.fixture
def evaluated(folder, monkeypatch, capsys):
    return partial(evaluate_here, monkeypatch, capsys, folder)


@pytest.fixture
def unreported(monkeypatch):
    monkeypatch.setattr("evaluate.write_report", lambda *args: None)


@pytest.fixture
def data(folder):
    return PreparedData(folder / "data/demo")


@pytest.fixture(scope="module")
def models(folder):
    return {stage: sensorllm_min.load(folder / "out" / stage) for stage in ("align", "har", "words")}


class Interrupted(Exception):
    """What ends an evaluation early, where a test wants it to."""


def scripted(asked, stop_after=None):
    """In place of `answer_batches`: notes the windows it is asked about and answers at once; every second answer ended."""
    def answer(model, batches, processes, *args, **limits):
        count = 0
        for batch in batches:
            for example in batch:
                if count == stop_after:
                    raise Interrupted
                asked.append(example.index)
                yield {"window": example.index, **example.record, "generated": "0.0s to 0.1s: rising", "ended": count % 2 == 0}
                count += 1

    return answer


@pytest.fixture
def asked(monkeypatch):
    monkeypatch.setattr("evaluate.answer_batches", scripted([]))


def scores_in(folder, stage, split="test"):
    return json.loads((folder / f"out/{stage}/evaluation_{split}.json").read_text())


def records_in(folder, stage, split="test"):
    return json_lines(folder / f"out/{stage}/{RECORDS[stage]}_{split}.jsonl")[1:]


def windows_of(records):
    return sorted(record["window"] for record in records)


# ---- which windows ----

@pytest.mark.parametrize("stage,split", [("align", "val"), ("align", "test"), ("har", "val"), ("har", "test")])
def test_the_split_that_is_asked_for_is_scored(folder, evaluated, unreported, data, stage, split):
    """Each record is one of that split's file, about its subjects."""
    options = ("--split", split, "--limit", 8, "--max-new-tokens", 2)
    assert f"{split} subjects" in evaluated("--checkpoint", f"out/{stage}", *options)
    records = records_in(folder, stage, split)
    assert len(records) == 8 == scores_in(folder, stage, split)["windows"]
    for record in records:
        assert record | data.records(stage, split)[record["window"]] == record
        assert ("predicted" in record) == (stage == "har")
    assert {record["subject"] for record in records} <= {"val": {8}, "test": {9, 10}}[split]


@pytest.mark.parametrize("stage,default,n_all", [("align", 256, 300), ("har", 40, 40)])
def test_a_limit_takes_a_seeded_sample_and_not_the_first_windows(
        folder, evaluated, unreported, asked, stage, default, n_all):
    """Without a limit stage 1 takes 256 windows and stage 2 all."""
    def sample(*options):
        evaluated("--checkpoint", f"out/{stage}", *options)
        return windows_of(records_in(folder, stage))

    samples = [sample("--limit", 10, "--seed", seed) for seed in (3, 3, 4)]
    assert len(set(sample())) == default and sample("--limit", "all") == list(range(n_all))
    assert samples[0] == samples[1] != samples[2]
    assert all(len(set(sample)) == 10 and sample != list(range(10)) for sample in samples)


# ---- interrupted and resumed ----

def test_a_killed_evaluation_resumes_and_writes_the_same_bytes(folder, evaluated):
    """Also where the kill cut the last line in two: no record is lost, none is doubled."""
    command = ("--checkpoint", "out/killed", "--limit", 32, "--max-new-tokens", 24, "--batch-size", 4)
    out = folder / "out/killed"
    out.mkdir()
    shutil.copy(folder / "out/align/best.safetensors", out)
    path = out / "descriptions_test.jsonl"
    evaluated(*command)
    expected, scores = path.read_bytes(), scores_in(folder, "killed")
    assert len(set(windows_of(records_in(folder, "killed")))) == 32
    path.unlink()

    started = Run("evaluate.py", *command, cwd=folder)
    started.wait_until(lambda: path.exists() and path.read_bytes().count(b"\n") > 6)
    started.kill(signal.SIGKILL)
    assert started.wait() == -signal.SIGKILL and not (out / "evaluation_test.json").exists()
    path.write_bytes(path.read_bytes()[:-25])
    done = (path.read_bytes().count(b"\n") - 1) // 4 * 4          # the first line holds the settings; whole batches
    assert 0 < done < 32
    assert f"descriptions_test.jsonl holds {done} of 32 answers" in evaluated(*command, "--show", 1)
    assert path.read_bytes() == expected
    assert scores_in(folder, "killed") | {"command": ""} == scores | {"command": ""}


@pytest.fixture
def interrupted(folder, evaluated, monkeypatch):
    """An evaluation that ended after 5 of 12 records -> its options, and the windows that a scripted model gets next."""
    then, options = [], (*ALIGN, "--limit", 12, "--max-new-tokens", 9, "--batch-size", 2)
    evaluated_once = folder / "out/align/evaluation_test.json"
    evaluated_once.write_text("{}")
    monkeypatch.setattr("evaluate.answer_batches", scripted([], stop_after=5))
    with pytest.raises(Interrupted):
        evaluated(*options)
    assert not evaluated_once.exists()                            # an interrupted evaluation is no result
    monkeypatch.setattr("evaluate.answer_batches", scripted(then))
    return options, then


@pytest.mark.parametrize("change", [
    ("--seed", 1), ("--limit", 11), ("--max-new-tokens", 8), ("--dtype", "bfloat16"), ("--temperature", 0.5),
    ("--top-k", 3), ("--top-p", 0.5), ("--batch-size", 3), ("checkpoint",), ("data",)], ids=lambda change: change[0])
def test_an_interrupted_evaluation_is_not_resumed_with_another(interrupted, folder, evaluated, change):
    """With another option, checkpoint or dataset; the later of two options wins."""
    options, then = interrupted
    checkpoint, meta = folder / "out/align/best.safetensors", folder / "data/demo/meta.json"
    original = checkpoint.read_bytes(), meta.read_bytes()
    if change == ("checkpoint",):
        save_untrained(checkpoint.parent, folder / "data/demo", "align", seed=5)
    elif change == ("data",):
        meta.write_bytes(original[1] + b"\n")
    else:
        options += change
    try:
        assert "answers; remove it" not in evaluated(*options)
    finally:
        checkpoint.write_bytes(original[0])
        meta.write_bytes(original[1])
    assert sorted(then) == windows_of(records_in(folder, "align")) and len(then) in (11, 12)


def test_records_are_read_up_to_the_last_whole_batch_and_only_with_their_settings(tmp_path):
    """Each new record is in the file before the next one is made; a broken file is named."""
    path, in_file = tmp_path / "some.jsonl", []

    def answer(n_done):
        for window in range(n_done, 5):
            in_file.append(len(json_lines(path)) - 1)
            yield {"window": window}

    expected = [{"window": window} for window in range(5)]
    assert keep_records(path, {"seed": 1}, answer, 2) == expected == json_lines(path)[1:] and in_file == [0, 1, 2, 3, 4]
    path.write_text(path.read_text()[:-3])
    assert keep_records(path, {"seed": 1}, answer, 2) == expected and in_file[5:] == [4]
    assert keep_records(path, {"seed": 2}, answer, 2) == expected and in_file[6:] == [0, 1, 2, 3, 4]
    path.write_text('{"seed": 2}\nnot a record\n{"window": 1}\n')
    with pytest.raises(InputError, match="some.jsonl .* remove it"):
        keep_records(path, {"seed": 2}, answer, 2)


# ---- answers ----

def test_batch_size_is_how_many_windows_run_together(evaluated, unreported, monkeypatch):
    sizes, collate = [], predict.collate
    monkeypatch.setattr(predict, "collate", lambda examples, *args, **rest: sizes.append(len(examples))
                        or collate(examples, *args, **rest))
    for checkpoint in ("out/align", "out/har", "out/words"):
        sizes.clear()
        evaluated("--checkpoint", checkpoint, "--limit", 8, "--max-new-tokens", 2, "--batch-size", 3)
        assert sizes == [3, 3, 2]


@pytest.mark.parametrize("stage", ["align", "words"])
def test_answers_are_sampled_as_asked(folder, evaluated, unreported, stage):
    """Sampling differs from greedy decoding; only the likeliest token is greedy decoding."""
    def said(*options):
        evaluated("--checkpoint", f"out/{stage}", "--limit", 3, "--max-new-tokens", 6, *options)
        return [record["generated"] for record in records_in(folder, stage)]

    greedy, hot = said(), said("--temperature", 5)
    assert greedy != hot == said("--temperature", 5)
    assert said("--temperature", 5, "--top-k", 1) == greedy == said("--temperature", 5, "--top-p", 1e-6)


@pytest.mark.parametrize("options,words", [
    (("--llm", "elsewhere"), "--llm elsewhere: the checkpoint holds its own"),
    (("--encoder", "elsewhere"), "--encoder elsewhere: the checkpoint holds its own"),
    (("--data", "data/other"), "the checkpoint was trained on demo, data/other holds mhealth")], ids=lambda value: value[0])
def test_files_that_do_not_fit_the_checkpoint_are_refused(folder, evaluated, options, words):
    (folder / "data/other").mkdir(exist_ok=True)
    meta = json.loads((folder / "data/demo/meta.json").read_text())
    (folder / "data/other/meta.json").write_text(json.dumps(meta | {"dataset": "mhealth"}))
    with pytest.raises(InputError, match=words):
        evaluated(*ALIGN, *options)


# ---- stage 1: scores ----

def test_stage_1_scores_every_window_and_its_channel(folder, evaluated, data, asked):
    out = evaluated(*ALIGN, "--limit", 30, "--show", 4)
    scores, records = scores_in(folder, "align"), records_in(folder, "align")
    assert scores["windows"] == 30 and scores["command"] == "python evaluate.py --checkpoint out/align --limit 30 --show 4"
    assert {"bleu_4", "rouge_l", "direction", "segment_f1"} <= scores.keys()
    answers, groups = scores["groups"]["all"]["answers"], scores["groups"]
    assert all(scores[name] == answers[name] for name in answers)
    assert sum(groups[token]["windows"] for token in data.tokens if token in groups) == 30
    assert [record["ended"] for record in records] == [True, False] * 15
    assert scores["well_formed"] == 0.5                           # all hold one claim from 0 s; half ended
    assert "30 windows of people who were not trained on" in out and "direction right for" in out
    assert out.count("generated:\n0.0s to 0.1s: rising\n") == out.count("true:\n") == 4
    assert (folder / "out/align/descriptions_test.png").read_bytes().startswith(b"\x89PNG")


def guess_scores(train, records, data):
    """What `Guess` of these training examples gets on records of a split."""
    answered = [{**record, "generated": "", "ended": True} for record in records]
    guess = Guess(train)
    scores = score_trends(answered, data, guess, ALONE)
    add_word_scores(scores, answered, guess)
    return scores["all"]["guess"]


def test_the_guess_beside_the_scores_has_seen_only_training_windows(folder, evaluated, data, asked, models):
    evaluated(*ALIGN, "--limit", 40)
    scores, records = scores_in(folder, "align"), records_in(folder, "align")
    expected, of_test = (guess_scores(AlignExamples(data, split, models["align"].prompts), records, data)
                         for split in ("train", "test"))
    assert expected["rouge_l"] < of_test["rouge_l"]               # that one would have read the answers
    assert expected == scores["groups"]["all"]["guess"]


def test_training_stage_1_scores_its_answers_and_a_guess_from_its_training_windows(folder, data, monkeypatch):
    """Every second answer is said not to have ended; the guess has read the 24 training windows and no other."""
    monkeypatch.setattr("train_align.answer_batches", scripted([]))
    late, clock = [], time.monotonic
    monkeypatch.setattr("train_align.warm_up", lambda *args: late.append(1e6))    # seconds
    monkeypatch.setattr(time, "monotonic", lambda: clock() + sum(late))
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["train_align.py", *"--train-limit 24 --eval-limit 2 --test-limit 20 --epochs 1 "
                                      "--projector 16 --out out/trained".split()])
    train_align.main()
    found, prompts = results(folder / "out/trained"), sensorllm_min.load(folder / "out/trained").prompts
    train, test = (AlignExamples(data, split, prompts, limit) for split, limit in (("train", 24), ("test", 20)))
    expected = guess_scores(train, [example.record for example in test], data)
    assert found["guess"] == {name: pytest.approx(expected[name]) for name in TRUTH}              # added in another order
    assert found["scores"]["well_formed"] == 0.5
    assert found["seconds"] >= 1e6                                # those of the warm-up count


# ---- stage 2: scores and report ----

@pytest.mark.parametrize("split", ["test", "val"])
def test_the_report_stands_alone_and_holds_the_scores(folder, evaluated, data, monkeypatch, split):
    """One HTML file without a link to anything; its pictures are PNGs of the split's windows; the numbers fit."""
    drawn, draw = [], report.draw_signals
    monkeypatch.setattr(report, "draw_signals", lambda window, dataset: drawn.append(np.array(window)) or draw(window, dataset))
    evaluated(*HAR, "--split", split)
    page = (folder / f"out/har/report_{split}.html").read_text()
    scores, records = scores_in(folder, "har", split), records_in(folder, "har", split)
    assert not re.search(r'(src|href)=["\'](?!data:)', page) and "<script" not in page and "@import" not in page
    assert "name=viewport" in page and page.count("<figure><img") == page.count("<figcaption>")
    pictures = re.findall(r"base64,([^'\"]+)", page)
    wrong = most_wrong(records)
    assert len(pictures) == 1 + len(wrong) == page.count("<img") and wrong
    assert all(base64.b64decode(picture).startswith(b"\x89PNG") for picture in pictures)
    lines = json_lines(folder / f"data/demo/har_{split}.jsonl")
    for window, record in zip(drawn, wrong, strict=True):
        assert np.array_equal(window, data.window(lines[record["window"]]))
        assert f"Window {record['window']}, subject {record['subject']}:" in page
    for words in (f"{scores['macro_f1']:.3f}", *(f"<td>{f1:.4f}</td>" for f1 in scores["per_class"]["f1"]), f"{scores['chance']:.3f}",
                  *(f"<td>{person['f1']:.4f}</td>" for person in scores["people"].values()),
                  "python evaluate.py --checkpoint out/har", "smry", f"torch {torch.__version__}", "c0ffee",
                  "torchrun train_har.py --epochs 3", "out/align/best.safetensors", "people who were not trained on"):
        assert words in page, words
    assert class_scores(confusion_of(records, 5)[:, :5])["macro_f1"] == scores["macro_f1"]


def test_names_and_answers_cannot_become_markup_of_the_report(folder, data, models):
    """Names of classes, of a source, and what a model wrote."""
    markup = "<script>alert(1)</script>"
    hostile = replace(data.dataset, classes=(markup, "b_c", "c", "d", "e"), url=markup)
    data.dataset, data.name = hostile, markup
    records = [{**data.records("har", "test")[i], "window": i, "label": 0, "predicted": None, "generated": markup}
               for i in range(2)]
    scores = {**class_scores(np.eye(5, 6)), "unparsable": 2, "confusion": np.eye(5, 6, dtype=int),
              "people": {markup: {"f1": 1.0}}}
    path = folder / "hostile.html"
    report.write_report(path, records, scores, models["words"], data)
    page = path.read_text()
    assert "<script" not in page and page.count("&lt;script&gt;alert(1)") >= 4
    assert "predicted as no class" in page and "<th>b_c</th>" in page


def test_each_person_is_scored_and_chance_is_of_the_windows_scored(folder, evaluated, unreported):
    out = evaluated(*HAR)
    scores, records = scores_in(folder, "har"), records_in(folder, "har")
    for subject in (9, 10):
        right = [record["predicted"] == record["label"] for record in records if record["subject"] == subject]
        person = scores["people"][str(subject)]
        assert (person["accuracy"], person["windows"]) == (np.mean(right), len(right))
        assert f"{person['accuracy']:.4f}" in out and f"{person['f1']:.4f}" in out
    evaluated(*HAR, "--limit", 12)
    labels = [record["label"] for record in records_in(folder, "har")]
    chance = max(map(labels.count, labels)) / 12
    train = [line["label"] for line in json_lines(folder / "data/demo/har_train.jsonl")]
    assert scores_in(folder, "har")["chance"] == chance != max(map(train.count, train)) / len(train)


# ---- stage 2: answers in words ----

def test_answers_in_words_are_prompted_by_a_dialogue_and_unreadable_ones_are_counted(folder, evaluated, data, models):
    model, tokenizer = models["words"], models["words"].model.tokenizer
    assert model.prompts.answer == "reasoning" and model.model.head is None
    example = HarExamples(data, "test", model.prompts, 6)[0]
    prompt, answer = tokenizer.visible(example.prompt), tokenizer.decode(example.answer)
    assert prompt.count("<ts>") == 6 and "recognises activities from 6 sensor channels of 24 points" in prompt
    assert prompt.endswith("<|start_header_id|>assistant<|end_header_id|>\n\n")
    window = data.window(example.record)
    assert answer == f"{reasoning_text(window, data.dataset)}\nActivity: {data.dataset.classes[example.label]}"
    assert har_answer(window, data.dataset, 3, False) == "Activity: Sitting"
    out = evaluated("--checkpoint", "out/words", "--limit", 4, "--max-new-tokens", 9)
    records = records_in(folder, "words")
    assert scores_in(folder, "words")["unparsable"] == 4 and "none" in out
    assert all(record["predicted"] is None and "generated" in record for record in records)
    assert "name no class, which are wrong: 4" in (folder / "out/words/report_test.html").read_text()


def test_words_are_scored_as_they_read(data, models, monkeypatch):
    """With a model that says the truth, a wrong class, or nonsense, in turns."""
    classes, model = data.dataset.classes, models["words"]

    def said(model, batches, *args):
        for i, example in enumerate(example for batch in batches for example in batch):
            texts = f"Activity: {classes[example.label]}", f"Activity: {classes[(example.label + 1) % 5]}", "Perhaps."
            yield {**example.record, "generated": texts[i % 3]}

    monkeypatch.setattr(predict, "answer_batches", said)
    monkeypatch.setattr(predict, "mean_loss", lambda *_: 0.5)
    scores, loss = score_classes(model.model, HarExamples(data, "test", model.prompts, 30), ALONE, 4, quiet)
    confusion = np.array(scores["confusion"])
    wrong = confusion[:, :5][range(5), [1, 2, 3, 4, 0]].sum()
    assert loss == 0.5 and np.diag(confusion).sum() == wrong == confusion[:, 5].sum() == 10


def test_reasoning_names_the_channel_of_each_unit_that_varies_most(demo):
    """By how much, around what, and how fast."""
    window, seconds = np.zeros((60, 6)), np.arange(60) / 20
    window[:, 1] = 0.5 + 0.2 * np.sin(2 * np.pi * 3 * seconds)    # y_acc swings three times a second
    assert reasoning_text(window, PreparedData(demo).dataset) == (
        "In g, the y-axis accelerometer varies most, by 0.14 around 0.5, with its strongest rhythm at 3.0 Hz. "
        "In deg/s, the x-axis gyroscope varies most, by 0.0 around 0.0.")
    assert strongest_rhythm(np.cos(2 * np.pi * 5 * seconds) + 9, 20) == 5
