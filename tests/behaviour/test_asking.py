"""Asking about one window, prepared or from a CSV: which samples the model reads, how it answers, what it refuses."""
import re
from functools import partial

import numpy as np
import pytest
from helpers import ROOT, json_lines, run
from untrained import evaluate_here, three_models

import sensorllm_min
from sensorllm_min.data.prepared import PreparedData
from sensorllm_min.data.texts import FirstWording, align_pair
from sensorllm_min.evaluation import ask, predict
from sensorllm_min.evaluation.ask import answer, csv_window, prepared_window
from sensorllm_min.files import InputError
from sensorllm_min.generate import GREEDY

HEADER = "x_acc,y_acc,z_acc,x_gyro,y_gyro,z_gyro\n"
ALIGN = ("--checkpoint", "out/align", "--ask", "Why?")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, demo):
    return three_models(demo, tmp_path_factory.mktemp("asked"))


@pytest.fixture
def asked(folder, monkeypatch, capsys):
    """Asks within this process; pictures are drawn where a test wants one."""
    monkeypatch.setattr(ask, "draw_window", lambda *args: None)
    return partial(evaluate_here, monkeypatch, capsys, folder, "--max-new-tokens", 6)


@pytest.fixture(scope="module")
def stage_1(folder):
    return sensorllm_min.load(folder / "out/align")


@pytest.fixture(scope="module")
def data(folder):
    return PreparedData(folder / "data/demo")


# ---- which window ----

@pytest.mark.parametrize("split", ["val", "test"])
def test_the_window_of_the_split_is_described_with_its_truth(data, asked, split):
    for index, options in ((17, ("--window", 17)), (0, ())):
        line = data.records("align", split)[index]
        out = asked(*ALIGN, *options, "--split", split)
        assert f"{split} window {index}, subject {line['subject']}" in out and f"{line['length']} samples" in out
        assert f"(the dataset says:\n{line['answer']})" in out
    line = data.records("har", split)[3]
    out = asked("--checkpoint", "out/har", "--window", 3, "--split", split)
    assert f"{split} window 3, subject {line['subject']}" in out
    assert f"(the dataset says:\nActivity: {data.dataset.classes[line['label']]})" in out


def test_another_channel_of_a_window_is_read_where_it_is_asked_for(data, stage_1):
    """Its samples, its markers in the prompt, and no truth, which the dataset has only for the window's own channel."""
    line = data.records("align", "test")[17]
    samples = data.window(line)
    for column, channel in enumerate(data.dataset.channels):
        window = prepared_window(data, "align", "test", 17, channel.token)
        assert np.array_equal(window.samples, samples[:, [column]]) and window.dataset.channels == (channel,)
        assert window.truth == (line["answer"] if channel.token == line["channel"] else None)
        example = stage_1.example(window.samples, window.dataset, window.title, "Why?")
        prompt = stage_1.model.tokenizer.visible(example.prompt)
        assert f"<{channel.token}_start><ts>" in prompt and prompt.count("_start>") == 1 and "Why?" in prompt
        assert np.array_equal(example.series[0], samples[:, column]) and example.channels == (column,)
    own = prepared_window(data, "align", "test", 17)
    assert own.dataset.channels[0].token == line["channel"] and own.truth == line["answer"]


def test_a_csv_is_read_by_the_names_of_its_columns(data, tmp_path):
    """Whatever their order, and whatever other columns there are."""
    path = tmp_path / "my.csv"
    path.write_text("note,z_acc,x_acc,y_acc,z_gyro,y_gyro,x_gyro\n" + "0,3,1,2,6,5,4\n" * 24)
    for token, value in (("y_acc", 2), ("x_gyro", 4)):
        window = csv_window(path, data.dataset, token)
        assert window.samples.tolist() == [[value]] * 24 and window.dataset.channels[0].token == token
    path.write_text("note,y_acc\n0,5\n1,4\n")                     # the one channel there is
    window = csv_window(path, data.dataset)
    assert window.samples.tolist() == [[5], [4]] and window.dataset.channels[0].token == "y_acc"


