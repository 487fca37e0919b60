"""Does the language model help? The same training with one thing changed at a time, in a table."""
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

import numpy as np

from ..ablations import ABLATIONS
from ..files import InputError, markdown_table, read_json, understanding, write_json, write_text
from .class_scores import class_scores

# The rows of the table: what is changed in the settings of the full model, and what that leaves.
ROWS = {
    "full": ({}, "the model as it is, after stage 1 unless --align is none"),
    "no-stage-1": ({"align": "none"}, "stage 2 alone: projector and special tokens new, "
                                      "and every network without a source"),
    **{name: ({"ablate": name}, model.__doc__) for name, (model, _) in ABLATIONS.items()},
    "sensors-only": ({"text": ()}, "no text in the prompt"),
}
MAJORITY = "always the majority class"
HEAD = ("", "what", "macro F1", "first minus it", "accuracy", "balanced accuracy",
        "trained parameters", "seconds")
READING = (
    "How to read it: each row changes one thing in the full model; steps, seeds and windows are "
    "the same. A row that comes within the standard deviation of the full model shows that what it "
    "lacks was not needed on this data: `no-llm` and `encoder-mlp` lack the language model, "
    "`random-llm` what it learned before, `no-stage-1` the alignment, `shuffled` the order in "
    "time, `text-only` the sensors, `sensors-only` the text. `statistics` and `encoder-mlp` may "
    "want other settings than the full model to do their best. The standard deviation is taken "
    "over {runs}.")
# What may differ between two calls of one comparison.
FREE = ("out", "resume", "log_every")


def check_settings(settings, folds, processes):
    """Writes the settings into --out. InputError where it holds a comparison with other ones."""
    path = Path(settings.out, "settings.json")
    given = {name: list(value) if isinstance(value, tuple) else value
             for name, value in asdict(settings).items() if name not in FREE}
    given["folds"] = folds
    if processes.first and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, given)
    processes.wait()
    old = read_json(path)
    different = [f"{name} {old.get(name)}, not {value}"
                 for name, value in given.items() if old.get(name) != value]
    if different:
        raise InputError(f"{settings.out} holds a comparison with {'; '.join(different)}; choose "
                         "another --out, or remove it")


def plan_runs(settings, plan, data, processes):
    """Yields (row of the table, settings) of each run, one seed after another; resumes runs.

    plan: its rows, n_seeds of each, and folds, the parts of a cross-validation or None.
    """
    if settings.answer != "class" or settings.ablate:
        raise InputError("--compare compares class heads; leave --answer and --ablate out")
    folds = [None]
    if plan.folds:
        if settings.align != "none":
            raise InputError("--folds: stage 1 has seen all the subjects that folds leave out; "
                             "give --align none")
        if data.dataset.split:
            raise InputError(f"--folds leaves people out; {settings.data} is split by "
                             f"{data.dataset.split}, within each person")
        folds = [(k, plan.folds) for k in range(plan.folds)]
        n_subjects = len(data.subjects_of("train")) + len(data.subjects_of("val"))
        if not 2 <= plan.folds <= n_subjects:
            raise InputError(f"--folds {plan.folds}: give 2 to {n_subjects}, the number of "
                             "subjects that are not for the test")
    check_settings(settings, plan.folds, processes)
    for seed, fold in product(range(settings.seed, settings.seed + plan.n_seeds), folds):
        for name in plan.rows:
            changed = replace(settings, fold=fold, **ROWS[name][0])
            same = changed == replace(settings, fold=fold)
            if same and name != "full" and "full" in plan.rows:   # the full model is this already
                continue
            if name == "text-only" and not settings.text:         # there is no text
                continue
            part = f"-fold{fold[0] + 1}" if fold else ""
            out = Path(settings.out, f"{name}{part}-{seed}")
            resume = (out / "last.safetensors").exists()
            yield name, replace(changed, seed=seed, out=str(out), resume=resume)


