"""What a trend text is worth: worked-out marks for mistakes, the guess, sums that add up."""
from types import SimpleNamespace

import numpy as np
import pytest
from test_metrics import CHANNEL
from untrained import ALONE, small_dataset

from sensorllm_min.data.claims import parse_claims
from sensorllm_min.data.examples import AlignExamples, PromptFormat, sample_texts
from sensorllm_min.data.prepared import PreparedData
from sensorllm_min.data.texts import FirstWording, align_pair
from sensorllm_min.evaluation.trend_scores import (
    TRUTH, WORDS, Guess, add_word_scores, count_matches, in_one_line, score_trends, scores_table, truth_sums,
    word_scores)
from sensorllm_min.text_tokenizer import built_tokenizer, new_tokens, train_backend

SERIES = np.array([0, 1, 2, 3, 3, 3, 2, 1, 0, 0, 0.0])            # at 10 Hz: up .3 s, rest .2, down .3, rest .2
LINES = "0.0s to 0.3s: rising\n0.3s to 0.5s: steady\n0.5s to 0.8s: falling\n0.8s to 1.0s: steady"
TRUE = align_pair(SERIES, CHANNEL, 10, ("simple_trend", "summary"), FirstWording)[1]


DATASET = SimpleNamespace(rate=10, smooth=0, band=0)


def scored(text, true=LINES, series=SERIES, ended=True):
    """{name: score} of one answer, for what the true text lists."""
    sums = truth_sums(parse_claims(text), parse_claims(true), series, DATASET, ended)
    return {name: part / whole for name, (part, whole) in sums.items()}


@pytest.mark.parametrize("text,direction,segment_f1", [
    (TRUE, 1, 1), (LINES, 1, 1), ("", 0, 0),
    # a quarter of three samples is less than one: the two segments that a sample is off do not count
    (LINES.replace("0.3s", "0.4s"), 0.9, 0.5),
    ("0.0s to 0.5s: rising\n0.5s to 0.8s: falling\n0.8s to 1.0s: steady", 0.8, 2 * 2 / (3 + 4)),
    (LINES.replace("falling", "rising"), 0.7, 0.75),
    (LINES + "\n0.0s to 0.3s: rising", 1, 2 * 4 / (5 + 4)),       # said twice, found once
    ("0.0s to 0.3s: rising", 0.3, 2 / 5),                         # silence is wrong
    ("0.0s to 1.0s: steady", 0.4, 0)])
def test_mistakes_cost_what_they_should(text, direction, segment_f1):
    scores = scored(text)
    assert (scores["direction"], scores["segment_f1"]) == (direction, pytest.approx(segment_f1))


@pytest.mark.parametrize("text,ended,formed", [
    (LINES, True, 1), (LINES + "\n0.0s to 0.3s: rising", True, 0), ("", True, 0),
    ("0.0s to 0.3s: rising", True, 1), ("0.0s to 0.3s: rising", False, 0), ("0.1s to 0.3s: rising", True, 0),
    ("0.0s to 0.3s: rising\n0.4s to 0.5s: steady", True, 0), ("0.0s to 0.3s: rising\n0.3s to 0.3s: steady", True, 0),
    ("0.0s to 0.3s: rising\nand so on", True, 0), ("rising", True, 0),
    ("0.0s to 0.3s: rising\n\nThe overall trend is rising.", True, 1)])
def test_an_answer_is_well_formed_if_it_ended_holds_only_claims_and_leaves_no_time_out(text, ended, formed):
    assert scored(text, ended=ended)["well_formed"] == formed


@pytest.mark.parametrize("text,right,formed", [
    ("level: 1.49 g\nrange: 3.0 g\nrhythm: 0.9 Hz", 3, 1), ("the level is 1.2 g\nrange 3.29\nrhythm 1.01 Hz", 1, 1),
    ("level: -1.49 g\nrange: 3.0 g\nrhythm: 0.9 Hz", 2, 1), ("level: 1.49 g\nrange: 3.0 g", 2, 0), ("", 0, 0)])
