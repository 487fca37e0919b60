"""Does the language model help? The same training with one thing changed at a time, over several seeds, in one table."""
from argparse import Namespace
from pathlib import Path

import numpy as np

from .config import InputError, read_json, write_json, write_whole
from .metrics import class_scores
from .sensorllm import CONTROLS

# The rows of the table: what is changed in the command of the full model, and what that leaves.
ROWS = {
    "full": ({}, "the model as it is, after stage 1"),
    "no-stage-1": ({"align": "none"}, "stage 2 alone: projector and markers new, and a network that has no source"),
    **{name: ({"control": name}, what) for name, (what, _) in CONTROLS.items()},
    "sensors-only": ({"text": "none"}, "no text in the prompt"),
}
SHOWN = ("macro_f1", "accuracy", "balanced_accuracy")
READING = (
    "How to read it: each row changes one thing in the full model; steps, seeds and windows are the same. A row that "
    "comes within the spread of the full model shows that what it lacks was not needed on this data: `no-llm` and "
    "`encoder-mlp` the language model, `random-llm` what it learned before, `no-stage-1` the alignment, `shuffled` the order "
    "in time, `text-only` the sensors, `sensors-only` the text. The spread is the standard deviation over the seeds of "
    "stage 2, which share one stage 1; behind it stand people: {subjects} of them in the test.")


def check_settings(args, processes):
    """A comparison may go on, or get more seeds; InputError where --out holds one with other settings."""
    path = Path(args.out, "settings.json")
    settings = {key: value for key, value in vars(args).items() if key not in ("out", "controls", "resume", "log_every")}
    if processes.first and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, settings)
    processes.wait()
    old = read_json(path)
    different = [f"{key} {old.get(key)}, not {value}" for key, value in settings.items() if old.get(key) != value]
    if different:
        raise InputError(f"{args.out} holds a comparison with {'; '.join(different)}; choose another --out, or remove it")


def planned(args, processes):
    """The runs, one seed after another: yields (row of the table, the run's own arguments). A run once begun is resumed."""
    if args.answer != "class" or args.control:
        raise InputError("--controls compares class heads; leave --answer and --control out")
    check_settings(args, processes)
    for seed in range(args.seed, args.seed + args.controls):
        for name, (changes, _) in ROWS.items():
            if changes and all(getattr(args, option) == value for option, value in changes.items()):
                continue                                                      # the full model is this already
            out = Path(args.out, f"{name}-{seed}")
            yield name, Namespace(**vars(args) | changes | {
                "seed": seed, "out": str(out), "resume": (out / "last.safetensors").exists()})


def majority(train, test, n_classes):
    """The scores of always naming the commonest class of the training windows."""
    guess = np.bincount(train.labels(), minlength=n_classes).argmax()
    confusion = np.zeros((n_classes, n_classes), int)
    np.add.at(confusion, (test.labels(), guess), 1)
    return {key: score for key, score in class_scores(confusion).items() if key != "per_class"} | {
        "trained_parameters": 0, "seconds": 0.0}


def spread(values, form):
    """Mean and standard deviation (of a sample) of several seeds; of one, the value alone."""
    return form.format(np.mean(values)) + (f" ± {form.format(np.std(values, ddof=1))}" if len(values) > 1 else "")


def controls_table(results, subjects):
    """results {row: [scores of a seed, ...]} -> Markdown: a line a row, its difference from the full model, how to read it."""
    whats = {name: what for name, (_, what) in ROWS.items()} | {"majority": "always the commonest class"}
    lines = ["| | what | macro F1 | full minus it | accuracy | balanced accuracy | trained parameters | seconds |",
             "| --- | --- | --- | --- | --- | --- | --- | --- |"]
    for name, runs in results.items():
        macro_f1, accuracy, balanced = ([run[score] for run in runs] for score in SHOWN)
        less = [full["macro_f1"] - run["macro_f1"] for full, run in zip(results["full"], runs)]    # seed by seed
        lines.append(f"| {name} | {whats[name]} | {spread(macro_f1, '{:.3f}')} | "
                     f"{'' if name == 'full' else spread(less, '{:+.3f}').replace('± +', '± ')} | "
                     f"{spread(accuracy, '{:.3f}')} | {spread(balanced, '{:.3f}')} | {runs[0]['trained_parameters']:,} | "
                     f"{np.median([run['seconds'] for run in runs]):.0f} |")
    n_seeds = len(results["full"])
    return "\n".join([*lines, "", f"{n_seeds} seed{'s' if n_seeds > 1 else ''}. " + READING.format(subjects=subjects), ""])


def finished(out):
    """The results of a run that is done, or None."""
    return read_json(Path(out, "results.json")) if Path(out, "results.json").exists() else None


def report_controls(out, results, subjects, command):
    """Writes controls.json and controls.md into `out` -> the table. Always naming the commonest class is its last row."""
    results = results | {"majority": [run["majority"] for run in results["full"]]}
    table = controls_table(results, subjects)
    write_json(Path(out, "controls.json"), {"command": command, "results": results})
    write_whole(Path(out, "controls.md"), f"# Controls\n\n`{command}`\n\n{table}")
    return table
