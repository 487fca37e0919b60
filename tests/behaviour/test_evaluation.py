"""What evaluate.py writes: seeded samples, scores of both stages, a report that stands alone, and
resuming after a kill.
"""

import base64
import json
import os
import re
import shutil
import signal
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import Run, json_lines, quiet, results
from untrained import ALONE, evaluate_here, save_untrained, small_dataset

import train_align
from sensorllm_min.data.examples import AlignExamples, HarExamples
from sensorllm_min.data.prepared import PreparedData
from sensorllm_min.data.texts import har_answer, reasoning_text, strongest_rhythm
from sensorllm_min.evaluation import predict, report
from sensorllm_min.evaluation.class_scores import class_scores, confusion_of
from sensorllm_min.evaluation.predict import (
    Decoding, classify, describe, read_partial, score_classes, write_as_they_come)
from sensorllm_min.evaluation.report import most_wrong
from sensorllm_min.evaluation.trend_scores import Guess, scores_of
from sensorllm_min.files import InputError, write_json, write_text
from sensorllm_min.generate import Sampling, generate
from sensorllm_min.sensorllm import SensorLLM
from sensorllm_min.training.checkpoint import load_checkpoint

ALIGN = ("--checkpoint", "out/align")
HAR = ("--checkpoint", "out/har")
RECORDS = {"align": "descriptions", "har": "predictions"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, demo):
    """A small dataset, and untrained checkpoints of stage 1, stage 2, and stage 2 with its answer
    in words.
    """
    folder = tmp_path_factory.mktemp("evaluated")
    data = small_dataset(demo, folder / "data/demo")
    save_untrained(folder / "out/align", data, "align")
    save_untrained(folder / "out/har", data, "har")
    save_untrained(folder / "out/words", data, "har", answer="reasoning")
    return folder


@pytest.fixture
def evaluated(folder, monkeypatch, capsys):
    return partial(evaluate_here, monkeypatch, capsys, folder)


@pytest.fixture
def data(folder):
    return PreparedData(folder / "data/demo")


class Interrupted(Exception):
    """What ends an evaluation early, where a test wants it to."""


def scripted(asked, stop_after=None):
    """In place of `describe`: notes the windows it is asked about and answers at once; every second
    answer ended.
    """

    def describe(loaded, examples, processes, decoding, positions, say):
        asked.append([int(examples.index[i]) for i in positions])
        for count, i in enumerate(positions):
            if count == stop_after:
                raise Interrupted
            yield i, "0.0s to 0.1s: rising", count % 2 == 0

    return describe


def scores_in(folder, stage, split="test"):
    return json.loads((folder / f"out/{stage}/evaluation_{split}.json").read_text())


def records_in(folder, stage, split="test"):
    return json_lines(folder / f"out/{stage}/{RECORDS[stage]}_{split}.jsonl")


# ---- which windows ----


@pytest.mark.parametrize(
    "stage,split", [("align", "val"), ("align", "test"), ("har", "val"), ("har", "test")]
)
def test_the_split_that_is_asked_for_is_scored(folder, evaluated, stage, split, monkeypatch):
    """Each record is a line of that split's file, about its subjects alone."""
    monkeypatch.setattr("evaluate.write_report", lambda *args: None)  # tested on its own
    out = evaluated(
        "--checkpoint", f"out/{stage}", "--split", split, "--limit", 8, "--max-new-tokens", 2
    )
    assert f"{split} subjects" in out
    lines = json_lines(folder / f"data/demo/{stage}_{split}.jsonl")
    records = records_in(folder, stage, split)
    assert len(records) == 8 == scores_in(folder, stage, split)["windows"]
    for record in records:
        line = lines[record["window"]]
        shared = line.keys() & record.keys()
        assert {"subject"} < shared and all(record[key] == line[key] for key in shared)
    assert {record["subject"] for record in records} <= {"val": {8}, "test": {9, 10}}[split]


def windows_of(records):
    return sorted(record["window"] for record in records)


@pytest.mark.parametrize("stage", ["align", "har"])
def test_a_limit_takes_a_seeded_sample_and_not_the_first_windows(
    folder, evaluated, stage, monkeypatch
):
    monkeypatch.setattr("evaluate.describe", scripted([]))
    monkeypatch.setattr("evaluate.write_report", lambda *args: None)
    samples = []
    for seed in (3, 3, 4):
        evaluated("--checkpoint", f"out/{stage}", "--limit", 10, "--seed", seed)
        samples.append(windows_of(records_in(folder, stage)))
    assert samples[0] == samples[1] != samples[2]
    for sample in samples:
        assert len(set(sample)) == 10 and sample != list(range(10))


