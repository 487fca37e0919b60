"""Class scores against scikit-learn; the parser of trends against texts of every wording."""
import random
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from sensorllm_min.data import wording
from sensorllm_min.data.claims import in_samples, parse_activity, parse_claims
from sensorllm_min.data.sensors import DATASETS
from sensorllm_min.data.texts import align_pair, describe_series, facts_of
from sensorllm_min.evaluation.class_scores import (
    class_report, class_scores, confusion_of, count_people, most_wrong, score_people)
from sensorllm_min.evaluation.trend_scores import truth_sums

CHANNEL = DATASETS["demo"].channels[0]
TRIALS = pytest.mark.parametrize("trials", [105, pytest.param(700, marks=pytest.mark.slow)])


@pytest.mark.parametrize("unread", [0, 0.2], ids=["class head", "answers in words"])
@pytest.mark.parametrize("seed", range(3))
def test_class_scores_equal_scikit_learn(seed, unread):
    """Also where some answers name no class: to scikit-learn, a label of its own that is never averaged over."""
    from sklearn.metrics import (
        accuracy_score, balanced_accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support)
    rng, labels = np.random.default_rng(seed), list(range(6))
    true = rng.integers(0, 5, 200)                                # class 5 never occurs
    predicted = np.where(rng.random(200) < 0.6, true, rng.integers(0, 4, 200))    # 4 only where it is true
    predicted = np.where(rng.random(200) < unread, 6, predicted)
    records = [{"label": int(label), "predicted": None if guess == 6 else int(guess)}
               for label, guess in zip(true, predicted)]
    confusion = confusion_of(records, 6)
    assert confusion.tolist() == confusion_matrix(true, predicted, labels=range(7))[:6].tolist()
    for shape in (confusion, confusion[:, :6]) if not unread else (confusion,):
        ours = class_scores(shape)
        assert ours["accuracy"] == pytest.approx(accuracy_score(true, predicted))
        for average in ("macro", "micro"):
            expected = f1_score(true, predicted, labels=labels, average=average, zero_division=0)
            assert ours[f"{average}_f1"] == pytest.approx(expected)
        precision, recall, f1, support = precision_recall_fscore_support(
            true, predicted, labels=labels, zero_division=0)
        theirs = {"precision": precision, "recall": recall, "f1": f1, "windows": support}
        for name, values in theirs.items():
            np.testing.assert_allclose(ours["per_class"][name], values)
        assert ours["macro_precision"] == pytest.approx(precision.mean())
        assert ours["macro_recall"] == pytest.approx(recall.mean())
        assert ours["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(true, predicted))
        usual = np.full(200, np.bincount(true).argmax())
        assert ours["chance"] == pytest.approx(accuracy_score(true, usual))
        expected = f1_score(true, usual, labels=labels, average="macro", zero_division=0)
        assert ours["chance_f1"] == pytest.approx(expected)


def test_class_scores_are_finite_without_windows_and_with_a_single_class():
    for confusion in (np.zeros((3, 3)), np.diag([4, 0, 0])):
        scores = class_scores(confusion)
        assert all(np.isfinite(score) for name, score in scores.items() if name != "per_class")


def test_each_person_is_scored_on_the_classes_that_this_person_has():
    """Ann has classes 0 and 1: F1 of 2/3 and 0. Bob has class 2 only, all right: 1, where a mean over all has 1/3."""
    records = [{"subject": subject, "label": label, "predicted": predicted} for subject, label, predicted in (
        ("bob", 2, 2), ("ann", 0, 0), ("ann", 1, 0), ("bob", 2, 2), ("bob", 2, 2))]
    scores = score_people(count_people(records, ["ann", "carl", "bob"], 3), ["ann", "carl", "bob"], ("a", "b", "c"))
    assert list(scores["people"]) == ["ann", "bob"] and scores["windows"] == 5
    assert scores["people"]["ann"] == {"windows": 2, "accuracy": 0.5, "f1": pytest.approx(1 / 3)}
    assert scores["people"]["bob"] == {"windows": 3, "accuracy": 1, "f1": 1}
    assert scores["accuracy"] == 0.8 and np.sum(scores["confusion"]) == 5


@pytest.mark.parametrize("text,label", [
    ("Activity: Walking", 0), ("In g, the x-axis varies most.\nActivity: Walking Left", 1), ("Activity: Lying", 2),
    ("Activity: walking", None), ("Walking", None), ("Activity: Walking.", None), ("Activity: ", None), ("", None),
    ("Activity: Walking\nActivity: Lying", None), ("Activity: Walking\n", None), ("Activity: Walking\nYes.", None),
    (" Activity: Walking", None), ("Activity: Walking Left or Lying", None)])
def test_an_answer_in_words_is_read_strictly(text, label):
    assert parse_activity(text, ("Walking", "Walking Left", "Lying")) == label


def test_the_class_report_names_every_class_and_count():
    report = class_report(np.array([[7, 1, 0], [2, 90, 5]]), ["Walking", "Lying"])
    assert "Walking" in report and "macro f1" in report and "none" in report
    assert report.splitlines()[-1].split()[-3:] == ["2", "90", "5"]


def test_the_most_wrong_windows_are_one_of_each_mistake():
    def record(window, label, predicted, *probabilities):
        return {"window": window, "label": label, "predicted": predicted, "probabilities": probabilities}

    records = [record(0, 0, 0, 0.9, 0.1, 0), record(1, 0, 1, 0.4, 0.6, 0), record(2, 0, 1, 0.1, 0.9, 0),
               record(3, 2, 1, 0, 0.8, 0.2)]
    assert [found["window"] for found in most_wrong(records)] == [2, 3]           # the worst first
    for one in records:
        del one["probabilities"]                                  # as of answers in words
    assert [found["window"] for found in most_wrong(records)] == [1, 3] and most_wrong(records[:1]) == []


# ---- texts, read back ----

def random_series(rng, length):
    """Steps, plateaus, equal neighbours, tiny slopes."""
    steps = rng.choice([0.0, 0.0, 1.0, -1.0, 1e-6, -1e-6], length - 1) * rng.choice([1.0, 3.0])
    return np.concatenate([[0.0], np.cumsum(np.repeat(steps, rng.integers(1, 4)))[:length - 1]])


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
        segments=[(round(start / rate, decimals), round(end / rate, decimals), sign) for start, end, sign in segments],
        counts={sign: sum(segment[2] == sign for segment in segments) for sign in set(signs)},
        span=(0.0, round((len(series) - 1) / rate, decimals)), kinds=len(set(signs)), changes=len(segments) - 1,
        totals={sign: round(signs.count(sign) / rate, decimals) for sign in set(signs)},
        overall=int(series[-1] > series[0]) - int(series[-1] < series[0]))


