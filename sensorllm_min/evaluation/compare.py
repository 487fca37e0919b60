"""Does the language model help? The same training with one thing changed at a time, in a table."""
import json
from dataclasses import asdict, replace
from itertools import groupby, product
from pathlib import Path

import numpy as np

from ..ablations import ABLATIONS
from ..files import InputError, read_json, write_json
from .class_scores import class_scores

# The rows of the table: which settings of the full model each of them changes.
ROWS = {
    "full": {},
    "no-stage-1": {"align": "none"},
    **{name: {"ablate": name} for name in ABLATIONS},
}
# Settings that may change when a comparison is continued, by more rows or seeds for example.
NOT_COMPARED = ("out", "resume", "compare", "seeds")


def plan_runs(settings):
    """Yields (row, settings) of each run; one that left a checkpoint is resumed."""
    if settings.answer != "class":
        raise InputError("--compare compares class heads; leave --answer out")
    parts = [settings]
    if settings.folds:
        parts = [settings.in_fold(k) for k in range(settings.folds)]
    n_seeds = settings.seeds or (1 if settings.folds else 3)
    seeds = range(settings.seed, settings.seed + n_seeds)
    rows = settings.compare or ("full",)
    for seed, part, row in product(seeds, parts, rows):
        changed = replace(part, **ROWS[row])
        if changed == part and row != "full" and "full" in rows:
            continue                                              # the full model is this already
        fold = f"-fold{part.fold[0] + 1}" if settings.folds else ""
        out = Path(settings.out, f"{row}{fold}-{seed}")
        resume = Path(out, "last.safetensors").exists()
        yield row, replace(changed, seed=seed, out=str(out), resume=resume)


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
    """{row: [results of each run]} -> a table.

    macro_f1 and accuracy are those of the folds of a seed together, mean and deviation over seeds;
    person_f1 is the mean over people; less: the first row's lead, person by person."""
    import pandas as pd                                           # takes a second
    table = {}
    first = None
    for row, runs in results.items():
        pooled = []
        people = []
        for _, folds in groupby(runs, key=lambda run: run["seed"]):
            confusion = np.sum([run["confusion"] for run in folds], 0)
            pooled.append(class_scores(confusion))
        for run in runs:
            people.append({name: person["f1"] for name, person in run["people"].items()})
        pooled = pd.DataFrame(pooled)
        f1 = pd.DataFrame(people).mean()                          # of each person
        if first is None:
            first = f1
        less = first - f1
        table[row] = {
            ("macro_f1", "mean"): pooled["macro_f1"].mean(),
            ("macro_f1", "std"): pooled["macro_f1"].std(),
            ("person_f1", "mean"): f1.mean(),
            ("person_f1", "std"): f1.std(),
            ("less", "mean"): less.mean(),
            ("less", "std"): less.std(),
            ("people", ""): len(f1),
            ("accuracy", "mean"): pooled["accuracy"].mean(),
            ("chance_f1", "mean"): pooled["chance_f1"].mean(),
            ("parameters", "max"): max(run["trained_parameters"] for run in runs),
            ("seconds", "median"): np.median([run["seconds"] for run in runs])}
    table = pd.DataFrame(table).T
    return table.to_string(float_format="{:.3f}".format, na_rep="")