def test_without_a_limit_stage_1_takes_256_windows_and_stage_2_all(folder, evaluated, monkeypatch):
    monkeypatch.setattr("evaluate.describe", scripted([]))
    monkeypatch.setattr("evaluate.write_report", lambda *args: None)
    evaluated(*ALIGN)
    assert len(set(windows_of(records_in(folder, "align")))) == 256
    evaluated(*ALIGN, "--limit", "all")
    assert windows_of(records_in(folder, "align")) == list(range(300))
    evaluated(*HAR)
    assert windows_of(records_in(folder, "har")) == list(range(40))


# ---- interrupted and resumed ----


def killed_and_resumed(folder, evaluated, n_windows, n_records, cut=0):
    """SIGKILL once more than n_records of n_windows are written, bytes cut off the partial file, and the
    evaluation run again.
    """
    command = (
        "--checkpoint", "out/killed", "--limit", n_windows, "--max-new-tokens", 24, "--batch-size",
        4,
    )
    out = folder / "out/killed"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    shutil.copy(folder / "out/align/best.safetensors", out)
    records, partial_file = out / "descriptions_test.jsonl", out / "descriptions_test.jsonl.partial"
    evaluated(*command)
    expected, scores = records.read_bytes(), scores_in(folder, "killed")
    assert len(set(windows_of(json_lines(records)))) == n_windows and not partial_file.exists()
    records.unlink()

    started = Run("evaluate.py", *command, cwd=folder)
    started.wait_until(
        lambda: partial_file.exists() and partial_file.read_bytes().count(b"\n") > n_records + 1
    )
    started.kill(signal.SIGKILL)
    assert started.wait() == -signal.SIGKILL
    assert not records.exists() and not (out / "evaluation_test.json").exists()
    if cut:
        partial_file.write_bytes(partial_file.read_bytes()[:-cut])
    done = partial_file.read_bytes().count(b"\n") - 1  # the first line holds the settings
    assert 0 < done < n_windows
    assert f"resuming an interrupted evaluation: {done} of {n_windows}" in evaluated(*command)
    assert records.read_bytes() == expected
    assert not partial_file.exists()
    assert scores_in(folder, "killed") == scores


def test_a_killed_evaluation_resumes_and_writes_the_same_bytes(folder, evaluated):
    """Also where the kill cut the last line in two: no record is lost, none is doubled."""
    killed_and_resumed(folder, evaluated, 32, 5, cut=25)


@pytest.mark.slow
@pytest.mark.parametrize("n_records,cut", [(1, 0), (17, 1), (40, 0)])
def test_an_evaluation_killed_anywhere_writes_the_same_bytes(folder, evaluated, n_records, cut):
    killed_and_resumed(folder, evaluated, 60, n_records, cut)


@pytest.fixture
def interrupted(folder, evaluated, monkeypatch):
    """An evaluation that ended after 4 of 12 records -> (its options, the 4 windows, all 12)."""
    asked = []
    options = (*ALIGN, "--limit", 12, "--max-new-tokens", 9)
    (folder / "out/align/descriptions_test.jsonl.partial").unlink(missing_ok=True)
    evaluated_once = folder / "out/align/evaluation_test.json"
    evaluated_once.write_text("{}")
    monkeypatch.setattr("evaluate.describe", scripted(asked, stop_after=4))
    with pytest.raises(Interrupted):
        evaluated(*options)
    assert not evaluated_once.exists()  # an interrupted evaluation is no result
    return options, asked[0][:4], asked[0]


def test_the_same_evaluation_resumes_whatever_it_shows_and_however_it_batches(
    interrupted, evaluated, monkeypatch
):
    options, done, all_windows = interrupted
    asked = []
    monkeypatch.setattr("evaluate.describe", scripted(asked))
    assert "4 of 12 windows are done" in evaluated(*options, "--show", 1, "--batch-size", 3)
    assert asked == [all_windows[3:]]  # the second batch of 3 is run whole again


@pytest.mark.parametrize(
    "change",
    [
        ("--seed", 1), ("--limit", 11), ("--max-new-tokens", 8), ("--dtype", "bfloat16"),
        ("--temperature", 0.5), ("--top-k", 3), ("--top-p", 0.5),
    ],
    ids=lambda change: change[0],
)
def test_an_interrupted_evaluation_is_not_resumed_with_another(
    interrupted, folder, evaluated, monkeypatch, change
):
    options, *_ = interrupted
    asked = []
    monkeypatch.setattr("evaluate.describe", scripted(asked))
    out = evaluated(*options, *change)  # the later option wins
    assert "interrupted" not in out
    assert sorted(asked[0]) == windows_of(records_in(folder, "align")) and len(asked[0]) in (11, 12)