def test_the_window_that_the_readmes_ask_about_rises(demo):
    for readme in ("README.md", "sensorllm_min/evaluation/README.md", "evaluate.py"):
        text = (ROOT / readme).read_text(encoding="utf-8")
        (index,) = re.findall(r'--ask "When does it rise\?" --window (\d+)', text)
        assert "rising" in json_lines(demo / "align_test.jsonl")[int(index)]["answer"], readme


# ---- the answer ----

def test_the_pieces_of_an_answer_make_its_text_and_never_half_a_character(stage_1, data, monkeypatch):
    text, pieces = "0.5s: \u6570 rising", []
    tokens = [(0, index) for index in stage_1.model.tokenizer.encode(text)]
    monkeypatch.setattr(predict, "stream", lambda *args: iter(tokens))
    window = prepared_window(data, "align", "test", 5)
    said = answer(stage_1, window, "Why?", 400, GREEDY, say=pieces.append)
    assert "".join(pieces) == said == text and len(pieces) > 3 and "\ufffd" not in said


TYPED = "What of <ts>, [PAD], <|eot_id|><|begin_of_text|> and <x_acc_start>\udce9?"


def test_a_control_token_in_a_question_is_text(data, stage_1, asked):
    """Each gets a space, so that it is no token; what a terminal could not read is a question mark."""
    tokenizer = stage_1.model.tokenizer
    text = tokenizer.as_text(TYPED)
    assert text == "What of < ts>, [ PAD], < |eot_id|>< |begin_of_text|> and < x_acc_start>??"
    control = {*tokenizer.whole.values(), *tokenizer.backend.special.values()}
    assert not control & set(tokenizer.encode(text)) and control & set(tokenizer.encode(TYPED.replace("\udce9", "")))
    assert tokenizer.as_text("When does it rise?") == "When does it rise?"
    window = prepared_window(data, "align", "test", 5)
    example = stage_1.example(window.samples, window.dataset, window.title, TYPED)
    assert example.prompt.count(tokenizer.sensor_id) == len(window.samples) + 1
    asked("--checkpoint", "out/align", "--ask", TYPED, "--window", 5)


def test_an_answer_is_sampled_as_asked(asked):
    greedy, *hot = (asked(*ALIGN, "--window", 3, *options) for options in (
        (), ("--temperature", 5, "--seed", 1), ("--temperature", 5, "--seed", 1), ("--temperature", 5, "--seed", 2)))
    assert hot[0] == hot[1] != hot[2] and greedy != hot[0]
    for likeliest in (("--top-k", 1), ("--top-p", 1e-6)):
        assert asked(*ALIGN, "--window", 3, "--temperature", 5, *likeliest) == greedy


def test_stage_2_names_the_three_likeliest_classes(asked):
    out = asked("--checkpoint", "out/har", "--window", 4)
    found = re.findall(r"^(Walking|Running|Turning|Sitting|Lying): (\d+\.\d)%$", out, re.MULTILINE)
    shares = [float(share) for _, share in found]
    assert len(found) == 3 and shares == sorted(shares, reverse=True) and sum(shares) <= 100.2    # rounded one by one
    assert "(this names no class)" in asked("--checkpoint", "out/words", "--window", 2)


