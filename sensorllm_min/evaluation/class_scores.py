"""Scores of a classifier from its confusion matrix, as scikit-learn computes them."""
import numpy as np

MEANING = {
    "accuracy": "fraction of windows that are right",
    "balanced_accuracy": "recall, averaged over the classes that occur",
    "macro_f1": "F1, averaged over all classes: a rare one counts as much as a common one",
    "micro_f1": "F1 of all windows together",
    "macro_precision": "precision, averaged over all classes",
    "macro_recall": "recall, averaged over all classes",
    "chance": "accuracy of always naming the class that most of these windows have",
    "chance_f1": "macro F1 of the same",
}


def class_scores(confusion):
    """Confusion matrix (n, n), rows true, columns predicted -> {score: value}, with "per_class".

    A further column, (n, n + 1), counts answers in words that name no class. A class that never
    occurs scores 0, as in scikit-learn with zero_division=0 and all labels given."""
    confusion = np.asarray(confusion, dtype=float)
    n = len(confusion)
    total = max(confusion.sum(), 1)
    right = np.diag(confusion)                                    # (n,)
    true = confusion.sum(1)
    predicted = confusion.sum(0)[:n]

    def fraction(part, whole):
        return np.divide(part, whole, out=np.zeros(n), where=whole > 0)

    precision = fraction(right, predicted)
    recall = fraction(right, true)
    f1 = fraction(2 * right, true + predicted)
    accuracy = right.sum() / total
    chance = true.max() / total
    scores = {
        "accuracy": accuracy,
        "balanced_accuracy": recall[true > 0].mean() if true.any() else 0.0,
        "macro_f1": f1.mean(),
        "micro_f1": 2 * right.sum() / max(true.sum() + predicted.sum(), 1),
        "macro_precision": precision.mean(),
        "macro_recall": recall.mean(),
        "chance": chance,
        "chance_f1": 2 * chance / (1 + chance) / n,
    }
    scores = {name: float(score) for name, score in scores.items()}
    scores["per_class"] = {
        "precision": precision.tolist(),
        "recall": recall.tolist(),
        "f1": f1.tolist(),
        "windows": true.astype(int).tolist(),
    }
    return scores


def confusion_of(records, n_classes):
    """Records with "label" and "predicted" -> counts (n, n + 1); last column: predicted is None."""
    counts = np.zeros((n_classes, n_classes + 1), int)
    for record in records:
        predicted = record["predicted"]
        column = n_classes if predicted is None else predicted
        counts[record["label"], column] += 1
    return counts


def count_people(records, people, n_classes):
    """The counts of `confusion_of` for each of these people, (people, n, n + 1)."""
    counts = []
    for person in people:
        own = [record for record in records if str(record["subject"]) == person]
        counts.append(confusion_of(own, n_classes))
    return np.array(counts)


def score_people(counts, people, classes):
    """Counts of `count_people` -> the content of evaluation_SPLIT.json.

    "people" holds the windows of each, accuracy, and F1 averaged over the person's own classes."""
    each = {}
    for person, own in zip(people, counts):
        scores = class_scores(own)
        f1 = np.array(scores["per_class"]["f1"])
        windows = np.array(scores["per_class"]["windows"])
        if windows.any():
            each[person] = {"windows": int(windows.sum()), "accuracy": scores["accuracy"],
                            "f1": float(f1[windows > 0].mean())}
    confusion = counts.sum(0)
    unparsable = int(confusion[:, -1].sum())
    if not unparsable:
        confusion = confusion[:, :-1]
    return {
        "windows": int(confusion.sum()),
        **class_scores(confusion),
        "unparsable": unparsable,
        "people": each,
        "classes": classes,
        "confusion": confusion.tolist(),
    }


def class_report(confusion, classes):
    """The scores, a line for each class, and the confusion matrix, as text."""
    import pandas as pd                                           # takes a second to import
    scores = class_scores(confusion)
    names = [f"{name}  {i}" for i, name in enumerate(classes)]
    per_class = pd.DataFrame(scores.pop("per_class"), index=names)
    columns = [*range(len(classes)), "none"][:np.shape(confusion)[1]]     # none: names no class
    counts = pd.DataFrame(confusion, index=names, columns=columns)
    lines = []
    for name, score in scores.items():
        title = name.replace("_", " ")
        lines.append(f"{title:18} {score:.4f}")
    lines += ["", per_class.to_string(float_format="{:.4f}".format)]
    lines += ["", "true, and as predicted:", counts.to_string()]
    return "\n".join(lines)


def most_wrong(records, n=6):
    """At most n windows, one of each mistake; first those whose true class is least probable."""
    wrong = [record for record in records if record["predicted"] != record["label"]]
    if wrong and "probabilities" in wrong[0]:
        wrong.sort(key=lambda record: record["probabilities"][record["label"]])
    found = {}
    for record in wrong:
        found.setdefault((record["label"], record["predicted"]), record)
    return list(found.values())[:n]
