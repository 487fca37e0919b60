"""One window and a question, from a prepared dataset or a CSV: the answer, word by word."""
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from ..data.claims import parse_activity, parse_segments
from ..data.sensors import DatasetInfo
from ..data.texts import window_trends_text
from ..files import InputError
from ..plots.figures import draw_descriptions, draw_window
from .recording import only_channel, read_window


@dataclass
class Window:
    """What a question is about."""
    samples: np.ndarray                 # (S, C)
    dataset: DatasetInfo                # with these C channels
    name: str                           # for the picture's file
    title: str
    truth: str | None                   # the dataset's own answer


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
    chosen = one_channel(dataset, token)
    column = data.tokens.index(token)
    truth = record["answer"] if token == record["channel"] else None
    return Window(samples[:, [column]], chosen, f"{name}_{token}", title, truth)


def csv_window(path, dataset, token=None) -> Window:
    """One channel of a CSV, a short window without a gap, for stage 1."""
    dataset = one_channel(dataset, token or only_channel(path, dataset))
    return Window(read_window(path, dataset), dataset, Path(path).stem, str(path), None)


def draw(window, chronos, folder, say):
    """Draws a window into the folder, with the true trends of each channel."""
    dataset = window.dataset
    texts = window_trends_text(window.samples, dataset).split("\n")
    path = folder / f"asked_{window.name}.png"
    channels = ", ".join(channel.spoken for channel in dataset.channels)
    draw_window(path, window.samples, dataset, chronos, window.title, texts)
    say(f"{window.title}: {channels}, {len(window.samples)} samples, drawn in {path}")


def answer(model, window, question, max_new_tokens, sampling, say) -> str:
    """An interface.Model answers about a window -> the text, which `say` gets piece by piece."""
    classes, said = model.recipe.classes, ""

    def listen(ids):
        nonlocal said
        text = model.model.tokenizer.decode(ids)
        if not text.endswith("\ufffd"):                           # a character is still incomplete
            say(text[len(said):])
            said = text

    example = model.example(window.samples, window.dataset, window.title, question)
    record = model.answer(example, max_new_tokens, sampling, listen)
    if "probabilities" in record:
        chances = sorted(zip(record["probabilities"], classes), reverse=True)
        text = "\n".join(f"{name}: {probability:.1%}" for probability, name in chances[:3])
        say(text)
        return text
    text = record["generated"]
    if classes and parse_activity(text, classes) is None:
        say("\n(this names no class)")
    return text


def typed_questions():
    """Yields what a person types, until an empty line or the end of the input."""
    try:
        while (question := input("\n> ")).strip():
            yield question
    except EOFError:
        return


def converse(model, window, question, max_new_tokens, sampling, folder):
    """Prints the answer to a question about a window, or to each that a person types.

    The trends that an answer of stage 1 claims are drawn into the folder, below the true ones.
    """
    say = partial(print, end="", flush=True)
    path = folder / f"answered_{window.name}.png"
    title = f"{window.title}: {window.dataset.channels[0].spoken}"
    if question is None:
        print("ask about it; an empty line ends", flush=True)
    for asked in [question] if question else typed_questions():
        text = answer(model, window, asked, max_new_tokens, sampling, say)
        print()
        claimed = parse_segments(text) if model.stage == "align" else []
        if claimed:
            draw_descriptions(path, [(title, window.samples[:, 0], claimed)], window.dataset)
            print(f"(drawn with the true trends in {path})")
    if question and window.truth:
        print(f"\n(the dataset says:\n{window.truth})", flush=True)