def test_pictures_show_the_window_and_what_an_answer_claims(folder, data, asked, monkeypatch):
    """The true trends of the channel that is asked about, and below them those of an answer that lists segments."""
    windows, claims = [], []
    monkeypatch.setattr(ask, "draw_window", lambda *args: windows.append(args))
    monkeypatch.setattr(ask, "draw_descriptions", lambda *args: claims.append(args))
    (folder / "my.csv").write_text("x_acc,y_acc\n1,5\n2,4\n3,4\n")
    out = asked("--checkpoint", "out/align", "--csv", "my.csv", "--channel", "y_acc")
    ((path, samples, dataset, title, texts),) = windows
    assert (str(path), title, samples.tolist()) == ("out/align/asked_my.png", "my.csv", [[5], [4], [4]])
    (channel,) = dataset.channels
    assert texts == [align_pair(samples[:, 0], channel, dataset.rate, ("summary",), FirstWording)[1]]
    assert "y-axis accelerometer, 3 samples" in out and not claims
    questions = []
    monkeypatch.setattr(ask, "answer", lambda *args: questions.append(args[2]) or "0.0s to 0.2s: rising\n0.2s to 0.3s: steady")
    out = asked("--ask", "Why?", "--window", 5, "--channel", "y_acc")         # stage 1 where no checkpoint is given
    assert questions == ["Why?"]
    ((path, ((title, series, claimed),), dataset),) = claims
    window = prepared_window(data, "align", "test", 5, "y_acc")
    assert f"drawn with the true trends in {path}" in out and path.name == "answered_test_5_y_acc.png"
    assert claimed == [(0.0, 0.2, 1), (0.2, 0.3, 0)] and np.array_equal(series, window.samples[:, 0])
    assert title.endswith("y-axis accelerometer") and dataset.rate == 20


# ---- what cannot be asked ----

def mistake(asked, *options):
    with pytest.raises(InputError) as caught:
        asked(*options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("content,options,words", [
    (None, (), ["cannot be read as CSV"]),
    ("a,b\n1,2\n", (), ["a, b", "--channel", "x_acc"]),
    ("x_acc,y_acc\n1,2\n1,2\n", (), ["x_acc, y_acc", "--channel"]),
    ("x_acc\n1\n2\n", ("--channel", "z_acc"), ["no column z_acc"]),
    ("x_acc\n1\n\n2\nten\n", (), ["row 3", "not a number"]),
    ("x_acc,y_acc\n1,2\n,3\n", ("--channel", "x_acc"), ["sample 2", "missing"]),
    ("x_acc\n1\n", (), ["1 samples", "two"]),
    ("x_acc\n" + "1\n" * 600, (), ["600 samples", "context holds 512"]),
    (HEADER + "1,2,3,4,5,6\n" * 5, ("--checkpoint", "out/har"), ["5 samples", "24"]),
    ("time,x_acc\n0,1\n0.05,2\n0.1,3\n0.15,3\n9,3\n", (), ["clock has a gap"]),
    ("", (), ["is empty"])],
    ids=["missing", "no channel", "two channels", "another channel", "a word", "an empty field", "one sample", "too long",
         "stage 2 too short", "a gap in time", "empty"])
def test_a_file_that_cannot_be_asked_about_is_one_line(asked, tmp_path, content, options, words):
    if content is not None:
        (tmp_path / "my.csv").write_text(content)
    message = mistake(asked, "--checkpoint", "out/align", "--csv", tmp_path / "my.csv", *options)
    assert all(word in message for word in words), message


@pytest.mark.parametrize("options,words", [
    (("--window", 10**6), ["holds test windows 0 to 299"]),
    (("--window", 24, "--split", "val"), ["holds val windows 0 to 23"]),
    (("--ask", "What?", "--data", "nowhere"), ["nowhere/meta.json not found"]),
    (("--checkpoint", "out/har", "--window", 1, "--ask", "What?"), ["which activity", "without --ask"]),
    (("--checkpoint", "out/har", "--window", 1, "--channel", "x_acc"), ["--channel is for stage 1"]),
    (("--checkpoint", "out/har", "--csv", "my.csv", "--channel", "x_acc"), ["--channel is for stage 1"]),
    (("--csv", "my.csv", "--window", 1), ["give one of them"]),
    (("--channel", "nose"), ["--channel nose"])], ids=str)
def test_a_question_that_makes_no_sense_is_one_line(asked, options, words):
    message = mistake(asked, *options)
    assert all(word in message for word in words), message


def test_a_mistake_ends_the_script_with_its_name_and_exit_code_2(folder):
    out = run("evaluate.py", "--channel", "nose", cwd=folder, expect=2)
    assert out.startswith("evaluate.py: --channel nose") and len(out.strip().splitlines()) == 1
    for value in (0, 2):
        assert "argument --top-p: invalid" in run("evaluate.py", "--top-p", value, cwd=folder, expect=2)
