"""What a trend text is worth: full marks for the truth, worked-out marks for mistakes, the guess,
groups that add up.
"""

import random
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import quiet
from test_metrics import CHANNEL, TRIALS, random_series
from untrained import small_dataset

from sensorllm_min.data.claims import parse_claims
from sensorllm_min.data.examples import AlignExamples, PromptFormat, sample_texts
from sensorllm_min.data.prepared import PreparedData
from sensorllm_min.data.texts import FirstWording, align_pair
from sensorllm_min.evaluation.trend_scores import (
    TEXT, TRUTH, WIDTH, Guess, count_matches, groups_of, in_one_line, row_of_sums, score_trends,
    scores_of, scores_table, trend_sums, truth_sums)
from sensorllm_min.text_tokenizer import built_tokenizer, train_backend

SERIES = np.array(
    [0, 1, 2, 3, 3, 3, 2, 1, 0, 0, 0.0]
)  # at 10 Hz: up 0.3 s, rests 0.2, down 0.3, rests 0.2
TRUE = align_pair(SERIES, CHANNEL, 10, ("simple_trend", "summary"), FirstWording)[1]
PERFECT = {
    "direction": 1, "segment_f1": 1, "count_error": 0, "duration_error": 0, "overall": 1,
    "well_formed": 1,
}


def scored(text, true=TRUE, series=SERIES, rate=10, ended=True):
    return scores_of(row_of_sums(text, parse_claims(text), true, series, rate, ended))


@TRIALS
@pytest.mark.parametrize(
    "kinds",
    [
        ("simple_trend", "summary"), ("trend", "summary"), ("summary",), ("simple_trend",),
        ("trend",), ("simple_trend", "trend", "summary"),
    ],
    ids="+".join,
)
def test_the_truth_gets_full_marks(kinds, trials):
    """Every wording, many lengths and rates; and what a text of these kinds is silent about is not
    scored.
    """
    rng = np.random.default_rng(0)
    for trial in range(trials):
        series, rate = (
            random_series(rng, int(rng.integers(2, 150))),
            (12.5, 20, 50, 100, 400)[trial % 5],
        )
        text = align_pair(series, CHANNEL, rate, kinds, random.Random(trial))[1]
        scores = scored(text, text, series, rate)
        asked = {
            "well_formed",
            *(
                ("direction", "segment_f1", "count_error", "duration_error")
                if kinds != ("summary",)
                else ("duration_error",)
            ),
            *(("overall",) if "summary" in kinds else ()),
        }
        assert {name for name in TRUTH if scores[name] is not None} == asked
        rounding = (
            3 * (0.00501 if rate <= 100 else 0.000501) / ((len(series) - 1) / rate)
        )  # of the three durations as written
        for name in asked:
            assert scores[name] == pytest.approx(
                PERFECT[name], abs=rounding if name == "duration_error" else 0
            ), text
        assert scores["rouge_l"] == scores["rouge_1"] == 100 and scores["bleu_1"] == pytest.approx(
            100
        )


def test_mistakes_cost_what_they_should():
    assert {name: scored(TRUE)[name] for name in TRUTH} == PERFECT
    lines = (
        "0.0s to 0.3s: rising\n0.3s to 0.5s: steady\n0.5s to 0.8s: falling\n0.8s to 1.0s: steady"
    )
    asked = dict(true=lines)
    assert scored(lines, **asked) | PERFECT == scored(lines, **asked) | {"overall": 1}
    shifted = scored(
        "0.0s to 0.4s: rising\n0.4s to 0.5s: steady\n0.5s to 0.8s: falling\n0.8s to 1.0s: steady",
        **asked,
    )
    # a quarter of three samples is none: the two segments that a sample is off do not count
    assert shifted["segment_f1"] == 0.5 and shifted["direction"] == 0.9
    assert shifted["duration_error"] == pytest.approx(0.2)
    assert shifted["count_error"] == 0
    assert shifted["well_formed"] == 1
    two_off = scored("0.0s to 0.5s: rising\n0.5s to 0.8s: falling\n0.8s to 1.0s: steady", **asked)
    assert two_off["segment_f1"] == pytest.approx(2 * 2 / (3 + 4)) and two_off["direction"] == 0.8
    assert two_off["count_error"] == 1 / 4 and two_off["duration_error"] == pytest.approx(0.4)
    twice = scored(lines + "\n0.0s to 0.3s: rising", **asked)  # said twice, found once
    assert twice["segment_f1"] == pytest.approx(2 * 4 / (5 + 4)) and twice["well_formed"] == 0
    claimed = scored(lines + "\nNumber of rising trends: 3\nNumber of falling trends: 1", **asked)
    assert claimed["count_error"] == pytest.approx(
        (2 + 0 + 2) / 4
    )  # what it says of counts goes before what it lists
    wild = scored(lines + "\nNumber of rising trends: " + "9" * 500, **asked)
    assert wild["count_error"] == pytest.approx((10 - 1 + 1 + 2) / 4)  # at most ten segments fit
    silent = scored("", **asked)
    assert (
        silent["direction"], silent["segment_f1"], silent["count_error"], silent["well_formed"],
    ) == (0, 0, 1, 0)
    assert silent["duration_error"] == pytest.approx(1)


