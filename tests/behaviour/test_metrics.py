"""Class scores against scikit-learn; the parser of trends against texts of every wording."""

import random
import re

import numpy as np
import pytest

from sensorllm_min.data import wording
from sensorllm_min.data.claims import parse_activity, parse_claims, parse_segments
from sensorllm_min.data.sensors import DATASETS
from sensorllm_min.data.texts import FirstWording, align_pair, trend_segments
from sensorllm_min.evaluation.class_scores import (
    bootstrap_intervals, class_report, class_scores, confusion_of)
from sensorllm_min.evaluation.trend_scores import truth_sums

CHANNEL = DATASETS["demo"].channels[0]
TRIALS = pytest.mark.parametrize("trials", [105, pytest.param(700, marks=pytest.mark.slow)])


def direction_counts(text, series, rate):
    """(intervals whose direction the text gets right, all intervals)."""
    asked = parse_claims("0.0s to 1.0s: rising")  # segments were asked for
    return tuple(
        int(number) for number in truth_sums(parse_claims(text), asked, series, rate)["direction"]
    )


@pytest.mark.parametrize("unread", [0, 0.2], ids=["class head", "answers in words"])
@pytest.mark.parametrize("seed", range(3))
def test_class_scores_equal_scikit_learn(seed, unread):
    """Also where some answers name no class: to scikit-learn, a label of its own that is never
    averaged over.
    """
    from sklearn.metrics import (
        accuracy_score, balanced_accuracy_score, cohen_kappa_score, confusion_matrix, f1_score,
        precision_recall_fscore_support)
    rng = np.random.default_rng(seed)
    labels = list(range(6))
    true = rng.integers(0, 5, 200)  # class 5 never occurs
    predicted = np.where(
        rng.random(200) < 0.6, true, rng.integers(0, 4, 200)
    )  # 4 is predicted only where true
    predicted = np.where(rng.random(200) < unread, 6, predicted)
    records = [
        {"label": int(label), "predicted": None if guess == 6 else int(guess)}
        for label, guess in zip(true, predicted)
    ]
    confusion = confusion_of(records, 6)
    assert confusion.tolist() == confusion_matrix(true, predicted, labels=range(7))[:6].tolist()
    for shape in (confusion, confusion[:, :6]) if not unread else (confusion,):
        ours = class_scores(shape)
        assert ours["accuracy"] == pytest.approx(accuracy_score(true, predicted))
        for average in ("macro", "micro"):
            assert ours[f"{average}_f1"] == pytest.approx(
                f1_score(true, predicted, labels=labels, average=average, zero_division=0)
            )
        precision, recall, f1, support = precision_recall_fscore_support(
            true, predicted, labels=labels, zero_division=0
        )
        per_class = ours["per_class"]
        for mine, theirs in (
            (per_class["precision"], precision), (per_class["recall"], recall),
            (per_class["f1"], f1), (per_class["windows"], support),
        ):
            np.testing.assert_allclose(mine, theirs)
        assert ours["macro_precision"] == pytest.approx(precision.mean()) and ours[
            "macro_recall"
        ] == pytest.approx(recall.mean())
        assert ours["kappa"] == pytest.approx(cohen_kappa_score(true, predicted))
        assert ours["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(true, predicted))
        assert ours["chance"] == pytest.approx(np.bincount(true).max() / 200)


def test_class_scores_are_finite_without_windows_and_with_one_class_alone():
    for confusion in (
        np.zeros((3, 3)),
        np.diag([4, 0, 0]),
    ):  # no window; one class alone, all right
        assert all(
            np.isfinite(score)
            for name, score in class_scores(confusion).items()
            if name != "per_class"
        )


def test_bootstrap_draws_subjects_not_windows():
    """Two subjects, one all right and one all wrong: a draw is 0, 1/2 or 1, with probabilities 1/4,
    1/2, 1/4.
    """
    right, wrong = np.diag([50, 50]), np.array([[0, 50], [50, 0]])
    low, high = bootstrap_intervals([right, wrong])["accuracy"]
    assert (low, high) == (0, 1)  # over windows it would be about 0.43 to 0.57
    assert bootstrap_intervals([right])["macro_f1"] == [1, 1]
    shares = np.random.default_rng(0).integers(20, 101, 40)  # right of 100 windows, of 40 people
    people = [np.array([[share, 100 - share], [0, 0]]) for share in shares]
    low, high = bootstrap_intervals(people)["accuracy"]
    mean, half = shares.mean() / 100, 1.96 * shares.std() / 100 / len(shares) ** 0.5
    # 0.006: a quantile of 2000 draws has a standard error of 0.002, and an interval of 90 % would
    # be narrower by 0.011 at either end
    assert low == pytest.approx(mean - half, abs=0.006) and high == pytest.approx(
        mean + half, abs=0.006
    )


@pytest.mark.parametrize(
    "text,label",
    [
        ("Activity: Walking", 0),
        ("In g, the x-axis varies most.\nActivity: Walking Left", 1),
        ("Activity: Lying", 2),
        ("Activity: walking", None),
        ("Walking", None),
        ("Activity: Walking.", None),
        ("Activity: ", None),
        ("", None),
        ("Activity: Walking\nActivity: Lying", None),
        ("Activity: Walking\n", None),
        ("Activity: Walking\nYes.", None),
        (" Activity: Walking", None),
        ("Activity: Walking Left or Lying", None),
    ],
)
def test_an_answer_in_words_is_read_strictly(text, label):
    assert parse_activity(text, ("Walking", "Walking Left", "Lying")) == label


def test_the_class_report_names_every_class_and_count():
    report = class_report(np.array([[7, 1], [2, 90]]), ["Walking", "Lying"])
    assert "Walking" in report and "Lying" in report and "macro_f1".replace("_", " ") in report
    assert report.splitlines()[-1].split()[-2:] == ["2", "90"]


def random_series(rng, length):
    """Steps, plateaus, equal neighbours, tiny slopes."""
    steps = rng.choice([0.0, 0.0, 1.0, -1.0, 1e-6, -1e-6], length - 1) * rng.choice([1.0, 3.0])
    return np.concatenate([[0.0], np.cumsum(np.repeat(steps, rng.integers(1, 4)))[: length - 1]])


@TRIALS
@pytest.mark.parametrize("kind", ["simple_trend", "trend"])
def test_the_segments_of_a_text_are_those_of_its_series(kind, trials):
    """What the parser reads out of any wording is the series' segments, and scores full marks."""
    rng = np.random.default_rng(0)
    for trial in range(trials):
        series, rate = random_series(rng, int(rng.integers(2, 200))), (20, 50, 100)[trial % 3]
        _, text = align_pair(series, CHANNEL, rate, (kind, "summary"), random.Random(trial))
        expected = [
            (round(s / rate, 2), round(e / rate, 2), d) for s, e, d in zip(*trend_segments(series))
        ]
        assert parse_segments(text) == expected, text
        right, total = direction_counts(text, series, rate)
        assert right == total == len(series) - 1


def test_wrong_and_wild_texts_score_what_they_deserve():
    series = np.array([0, 1, 2, 3, 3, 3, 2, 1, 0, 0, 0.0])  # 3 up, 2 steady, 3 down, 2 steady
    _, truth = align_pair(series, CHANNEL, 10, ("simple_trend",), FirstWording)
    assert direction_counts(truth, series, 10) == (10, 10)
    assert direction_counts(truth.replace("rising", "falling"), series, 10) == (7, 10)
    assert direction_counts("0.0s to 1.0s: steady", series, 10) == (4, 10)
    assert direction_counts("0.0s to 0.3s: rising", series, 10) == (3, 10)  # silence is wrong
    for wild in (
        "", "rising rising", "9" * 400 + "s to 5s: rising", "0.3s to 0.0s: rising",
        "\n\n" + truth[:0],
    ):
        assert direction_counts(wild, series, 10)[0] == 0


def facts(series, rate):
    """What is true of a series, worked out step by step, without any of the project's code."""
    decimals = 2 if rate <= 100 else 3
    signs = [(b > a) - (b < a) for a, b in zip(series, series[1:])]
    segments = []
    for i, sign in enumerate(signs):
        if segments and segments[-1][2] == sign:
            segments[-1][1] = i + 1
        else:
            segments.append([i, i + 1, sign])
    return dict(
        segments=[
            (round(start / rate, decimals), round(end / rate, decimals), sign)
            for start, end, sign in segments
        ],
        counts={sign: sum(s[2] == sign for s in segments) for sign in set(signs)},
        span=(0.0, round((len(series) - 1) / rate, decimals)),
        kinds=len(set(signs)),
        changes=len(segments) - 1,
        totals={sign: round(signs.count(sign) / rate, decimals) for sign in set(signs)},
        overall=int(series[-1] > series[0]) - int(series[-1] < series[0]),
    )


@TRIALS
@pytest.mark.parametrize(
    "kinds",
    [
        ("simple_trend", "summary"), ("trend", "summary"), ("simple_trend", "trend", "summary"),
        ("summary",), ("simple_trend",), ("trend",),
    ],
    ids="+".join,
)
def test_every_claim_of_every_wording_is_read_back_and_true(kinds, trials):
    """Segments, counts, totals, kinds, changes, span and overall direction, over random series,
    lengths and rates.
    """
    rng = np.random.default_rng(0)
    for trial in range(2 * trials):
        length = 2 if trial % 10 == 0 else int(rng.integers(2, 260))
        series, rate = random_series(rng, length), (12.5, 20, 50, 100, 400)[trial % 5]
        if trial % 7 == 0:
            series = (
                np.full(length, 0.3) if trial % 2 else np.sort(series)
            )  # no change at all; one direction and rests
        truth = facts(series.tolist(), rate)
        _, text = align_pair(
            series, DATASETS["pamap2"].channels[trial % 27], rate, kinds, random.Random(trial)
        )
        claims = parse_claims(text)
        has_segments, has_summary = kinds != ("summary",), "summary" in kinds
        assert claims.segments == (truth["segments"] if has_segments else []), text
        counted = kinds[0] == "simple_trend" and len(truth["counts"]) > 1
        assert claims.counts == (truth["counts"] if counted else {}), text
        for what in ("span", "kinds", "changes", "totals", "overall"):
            assert getattr(claims, what) == (
                truth[what] if has_summary else {} if what == "totals" else None
            ), (what, text)


def test_every_wording_is_whole_english_sentences():
    """Each sentence of each pool, in each slot: articles, plurals, capitals, full stops, no slot
    left open.
    """
    series = {"one trend": [0, 1, 2], "many": [0, 1, 0, 0, 2], "none": [5, 5], "single": [7]}
    seen = set()
    for trial in range(3000):
        name = list(series)[trial % 4]
        kinds = (("simple_trend", "summary"), ("trend", "summary"), ("summary",))[trial % 3]
        question, text = align_pair(
            np.array(series[name], float), CHANNEL, 10, kinds, random.Random(trial)
        )
        assert question[0].isupper() and question[-1] in ".?" and "  " not in question
        full_stops = (
            text.partition("\n\n")[2] if kinds[0] == "simple_trend" and name != "single" else text
        )
        assert all(
            sentence.endswith(".") for sentence in re.split(r"(?<=\.) |\n\n", full_stops)
        ), full_stops
        for sentence in [line for line in text.replace(". ", ".\n").split("\n") if line]:
            seen.add(sentence)
            assert sentence[0].isupper() or sentence[0].isdigit(), sentence
            assert not re.search(
                r"[{}%]|  | [.,;:]|\ba [aeiou]|\bA [aeiou]|\ban [^aeiou]|\bAn [^aeiou]", sentence
            ), sentence
            assert not re.search(
                r"\b1 (kinds|changes)\b|\b(0|no|[2-9]|\d\d+) (kind|change)\b", sentence
            ), sentence
        if name == "single":
            assert "no trend" in text and parse_claims(text).segments == []
    words = "|".join(wording.DIRECTION_OF_WORD)
    shapes = {
        re.sub(rf"\d+\.\d+|\d+|\b({words})\b|\ban?\b", "_", sentence.lower()) for sentence in seen
    }
    assert len(shapes) > 160  # the pools were gone through


def test_the_pools_of_wordings_are_as_large_as_the_original_s():
    assert len(set(wording.QUESTIONS)) >= 40 and len(set(wording.COVERS)) >= 40
    for pool in (wording.SENTENCES, wording.CHANGES, wording.TOTALS, wording.OVERALL):
        assert len(set(pool)) == len(pool) >= 30


def test_half_sentences_and_huge_numbers_raise_nothing_and_claim_nothing_more():
    """Half sentences, wrong words, huge numbers: nothing raises, nothing is invented."""
    claims = parse_claims(
        "The trend is rising for seconds and rising for 1.5 seconds. "
        "3 kinds of changes. rising. falling"
    )
    assert claims.totals == {1: 1.5} and claims.kinds is None and claims.overall == -1
    assert parse_claims("").segments == [] and parse_claims("9" * 5000 + " rising").counts == {
        1: 10**9
    }
    assert parse_claims("0.0s to 0.5s: rising\nTotal falling segments: 4").counts == {-1: 4}