DIRECTION = "|".join(wording.DIRECTION_OF_WORD)


def direction_in(text):
    return wording.DIRECTION_OF_WORD[re.search(DIRECTION, text.lower())[0]]


def read_counts(text):
    """{direction: count} of the lines that hold one whole number."""
    found = [re.fullmatch(r"\D*(\d+)\D*", line) for line in text.split("\n")]
    return {direction_in(count[0]): int(count[1]) for count in found if count}


def read_summary(text):
    """What the last paragraph of a text says: its four sentences."""
    covers, changes, totals, overall = re.split(r"(?<=\.) ", text.split("\n\n")[-1])
    kinds, turns = re.search(r"(\d+) kinds? of trend\b.* (no|\d+) changes? of direction", changes).groups()
    durations = re.findall(rf"({DIRECTION}) for (\S+) seconds", totals.lower())
    return dict(span=tuple(map(float, re.findall(r"\d+\.\d+", covers))), kinds=int(kinds), changes=int(turns.replace("no", "0")),
                totals={direction_in(word): float(seconds) for word, seconds in durations}, overall=direction_in(overall))


@TRIALS
@pytest.mark.parametrize("kinds", [("simple_trend", "summary"), ("trend", "summary"), ("summary",), ("simple_trend",),
                                   ("simple_trend", "trend", "summary"), ("trend",)], ids="+".join)
