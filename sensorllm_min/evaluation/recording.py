"""Samples of a person's own files: recordings of any length, whose windows each get an activity."""
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..data.logs import Log, put_on_grid, resample, runs, stretches
from ..data.own import read_log
from ..data.prepare import strided_windows
from ..data.tables import csv_header
from ..files import InputError, brief, write_text
from ..plots.figures import draw_recording
from .predict import answer_batches, read_activities

NO_CLASS = "no class"                   # shown for an answer in words that names none


class Prediction(NamedTuple):
    """The activity of one window; times in seconds from the recording's first sample."""
    start: float
    end: float
    activity: str | None                # None: an answer in words that names no class
    probabilities: dict | None          # {activity: probability}; None: answered in words


def only_channel(path, dataset):
    """The token of the one channel that a CSV has a column for; InputError if there are others."""
    columns = csv_header(path)
    tokens = [channel.token for channel in dataset.channels]
    known = [channel.token for channel in dataset.channels if channel.heading in columns]
    if len(known) != 1:
        found = ", ".join(known or columns)
        raise InputError(f"{path} has columns for {len(known)} channels ({brief(found)}); choose "
                         f"one with --channel, of {', '.join(tokens)}")
    return known[0]


def read_window(path, dataset):
    """A CSV as one window without a gap -> samples (S, C) of the dataset's channels.

    InputError if a sample is missing or not finite, or if there are fewer than two.
    """
    log = read_log(path, replace(dataset, label_column=None), Counter())
    bad = ~np.isfinite(log.samples).all(1)
    if bad.any():
        raise InputError(f"{path}: sample {bad.argmax() + 1} is missing or not a finite number; "
                         "a window to ask about needs all of its samples")
    log = put_on_grid(log, Counter())
    if not np.isfinite(log.samples).all():
        raise InputError(f"{path}: its clock has a gap; a window to ask about has none")
    samples = resample(log.samples, log.rate, dataset.rate)
    if len(samples) < 2:
        raise InputError(f"{path} holds {len(samples)} samples; a trend needs two")
    return samples


def read_recording(path, dataset, counts) -> Log:
    """A CSV as preparation reads it, with the labels of its label column if it has one."""
    column = dataset.label_column or "label"
    values = dataset.label_values or {name: name for name in dataset.classes}
    present = column in csv_header(path)
    labelled = replace(dataset, label_column=column if present else None, label_values=values)
    return put_on_grid(read_log(path, labelled, counts), counts)


def slide_windows(log, dataset, counts):
    """Yields (start in seconds, samples (S, C) float32) of each window of a Log on its grid.

    As in preparation, no window lies across a gap, and the last window of a stretch ends where the
    stretch ends. counts: a Counter of lost samples.
    """
    timed = np.isfinite(log.seconds)                              # not at a long gap of the clock
    for first, last in runs(timed):
        if not timed[first]:
            continue
        for begin, end in stretches(log.samples[first:last], counts):
            samples = resample(log.samples[first + begin:first + end], log.rate, dataset.rate)
            for start in strided_windows(len(samples), dataset.window, dataset.stride):
                seconds = float(log.seconds[first + begin]) + start / dataset.rate
                yield seconds, samples[start:start + dataset.n_window]


def classify_recording(model, log, counts, batch_size=16) -> list[Prediction]:
    """A Log -> a Prediction for each window, in order. model: an interface.Model.

    Raises an InputError unless there is a whole window without a gap.
    """
    dataset, classes = model.dataset, model.recipe.classes
    seconds = dataset.n_window / dataset.rate
    windows = list(slide_windows(log, dataset, counts))
    if not windows:
        raise InputError(f"{len(log.samples)} samples hold no window: {dataset.n_window} samples "
                         f"without a gap, {seconds:g} s at {dataset.rate:g} Hz")
    examples = [model.example(samples, dataset, "a window", index=i)
                for i, (_, samples) in enumerate(windows)]
    batches = [examples[i:i + batch_size] for i in range(0, len(examples), batch_size)]
    records = answer_batches(model.model, batches, model.processes)
    predictions = []
    for (start, _), record in zip(windows, read_activities(records, classes)):
        label, probabilities = record["predicted"], record.get("probabilities")
        activity = None if label is None else classes[label]
        if probabilities:
            probabilities = dict(zip(classes, probabilities))
        predictions.append(Prediction(start, start + seconds, activity, probabilities))
    return predictions


def activities_at(seconds, predictions):
    """The activity of the nearest window at each time (N,); None where no window is."""
    starts, ends = np.array([(one.start, one.end) for one in predictions]).T
    middles = (starts + ends) / 2
    borders = (middles[1:] + middles[:-1]) / 2
    nearest = np.searchsorted(borders, seconds, side="right")     # (N,)
    inside = (seconds > starts[nearest] - 1e-6) & (seconds < ends[nearest] - 1e-6)
    names = np.array([one.activity or NO_CLASS for one in predictions], object)
    return np.where(inside, names[nearest], None)


def bar_of(activities, log):
    """The activity or None at each sample of a Log -> [(start, end, activity)], in seconds."""
    return [(float(log.seconds[start]), float(log.seconds[end - 1]) + 1 / log.rate,
             activities[start])
            for start, end in runs(activities) if activities[start]]


def predictions_table(predictions) -> str:
    """Predictions as CSV."""
    import pandas as pd                                           # takes a second to import
    rows = []
    for start, end, activity, probabilities in predictions:
        probability = f"{probabilities[activity]:.4f}" if probabilities else ""
        rows.append((f"{start:.3f}", f"{end:.3f}", activity or NO_CLASS, probability))
    table = pd.DataFrame(rows, columns=("start", "end", "activity", "probability"))
    return table.to_csv(index=False, lineterminator="\n")


def predict_csv(path, model, batch_size, say):
    """Writes PATH.predictions.csv, a line for each window, and draws PATH.predictions.png."""
    dataset, counts = model.dataset, Counter()
    log = read_recording(path, dataset, counts)
    predictions = classify_recording(model, log, counts, batch_size)
    write_text(Path(f"{path}.predictions.csv"), predictions_table(predictions))

    predicted = activities_at(log.seconds, predictions)
    bars = {"predicted": bar_of(predicted, log)}
    found = "".join(f"; {what} {count}" for what, count in sorted(counts.items()) if count)
    say(f"{path}: {len(log.samples)} samples at {log.rate:g} Hz, {len(predictions)} windows of "
        f"{dataset.n_window / dataset.rate:g} s{found}")
    for start, end, activity in bars["predicted"][:40]:
        say(f"{start:9.1f} to {end:9.1f} s  {activity}")
    if len(bars["predicted"]) > 40:
        say(f"... and {len(bars['predicted']) - 40} more stretches")
    true = np.array([*dataset.classes, None])[log.labels]         # label -1: None
    both = predicted.astype(bool) & true.astype(bool)
    if both.any():
        bars["true"] = bar_of(true, log)
        agreement = (predicted == true)[both].mean()
        say(f"as labelled for {agreement:.1%} of the {both.sum() / log.rate:.1f} labelled seconds")
    draw_recording(f"{path}.predictions.png", log, dataset, bars)
    say(f"wrote {path}.predictions.csv, and drew {path}.predictions.png")
