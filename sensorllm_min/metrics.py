"""Scores: whether generated trends are true, and how good classes are. Numbers in, numbers out; no model here."""
import re
from dataclasses import dataclass, field

import numpy as np

from .trend_text import DIRECTION_OF_WORD

NUMBER = re.compile(r"\d+(?:\.\d+)?")
WORD = re.compile("|".join(DIRECTION_OF_WORD))
TOTAL = re.compile(f"({WORD.pattern}) for ({NUMBER.pattern}) seconds")
KINDS = re.compile(r"(\d+) kinds? of trend")
CHANGES = re.compile(r"(no|\d+) changes? of direction")


def whole_number(digits):
    """"12" -> 12, "no" -> 0; a model may write any number of digits."""
    return 0 if digits == "no" else int(min(float(digits), 1e9))


def claims_in(text):
    """(sentence or line, its numbers, its direction words), one after another."""
    for claim in re.split(r"\n|(?<=\.) ", text.strip()):
        yield claim, NUMBER.findall(claim), [DIRECTION_OF_WORD[word] for word in WORD.findall(claim.lower())]


def parse_segments(text):
    """The (start, end, direction) that a trend text claims, times in seconds.

    Reads the first paragraph: a segment is a line or a sentence with two times and one direction word. The count
    lines and the summary hold no such thing. Whatever else a model writes is passed over.
    """
    return [(float(numbers[0]), float(numbers[1]), directions[0])
            for _, numbers, directions in claims_in(text.strip().split("\n\n")[0])
            if len(numbers) == 2 and len(directions) == 1]


@dataclass
class Claims:
    """What a trend text says of a series; None, or an empty collection, where it is silent."""
    segments: list                                  # (start, end, direction), seconds
    counts: dict = field(default_factory=dict)      # direction -> how many segments
    span: tuple | None = None                       # (first, last), seconds
    kinds: int | None = None                        # how many directions occur
    changes: int | None = None                      # of direction
    totals: dict = field(default_factory=dict)      # direction -> seconds
    overall: int | None = None                      # direction, last sample against first


def parse_claims(text):
    """Everything that a text of any kind of `trend_text` claims, in any of its wordings; the rest is passed over."""
    claims = Claims(parse_segments(text))
    for claim, numbers, directions in claims_in(text):
        totals, kinds, changes = TOTAL.findall(claim.lower()), KINDS.search(claim), CHANGES.search(claim)
        if totals:
            claims.totals = {DIRECTION_OF_WORD[word]: float(seconds) for word, seconds in totals}
        elif kinds or changes:
            claims.kinds = whole_number(kinds[1]) if kinds else None
            claims.changes = whole_number(changes[1]) if changes else None
        elif len(numbers) == 2 and not directions:
            claims.span = float(numbers[0]), float(numbers[1])
        elif len(directions) == 1 and not numbers:
            claims.overall = directions[0]
        elif len(directions) == 1 and len(numbers) == 1 and numbers[0].isdigit():
            claims.counts[directions[0]] = whole_number(numbers[0])
    return claims


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