def test_an_interrupted_evaluation_of_all_windows_is_not_resumed_with_another_seed(folder, evaluated, monkeypatch):
    """The windows are the same, the sampled answers are not."""
    asked, options = [], (*ALIGN, "--limit", "all", "--temperature", 0.5)
    monkeypatch.setattr("evaluate.describe", scripted(asked, stop_after=40))
    with pytest.raises(Interrupted):
        evaluated(*options)
    monkeypatch.setattr("evaluate.describe", scripted(asked))
    assert "interrupted" not in evaluated(*options, "--seed", 1)
    assert sorted(asked[1]) == list(range(300))


@pytest.mark.parametrize("what", ["checkpoint", "data"])
def test_an_interrupted_evaluation_is_not_resumed_with_other_files(
    interrupted, folder, evaluated, monkeypatch, what
):
    path = (
        folder / {"checkpoint": "out/align/best.safetensors", "data": "data/demo/meta.json"}[what]
    )
    original, asked = path.read_bytes(), []
    monkeypatch.setattr("evaluate.describe", scripted(asked))
    try:
        if what == "data":
            path.write_bytes(original + b"\n")
        else:
            save_untrained(path.parent, folder / "data/demo", "align", seed=5)
        assert "interrupted" not in evaluated(*interrupted[0])
    finally:
        path.write_bytes(original)
    assert len(asked[0]) == 12


def test_a_partial_file_is_read_up_to_its_last_whole_line_and_only_with_its_settings(tmp_path):
    path = tmp_path / "some.partial"
    assert read_partial(path, {"seed": 1}) == []
    path.write_text('{"seed": 1}\n{"window": 4}\n{"window": 5}\n{"window"')
    assert read_partial(path, {"seed": 1}) == [{"window": 4}, {"window": 5}]
    assert read_partial(path, {"seed": 2}) == []


def test_each_record_is_in_the_file_before_the_next_window_is_begun(tmp_path):
    """Short windows come first; a kill may cost the window at work, and none before it."""
    examples = SimpleNamespace(sizes=np.array([30, 10, 20]), index=np.array([7, 8, 9]))
    in_file = []

    def answers(positions):
        for i in positions:
            records = json_lines(tmp_path / "some.partial")
            in_file.append([record.get("window") for record in records])
            yield {"window": int(examples.index[i])}

    write_as_they_come(tmp_path / "some", {"seed": 1}, examples, answers, print)
    assert in_file == [[None], [None, 8], [None, 8, 9]]  # the settings, and a record after another
    assert json_lines(tmp_path / "some") == [{"window": 8}, {"window": 9}, {"window": 7}]


# ---- files ----


@pytest.mark.parametrize("stage", ["align", "har"])
def test_every_file_of_an_evaluation_takes_its_name_when_it_is_whole(
    folder, evaluated, monkeypatch, stage
):
    """Under its final name a file is never written to: it is moved there."""
    moved, replace = [], os.replace

    def noted(source, target):
        moved.append(os.path.basename(target))
        replace(source, target)

    out = folder / f"out/{stage}"
    evaluated("--checkpoint", f"out/{stage}", "--limit", 6, "--max-new-tokens", 2)
    before = {path.name: path.stat().st_ino for path in out.iterdir()}
    monkeypatch.setattr("os.replace", noted)
    evaluated("--checkpoint", f"out/{stage}", "--limit", 6, "--max-new-tokens", 2)
    expected = {f"{RECORDS[stage]}_test.jsonl", "evaluation_test.json"}
    expected |= {"scores_test.md"} if stage == "align" else {"report_test.html", "report_test.md"}
    assert expected <= set(moved) and expected <= before.keys()
    written = {path.name for path in out.iterdir() if path.stat().st_ino != before.get(path.name)}
    assert written <= set(moved)
    untouched = {"best.safetensors", "tokenizer.json"} | {name for name in before if "_val" in name}
    assert before.keys() - set(moved) <= untouched


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    """The old content stays in the old inode, and stays under the name until the new content is
    whole.
    """
    path, kept = tmp_path / "scores.json", tmp_path / "kept"
    write_json(path, {"score": 1})
    os.link(path, kept)
    write_json(path, {"score": 2})
    assert json.loads(kept.read_text()) == {"score": 1} and json.loads(path.read_text()) == {
        "score": 2
    }
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half a file\udcff")
    assert json.loads(path.read_text()) == {"score": 2}


# ---- stage 1: generation ----


