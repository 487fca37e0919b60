"""Windows of a prepared dataset -> examples: prompts with their placeholders, and answers."""
from dataclasses import dataclass

import numpy as np

from ..batch import IGNORED, Example
from ..files import InputError, as_input_error
from ..text_tokenizer import SENSOR, TextTokenizer
from .prepared import PreparedData
from .sensors import rotations
from .texts import HAR_TEXTS, har_answer, har_system_prompt, har_text, system_prompt

HAR_ANSWERS = ("class", "text", "reasoning")        # from a class head, or in words


@dataclass(frozen=True)
class PromptFormat:
    """How windows become prompts, and how long they may be."""
    tokenizer: TextTokenizer
    context_length: int                 # samples that the encoder takes
    max_positions: int                  # tokens that the LLM takes
    text: tuple = ("smry", "Q")         # stage 2: parts of texts.HAR_TEXTS after the sensors
    channel_names: bool = False         # stage 2: before each channel's start marker
    answer: str = "class"               # stage 2: of HAR_ANSWERS

    @classmethod
    def of(cls, model, recipe):
        """The prompts that a model reads. recipe: the Recipe that it was built from."""
        return cls(model.tokenizer, recipe.chronos.context_length,
                   recipe.llm_config.max_positions, recipe.text, recipe.channel_names,
                   recipe.answer)

    def check_length(self, samples, title):
        """Raises an InputError that names the window if it is too long for the encoder."""
        if len(samples) > self.context_length:
            raise InputError(f"{title}: {len(samples)} samples, the encoder's context holds "
                             f"{self.context_length}")


class Examples:
    """The examples of one split, made when they are indexed.

    limit: a seeded sample of this many, in their order; None: all. degrees, factor: the most that
    windows are turned and resized, anew in every epoch. The longest must fit: they are made now."""
    degrees = 0.0
    factor = 1.0
    epoch = 0
    kind: str                           # of records: "align" or "har"
    called: str                         # what printed lines call an example
    how_to_shorten: str

    def __init__(self, data: PreparedData, split: str, prompts: PromptFormat, limit=None, seed=0):
        self.data = data
        self.split = split
        self.prompts = prompts
        self.seed = seed
        self.records = data.records(self.kind, split)
        if not len(self.records):
            raise InputError(f"{data.directory}: {self.kind}_{split}.jsonl holds no window; is the "
                             "raw archive complete?")
        if data.longest[self.kind] > prompts.context_length:
            raise InputError(f"{data.directory}: windows of {data.longest[self.kind]} samples, the "
                             f"encoder's context holds {prompts.context_length}; choose another "
                             "encoder")
        self.index = np.arange(len(self.records))                 # of each example's record
        if limit is not None and limit < len(self.records):
            sample = np.random.default_rng(seed).permutation(len(self.records))[:limit]
            self.index = np.sort(sample)
        self.sizes = self.records.sizes[self.index]            # bytes, about proportional to tokens
        for i in np.argsort(-self.sizes)[:32]:
            self[i]

    def __len__(self):
        return len(self.index)

    def __getitem__(self, i):
        index = int(self.index[i])
        record = self.records[index]
        where = f"{self.data.directory}/{self.kind}_{self.split}.jsonl, record {index},"
        with as_input_error(where):
            window = self.data.window(record)
            rng = np.random.default_rng([self.seed, self.epoch, index])
            if self.degrees:
                window = rotate_sensors(window, rotations(self.data.dataset), self.degrees, rng)
            if self.factor != 1:
                window = resize_movement(window, self.factor, rng)
            example = self.make(record, window)
        example.index = index
        length = len(example.prompt) + len(example.answer)
        most = self.prompts.max_positions
        if length > most:
            raise InputError(f"{self.data.directory}: {self.kind} window {index} makes a prompt of "
                             f"{length} tokens, the LLM takes {most}; {self.how_to_shorten}")
        return example


