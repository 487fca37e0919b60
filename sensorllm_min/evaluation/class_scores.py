"""Scores of a classifier from its confusion matrix, as scikit-learn computes them."""
import numpy as np


def class_scores(confusion):
    """Confusion matrix (n, n), rows true, columns predicted -> {score: value}, with "per_class".

    A further column, (n, n + 1), counts windows that got no class: answers in words that name none.
    They are wrong. A class that is neither true nor predicted anywhere scores 0, as in scikit-learn
    with zero_division=0 and all labels named; as there, the balanced accuracy leaves out classes
    that are never true.
    """
    confusion = np.asarray(confusion, dtype=float)
    n, total = len(confusion), max(confusion.sum(), 1)
    right = np.diag(confusion)
    true = confusion.sum(1)
    predicted = confusion.sum(0)[:n]

    def share(part, whole):
        return np.divide(part, whole, out=np.zeros(n), where=whole > 0)

    precision, recall = share(right, predicted), share(right, true)
    f1 = share(2 * right, true + predicted)
    accuracy = right.sum() / total
    by_chance = true @ predicted / total**2                       # agreement of independent draws
    scores = {
        "accuracy": accuracy,
        "balanced_accuracy": recall[true > 0].mean() if true.any() else 0.0,
        "macro_f1": f1.mean(),
        "micro_f1": 2 * right.sum() / max(true.sum() + predicted.sum(), 1),
        "macro_precision": precision.mean(),
        "macro_recall": recall.mean(),
        "kappa": (accuracy - by_chance) / (1 - by_chance) if by_chance < 1 else 0.0,    # Cohen's
        "chance": true.max() / total,                             # always naming the majority class
    }
    scores = {name: float(score) for name, score in scores.items()}
    scores["per_class"] = {"precision": precision.tolist(), "recall": recall.tolist(),
                           "f1": f1.tolist(), "windows": true.astype(int).tolist()}
    return scores


def confusion_of(records, n_classes):
    """Records with "label" and "predicted" -> counts (n, n + 1); last column: predicted is None."""
    counts = np.zeros((n_classes, n_classes + 1), int)
    for record in records:
        predicted = record["predicted"]
        counts[record["label"], n_classes if predicted is None else predicted] += 1
    return counts


def bootstrap_intervals(confusions, n_draws=2000, seed=0):
    """One confusion matrix of each subject -> {score: [low, high]}, 95 % intervals over people.

    A percentile bootstrap that draws subjects, not windows, with replacement: the windows of one
    person are alike, and what matters is a person not yet seen. With few subjects it is rough.
    """
    confusions = np.stack(confusions)                             # (subjects, n, n)
    n_subjects = len(confusions)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(n_subjects, np.full(n_subjects, 1 / n_subjects), n_draws)
    # Few subjects make few different draws: two make three. Each is scored once.
    weights, times = np.unique(drawn, axis=0, return_counts=True)    # (different, subjects)
    scores = [class_scores(np.tensordot(row, confusions, 1)) for row in weights]
    values = {name: np.repeat([score[name] for score in scores], times)
              for name in scores[0] if name not in ("per_class", "chance")}
    return {name: np.quantile(value, (0.025, 0.975)).tolist() for name, value in values.items()}


def class_report(confusion, classes):
    """The scores, a line for each class, and the confusion matrix, as text."""
    scores = class_scores(confusion)
    per_class = scores.pop("per_class")
    lines = [f"{name.replace('_', ' '):18} {score:.4f}" for name, score in scores.items()]
    width = max(map(len, classes))
    names = [f"{i:2}  {name:{width}}" for i, name in enumerate(classes)]
    lines += ["", f"{'':{width + 4}}  precision  recall      f1  windows"]
    for name, *values in zip(names, *per_class.values()):
        lines.append("{}  {:9.4f} {:7.4f} {:7.4f} {:8}".format(name, *values))
    columns = [f"{i:6}" for i in range(len(classes))] + ["  none"]    # the answer names no class
    n_columns = np.shape(confusion)[1]
    lines += ["", f"{'true, as predicted:':{width + 4}}" + "".join(columns[:n_columns])]
    for name, counts in zip(names, np.asarray(confusion)):
        lines.append(name + "".join(f"{count:6}" for count in counts))
    return "\n".join(lines)