def test_an_answer_has_ended_if_it_met_a_stop_token_before_the_limit(folder, data):
    """Each window alone, through `generate`, says what it says in a batch, and whether it ended."""
    loaded = load_checkpoint(folder / "out/align/best.safetensors")
    model, tokenizer = loaded.model, loaded.tokenizer
    examples = AlignExamples(data, "test", loaded.prompts, 12)
    answers = describe(loaded, examples, ALONE, Decoding(5, 6))
    described = {i: (text, ended) for i, text, ended in answers}
    assert {ended for _, ended in described.values()} == {True, False}
    for i in range(len(examples)):
        ((_, batch),) = predict.batches_of(examples, ALONE, 1, [i], for_generation=True)
        (answer,) = generate(model.llm, model.embed(batch), batch.mask, tokenizer.stop_ids, 6)
        assert described[i] == (tokenizer.decode(answer), len(answer) < 6)


def test_progress_is_said_within_a_long_batch_and_between_windows(folder, data, monkeypatch):
    """Where a batch takes longer than the silence that is allowed, its tokens are counted."""
    loaded, said = load_checkpoint(folder / "out/align/best.safetensors"), []
    examples = AlignExamples(data, "test", loaded.prompts, 6)
    positions = predict.short_to_long(examples)

    def described():
        answers = describe(loaded, examples, ALONE, Decoding(3, 5), positions, said.append)
        return list(predict.with_progress(answers, examples, positions, said.append))

    quietly = described()
    assert not said
    monkeypatch.setattr(predict, "SILENCE", -1)
    assert described() == quietly
    assert "3 answers, 1 of at most 5 tokens" in said
    assert [line.split()[0] for line in said if "min left" in line] == [f"{n}/6" for n in range(1, 6)]


def test_an_answer_that_only_repeats_itself_is_not_computed_to_its_end(folder, data, monkeypatch):
    """It is cut off at the limit, not ended, as if it had been."""
    loaded = load_checkpoint(folder / "out/align/best.safetensors")
    examples, loops = AlignExamples(data, "test", loaded.prompts, 4), []
    monkeypatch.setattr(predict, "PATIENCE", 3)
    generation = sys.modules["sensorllm_min.generate"]  # the package's name of it is the function
    monkeypatch.setattr(
        generation, "loop_of", lambda ids, patience: loops.append(patience) or ids[-1:])
    answers = list(describe(loaded, examples, ALONE, Decoding(4, 9)))
    assert len(loops) == sum(not ended for *_, ended in answers) > 0  # one look at each: a loop
    assert set(loops) == {3} and not any(text for _, text, ended in answers if ended)


def test_generation_ends_where_the_llm_s_positions_end(folder, data, monkeypatch):
    """The room of a batch is what its longest prompt leaves; the longest true answer is the limit
    where none is given.
    """
    loaded = load_checkpoint(folder / "out/align/best.safetensors")
    examples = AlignExamples(data, "test", loaded.prompts, 12)
    lengths = [(len(examples[i].prompt), len(examples[i].answer)) for i in range(12)]
    tight = max(map(sum, lengths))  # exactly what the true answers need
    examples.prompts = replace(loaded.prompts, max_positions=tight)
    rooms = []

    def to_the_end(llm, embeds, mask, stop_ids, room, sampling):
        rooms.append(room)
        return ((row, 5) for _ in range(room) for row in range(len(sampling.places)))

    monkeypatch.setattr(predict, "stream", to_the_end)
    made = loaded._replace(model=SimpleNamespace(llm=None, embed=lambda batch: None))
    answers = describe(made, examples, ALONE, Decoding(4, 10_000), positions=list(range(12)))
    ended = [ended for *_, ended in answers]
    longest_prompts = [
        max(prompt for prompt, _ in lengths[start : start + 4]) for start in (0, 4, 8)
    ]
    assert rooms == [tight - prompt for prompt in longest_prompts]
    assert len(ended) == 12 and not any(ended)  # they filled the room: cut off, not ended
    examples.prompts, rooms[:] = loaded.prompts, []
    list(describe(made, examples, ALONE, Decoding(12)))
    assert rooms == [max(answer for _, answer in lengths)]


def test_batch_size_is_how_many_windows_run_together(evaluated, monkeypatch):
    sizes, collate = [], predict.collate

    def noted(examples, *args):
        sizes.append(len(examples))
        return collate(examples, *args)

    monkeypatch.setattr(predict, "collate", noted)
    monkeypatch.setattr("evaluate.write_report", lambda *args: None)
    for checkpoint in (ALIGN, HAR, ("--checkpoint", "out/words")):
        sizes.clear()
        evaluated(*checkpoint, "--limit", 8, "--max-new-tokens", 2, "--batch-size", 3)
        assert sizes == [3, 3, 2]


