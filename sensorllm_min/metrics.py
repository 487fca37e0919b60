"""Answers read back, and class scores: what a trend text claims, which activity an answer names, how good classes are."""
import re
from dataclasses import dataclass, field

import numpy as np

from .trend_text import ACTIVITY, DIRECTION_OF_WORD, SINGLE

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
    unread: int = 0                                 # lines or sentences that claim none of this


def parse_claims(text):
    """Everything that a text of any kind of `trend_text` claims, in any of its wordings; the rest is passed over."""
    claims = Claims(parse_segments(text))
    for claim, numbers, directions in claims_in(text):
        if len(numbers) == 2 and len(directions) == 1 or claim in ("", SINGLE):
            continue                                                          # a segment, read already
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
        else:
            claims.unread += 1
    return claims


def in_samples(segments, n_intervals, rate):
    """Segments in seconds -> in samples (start, end, direction), none beyond the window's end."""
    return [(*(round(min(seconds * rate, n_intervals)) for seconds in ends), direction) for *ends, direction in segments]


def parse_activity(text, classes):
    """The label that an answer in words names, or None. Strict: one line "Activity: NAME", the last, NAME as written."""
    named = [line for line in text.split("\n") if line.startswith(ACTIVITY)]
    name = text.split("\n")[-1].removeprefix(ACTIVITY)
    return classes.index(name) if len(named) == 1 and text.split("\n")[-1] == named[0] and name in classes else None


def class_scores(confusion):
    """confusion (n, n): rows true, columns predicted -> the scores of a classifier, and those of each class.

    A further column (n, n + 1) counts windows that got no class, an answer in words that names none; they are wrong.
    A class that is neither true nor predicted anywhere scores 0, as in scikit-learn with zero_division=0 and all
    labels named; the balanced accuracy leaves out classes that are never true, as there.
    """
    confusion = np.asarray(confusion, dtype=float)
    n, total = len(confusion), max(confusion.sum(), 1)
    right, true, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)[:n]
    precision = np.divide(right, predicted, out=np.zeros(n), where=predicted > 0)
    recall = np.divide(right, true, out=np.zeros(n), where=true > 0)
    f1 = np.divide(2 * right, true + predicted, out=np.zeros(n), where=true + predicted > 0)
    accuracy, by_chance = right.sum() / total, true @ predicted / total ** 2   # by_chance: agreement of independent draws
    scores = {
        "accuracy": accuracy, "balanced_accuracy": recall[true > 0].mean() if true.any() else 0.0,
        "macro_f1": f1.mean(), "micro_f1": 2 * right.sum() / max(true.sum() + predicted.sum(), 1),
        "macro_precision": precision.mean(), "macro_recall": recall.mean(),
        "kappa": (accuracy - by_chance) / (1 - by_chance) if by_chance < 1 else 0.0,    # Cohen's
        "chance": true.max() / total,                                         # the accuracy of always guessing one class
    }
    return {**{name: float(score) for name, score in scores.items()},
            "per_class": {"precision": precision.tolist(), "recall": recall.tolist(), "f1": f1.tolist(),
                          "windows": true.astype(int).tolist()}}


def confusion_of(rows, n_classes):
    """Rows with "label" and "predicted" (None: no class) -> (n, n + 1) counts; the last column: no class."""
    labels = np.array([row["label"] for row in rows], int)
    predicted = np.array([n_classes if row["predicted"] is None else row["predicted"] for row in rows], int)
    counts = np.bincount(labels * (n_classes + 1) + predicted, minlength=n_classes * (n_classes + 1))
    return counts.reshape(n_classes, n_classes + 1)


def bootstrap_intervals(confusions, n_draws=2000, seed=0):
    """95 % intervals of the scores over people: confusions, one (n, n) of each subject -> {score: (low, high)}.

    Subjects, not windows, are drawn with replacement (percentile bootstrap): windows of one person are alike, and
    what matters is a person not yet seen. With few subjects it can only be rough.
    """
    confusions = np.stack(confusions)                                         # (subjects, n, n)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(confusions), np.full(len(confusions), 1 / len(confusions)), n_draws)   # (draws, subjects)
    different, times = np.unique(drawn, axis=0, return_counts=True)           # two subjects make three different draws
    scores = [class_scores(np.tensordot(weights, confusions, 1)) for weights in different]
    return {name: np.quantile(np.repeat([score[name] for score in scores], times), (0.025, 0.975)).tolist()
            for name in scores[0] if name not in ("per_class", "chance")}


def class_report(confusion, classes):
    """The scores, a line a class, and the confusion matrix, as text."""
    scores = class_scores(confusion)
    lines = [f"{name.replace('_', ' '):18} {score:.4f}" for name, score in scores.items() if name != "per_class"]
    width = max(map(len, classes))
    lines += ["", f"{'':{width + 4}}  precision  recall      f1  windows"]
    per_class = scores["per_class"]
    for i, name in enumerate(classes):
        lines.append(f"{i:2}  {name:{width}}  {per_class['precision'][i]:9.4f} {per_class['recall'][i]:7.4f} "
                     f"{per_class['f1'][i]:7.4f} {per_class['windows'][i]:8}")
    columns = [f"{i:6}" for i in range(len(classes))] + ["  none"]            # none: an answer in words names no class
    lines += ["", f"{'true, as predicted:':{width + 4}}" + "".join(columns[:np.shape(confusion)[1]])]
    lines += [f"{i:2}  {name:{width}}" + "".join(f"{count:6}" for count in row)
              for i, (name, row) in enumerate(zip(classes, np.asarray(confusion)))]
    return "\n".join(lines)