def test_every_claim_of_every_wording_is_read_back_and_true(kinds, trials):
    """Segments, counts, totals, kinds, changes, span, overall direction, over random series, lengths and rates.

    The truth gets full marks; what the true text does not list is not scored.
    """
    rng = np.random.default_rng(0)
    for trial in range(2 * trials):
        length = 2 if trial % 10 == 0 else int(rng.integers(2, 260))
        series, rate = random_series(rng, length), (12.5, 20, 50, 100, 400)[trial % 5]
        if trial % 7 == 0:                                        # no change at all; one direction and rests
            series = np.full(length, 0.3) if trial % 2 else np.sort(series)
        truth = facts(series.tolist(), rate)
        channel = DATASETS["pamap2"].channels[trial % 27]
        _, text = align_pair(series, channel, rate, kinds, random.Random(trial))
        claimed = parse_claims(text)
        has_segments = kinds != ("summary",)
        assert claimed.segments == (truth.pop("segments") if has_segments else []) and not claimed.unread, text
        counts = truth.pop("counts")
        assert read_counts(text) == (counts if kinds[0] == "simple_trend" and len(counts) > 1 else {}), text
        if "summary" in kinds:
            assert read_summary(text) == {name: truth[name] for name in ("span", "kinds", "changes", "totals", "overall")}, text
        sums = truth_sums(claimed, claimed, series, SimpleNamespace(rate=rate, smooth=0, band=0))
        assert list(sums) == (["direction", "segment_f1"] if has_segments else []) + ["well_formed"], text
        assert all(part == whole for part, whole in sums.values()), text


@pytest.mark.parametrize("paraphrase", [True, False])
def test_facts_are_told_to_two_digits_and_read_back(paraphrase):
    """Of all answers a quarter is about one fact alone, which the question names; the others begin with all four."""
    rng, alone = np.random.default_rng(0), []
    answer = (*wording.FACTS, "simple_trend")
    dataset = replace(DATASETS["usc-had"], rate=20, answer=answer, paraphrase=paraphrase)
    for trial in range(200):
        series = rng.normal(size=40) * 10.0 ** rng.integers(-2, 3) + rng.normal()
        spectrum = np.abs(np.fft.rfft(series - series.mean()))
        true = {"level": series.mean(), "range": np.ptp(series), "deviation": series.std(),
                "rhythm": spectrum[1:].argmax() / 2 + 0.5}        # 40 samples at 20 Hz: steps of 0.5 Hz
        question, text = describe_series(series, dataset.channels[trial % 6], dataset, random.Random(trial))
        claims = parse_claims(text)
        assert not claims.unread and claims.facts.keys() <= true.keys()
        for fact, value in claims.facts.items():
            assert value == pytest.approx(float(f"{true[fact]:.2g}"), abs=5e-5), text
        assert truth_sums(claims, claims, series, dataset)["facts"] == (len(claims.facts), len(claims.facts))
        if "\n" not in text:
            alone.append(*claims.facts)
            assert alone[-1] in question and not claims.segments
        else:
            assert claims.facts.keys() == true.keys() and claims.segments
    assert set(alone) == set(wording.FACTS) and 30 < len(alone) < 70
    assert facts_of(np.ones(5), 20) == {"level": 1, "range": 0, "deviation": 0, "rhythm": 0}


def test_half_sentences_and_huge_numbers_raise_nothing():
    assert parse_claims("The trend is rising for seconds and rising for 1.5 seconds. 3 kinds of changes.").unread == 1
    assert parse_claims("").segments == [] and parse_claims("9" * 5000 + " rising").unread == 0
    assert in_samples(parse_claims("0s to " + "9" * 5000 + "s: rising").segments, 20, 50) == [(0, 20, 1)]