def test_facts_are_right_to_a_tenth(text, right, formed):
    """Of SERIES: level 15/11, range 3, a rhythm of 10/11 Hz."""
    scores = scored(text, "level: 1.4 g\nrange: 3.0 g\nrhythm: 0.91 Hz")
    assert scores == {"facts": right / 3, "well_formed": formed}


def test_segments_agree_within_the_tolerance_and_once():
    true = [(0, 3, 1), (3, 4, -1), (4, 5, 1), (5, 9, -1)]
    assert count_matches(true, true) == 4 and count_matches([], true) == 0
    assert count_matches([(1, 4, 1)], true) == 0                  # off by a third of it
    assert count_matches([(5, 10, -1)], true) == 1                # by a quarter
    assert count_matches([(5, 11, -1)], true) == 0 == count_matches([(2, 5, 1)], true)
    assert count_matches([(0, 3, 1)] * 3, true) == 1 and count_matches([(0, 3, -1)], true) == 0
    alternating = [(3 * i, 3 * i + 3, (-1) ** i) for i in range(10)]
    out_of_phase = [(start + 1, end + 1, direction) for start, end, direction in alternating]
    assert count_matches(out_of_phase, alternating) == 0          # the right pace, without reading the signal
    # the earliest that fits, so that both find one
    assert count_matches([(2, 10, 1), (0, 8, 1)], [(0, 8, 1), (3, 12, 1)]) == 2


def test_wild_texts_raise_nothing():
    for text in ("9" * 400 + "s to 5s: rising", "rising rising", "0.3s to 0.0s: rising", "\n\n\n",
                 "rising for " + "9" * 400 + " seconds.", "5s to 1s: falling\n" * 50):
        assert scored(text)["direction"] == 0 and all(0 <= score <= 1 for score in scored(text).values()), text


# ---- the guess ----

@pytest.fixture(scope="module")
def examples(demo, tmp_path_factory):
    data = PreparedData(small_dataset(demo, tmp_path_factory.mktemp("scored") / "data/demo"))
    tokenizer = built_tokenizer(train_backend(sample_texts(data), 600), new_tokens(data.dataset.channels), 600)
    prompts = PromptFormat(tokenizer, 512, 4096)
    return {split: AlignExamples(data, split, prompts) for split in ("train", "test")}, data


def test_the_guess_claims_what_is_usual_in_its_training_windows(examples):
    """Of fewer than 2000 windows it takes all; their seconds are counted here without the project's code."""
    examples, data = examples
    guess, train = Guess(examples["train"]), examples["train"]
    signs = np.concatenate([np.sign(np.diff(train[i].series[0])) for i in range(len(train))])
    seconds = {d: (signs == d).sum() / 20 for d in (-1, 0, 1)}    # at 20 Hz
    assert guess.seconds == pytest.approx(seconds) and guess.usual == max(seconds, key=seconds.get)
    lines = guess.claims("x_acc", 201, parse_claims(LINES))
    assert lines.segments == [(0.0, 10.0, guess.usual)] and lines.facts == {}
    asked = guess.claims("y_acc", 201, parse_claims("level: 0.5 g"))
    means = [train[i].series[0].mean() for i in range(len(train)) if train[i].record["channel"] == "y_acc"]
    assert asked.segments == [] and asked.facts == {"level": pytest.approx(np.median(means), rel=1e-6)}
    assert set(guess.texts) == set(data.tokens)


class Made:
    """Training examples that are made up: a rising series of each (channel, length), whose text names both."""

    def __init__(self, *windows):
        self.windows = windows
        self.data = SimpleNamespace(dataset=SimpleNamespace(rate=20, smooth=0, band=0))

    def __len__(self):
        return len(self.windows)

    def __getitem__(self, i):
        channel, length = self.windows[i]
        record = {"channel": channel, "length": length, "answer": f"{channel} {length}"}
        return SimpleNamespace(series=[np.arange(length, dtype=float)], record=record)


