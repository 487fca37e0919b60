"""Does the language model help? The same training with one thing changed at a time, in a table."""
import json
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

from ..ablations import ABLATIONS
from ..files import InputError, read_json, write_json

# The rows of the table: which settings of the full model each of them changes.
ROWS = {
    "full": {},
    "no-stage-1": {"align": "none"},
    **{name: {"ablate": name} for name in ABLATIONS},
    "sensors-only": {"text": ()},
}
# The columns of the table, and what it shows of each.
SCORES = ("macro_f1", "less", "accuracy", "balanced_accuracy")
COLUMNS = dict.fromkeys(SCORES, ["mean", "std"])
COLUMNS |= {"chance_f1": ["mean"], "trained_parameters": ["max"], "seconds": ["median"]}
# Settings that may change when a comparison is continued, by more rows or seeds for example.
NOT_COMPARED = ("out", "resume", "compare", "seeds")


def plan_runs(settings, data):
    """Yields (row, settings) of each run; one that left a checkpoint is resumed."""
    if settings.answer != "class":
        raise InputError("--compare compares class heads; leave --answer out")
    folds = [None] if settings.folds is None else plan_folds(settings, data)
    n_seeds = settings.seeds or (3 if settings.folds is None else 1)
    seeds = range(settings.seed, settings.seed + n_seeds)
    rows = settings.compare or ("full",)
    for seed, fold, row in product(seeds, folds, rows):
        changed = replace(settings, **ROWS[row])
        if changed == settings and row != "full" and "full" in rows:
            continue                                              # the full model is this already
        if row == "text-only" and not settings.text:
            continue
        part = f"-fold{fold[0] + 1}" if fold else ""
        out = Path(settings.out, f"{row}{part}-{seed}")
        resume = Path(out, "last.safetensors").exists()
        yield row, replace(changed, seed=seed, fold=fold, out=str(out), resume=resume)


def plan_folds(settings, data):
    """The (k, K) of each part of a cross-validation over the people that are not for the test."""
    if settings.align != "none":
        raise InputError("--folds: stage 1 has seen all the subjects that folds leave out; give "
                         "--align none")
    if data.dataset.split:
        raise InputError(f"--folds leaves people out; {settings.data} is split by "
                         f"{data.dataset.split}, within each person")
    n_subjects = len(data.subjects_of("train")) + len(data.subjects_of("val"))
    if not 2 <= settings.folds <= n_subjects:
        raise InputError(f"--folds {settings.folds}: give 2 to {n_subjects}, the number of "
                         "subjects that are not for the test")
    return [(k, settings.folds) for k in range(settings.folds)]


def claim_comparison(settings):
    """Writes the settings to --out; raises an InputError if a comparison with others is there."""
    path = Path(settings.out, "settings.json")
    given = {name: value for name, value in asdict(settings).items() if name not in NOT_COMPARED}
    given = json.loads(json.dumps(given))                         # tuples -> lists
    if path.exists() and read_json(path) != given:
        raise InputError(f"{settings.out} holds a comparison with other settings, see {path}; "
                         "choose another --out, or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, given)


def comparison_table(results):
    """{row: [scores of each run]} -> a table; "less": by how much the first row's run is better."""
    import pandas                                                 # takes a second
    records = []
    for row, runs in results.items():
        for first, run in zip(next(iter(results.values())), runs):
            less = first["macro_f1"] - run["macro_f1"]
            records.append({"row": row, "less": less, **run})
    table = pandas.DataFrame(records).groupby("row", sort=False).agg(COLUMNS)
    return table.to_string(float_format="{:.3f}".format, na_rep="")
