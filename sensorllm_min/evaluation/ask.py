"""One window and a question, from a prepared dataset or a CSV: the answer, word by word."""
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from ..data.claims import parse_activity, parse_segments
from ..data.logs import put_on_grid, resample
from ..data.own import read_log
from ..data.sensors import DatasetInfo
from ..data.tables import csv_header
from ..data.texts import window_trends_text
from ..files import InputError, brief
from ..plots.figures import draw_descriptions, draw_window


@dataclass
class Window:
    samples: np.ndarray                 # (S, C)
    dataset: DatasetInfo                # with these C channels
    name: str                           # for the picture's file
    title: str
    truth: str | None                   # the dataset's own answer


def one_channel(dataset, token):
    """The dataset with only one of its channels. Raises an InputError for an unknown token."""
    channels = tuple(channel for channel in dataset.channels if channel.token == token)
    if not channels:
        known = ", ".join(channel.token for channel in dataset.channels)
        raise InputError(f"--channel {token}: the channels are {known}")
    return replace(dataset, channels=channels)


def prepared_window(data, stage, split, index, token=None):
    """Window `index` of a split: in stage 1 its own channel or another, in stage 2 all of them."""
    records = data.records(stage, split)
    dataset = data.dataset
    if not 0 <= index < len(records):
        raise InputError(f"--window {index}: {data.directory} holds {split} windows 0 to "
                         f"{len(records) - 1} of this stage")
    record = records[index]
    samples = data.window(record)
    name = f"{split}_{index}"
    title = f"{data.name}, {split} window {index}, subject {record['subject']}"
    if stage == "har":
        activity = dataset.classes[record["label"]]
        return Window(samples, dataset, name, title, f"Activity: {activity}")
    token = token or record["channel"]
    chosen = one_channel(dataset, token)
    column = data.tokens.index(token)
    truth = record["answer"] if token == record["channel"] else None
    return Window(
        samples[:, [column]], chosen, f"{name}_{token}", title, truth)


def csv_window(path, dataset, token=None):
    """A CSV as one window of one channel, for stage 1: that of `token`, or the only one."""
    if token is None:
        columns, _, _ = csv_header(path, [channel.heading for channel in dataset.channels])
        known = [channel.token for channel in dataset.channels if channel.heading in columns]
        if len(known) != 1:
            found = brief(", ".join(known or columns))
            tokens = ", ".join(channel.token for channel in dataset.channels)
            raise InputError(f"{path} has columns for {len(known)} channels ({found}); choose one "
                             f"with --channel, of {tokens}")
        token = known[0]
    dataset = one_channel(dataset, token)
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
    return Window(samples, dataset, Path(path).stem, str(path), None)


def answer(model, window, question, max_new_tokens, sampling, say):
    """The answer of an interface.Model about a window; `say` gets it piece by piece."""
    classes = model.recipe.classes
    said = ""

    def listen(ids):
        nonlocal said
        text = model.model.tokenizer.decode(ids)
        if not text.endswith("\ufffd"):                           # a character is still incomplete
            say(text[len(said):])
            said = text

    example = model.example(window.samples, window.dataset, window.title, question)
    record = model.answer(example, max_new_tokens, sampling, listen)
    if "probabilities" in record:
        likeliest = sorted(zip(record["probabilities"], classes), reverse=True)[:3]
        text = "\n".join(f"{name}: {probability:.1%}" for probability, name in likeliest)
        say(text)
        return text
    text = record["generated"]
    if classes and parse_activity(text, classes) is None:
        say("\n(this names no class)")
    return text


def converse(model, window, question, max_new_tokens, sampling, folder):
    """Draws a window, answers a question about it, and draws what the answer claims."""
    dataset = window.dataset
    channels = ", ".join(channel.spoken for channel in dataset.channels)
    texts = window_trends_text(window.samples, dataset).split("\n")
    path = folder / f"asked_{window.name}.png"
    draw_window(path, window.samples, dataset, window.title, texts)
    print(
        f"{window.title}: {channels}, {len(window.samples)} samples, drawn in {path}", flush=True)
    say = partial(print, end="", flush=True)
    text = answer(model, window, question, max_new_tokens, sampling, say)
    print()
    claimed = parse_segments(text) if model.stage == "align" else []
    if claimed:
        path = folder / f"answered_{window.name}.png"
        title = f"{window.title}: {channels}"
        draw_descriptions(
            path, [(title, window.samples[:, 0], claimed)], dataset)
        print(f"(drawn with the true trends in {path})")
    if window.truth:
        print(f"\n(the dataset says:\n{window.truth})", flush=True)
