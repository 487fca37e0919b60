"""What a trend text is worth: full marks for the truth, worked-out marks for mistakes, the guess, groups that add up."""
import random

import numpy as np
import pytest
from helpers import quiet
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU
from test_metrics import CHANNEL, random_series

from sensorllm_min.data import AlignExamples, Limits, PreparedData
from sensorllm_min.evaluation import trend_scores, trend_sums
from sensorllm_min.metrics import parse_claims
from sensorllm_min.options import sample_texts
from sensorllm_min.text_tokenizer import built_tokenizer, train_backend
from sensorllm_min.trend_scores import (TEXT, TRUTH, WIDTH, Guess, agreeing, groups_of, row_of_sums, scores_of, scores_table,
                                        truth_sums)
from sensorllm_min.trend_text import FirstWording, align_pair

SERIES = np.array([0, 1, 2, 3, 3, 3, 2, 1, 0, 0, 0.0])                        # at 10 Hz: up 0.3 s, rests 0.2, down 0.3, rests 0.2
TRUE = align_pair(SERIES, CHANNEL, 10, ("simple_trend", "summary"), FirstWording)[1]
PERFECT = {"direction": 1, "segment_f1": 1, "count_error": 0, "duration_error": 0, "overall": 1, "well_formed": 1}


def scored(text, true=TRUE, series=SERIES, rate=10, ended=True):
    return scores_of(row_of_sums(text, parse_claims(text), true, series, rate, ended))


@pytest.mark.parametrize("kinds", [("simple_trend", "summary"), ("trend", "summary"), ("summary",), ("simple_trend",),
                                   ("trend",), ("simple_trend", "trend", "summary")], ids="+".join)
def test_the_truth_gets_full_marks(kinds):
    """Every wording, many lengths and rates; and what a text of these kinds is silent about is not scored."""
    rng = np.random.default_rng(0)
    for trial in range(300):
        series, rate = random_series(rng, int(rng.integers(2, 150))), (12.5, 20, 50, 100, 400)[trial % 5]
        text = align_pair(series, CHANNEL, rate, kinds, random.Random(trial))[1]
        scores = scored(text, text, series, rate)
        asked = {"well_formed", *(("direction", "segment_f1", "count_error", "duration_error") if kinds != ("summary",) else
                                  ("duration_error",)), *(("overall",) if "summary" in kinds else ())}
        assert {name for name in TRUTH if scores[name] is not None} == asked
        rounding = 3 * (0.00501 if rate <= 100 else 0.000501) / ((len(series) - 1) / rate)     # of the three durations as written
        for name in asked:
            assert scores[name] == pytest.approx(PERFECT[name], abs=rounding if name == "duration_error" else 0), text
        assert scores["rouge_l"] == scores["rouge_1"] == 100 and scores["bleu_1"] == pytest.approx(100)


def test_mistakes_cost_what_they_should():
    assert {name: scored(TRUE)[name] for name in TRUTH} == PERFECT
    lines = "0.0s to 0.3s: rising\n0.3s to 0.5s: steady\n0.5s to 0.8s: falling\n0.8s to 1.0s: steady"
    asked = dict(true=lines)
    assert scored(lines, **asked) | PERFECT == scored(lines, **asked) | {"overall": 1}
    shifted = scored("0.0s to 0.4s: rising\n0.4s to 0.5s: steady\n0.5s to 0.8s: falling\n0.8s to 1.0s: steady", **asked)
    assert shifted["segment_f1"] == 1 and shifted["direction"] == 0.9         # a sample off: within the tolerance
    assert shifted["duration_error"] == pytest.approx(0.2) and shifted["count_error"] == 0 and shifted["well_formed"] == 1
    two_off = scored("0.0s to 0.5s: rising\n0.5s to 0.8s: falling\n0.8s to 1.0s: steady", **asked)
    assert two_off["segment_f1"] == pytest.approx(2 * 2 / (3 + 4)) and two_off["direction"] == 0.8
    assert two_off["count_error"] == 1 / 4 and two_off["duration_error"] == pytest.approx(0.4)
    twice = scored(lines + "\n0.0s to 0.3s: rising", **asked)                 # said twice, found once
    assert twice["segment_f1"] == pytest.approx(2 * 4 / (5 + 4)) and twice["well_formed"] == 0
    claimed = scored(lines + "\nNumber of rising trends: 3\nNumber of falling trends: 1", **asked)
    assert claimed["count_error"] == pytest.approx((2 + 0 + 2) / 4)           # what it says of counts goes before what it lists
    wild = scored(lines + "\nNumber of rising trends: " + "9" * 500, **asked)
    assert wild["count_error"] == pytest.approx((10 - 1 + 1 + 2) / 4)         # at most ten segments fit
    silent = scored("", **asked)
    assert (silent["direction"], silent["segment_f1"], silent["count_error"], silent["well_formed"]) == (0, 0, 1, 0)
    assert silent["duration_error"] == pytest.approx(1)


@pytest.mark.parametrize("text,ended,formed", [
    ("0.0s to 0.3s: rising", True, 1), ("0.0s to 0.3s: rising", False, 0), ("0.1s to 0.3s: rising", True, 0),
    ("0.0s to 0.3s: rising\n0.4s to 0.5s: steady", True, 0), ("0.0s to 0.3s: rising\n0.3s to 0.3s: steady", True, 0),
    ("0.0s to 0.3s: rising\nand so on", True, 0), ("0.0s to 0.3s: rising\n\nThe overall trend is rising.", True, 1),
    ("rising", True, 0)])
def test_what_is_well_formed(text, ended, formed):
    assert scored(text, "0.0s to 1.0s: rising", ended=ended)["well_formed"] == formed