@pytest.mark.parametrize(
    "text,ended,formed",
    [
        ("0.0s to 0.3s: rising", True, 1),
        ("0.0s to 0.3s: rising", False, 0),
        ("0.1s to 0.3s: rising", True, 0),
        ("0.0s to 0.3s: rising\n0.4s to 0.5s: steady", True, 0),
        ("0.0s to 0.3s: rising\n0.3s to 0.3s: steady", True, 0),
        ("0.0s to 0.3s: rising\nand so on", True, 0),
        ("0.0s to 0.3s: rising\n\nThe overall trend is rising.", True, 1),
        ("rising", True, 0),
    ],
)
def test_an_answer_is_well_formed_if_it_ended_holds_claims_alone_and_leaves_no_time_out(
    text, ended, formed
):
    assert scored(text, "0.0s to 1.0s: rising", ended=ended)["well_formed"] == formed


def test_segments_agree_within_the_tolerance_and_once():
    true = [(0, 3, 1), (3, 4, -1), (4, 5, 1), (5, 9, -1)]
    assert count_matches(true, true) == 4 and count_matches([], true) == 0
    assert count_matches([(1, 4, 1)], true) == 0                  # off by a third of it
    assert count_matches([(5, 10, -1)], true) == 1                # by a quarter
    assert count_matches([(5, 11, -1)], true) == 0
    assert count_matches([(2, 5, 1)], true) == 0
    assert count_matches([(0, 3, 1)] * 3, true) == 1 and count_matches([(0, 3, -1)], true) == 0
    # the earliest that fits, so that both find one
    assert count_matches([(2, 10, 1), (0, 8, 1)], [(0, 8, 1), (3, 12, 1)]) == 2


def test_alternation_out_of_phase_matches_no_segment():
    """What a model writes that has learnt the pace of a signal and does not read it."""
    for length in (1, 2, 3, 5, 8):
        true = [(at, at + length, 1 - 2 * (i % 2))
                for i, at in enumerate(range(0, 10 * length, length))]
        for shift in range(1, 2 * length):
            claimed = [(start + shift, end + shift, direction) for start, end, direction in true]
            if 4 * min(shift, 2 * length - shift) > length:
                assert count_matches(claimed, true) == 0


def test_wild_texts_raise_nothing():
    for text in (
        "9" * 400 + "s to 5s: rising",
        "rising rising",
        "0.3s to 0.0s: rising",
        "\n\n\n",
        "rising for " + "9" * 400 + " seconds.",
        "5s to 1s: falling\n" * 50,
        "0.9s to 0.1s: falling\n" * 50,
    ):
        scores = scored(text)
        assert all(score is None or np.isfinite(score) for score in scores.values()), text
        assert scores["duration_error"] <= 3


@pytest.fixture(scope="module")
def examples(demo, tmp_path_factory):
    data = PreparedData(small_dataset(demo, tmp_path_factory.mktemp("scored") / "data/demo"))
    tokenizer = built_tokenizer(train_backend(sample_texts(data), 600), data.dataset.channels, 600)
    prompts = PromptFormat(tokenizer, 512, 4096)
    return {split: AlignExamples(data, split, prompts) for split in ("train", "test")}, data


def test_the_guess_says_what_is_usual_in_its_training_windows(examples):
    """Of fewer than 2000 windows it takes all: its shares are theirs, counted here without the
    project's code.
    """
    examples, data = examples
    guess, train = Guess(examples["train"]), examples["train"]
    windows = [train[i].series[0] for i in range(len(train))]
    signs = [np.sign(np.diff(series)) for series in windows]
    n = sum(map(len, signs))
    share = {d: sum((sign == d).sum() for sign in signs) / n for d in (-1, 0, 1)}
    starts = {
        d: sum((sign[0] == d) + ((sign[1:] == d) & (sign[:-1] != d)).sum() for sign in signs)
        for d in (-1, 0, 1)
    }
    overall = [int(np.sign(series[-1] - series[0])) for series in windows]
    assert guess.share == pytest.approx(share) and guess.usual == max(share, key=share.get)
    seconds = n / 20  # at 20 Hz
    assert guess.pace == pytest.approx({d: starts[d] / seconds for d in starts})
    assert overall.count(guess.overall) == max(map(overall.count, (-1, 0, 1)))
    claims = guess.claims(201)  # ten seconds
    assert claims.segments == [(0.0, 10.0, guess.usual)] and claims.overall == guess.overall
    assert claims.totals == pytest.approx({d: 10 * share[d] for d in share})
    assert claims.counts == {d: round(10 * guess.pace[d]) for d in share}
    assert set(guess.texts) == {channel.token for channel in data.dataset.channels}


