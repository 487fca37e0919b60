"""One window and a question: the answer, word by word. Of a prepared dataset, or of a person's own CSV."""
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from .config import InputError
from .data import IGNORED, Example, align_prompt, collate, har_prompt
from .generate import stream
from .metrics import parse_activity


@dataclass
class Window:
    """What a question is about."""
    samples: np.ndarray                 # (S, C)
    dataset: object                     # its row of sensors.py, with these C channels
    name: str                           # for the picture's file
    title: str
    truth: str | None                   # what the dataset says of it


def one_channel(dataset, token):
    channels = [channel for channel in dataset.channels if channel.token == token]
    if not channels:
        raise InputError(f"--channel {token}: the channels are {', '.join(channel.token for channel in dataset.channels)}")
    return replace(dataset, channels=tuple(channels))


def prepared_window(data, kind, split, index, token=None):
    """Window `index` of a split: in stage 1 of its own channel, or of another; in stage 2 with all of them."""
    rows = data.rows(kind, split)
    if not 0 <= index < len(rows):
        raise InputError(f"--window {index}: {data.directory} holds {split} windows 0 to {len(rows) - 1} of this stage")
    row = rows[index]
    samples, dataset = data.window(row), data.dataset
    place = f"{data.name}, {split} window {index}, subject {row['subject']}"
    if kind == "har":
        return Window(samples, dataset, f"{split}_{index}", place, f"Activity: {dataset.classes[row['label']]}")
    wanted = one_channel(dataset, token or row["channel"])
    column = dataset.channels.index(wanted.channels[0])
    return Window(samples[:, [column]], wanted, f"{split}_{index}_{wanted.channels[0].token}", place,
                  row["answer"] if token in (None, row["channel"]) else None)


def csv_window(path, dataset, kind, token=None):
    """The samples of a CSV with a column for each channel, named by its token; in stage 1 of one of them."""
    import pandas as pd                                                       # where it is used: it takes a second
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as CSV ({error})")
    known = [channel.token for channel in dataset.channels if channel.token in table.columns]
    if kind == "align":
        if token is None and len(known) != 1:
            raise InputError(f"{path} holds {len(known)} columns that are named as a channel is "
                             f"({', '.join(known) or ', '.join(map(str, table.columns))}); choose one with --channel, of "
                             + ", ".join(channel.token for channel in dataset.channels))
        dataset = one_channel(dataset, token or known[0])
    missing = [channel.token for channel in dataset.channels if channel.token not in table.columns]
    if missing:
        raise InputError(f"{path} has no column {', '.join(missing)}; its columns are {', '.join(map(str, table.columns))}")
    samples = table[[channel.token for channel in dataset.channels]].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    bad = ~np.isfinite(samples).all(1)
    if bad.any():
        raise InputError(f"{path}, line {bad.argmax() + 2}: a sample is missing or not a finite number")
    if len(samples) < 2:
        raise InputError(f"{path} holds {len(samples)} samples; a trend needs two")
    if kind == "har" and len(samples) != dataset.window:
        raise InputError(f"{path} holds {len(samples)} samples; a window of this model has {dataset.window}")
    return Window(samples, dataset, Path(path).stem, str(path), None)


def batch_of(window, question, tokenizer, recipe, device):
    """The prompt about a window as a batch of one. InputError where the LLM cannot take it."""
    samples, dataset = window.samples, window.dataset
    if recipe.stage == "align":
        prompt = align_prompt(tokenizer, dataset.channels[0], len(samples), dataset.rate, question)
    else:
        prompt = har_prompt(tokenizer, samples, dataset, recipe.text, recipe.channel_names, recipe.answer)
    if len(prompt) >= recipe.limits.max_positions:
        raise InputError(f"{window.title}: a prompt of {len(prompt)} tokens, the LLM takes {recipe.limits.max_positions}")
    example = Example(prompt, [], list(samples.T), IGNORED, {}, 0)
    return collate([example], tokenizer.pad_id, for_generation=recipe.n_classes is None).to(device)


@torch.no_grad()
def answer(model, tokenizer, recipe, window, question, device, max_new_tokens, sampling, bf16, say):
    """Answers about a window; `say` gets the text piece by piece, as it comes -> the whole text."""
    batch = batch_of(window, question, tokenizer, recipe, device)
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        if model.head is not None:
            probabilities = model.class_logits(batch)[0].float().softmax(-1)
            likely = probabilities.argsort(descending=True)[:3].tolist()
            text = "\n".join(f"{recipe.classes[i]}: {probabilities[i]:.1%}" for i in likely)
            say(text)
            return text
        ids, text = [], ""
        room = min(max_new_tokens, recipe.limits.max_positions - batch.ids.shape[1])
        for _, token in stream(model.llm, model.embed(batch), batch.mask, tokenizer.stop_ids, room, sampling):
            ids.append(token)
            longer = tokenizer.decode(ids)
            if not longer.endswith("\ufffd"):                                 # half a character: the rest is to come
                say(longer[len(text):])
                text = longer
    if recipe.stage == "har" and parse_activity(text, recipe.classes) is None:
        say("\n(this names no class)")
    return text
