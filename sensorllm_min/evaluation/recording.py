"""The activity of each window of a recording of any length, from a CSV or an array."""
from collections import Counter
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ..data.logs import put_on_grid, resample, runs, stretches
from ..data.own import read_log
from ..data.prepare import strided_windows
from ..data.tables import csv_header
from ..files import InputError, write_text
from ..plots.figures import draw_recording
from .predict import answer_batches, read_activities

NO_CLASS = "no class"                   # shown for an answer in words that names none


class Prediction(NamedTuple):
    """The activity of one window; times in seconds from the recording's first sample."""
    start: float
    end: float
    activity: str | None                # None: an answer in words that names no class
    probabilities: dict | None          # {activity: probability}; None: answered in words


def slide_windows(log, dataset, counts):
    """Yields (start in seconds, samples (S, C) float32) of each window of a Log without a gap."""
    timed = np.isfinite(log.seconds)                              # not at a long gap of the clock
    for first, last in runs(timed):
        if not timed[first]:
            continue
        for begin, end in stretches(log.samples[first:last], counts):
            begin, end = first + begin, first + end
            samples = resample(log.samples[begin:end], log.rate, dataset.rate)
            for start in strided_windows(len(samples), dataset.window, dataset.stride):
                seconds = float(log.seconds[begin]) + start / dataset.rate
                yield seconds, samples[start:start + dataset.n_window]


def classify_recording(model, log, counts, batch_size=16) -> list[Prediction]:
    """A Log -> a Prediction for each window, in order. InputError if it holds no whole window."""
    dataset = model.dataset
    classes = model.recipe.classes
    seconds = dataset.n_window / dataset.rate
    windows = list(slide_windows(log, dataset, counts))
    if not windows:
        raise InputError(f"{len(log.samples)} samples hold no window: {dataset.n_window} samples "
                         f"without a gap, {seconds:g} s at {dataset.rate:g} Hz")
    examples = []
    for i, (_, samples) in enumerate(windows):
        examples.append(model.example(samples, dataset, "a window", index=i))
    batches = [examples[i:i + batch_size] for i in range(0, len(examples), batch_size)]
    records = answer_batches(model.model, batches, model.processes)
    predictions = []
    for (start, _), record in zip(windows, read_activities(records, classes)):
        label = record["predicted"]
        probabilities = record.get("probabilities")
        activity = None if label is None else classes[label]
        if probabilities:
            probabilities = dict(zip(classes, probabilities))
        predictions.append(Prediction(start, start + seconds, activity, probabilities))
    return predictions


def activities_at(seconds, predictions):
    """The activity of the nearest window at each time (N,); None where there is no window."""
    starts, ends = np.array([(one.start, one.end) for one in predictions]).T
    middles = (starts + ends) / 2
    borders = (middles[1:] + middles[:-1]) / 2
    seconds = seconds + 1e-6                                      # a window's start is inside it
    nearest = np.searchsorted(borders, seconds)                   # (N,)
    inside = (seconds > starts[nearest]) & (seconds < ends[nearest])
    names = np.array([one.activity or NO_CLASS for one in predictions], object)
    return np.where(inside, names[nearest], None)


def bar_of(activities, log):
    """The activity or None at each sample of a Log -> [(start, end, activity)], in seconds."""
    bar = []
    for first, last in runs(activities):
        if activities[first]:
            end = float(log.seconds[last - 1]) + 1 / log.rate
            bar.append((float(log.seconds[first]), end, activities[first]))
    return bar


def predict_csv(path, model, batch_size, say):
    """Classifies a CSV: writes PATH.predictions.csv and draws PATH.predictions.png."""
    import pandas as pd
    dataset = model.dataset
    counts = Counter()
    column = dataset.label_column or "label"
    values = dataset.label_values or {name: name for name in dataset.classes}
    header, _, _ = csv_header(path, [channel.heading for channel in dataset.channels])
    present = column in header
    labelled = replace(dataset, label_column=column if present else None, label_values=values)
    log = put_on_grid(read_log(path, labelled, counts), counts)
    predictions = classify_recording(model, log, counts, batch_size)
    table = []
    for start, end, activity, probabilities in predictions:
        probability = ""
        if probabilities:
            probability = f"{probabilities[activity]:.4f}"
        row = f"{start:.3f}", f"{end:.3f}", activity or NO_CLASS, probability
        table.append(row)
    table = pd.DataFrame(table, columns=["start", "end", "activity", "probability"])
    write_text(f"{path}.predictions.csv", table.to_csv(index=False, lineterminator="\n"))
    lost = ""
    if not counts["files read by their time column"]:
        lost = "; no clock was found, this is the model's rate"
    for what, count in sorted(counts.items()):
        if count:
            lost += f"; {what} {count}"
    seconds = dataset.n_window / dataset.rate
    say(f"{path}: {len(log.samples)} samples at {log.rate:g} Hz, {len(predictions)} windows of "
        f"{seconds:g} s{lost}")
    predicted = activities_at(log.seconds, predictions)
    bars = {"predicted": bar_of(predicted, log)}
    for start, end, activity in bars["predicted"][:40]:
        say(f"{start:9.1f} to {end:9.1f} s  {activity}")
    if len(bars["predicted"]) > 40:
        say(f"... and {len(bars['predicted']) - 40} more")
    true = np.array([*dataset.classes, None])[log.labels]         # label -1: None
    both = predicted.astype(bool) & true.astype(bool)
    if both.any():
        bars["true"] = bar_of(true, log)
        agreement = (predicted == true)[both].mean()
        say(f"as labelled for {agreement:.1%} of the {both.sum() / log.rate:.1f} labelled seconds")
    draw_recording(f"{path}.predictions.png", log, dataset, bars)
    say(f"wrote {path}.predictions.csv, and drew {path}.predictions.png")