class Made:
    """Training examples that are made up: a rising series of each (channel, length), whose text
    names both.
    """

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
    for length, nearest in (
        (1, 5), (5, 5), (7, 5), (8, 10), (10, 10), (14, 10), (16, 20), (29, 20), (31, 40), (99, 40),
    ):
        assert guess.text("x", length) == f"x {nearest}"
    assert guess.text("y", 40) == "y 8"
    assert guess.text("no such channel", 5) in ("x 5", "y 8")


def test_the_guess_samples_so_many_windows_at_most():
    guess = Guess(Made(*(("x", 5 + i) for i in range(30))), n_windows=10)
    assert len(guess.texts["x"]) == 10 and guess.texts["x"] != [
        (5 + i, f"x {5 + i}") for i in range(10)
    ]


def test_groups_add_up_and_equal_the_references(examples):
    """Each group's scores are those of sacrebleu and rouge-score over its windows; channels and
    lengths are parts of all.
    """
    examples, data = examples
    test, guess, records = examples["test"], Guess(examples["train"]), []
    for i in range(0, len(test), 3):
        record = test[i].record
        records.append({
            **record,
            "window": i,
            "generated": guess.text(record["channel"], record["length"] + i % 3),
            "ended": i % 5 > 0,
        })
    scores = score_trends(records, data, guess, quiet)
    assert list(scores)[:7] == ["all", *(channel.token for channel in data.dataset.channels)]
    assert len(scores) == 11
    assert (
        scores["all"]["windows"]
        == len(records)
        == sum(scores[c.token]["windows"] for c in data.dataset.channels)
        == sum(group["windows"] for name, group in scores.items() if "samples" in name)
    )
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import BLEU
    rouge = RougeScorer(["rouge1", "rougeL"])
    for group, members in (
        ("all", records),
        ("y_acc", [record for record in records if record["channel"] == "y_acc"]),
    ):
        texts, truths = zip(*((record["generated"], record["answer"]) for record in members))
        for order in range(1, 5):
            expected = BLEU(max_ngram_order=order).corpus_score(list(texts), [list(truths)]).score
            assert scores[group]["answers"][f"bleu_{order}"] == pytest.approx(expected, abs=1e-9)
        for name, theirs in (("rouge_1", "rouge1"), ("rouge_l", "rougeL")):
            expected = np.mean(
                [rouge.score(truth, text)[theirs].fmeasure for text, truth in zip(texts, truths)]
            )
            assert scores[group]["answers"][name] == pytest.approx(100 * expected, abs=1e-9)
    sums = sum(
        trend_sums(record, data.window(record)[:, list(scores).index(record["channel"]) - 1], guess)
        for record in records
    )
    assert sums.shape == (2, WIDTH)
    assert scores_of(sums[0]) == scores["all"]["answers"]
    assert scores_of(sums[1]) == scores["all"]["guess"]
    ended = np.mean([record["ended"] for record in records])
    assert 0 < scores["all"]["answers"]["well_formed"] <= ended
    table = scores_table(scores)
    assert all(name.replace("_", " ") in table for name in (*TEXT, *TRUTH))
    assert "| x_gyro |" in table
    assert "n/a" in table


def test_tables_and_sentences_put_the_answers_before_the_guess():
    answers = {name: 1.0 for name in (*TEXT, *TRUTH)} | {
        "direction": 0.75,
        "count_error": 0.25,
        "overall": None,
    }
    guess = {name: 0.0 for name in (*TEXT, *TRUTH)} | {
        "direction": 0.5,
        "count_error": 1.5,
        "overall": None,
    }
    table = scores_table({"all": {"windows": 4, "answers": answers, "guess": guess}})
    assert "| direction | 75.0% | 50.0% |" in table and "| bleu 4 | 1.0 | 0.0 |" in table
    assert "| overall | n/a | n/a |" in table
    assert "| all | 4 | 1.0 / 0.0 |" in table
    assert "0.25 / 1.50" in table
    sentence = in_one_line(answers, guess)
    assert sentence.startswith("direction right for 75.0% of the time, guessing gets 50.0%; ")
    assert "count error 0.25 (guess 1.50)" in sentence and "overall" not in sentence


def test_every_length_falls_into_the_quarter_that_names_it():
    quarters = [groups_of({"channel": "a", "length": n}, (5, 200))[2] for n in range(5, 201)]
    assert len(set(quarters)) == 4
    for n, quarter in zip(range(5, 201), quarters):
        first, last = (int(word) for word in quarter.removesuffix(" samples").split(" to "))
        assert first <= n <= last
    assert groups_of({"channel": "a", "length": 4}, (4, 5))[2].endswith("samples")


def test_claims_that_nobody_asked_for_are_not_scored():
    sums = truth_sums(parse_claims(TRUE), parse_claims("The overall trend is rising."), SERIES, 10)
    assert set(sums) == {"overall", "well_formed"} and sums["overall"] == (True, 1)
