"""Scores: whether generated trends are true, and how good classes are. Numbers in, numbers out; no model here."""
import re

import numpy as np

from .trend_text import DIRECTION_OF_WORD

TIME = re.compile(r"\d+(?:\.\d+)?")
WORD = re.compile("|".join(DIRECTION_OF_WORD))


def parse_segments(text):
    """The (start, end, direction) that a trend text claims, times in seconds.

    Reads the first paragraph: a segment is a line or a sentence with two times and one direction word. The count
    lines and the summary hold no such thing. Whatever else a model writes is passed over.
    """
    segments = []
    for claim in re.split(r"\n|(?<=\.) ", text.strip().split("\n\n")[0]):
        times, words = TIME.findall(claim), WORD.findall(claim.lower())
        if len(times) == 2 and len(words) == 1:
            segments.append((float(times[0]), float(times[1]), DIRECTION_OF_WORD[words[0]]))
    return segments


def claimed_directions(text, n_intervals, rate):
    """The direction a text claims for each interval between two samples -> (n_intervals,), NaN where it is silent."""
    claimed = np.full(n_intervals, np.nan)
    for start, end, direction in parse_segments(text):
        first, last = (round(min(seconds * rate, n_intervals)) for seconds in (start, end))
        claimed[first:last] = direction
    return claimed


def direction_counts(text, series, rate):
    """(intervals whose direction the text gets right, all intervals) of one window; silence counts as wrong."""
    truth = np.sign(np.diff(series))
    return int((claimed_directions(text, len(truth), rate) == truth).sum()), len(truth)


def class_scores(confusion):
    """confusion (n, n): rows true, columns predicted -> accuracy, macro and micro F1, precision, recall, per class.

    A class that is neither true nor predicted anywhere scores 0, as in scikit-learn with zero_division=0 and all
    labels named.
    """
    confusion = np.asarray(confusion, dtype=float)
    right, true, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    precision = np.divide(right, predicted, out=np.zeros_like(right), where=predicted > 0)
    recall = np.divide(right, true, out=np.zeros_like(right), where=true > 0)
    f1 = np.divide(2 * right, true + predicted, out=np.zeros_like(right), where=true + predicted > 0)
    accuracy = float(right.sum() / max(confusion.sum(), 1))
    return {
        "accuracy": accuracy, "macro_f1": float(f1.mean()), "micro_f1": accuracy,   # one label a window: the same number
        "chance": float(true.max() / max(true.sum(), 1)),                     # the accuracy of always guessing one class
        "macro_precision": float(precision.mean()), "macro_recall": float(recall.mean()),
        "per_class": {"precision": precision.tolist(), "recall": recall.tolist(), "f1": f1.tolist(),
                      "windows": true.astype(int).tolist()},
    }


def class_report(confusion, classes):
    """The scores, a line a class, and the confusion matrix, as text."""
    scores = class_scores(confusion)
    lines = [f"{name.replace('_', ' '):16} {scores[name]:.4f}" for name in
             ("accuracy", "macro_f1", "micro_f1", "macro_precision", "macro_recall", "chance")]
    width = max(map(len, classes))
    lines += ["", f"{'':{width + 4}}  precision  recall      f1  windows"]
    per_class = scores["per_class"]
    for i, name in enumerate(classes):
        lines.append(f"{i:2}  {name:{width}}  {per_class['precision'][i]:9.4f} {per_class['recall'][i]:7.4f} "
                     f"{per_class['f1'][i]:7.4f} {per_class['windows'][i]:8}")
    lines += ["", f"{'true, as predicted:':{width + 4}}" + "".join(f"{i:6}" for i in range(len(classes)))]
    lines += [f"{i:2}  {name:{width}}" + "".join(f"{count:6}" for count in row)
              for i, (name, row) in enumerate(zip(classes, np.asarray(confusion)))]
    return "\n".join(lines)