@pytest.mark.parametrize("checkpoint,stage", [("out/align", "align"), ("out/words", "har")])
def test_answers_are_sampled_as_asked(folder, evaluated, monkeypatch, checkpoint, stage):
    """Sampling differs from greedy decoding and from another seed's; the likeliest token alone is
    greedy decoding.
    """
    monkeypatch.setattr("evaluate.write_report", lambda *args: None)

    def said(*options):
        evaluated("--checkpoint", checkpoint, "--limit", 3, "--max-new-tokens", 6, *options)
        records = json_lines(folder / checkpoint / f"{RECORDS[stage]}_test.jsonl")
        return [
            record["generated"] for record in sorted(records, key=lambda record: record["window"])
        ]

    # all windows of the split, so that the seed changes nothing but what is drawn
    greedy, hot = said(), said("--temperature", 5)
    assert greedy != hot and hot == said("--temperature", 5)
    assert (
        said("--temperature", 5, "--top-k", 1)
        == greedy
        == said("--temperature", 5, "--top-p", 1e-6)
    )
    loaded = load_checkpoint(folder / checkpoint / "best.safetensors")
    examples_of = AlignExamples if stage == "align" else HarExamples
    examples = examples_of(PreparedData(folder / "data/demo"), "test", loaded.prompts, 3)
    drawn = []
    for seed in (0, 1):
        answers = describe(loaded, examples, ALONE, Decoding(3, 6, Sampling(5.0, seed=seed)))
        drawn.append([text for _, text, _ in sorted(answers)])
    assert drawn[0] != drawn[1]


def test_a_sampled_answer_does_not_depend_on_the_batch_it_stands_in(folder, data):
    loaded = load_checkpoint(folder / "out/align/best.safetensors")
    examples = AlignExamples(data, "test", loaded.prompts, 6)

    def said(batch_size):
        decoding = Decoding(batch_size, 6, Sampling(2.0, seed=1))
        return sorted(describe(loaded, examples, ALONE, decoding))

    assert said(6) == said(4) == said(1)


def test_bfloat16_and_the_attention_asked_for_reach_the_model(evaluated, monkeypatch):
    """bfloat16 is computed under autocast, float32 is not."""
    seen = []
    monkeypatch.setattr("evaluate.write_report", lambda *args: None)
    monkeypatch.setattr("evaluate.use_backend", lambda model, attention: seen.append(attention))
    encode = SensorLLM.encode

    def noted(model, batch):
        seen.append(torch.is_autocast_enabled("cpu"))
        return encode(model, batch)

    monkeypatch.setattr(SensorLLM, "encode", noted)
    for dtype, bf16 in (("float32", False), ("bfloat16", True)):
        for checkpoint in (ALIGN, HAR):
            seen.clear()
            evaluated(
                *checkpoint, "--limit", 2, "--max-new-tokens", 2, "--dtype", dtype, "--attention",
                "torch",
            )
            assert seen == ["torch", bf16]