def rotate_sensors(window, units, degrees, rng):
    """A window (S, C) as if its sensors were worn differently, each unit turned by up to `degrees`.

    units: the channels that turn together, see sensors.rotations; other channels stay as they are.
    The axis is uniform on the sphere, the angle uniform from 0 (Rodrigues' formula)."""
    window = window.astype(np.float64)
    for triples in units:
        axis = rng.normal(size=3)
        x, y, z = axis
        cross = np.array([[0, -z, y],
                          [z, 0, -x],
                          [-y, x, 0]]) / np.linalg.norm(axis)
        angle = np.deg2rad(rng.uniform(0, degrees))
        sine = np.sin(angle)
        cosine = np.cos(angle)
        rotation = np.eye(3) + sine * cross + (1 - cosine) * cross @ cross
        for columns in triples:
            window[:, columns] = window[:, columns] @ rotation.T
    return window


def resize_movement(window, factor, rng):
    """A window (S, C) as if its person moved more or less: the part around the mean of each channel
    is scaled by one random factor, up to `factor` or its inverse, log-uniformly."""
    mean = window.mean(0, dtype=np.float64)
    scale = factor ** rng.uniform(-1, 1)
    return mean + scale * (window - mean)


def placeholders(channel, n_samples):
    """A channel in the prompt: <ts> for each sample and for the end, between its markers."""
    return f"<{channel.token}_start>{SENSOR * (n_samples + 1)}<{channel.token}_end>"


def align_prompt(prompts, channel, n_samples, rate, question):
    system = system_prompt(n_samples, rate)
    return prompts.tokenizer.chat(system, placeholders(channel, n_samples) + question)


def har_prompt(prompts, window, dataset):
    """Stage 2: the ids of all channels of a window (S, C) and a text about them.
    A model that answers in words gets a dialogue, as in stage 1; a class head gets the text."""
    user = ""
    for channel in dataset.channels:
        if prompts.channel_names:
            user += f"{channel.spoken}: "
        user += placeholders(channel, len(window)) + "\n"
    if prompts.text:
        user += "\n" + har_text(window, dataset, prompts.text)
    tokenizer = prompts.tokenizer
    if prompts.answer == "class":
        return [tokenizer.bos_id] * tokenizer.starts_with_bos + tokenizer.encode(user)
    return tokenizer.chat(har_system_prompt(len(window), dataset), user)


class AlignExamples(Examples):
    """Stage 1: one channel and a question; the answer describes its trends."""
    kind, called = "align", "pairs"
    how_to_shorten = "prepare shorter windows with data_prep.py --longest"

    def make(self, record, window):
        column = self.data.tokens.index(record["channel"])
        channel = self.data.dataset.channels[column]
        rate = self.data.dataset.rate
        prompt = align_prompt(self.prompts, channel, len(window), rate, record["question"])
        answer = self.prompts.tokenizer.answer(record["answer"])
        return Example(
            prompt, answer, [window[:, column]], IGNORED, record, channels=(column,))


class HarExamples(Examples):
    """Stage 2: all channels of a window and a text about them; the label is the activity."""
    kind, called = "har", "windows"
    how_to_shorten = "leave parts of --text out"

    def labels(self):
        return [self.records[i]["label"] for i in self.index]

    def make(self, record, window):
        dataset = self.data.dataset
        label = record["label"]
        prompts = self.prompts
        prompt = har_prompt(prompts, window, dataset)
        answer = []
        if prompts.answer != "class":
            text = har_answer(window, dataset, label, reasoning=prompts.answer == "reasoning")
            answer = prompts.tokenizer.answer(text)
        return Example(prompt, answer, list(window.T), label, record)


def sample_texts(data):
    """About 2000 pairs of stage 1 and 100 texts of stage 2: what a small tokenizer trains on."""
    pairs = data.records("align", "train")
    windows = data.records("har", "train")
    for i in range(0, len(pairs), len(pairs) // 2000 + 1):
        pair = pairs[i]
        system = system_prompt(pair["length"], data.dataset.rate)
        yield system + pair["question"] + pair["answer"]
    for i in range(0, len(windows), len(windows) // 100 + 1):
        yield "\n" + har_text(data.window(windows[i]), data.dataset, HAR_TEXTS)
