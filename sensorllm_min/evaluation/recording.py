"""A recording of any length: windows slide over it, and each gets its activity."""
import csv
import io
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ..batch import IGNORED, Example, collate
from ..data.claims import parse_activity
from ..data.examples import har_prompt
from ..data.logs import Log, put_on_grid, resample, runs, stretches
from ..data.own import read_log
from ..data.plots import draw_recording
from ..data.prepare import strided_windows
from ..data.tables import csv_header
from ..files import InputError, write_text
from ..generate import generate

NO_CLASS = "no class"                   # an answer in words that names none, in tables and pictures


class Prediction(NamedTuple):
    """The activity of one window; times in seconds from the recording's first sample."""
    start: float
    end: float
    activity: str | None                # None: an answer in words that names no class
    probabilities: dict | None          # {activity: probability}; None: answered in words


def slide_windows(log, dataset, counts):
    """Yields (start in seconds, samples (S, C) float32) of each window of a Log on its grid.

    As in preparation: no window lies across a gap, the last one of a stretch is flush with its end.
    counts: a Counter for what was lost.
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


@torch.no_grad()
def classify_recording(loaded, log, counts, processes, batch_size=16):
    """A Log -> yields a Prediction for each window, in order.

    InputError where not one whole window is without a gap.
    """
    dataset, prompts = loaded.recipe.sensors, loaded.prompts
    windows = list(slide_windows(log, dataset, counts))
    if not windows:
        raise InputError(f"{len(log.samples)} samples hold no window: {dataset.n_window} samples "
                         f"without a gap, {dataset.n_window / dataset.rate:g} s at "
                         f"{dataset.rate:g} Hz")
    for first in range(0, len(windows), batch_size):
        some = windows[first:first + batch_size]
        examples = [Example(har_prompt(prompts, window, dataset), [], list(window.T), IGNORED, {},
                            first + i) for i, (_, window) in enumerate(some)]
        longest = max(len(example.prompt) for example in examples)
        if longest >= prompts.max_positions:
            raise InputError(f"a window makes a prompt of {longest} tokens, the LLM takes "
                             f"{prompts.max_positions}")
        found = name_activities(loaded, examples, processes)
        for (start, window), (activity, probabilities) in zip(some, found):
            yield Prediction(start, start + len(window) / dataset.rate, activity, probabilities)


def name_activities(loaded, examples, processes):
    """Examples of one batch -> [(activity, {activity: probability})], one for each."""
    model, tokenizer, classes = loaded.model, loaded.tokenizer, loaded.recipe.classes
    in_words = model.head is None
    batch = collate(examples, tokenizer.pad_id, for_generation=in_words).to(processes.device)
    with processes.autocast():
        if not in_words:
            chances = model.class_logits(batch).float().softmax(-1)               # (B, n_classes)
            return [(classes[int(np.argmax(row))], dict(zip(classes, row)))
                    for row in chances.tolist()]
        room = min(400, loaded.prompts.max_positions - batch.ids.shape[1])
        answers = generate(model.llm, model.embed(batch), batch.mask, tokenizer.stop_ids, room)
    labels = [parse_activity(tokenizer.decode(answer), classes) for answer in answers]
    return [(None if label is None else classes[label], None) for label in labels]


def activity_bar(predictions):
    """Predictions in order -> [(start, end, activity)]: at each time that of the nearest window."""
    bar, middle = [], None
    for start, end, activity, _ in predictions:
        before, middle = middle, (start + end) / 2
        activity = activity or NO_CLASS
        if bar and start < bar[-1][1]:                            # windows overlap
            start = bar[-1][1] = (before + middle) / 2
        if bar and bar[-1][2] == activity and start - bar[-1][1] < 1e-6:
            start, _, _ = bar.pop()                               # they touch and are alike
        bar.append([start, end, activity])
    return list(map(tuple, bar))


def true_bar(log, classes):
    """[(start, end, activity)] of the labelled stretches of a Log."""
    return [(float(log.seconds[start]), float(log.seconds[end - 1]) + 1 / log.rate,
             classes[log.labels[start]])
            for start, end in runs(log.labels) if log.labels[start] >= 0]


def seconds_in_common(one, other):
    """How long two bars, [(start, end, activity)], have the same activity, and both have one."""
    same = both = 0.0
    for start, end, activity in one:
        for first, last, named in other:
            overlap = max(0.0, min(end, last) - max(start, first))
            both += overlap
            same += overlap * (activity == named)
    return same, both


def read_recording(path, dataset, counts) -> Log:
    """A CSV as preparation reads one, on its grid, with labels where it has a label column."""
    column = dataset.label_column or "label"
    values = dataset.label_values or {name: name for name in dataset.classes}
    present = column in csv_header(path)
    labelled = replace(dataset, label_column=column if present else None, label_values=values)
    return put_on_grid(read_log(path, labelled, counts), counts)


def predict_csv(path, loaded, processes, batch_size, say):
    """Writes PATH.predictions.csv, a line for each window, and draws PATH.predictions.png."""
    dataset, counts = loaded.recipe.sensors, Counter()
    log = read_recording(path, dataset, counts)
    predictions = list(classify_recording(loaded, log, counts, processes, batch_size))
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(("start", "end", "activity", "probability"))
    for start, end, activity, probabilities in predictions:
        probability = f"{probabilities[activity]:.4f}" if probabilities else ""
        writer.writerow((f"{start:.3f}", f"{end:.3f}", activity or NO_CLASS, probability))
    write_text(Path(f"{path}.predictions.csv"), table.getvalue())

    bars = {"predicted": activity_bar(predictions)}
    truth = true_bar(log, dataset.classes)
    found = "".join(f"; {what} {count}" for what, count in sorted(counts.items()) if count)
    say(f"{path}: {len(log.samples)} samples at {log.rate:g} Hz, {len(predictions)} windows of "
        f"{dataset.n_window / dataset.rate:g} s{found}")
    for start, end, activity in bars["predicted"][:40]:
        say(f"{start:9.1f} to {end:9.1f} s  {activity}")
    if len(bars["predicted"]) > 40:
        say(f"... and {len(bars['predicted']) - 40} more stretches")
    if truth:
        bars["true"] = truth
        same, both = seconds_in_common(bars["predicted"], truth)
        say(f"as labelled for {same / max(both, 1e-9):.1%} of the {both:.1f} labelled seconds")
    picture = f"{path}.predictions.png"
    try:
        draw_recording(picture, log, dataset, bars)
        say(f"wrote {path}.predictions.csv, and drew {picture}")
    except ImportError:
        say(f"wrote {path}.predictions.csv; no picture: matplotlib is not installed")