@pytest.mark.parametrize(
    "options,words",
    [
        (("--llm", "elsewhere"), "--llm elsewhere: the checkpoint holds its own"),
        (("--encoder", "elsewhere"), "--encoder elsewhere: the checkpoint holds its own"),
        (("--data", "data/other"), "the checkpoint was trained on demo, data/other holds mhealth"),
        (("--export", "shared"), "--export takes one --checkpoint"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_files_that_do_not_fit_the_checkpoint_are_refused(folder, evaluated, options, words):
    (folder / "data/other").mkdir(exist_ok=True)
    meta = json.loads((folder / "data/demo/meta.json").read_text())
    (folder / "data/other/meta.json").write_text(json.dumps(meta | {"dataset": "mhealth"}))
    with pytest.raises(InputError, match=words):
        evaluated(*(() if "--export" in options else ALIGN), *options)


def test_show_prints_so_many_descriptions_beside_the_true_ones(folder, evaluated, monkeypatch):
    monkeypatch.setattr("evaluate.describe", scripted([]))
    for n in (0, 1, 5):
        out = evaluated(*ALIGN, "--limit", 9, "--show", n)
        assert out.count("generated:\n0.0s to 0.1s: rising\n") == out.count("true:\n") == n
    assert evaluated(*ALIGN, "--limit", 9).count("generated:\n") == 3


# ---- stage 1: scores ----


def test_stage_1_scores_every_window_its_channel_and_its_length(folder, evaluated, monkeypatch):
    monkeypatch.setattr("evaluate.describe", scripted([]))
    out = evaluated(*ALIGN, "--limit", 30)
    scores, records = scores_in(folder, "align"), records_in(folder, "align")
    assert scores["windows"] == 30
    assert {"bleu_4", "rouge_l", "direction", "segment_f1"} <= scores.keys()
    assert scores["overall"] is None  # the demo's texts have no summary
    answers = scores["groups"]["all"]["answers"]
    assert all(scores[name] == answers[name] for name in answers)
    assert (
        sum(group["windows"] for name, group in scores["groups"].items() if "samples" in name) == 30
    )
    assert [record["ended"] for record in records] == [True, False] * 15
    assert scores["well_formed"] == 0.5  # all hold one claim from 0 s; half ended
    table = (folder / "out/align/scores_test.md").read_text()
    assert (
        "`python evaluate.py --checkpoint out/align --limit 30`" in table and "| x_acc |" in table
    )
    assert "Scored on people who were not trained on." in table
    assert table.split("\n\n", 3)[3] in out


def guess_scores(train, lines, data):
    """What `Guess` of these training examples gets on lines of a split."""
    guess = Guess(train)
    columns = {channel.token: column for column, channel in enumerate(data.dataset.channels)}
    return scores_of(
        sum(
            guess.row_of_sums(line, data.window(line)[:, columns[line["channel"]]])
            for line in lines
        )
    )


def test_the_guess_beside_the_scores_has_seen_training_windows_alone(
    folder, evaluated, data, monkeypatch
):
    monkeypatch.setattr("evaluate.describe", scripted([]))
    evaluated(*ALIGN, "--limit", 40)
    scores, records = scores_in(folder, "align"), records_in(folder, "align")
    prompts = load_checkpoint(folder / "out/align/best.safetensors").prompts
    expected, of_test = (
        guess_scores(AlignExamples(data, split, prompts), records, data)
        for split in ("train", "test")
    )
    assert expected["rouge_l"] < of_test["rouge_l"]  # that one would have read the answers
    assert {
        name.removeprefix("guess_"): score
        for name, score in scores.items()
        if name.startswith("guess_")
    } == expected
    assert scores["groups"]["all"]["guess"] == expected


def test_training_stage_1_scores_its_answers_and_a_guess_from_its_training_windows(
    folder, data, monkeypatch
):
    """Every second answer is said not to have ended; the guess has read the 24 training windows and
    no other.
    """

    def answers(loaded, examples, processes, decoding, positions=None, say=None):
        for i in range(len(examples)) if positions is None else positions:
            yield i, "0.0s to 0.1s: rising", i % 2 == 0

    monkeypatch.setattr("train_align.describe", answers)
    monkeypatch.setattr("train_align.warm_up", lambda *args: 1e6)             # seconds
    monkeypatch.chdir(folder)
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "train_align.py", "--train-limit", "24", "--eval-limit", "2", "--test-limit", "20",
            "--epochs", "1", "--projector", "16", "--out", "out/trained",
        ],
    )
    train_align.main()
    found = results(folder / "out/trained")
    prompts = load_checkpoint(folder / "out/trained/best.safetensors").prompts
    train, test = (
        AlignExamples(data, split, prompts, limit)
        for split, limit in (("train", 24), ("test", 20))
    )
    expected = guess_scores(train, [test[i].record for i in range(20)], data)
    # added up one by one here, as an array there: the last digits
    assert found["guess"] == {name: pytest.approx(score) for name, score in expected.items()}
    assert expected["rouge_l"] < 100
    assert found["scores"]["well_formed"] == 0.5
    assert found["direction_accuracy"] == found["scores"]["direction"]
    assert found["seconds"] >= 1e6                                # those of the warm-up count
    assert found["direction_chance"] == found["guess"]["direction"]


# ---- stage 2: scores and report ----


def test_the_report_stands_alone_and_holds_the_scores(folder, evaluated, data, monkeypatch):
    """One HTML file without a link to anything; its pictures are whole SVGs; every part is there,
    and the numbers fit.
    """
    drawn, draw = [], report.draw_signals

    def noted(window, dataset):
        drawn.append(np.array(window))
        return draw(window, dataset)

    monkeypatch.setattr(report, "draw_signals", noted)
    evaluated(*HAR)
    page, table = (
        (folder / f"out/har/report_test.{ending}").read_text() for ending in ("html", "md")
    )
    scores, records = scores_in(folder, "har"), records_in(folder, "har")
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "<script" not in page
    assert "@import" not in page
    pictures = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', page)
    wrong = most_wrong(records)
    assert len(pictures) == 2 + len(wrong) and wrong
    for picture in pictures:
        assert ElementTree.fromstring(base64.b64decode(picture)).tag.endswith("svg")
    assert page.count("<img alt=") == len(pictures) == page.count("<figcaption>")
    lines = json_lines(folder / "data/demo/har_test.jsonl")
    for window, record in zip(drawn, wrong, strict=True):
        assert np.array_equal(window, data.window(lines[record["window"]]))
        assert f"Window {record['window']}, subject {record['subject']}." in page
    for heading in (
        "Confusion matrix",
        "Classes",
        "What it got most wrong",
        "Settings",
        "Data",
        "The training",
        "This evaluation",
    ):
        assert f"<h2>{heading}</h2>" in page
    low, high = scores["intervals"]["macro_f1"]
    for words in (
        f"{scores['macro_f1']:.3f}", f"{low:.3f} to {high:.3f}",
        "python evaluate.py --checkpoint out/har", "Cohen", f"{scores['chance']:.3f}", "smry+Q",
        "9, 10", f"torch {torch.__version__}", "y-axis gyroscope (deg/s)",
        "torchrun train_har.py --epochs 3", "c0ffee", "val loss 0.25", "out/align/best.safetensors",
        "people who were not trained on",
    ):
        assert words in page and words in table, words
    assert len(records) == 40
    assert class_scores(confusion_of(records, 5)[:, :5])["macro_f1"] == scores["macro_f1"]
    assert 'name=viewport' in page and "@media print" in page
    assert page.count("<figure><div><img") == len(pictures)        # a wide one scrolls on a phone
    assert "<thead><tr><th>class</th>" in page                    # and a table's head comes again


def test_a_report_on_validation_subjects_shows_their_windows(folder, evaluated, data, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        report, "draw_signals", lambda window, dataset: drawn.append(np.array(window)) or "<svg/>"
    )
    evaluated(*HAR, "--split", "val")
    table, records = (folder / "out/har/report_val.md").read_text(), records_in(
        folder, "har", "val"
    )
    assert "| val subjects | 8 |" in table and "9, 10" not in table and "val 24" in table
    lines = json_lines(folder / "data/demo/har_val.jsonl")
    for window, record in zip(drawn, most_wrong(records), strict=True):
        assert np.array_equal(window, data.window(lines[record["window"]]))
    correct = np.mean([record["predicted"] == record["label"] for record in records])
    assert f"| accuracy | {correct:.3f} |" in table


def test_intervals_are_drawn_over_subjects(folder, evaluated, monkeypatch):
    """Of two subjects a quarter of the draws holds the worse one alone, a quarter the better one
    alone: the 95 % interval of a share reaches from one subject's share to the other's.
    """
    monkeypatch.setattr("evaluate.write_report", lambda *args: None)
    out = evaluated(*HAR)
    scores, records = scores_in(folder, "har"), records_in(folder, "har")
    shares = sorted(
        np.mean([
            record["predicted"] == record["label"]
            for record in records
            if record["subject"] == subject
        ])
        for subject in (9, 10)
    )
    assert shares[0] < shares[1] and scores["intervals"]["accuracy"] == pytest.approx(shares)
    assert f"accuracy {shares[0]:.3f} to {shares[1]:.3f}" in out


def test_chance_is_the_share_of_the_majority_class_among_the_windows_scored(
    folder, evaluated, data, monkeypatch
):
    monkeypatch.setattr("evaluate.write_report", lambda *args: None)
    evaluated(*HAR, "--limit", 12)
    labels = [record["label"] for record in records_in(folder, "har")]
    chance = max(map(labels.count, labels)) / 12
    train = [line["label"] for line in json_lines(folder / "data/demo/har_train.jsonl")]
    assert scores_in(folder, "har")["chance"] == chance != max(map(train.count, train)) / len(train)


def test_the_most_wrong_windows_are_one_of_each_mistake():
    def record(window, label, predicted, *probabilities):
        return {
            "window": window, "label": label, "predicted": predicted,
            "probabilities": probabilities,
        }

    records = [
        record(0, 0, 0, 0.9, 0.1, 0), record(1, 0, 1, 0.4, 0.6, 0), record(2, 0, 1, 0.1, 0.9, 0),
        record(3, 2, 1, 0, 0.8, 0.2),
    ]
    assert [found["window"] for found in most_wrong(records)] == [2, 3]  # the worst first
    for one in records:
        del one["probabilities"]  # as of answers in words
    assert [found["window"] for found in most_wrong(records)] == [1, 3]
    assert most_wrong(records[:1]) == []


def test_what_a_model_wrote_cannot_become_markup_of_the_report(folder, data):
    record = {
        "window": 0, "subject": 9, "label": 0, "predicted": None,
        "generated": "<script>alert(1)</script>",
    }
    page = report.wrong_window(record, data, data.records("har", "test"))
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "an answer that names no class" in page


@pytest.mark.parametrize("stage", ["align", "har"])
def test_the_loss_is_the_same_in_batches_of_any_size(folder, data, stage):
    """Sums over all that counts, weighted by class in stage 2: no mean of means. Relative 1e-5:
    float32 sums.
    """
    loaded = load_checkpoint(folder / f"out/{stage}/best.safetensors")
    examples_of = AlignExamples if stage == "align" else HarExamples
    examples = examples_of(data, "val", loaded.prompts, 12)
    losses = []
    if stage == "har":
        loaded.model.class_weights = torch.tensor([0.05, 0.1, 0.15, 0.3, 0.4])
        losses = [score_classes(loaded, examples, ALONE, size, quiet)[1] for size in (5, 12)]
    losses += [predict.mean_loss(loaded.model, examples, ALONE, size) for size in (1, 5, 12)]
    assert losses == [pytest.approx(losses[0], rel=1e-5)] * len(losses)


def test_a_long_validation_says_how_far_it_is(folder, data, monkeypatch):
    loaded = load_checkpoint(folder / "out/align/best.safetensors")
    examples, said = AlignExamples(data, "val", loaded.prompts, 12), []
    monkeypatch.setattr(predict, "SILENCE", 0)
    predict.mean_loss(loaded.model, examples, ALONE, 5, said.append)
    done = [int(re.match(r"(\d+)/12 windows, .* min left$", line)[1]) for line in said]
    assert done == list(range(1, 12))


# ---- stage 2: answers in words ----


def test_answers_in_words_are_prompted_by_a_dialogue_and_unreadable_ones_are_counted(
    folder, evaluated, data, monkeypatch
):
    loaded = load_checkpoint(folder / "out/words/best.safetensors")
    recipe, tokenizer = loaded.recipe, loaded.tokenizer
    assert recipe.answer == "reasoning" == loaded.prompts.answer
    assert recipe.n_classes is None and loaded.model.head is None
    examples = HarExamples(data, "test", loaded.prompts, 6)
    example = examples[0]
    prompt, answer = tokenizer.visible(example.prompt), tokenizer.decode(example.answer)
    assert prompt.count("<ts>") == 6
    assert "recognises activities from 6 sensor channels of 24 points" in prompt
    assert prompt.endswith("<|start_header_id|>assistant<|end_header_id|>\n\n")
    window = data.window(example.record)
    assert (
        answer == reasoning_text(
            window, data.dataset
        ) + f"\nActivity: {data.dataset.classes[example.label]}"
    )
    assert har_answer(window, data.dataset, 3, False) == "Activity: Sitting"
    asked, describe_words = [], predict.describe

    def noted(loaded, examples, processes, decoding, positions):
        asked.append(decoding.max_new_tokens)
        return describe_words(loaded, examples, processes, decoding, positions)

    monkeypatch.setattr(predict, "describe", noted)
    out = evaluated("--checkpoint", "out/words", "--limit", 4, "--max-new-tokens", 9)
    assert asked == [9]
    scores, records = scores_in(folder, "words"), json_lines(
        folder / "out/words/predictions_test.jsonl"
    )
    assert scores["unparsable"] == 4 and all(
        record["predicted"] is None and "generated" in record for record in records
    )
    assert "none" in out
    assert "4 of 4 answers name no class" in (folder / "out/words/report_test.md").read_text()


def test_words_are_scored_as_they_read(folder, data, monkeypatch):
    """With a model that says the truth, a wrong class, or nonsense, in turns."""
    loaded = load_checkpoint(folder / "out/words/best.safetensors")
    recipe = loaded.recipe
    examples = HarExamples(data, "test", replace(loaded.prompts, answer="text"), 30)

    def said(loaded, examples, *_):
        for i in range(len(examples)):
            true = examples[i].label
            yield (
                i,
                (
                    f"Activity: {recipe.classes[true]}",
                    f"Activity: {recipe.classes[(true + 1) % 5]}",
                    "Perhaps.",
                )[i % 3],
                True,
            )

    monkeypatch.setattr(predict, "describe", said)
    first, second, third, *_ = classify(loaded, examples, ALONE, Decoding(4))
    assert first["predicted"] == first["label"]
    assert second["predicted"] == (second["label"] + 1) % 5
    assert third["predicted"] is None
    monkeypatch.setattr(predict, "mean_loss", lambda *_: 0.5)
    confusion, loss = score_classes(loaded, examples, ALONE, 4, quiet)
    assert loss == 0.5
    assert confusion.shape == (5, 6)
    assert np.diag(confusion).sum() == 10 == confusion[:, 5].sum()
    assert class_scores(confusion)["accuracy"] == pytest.approx(1 / 3)


def test_reasoning_names_the_channel_of_each_unit_that_varies_most(demo):
    """By how much, around what, and how fast."""
    data = PreparedData(demo)
    seconds = np.arange(60) / 20
    window = np.zeros((60, 6))
    window[:, 1] = 0.5 + 0.2 * np.sin(2 * np.pi * 3 * seconds)  # y_acc swings three times a second
    text = reasoning_text(window, data.dataset)
    assert text == (
        "In g, the y-axis accelerometer varies most, by 0.14 around 0.5, "
        "with its strongest rhythm at 3.0 Hz. "
        "In deg/s, the x-axis gyroscope varies most, by 0.0 around 0.0."
    )
    assert strongest_rhythm(np.cos(2 * np.pi * 5 * seconds) + 9, 20) == 5