def test_the_guess_s_text_is_of_the_same_channel_and_the_nearest_length():
    guess = Guess(Made(("x", 20), ("x", 5), ("y", 8), ("x", 10), ("x", 40)))
    for length, nearest in ((1, 5), (5, 5), (7, 5), (8, 10), (10, 10), (14, 10), (16, 20), (31, 40), (99, 40)):
        assert guess.text("x", length) == f"x {nearest}"
    assert guess.text("y", 40) == "y 8" and guess.text("no such channel", 5) in ("x 5", "y 8")
    sample = Guess(Made(*(("x", 5 + i) for i in range(30))), n_windows=10).texts["x"]
    assert len(sample) == 10 and sample != [(5 + i, f"x {5 + i}") for i in range(10)]


# ---- many answers ----

def test_words_score_as_worked_out():
    """Lin's example of ROUGE; BLEU of 4 words, 3 of them true, 1 of 3 pairs: sqrt(3/4 * 1/3), and none of 3 in a row."""
    scores = word_scores(["the gunman kill police"], ["police killed the gunman"])
    assert (scores["rouge_1"], scores["rouge_l"], scores["bleu_1"]) == pytest.approx((75, 50, 75))
    assert scores["bleu_2"] == pytest.approx(50) and scores["bleu_3"] > scores["bleu_4"] > 0      # smoothed
    longer = word_scores(["a b", "a b c d"], ["a b c d", "a b c d"])
    assert longer["bleu_1"] == pytest.approx(100 * np.exp(1 - 8 / 6)) and longer["rouge_l"] == pytest.approx(250 / 3)
    assert set(word_scores(["", "a"], ["", "b"]).values()) == {0.0}

def test_groups_and_processes_add_up(examples):
    """Channels are parts of all, scored as if alone; so are the records of two processes."""
    examples, data = examples
    test, guess, records = examples["test"], Guess(examples["train"]), []
    for i in range(0, len(test), 3):
        record = test[i].record
        text = guess.text(record["channel"], record["length"] + i % 3)
        records.append({**record, "window": i, "generated": text, "ended": i % 5 > 0})
    scores = score_trends(records, data, guess, ALONE)
    assert list(scores) == ["all", *data.tokens]
    assert scores["all"]["windows"] == len(records) == sum(scores[token]["windows"] for token in data.tokens)
    of_y = [record for record in records if record["channel"] == "y_acc"]
    assert score_trends(of_y, data, guess, ALONE) == {"all": scores["y_acc"], "y_acc": scores["y_acc"]}
    ended = np.mean([record["ended"] for record in records])
    assert 0 < scores["all"]["answers"]["well_formed"] <= ended and scores["all"]["guess"]["well_formed"] == 1

    halves = []                                                   # what each of two processes adds
    for part in (records[::2], records[1::2]):
        score_trends(part, data, guess, SimpleNamespace(sum=lambda *sums: halves.append(sums) or sums))
    again = score_trends([], data, guess, SimpleNamespace(sum=lambda *sums: np.sum(halves, 0)))
    for who in ("answers", "guess"):
        assert again["all"][who] == pytest.approx(scores["all"][who])
    assert again["all"]["windows"] == len(records)
    add_word_scores(scores, records, guess)
    true, said = [record["answer"] for record in of_y], [record["generated"] for record in of_y]
    guessed = [guess.text("y_acc", record["length"]) for record in of_y]
    for who, texts in (("answers", said), ("guess", guessed)):
        assert word_scores(texts, true).items() <= scores["y_acc"][who].items()
    assert all(token in scores_table(scores) for token in data.tokens)


def test_tables_and_sentences_put_the_answers_before_the_guess():
    answers = dict.fromkeys((*WORDS, *TRUTH), 1.0) | {"direction": 0.75, "segment_f1": None, "facts": 0.25}
    guess = dict.fromkeys((*WORDS, *TRUTH), 0.0) | {"direction": 0.5, "segment_f1": None}
    scores = {"all": {"windows": 4, "answers": answers, "guess": guess}}
    table = scores_table(scores)
    assert all(text in table for text in ("75.0% / 50.0%", "1.0 / 0.0", "n/a / n/a", "bleu_4", "segment_f1"))
    assert in_one_line(scores) == ("direction right for 75.0% of the time, guessing gets 50.0%; "
                                   "facts 25.0% (guess 0.0%); well formed 100.0% (guess 0.0%)")