def test_segments_agree_within_the_tolerance_and_once():
    true = [(0, 3, 1), (3, 4, -1), (4, 5, 1), (5, 9, -1)]
    assert agreeing(true, true) == 4 and agreeing([], true) == 0
    assert agreeing([(1, 4, 1), (5, 10, -1)], true) == 2 and agreeing([(2, 5, 1)], true) == 0
    assert agreeing([(0, 3, 1)] * 3, true) == 1 and agreeing([(0, 3, -1)], true) == 0
    assert agreeing([(0, 3, 1), (1, 2, 1)], [(0, 3, 1), (2, 3, 1)]) == 2      # the earliest that fits, so that both find one


def test_wild_texts_raise_nothing():
    for text in ("9" * 400 + "s to 5s: rising", "rising rising", "0.3s to 0.0s: rising", "\n\n\n", "rising for " + "9" * 400
                 + " seconds.", "5s to 1s: falling\n" * 50, "0.9s to 0.1s: falling\n" * 50):
        scores = scored(text)
        assert all(score is None or np.isfinite(score) for score in scores.values()), text
        assert scores["duration_error"] <= 3


@pytest.fixture(scope="module")
def examples(demo):
    data = PreparedData(demo)
    tokenizer = built_tokenizer(train_backend(sample_texts(data), 600), data.dataset.channels, 600)
    return {split: AlignExamples(data, split, tokenizer, Limits(512, 4096)) for split in ("train", "test")}, data


def test_the_guess_is_made_of_training_windows_alone(examples):
    examples, data = examples
    guess = Guess(examples["train"])
    signs = np.concatenate([np.sign(np.diff(examples["train"][i].series[0])) for i in range(0, len(examples["train"]), 5)])
    assert guess.usual == max((-1, 0, 1), key=lambda d: (signs == d).sum())
    for direction in (-1, 0, 1):                                              # two samples of the windows, 2000 and 5700
        assert guess.share[direction] == pytest.approx((signs == direction).mean(), abs=0.03)
    assert set(guess.texts) == {channel.token for channel in data.dataset.channels}
    claims = guess.claims(21)
    assert claims.segments == [(0.0, 1.0, guess.usual)] and sum(claims.totals.values()) == pytest.approx(1)
    rows = examples["train"].rows
    texts = {}
    for i in range(len(rows)):
        texts.setdefault(rows[i]["answer"], set()).add((rows[i]["channel"], rows[i]["length"]))
    for channel in data.dataset.channels:
        for length in (4, 9, 16):
            assert (channel.token, length) in texts[guess.text(channel.token, length)]
    assert guess.text("x_acc", 1000) and guess.text("no such channel", 5)


def test_groups_add_up_and_equal_the_references(examples):
    """Each group's scores are those of sacrebleu and rouge-score over its rows; channels and lengths are parts of all."""
    examples, data = examples
    test, guess, rows = examples["test"], Guess(examples["train"]), []
    for i in range(0, len(test), 23):
        row = test[i].row
        rows.append({**row, "window": i, "generated": guess.text(row["channel"], row["length"] + i % 3), "ended": i % 5 > 0})
    scores = trend_scores(rows, data, guess, quiet)
    assert list(scores)[:7] == ["all", *(channel.token for channel in data.dataset.channels)] and len(scores) == 11
    assert scores["all"]["windows"] == len(rows) == sum(scores[c.token]["windows"] for c in data.dataset.channels) \
        == sum(group["windows"] for name, group in scores.items() if "samples" in name)
    rouge = RougeScorer(["rouge1", "rougeL"])
    for group, members in (("all", rows), ("y_acc", [row for row in rows if row["channel"] == "y_acc"])):
        texts, truths = zip(*((row["generated"], row["answer"]) for row in members))
        for order in range(1, 5):
            expected = BLEU(max_ngram_order=order).corpus_score(list(texts), [list(truths)]).score
            assert scores[group]["answers"][f"bleu_{order}"] == pytest.approx(expected, abs=1e-9)
        for name, theirs in (("rouge_1", "rouge1"), ("rouge_l", "rougeL")):
            expected = np.mean([rouge.score(truth, text)[theirs].fmeasure for text, truth in zip(texts, truths)])
            assert scores[group]["answers"][name] == pytest.approx(100 * expected, abs=1e-9)
    sums = sum(trend_sums(row, data.window(row)[:, list(scores).index(row["channel"]) - 1], guess) for row in rows)
    assert sums.shape == (2, WIDTH) and scores_of(sums[0]) == scores["all"]["answers"] and scores_of(sums[1]) == scores["all"]["guess"]
    ended = np.mean([row["ended"] for row in rows])
    assert 0 < scores["all"]["answers"]["well_formed"] <= ended
    table = scores_table(scores)
    assert all(name.replace("_", " ") in table for name in (*TEXT, *TRUTH)) and "| x_gyro |" in table and "n/a" in table


def test_quarters_of_the_lengths():
    quarters = [groups_of({"channel": "a", "length": n}, (5, 200))[2] for n in range(5, 201)]
    assert len(set(quarters)) == 4
    for n, quarter in zip(range(5, 201), quarters):
        first, last = (int(word) for word in quarter.removesuffix(" samples").split(" to "))
        assert first <= n <= last
    assert groups_of({"channel": "a", "length": 4}, (4, 5))[2].endswith("samples")


def test_claims_that_nobody_asked_for_are_not_scored():
    sums = truth_sums(parse_claims(TRUE), parse_claims("The overall trend is rising."), SERIES, 10)
    assert set(sums) == {"overall", "well_formed"} and sums["overall"] == (True, 1)
