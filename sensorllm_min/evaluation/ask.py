"""One window and a question, from a prepared dataset or a CSV: the answer, word by word."""
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ..batch import IGNORED, Example, collate
from ..data.claims import parse_activity, parse_segments
from ..data.examples import align_prompt, har_prompt
from ..data.logs import put_on_grid, resample
from ..data.own import read_log
from ..data.plots import draw_descriptions, draw_window
from ..data.sensors import DatasetInfo
from ..data.tables import csv_header
from ..data.texts import window_trends_text
from ..files import InputError, brief
from ..generate import stream


@dataclass
class Window:
    """What a question is about."""
    samples: np.ndarray                 # (S, C)
    dataset: DatasetInfo                # with these C channels
    name: str                           # for the picture's file
    title: str
    truth: str | None                   # what the dataset says about it


def one_channel(dataset, token):
    """The dataset with a single one of its channels."""
    channels = tuple(channel for channel in dataset.channels if channel.token == token)
    if not channels:
        known = ", ".join(channel.token for channel in dataset.channels)
        raise InputError(f"--channel {token}: the channels are {known}")
    return replace(dataset, channels=channels)


def prepared_window(data, kind, split, index, token=None) -> Window:
    """Window `index` of a split: in stage 1 its own channel or another, in stage 2 all of them."""
    records, dataset = data.records(kind, split), data.dataset
    if not 0 <= index < len(records):
        raise InputError(f"--window {index}: {data.directory} holds {split} windows 0 to "
                         f"{len(records) - 1} of this stage")
    record = records[index]
    samples = data.window(record)
    name = f"{split}_{index}"
    title = f"{data.name}, {split} window {index}, subject {record['subject']}"
    if kind == "har":
        activity = dataset.classes[record["label"]]
        return Window(samples, dataset, name, title, f"Activity: {activity}")
    token = token or record["channel"]
    wanted = one_channel(dataset, token)
    column = dataset.channels.index(wanted.channels[0])
    truth = record["answer"] if token == record["channel"] else None
    return Window(samples[:, [column]], wanted, f"{name}_{token}", title, truth)


def csv_window(path, dataset, token=None) -> Window:
    """One channel of a CSV, a short window without a gap, for stage 1.

    InputError where a sample is missing or not finite.
    """
    columns = csv_header(path)
    tokens = [channel.token for channel in dataset.channels]
    known = [channel.token for channel in dataset.channels if channel.heading in columns]
    if token is None and len(known) != 1:
        raise InputError(f"{path} holds {len(known)} columns that are named as a channel is "
                         f"({', '.join(known) or brief(', '.join(columns))}); choose one with "
                         f"--channel, of {', '.join(tokens)}")
    dataset = one_channel(dataset, token or known[0])
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


def draw(window, chronos, folder, say):
    """Draws a window into the folder, with the true trends of each channel."""
    dataset = window.dataset
    texts = window_trends_text(window.samples, dataset).split("\n")
    path = folder / f"asked_{window.name}.png"
    channels = ", ".join(channel.spoken for channel in dataset.channels)
    shown = f"{window.title}: {channels}, {len(window.samples)} samples"
    try:
        draw_window(path, window.samples, dataset, chronos, window.title, texts)
        say(f"{shown}, drawn in {path}")
    except ImportError:
        say(f"{shown}; no picture: matplotlib is not installed")


def batch_of(window, question, loaded, device):
    """The prompt about a window as a batch of one. InputError where the LLM cannot take it."""
    samples, dataset, prompts = window.samples, window.dataset, loaded.prompts
    prompts.check_length(samples, window.title)
    if loaded.recipe.stage == "align":
        question = loaded.tokenizer.as_text(question)
        prompt = align_prompt(prompts, dataset.channels[0], len(samples), dataset.rate, question)
    else:
        prompt = har_prompt(prompts, samples, dataset)
    if len(prompt) >= prompts.max_positions:
        raise InputError(f"{window.title}: a prompt of {len(prompt)} tokens, the LLM takes "
                         f"{prompts.max_positions}")
    tokens = [channel.token for channel in loaded.recipe.sensors.channels]
    columns = tuple(tokens.index(channel.token) for channel in dataset.channels)
    example = Example(prompt, [], list(samples.T), IGNORED, {}, 0, columns)
    for_generation = loaded.model.head is None
    return collate([example], loaded.tokenizer.pad_id, for_generation).to(device)


@torch.no_grad()
def answer(loaded, window, question, processes, decoding, say) -> str:
    """Answers about a window -> the whole text; `say` gets it in pieces, as it is generated."""
    model, tokenizer, recipe = loaded.model, loaded.tokenizer, loaded.recipe
    batch = batch_of(window, question, loaded, processes.device)
    with processes.autocast():
        if model.head is not None:
            probabilities = model.class_logits(batch)[0].float().softmax(-1)
            likely = probabilities.argsort(descending=True)[:3].tolist()
            text = "\n".join(f"{recipe.classes[i]}: {probabilities[i]:.1%}" for i in likely)
            say(text)
            return text
        ids, text = [], ""
        room = min(decoding.max_new_tokens, loaded.prompts.max_positions - batch.ids.shape[1])
        x = model.embed(batch)
        tokens = stream(model.llm, x, batch.mask, tokenizer.stop_ids, room, decoding.sampling)
        for _, token in tokens:
            ids.append(token)
            longer = tokenizer.decode(ids)
            if not longer.endswith("\ufffd"):                     # a character still incomplete
                say(longer[len(text):])
                text = longer
    if recipe.stage == "har" and parse_activity(text, recipe.classes) is None:
        say("\n(this names no class)")
    return text


def typed_questions():
    """What a person types, until an empty line or the end of the input."""
    try:
        while (question := input("\n> ")).strip():
            yield question
    except EOFError:
        return


def draw_claim(window, text, folder, say):
    """Draws the trends that an answer of stage 1 claims, if it does, below the true ones."""
    claimed = parse_segments(text)
    if not claimed:
        return
    path = folder / f"answered_{window.name}.png"
    title = f"{window.title}: {window.dataset.channels[0].spoken}"
    try:
        draw_descriptions(path, [(title, window.samples[:, 0], claimed)], window.dataset)
    except ImportError:
        return                                                    # `draw` has said so
    say(f"(drawn with the true trends in {path})")


def converse(loaded, window, question, processes, decoding, folder):
    """Prints the answer to a question about a window, or to each that a person types.

    What an answer claims is drawn into the folder.
    """
    say = partial(print, end="", flush=True)
    if question is None:
        print("ask about it; an empty line ends", flush=True)
    for asked in [question] if question else typed_questions():
        text = answer(loaded, window, asked, processes, decoding, say)
        print()
        if loaded.recipe.stage == "align":
            draw_claim(window, text, folder, print)
    if question and window.truth:
        print(f"\n(the dataset says:\n{window.truth})", flush=True)