def score_majority(train, test, n_classes):
    """The scores of always naming the majority class of the training windows."""
    guess = np.bincount(train.labels(), minlength=n_classes).argmax()
    confusion = np.zeros((n_classes, n_classes), int)
    np.add.at(confusion, (test.labels(), guess), 1)
    scores = class_scores(confusion)
    del scores["per_class"]
    return scores | {"trained_parameters": 0, "seconds": 0.0}


def mean_and_std(values, form="{:.3f}"):
    """The mean and standard deviation (of a sample) of several seeds; of one, the value alone."""
    mean = form.format(np.mean(values))
    return f"{mean} ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else mean


def comparison_table(results, runs):
    """{row: [scores of each run]} -> Markdown, with each row's difference from the full model.

    runs: in words, what the runs of a row differ in.
    """
    reference = "full" if "full" in results else next(iter(results))
    whats = {name: what for name, (_, what) in ROWS.items()} | {"majority": MAJORITY}
    rows = []
    for name, scored in results.items():
        scores = {score: mean_and_std([run[score] for run in scored])
                  for score in ("macro_f1", "accuracy", "balanced_accuracy")}
        pairs = zip(results[reference], scored)                   # with the same seed
        less = [full["macro_f1"] - run["macro_f1"] for full, run in pairs]
        difference = "" if name == reference else mean_and_std(less, "{:+.3f}")
        seconds = np.median([run["seconds"] for run in scored])
        rows.append((name, whats[name], scores["macro_f1"], difference, scores["accuracy"],
                     scores["balanced_accuracy"], f"{scored[0]['trained_parameters']:,}",
                     f"{seconds:.0f}"))
    return f"{markdown_table(HEAD, rows)}\n\n{READING.format(runs=runs)}\n"


def write_comparison(out, results, plan, data, command):
    """Writes comparison.json and comparison.md into `out` -> the table, with the majority class."""
    first = next(iter(results.values()))
    results = results | {"majority": [run["majority"] for run in first]}
    seeds = "1 seed" if plan.n_seeds == 1 else f"{plan.n_seeds} seeds of stage 2"
    if plan.folds:
        runs = (f"{seeds} and {plan.folds} folds: each of the subjects that are not for the test "
                "is scored once, by a model that has not seen it")
    else:
        share = ", so none is shown" if plan.n_seeds == 1 else (
            ", which share one stage 1 if there is one")
        people = f"{len(data.subjects_of('test'))} people"
        tested = data.dataset.held_out if data.dataset.split else people
        runs = f"{seeds}{share}; the test has {tested}"
    table = comparison_table(results, runs)
    write_json(Path(out, "comparison.json"),
               {"command": command, "dataset": data.name, "results": results})
    write_text(Path(out, "comparison.md"), f"# Comparison\n\n`{command}`\n\n{table}")
    return table


def table_over_datasets(folders):
    """Folders of comparisons -> Markdown: macro F1, a column for each, a row for each of theirs.

    InputError where a folder holds no comparison, or two are of the same dataset.
    """
    columns = {}                                                  # dataset -> {row: [macro F1]}
    for folder in folders:
        path = Path(folder, "comparison.json")
        content = read_json(path)
        with understanding(path, advice="; run train_har.py --compare again"):
            scores = {name: [float(run["macro_f1"]) for run in runs]
                      for name, runs in content["results"].items()}
            name = str(content["dataset"])
        if name in columns:
            raise InputError(f"{path}: another of the comparisons is of {name}, too")
        columns[name] = scores
    rows = []
    for name in dict.fromkeys(name for scores in columns.values() for name in scores):
        rows.append((name, *(mean_and_std(scores[name]) if name in scores else ""
                             for scores in columns.values())))
    n_runs = ("runs", *(len(next(iter(scores.values()))) for scores in columns.values()))
    return markdown_table(("macro F1", *columns), [*rows, n_runs])
