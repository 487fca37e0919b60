"""Class scores against scikit-learn; the parser of trends against texts of every wording."""
import random

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support

from sensorllm_min.metrics import class_report, class_scores, direction_counts, parse_segments
from sensorllm_min.sensors import DATASETS
from sensorllm_min.trend_text import FirstWording, align_pair, trend_segments

CHANNEL = DATASETS["demo"].channels[0]


@pytest.mark.parametrize("seed", range(5))
def test_class_scores_equal_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    labels = list(range(6))
    true = rng.integers(0, 5, 200)                                            # class 5 never occurs
    predicted = np.where(rng.random(200) < 0.6, true, rng.integers(0, 4, 200))   # 4 is predicted only where true
    ours = class_scores(confusion_matrix(true, predicted, labels=labels))
    assert ours["accuracy"] == pytest.approx(accuracy_score(true, predicted))
    for average in ("macro", "micro"):
        assert ours[f"{average}_f1"] == pytest.approx(f1_score(true, predicted, labels=labels, average=average,
                                                               zero_division=0))
    precision, recall, f1, support = precision_recall_fscore_support(true, predicted, labels=labels, zero_division=0)
    per_class = ours["per_class"]
    for mine, theirs in ((per_class["precision"], precision), (per_class["recall"], recall), (per_class["f1"], f1),
                         (per_class["windows"], support)):
        np.testing.assert_allclose(mine, theirs)
    assert ours["macro_precision"] == pytest.approx(precision.mean()) and ours["macro_recall"] == pytest.approx(recall.mean())


def test_report_names_every_class_and_count():
    report = class_report(np.array([[7, 1], [2, 90]]), ["Walking", "Lying"])
    assert "Walking" in report and "Lying" in report and "macro_f1".replace("_", " ") in report
    assert report.splitlines()[-1].split()[-2:] == ["2", "90"]


def random_series(rng, length):
    """Steps, plateaus, equal neighbours, tiny slopes."""
    steps = rng.choice([0.0, 0.0, 1.0, -1.0, 1e-6, -1e-6], length - 1) * rng.choice([1.0, 3.0])
    return np.concatenate([[0.0], np.cumsum(np.repeat(steps, rng.integers(1, 4)))[:length - 1]])


@pytest.mark.parametrize("kind", ["simple_trend", "trend"])
def test_texts_are_true(kind):
    """What the parser reads out of any wording is the series' segments, and scores full marks."""
    rng = np.random.default_rng(0)
    for trial in range(400):
        series, rate = random_series(rng, int(rng.integers(2, 200))), (20, 50, 100)[trial % 3]
        _, text = align_pair(series, CHANNEL, rate, (kind, "summary"), random.Random(trial))
        expected = [(round(s / rate, 2), round(e / rate, 2), d) for s, e, d in zip(*trend_segments(series))]
        assert parse_segments(text) == expected, text
        right, total = direction_counts(text, series, rate)
        assert right == total == len(series) - 1


def test_wrong_and_wild_texts_score_what_they_deserve():
    series = np.array([0, 1, 2, 3, 3, 3, 2, 1, 0, 0, 0.0])                    # 3 up, 2 steady, 3 down, 2 steady
    _, truth = align_pair(series, CHANNEL, 10, ("simple_trend",), FirstWording)
    assert direction_counts(truth, series, 10) == (10, 10)
    assert direction_counts(truth.replace("rising", "falling"), series, 10) == (7, 10)
    assert direction_counts("0.0s to 1.0s: steady", series, 10) == (4, 10)
    assert direction_counts("0.0s to 0.3s: rising", series, 10) == (3, 10)    # silence is wrong
    for wild in ("", "rising rising", "9" * 400 + "s to 5s: rising", "0.3s to 0.0s: rising", "\n\n" + truth[:0]):
        assert direction_counts(wild, series, 10)[0] == 0
