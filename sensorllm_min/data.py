"""A prepared dataset -> batches: prompts with their placeholders, label masks, padding, and the order of training."""
import json
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch

from .chronos_tokenizer import pad_left
from .config import InputError, read_json, understanding
from .prepare import VERSION
from .sensors import known_dataset
from .text_tokenizer import SENSOR
from .trend_text import har_answer, har_system_prompt, har_text, system_prompt

IGNORED = -100                                                                # a label that no loss looks at


class JsonLines:
    """A JSON-lines file behind a memory map: line i is parsed when asked for. `sizes` are the lines' bytes."""

    def __init__(self, path):
        if not path.exists():
            raise InputError(f"{path} not found; prepare the dataset again with data_prep.py")
        self.path = path
        empty = path.stat().st_size == 0
        self.bytes = np.zeros(0, np.uint8) if empty else np.memmap(path, np.uint8, "r")
        chunk = 1 << 24                                                       # 16 MiB at a time: the file may be large
        breaks = [np.flatnonzero(self.bytes[i:i + chunk] == ord("\n")) + i for i in range(0, len(self.bytes), chunk)]
        self.ends = np.concatenate([[-1], *breaks]).astype(np.int64)
        self.sizes = np.diff(self.ends)

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, index):
        with understanding(f"{self.path}, line {index + 1},"):
            return json.loads(self.bytes[self.ends[index] + 1:self.ends[index + 1]].tobytes())


class PreparedData:
    """A directory written by `prepare`. InputError where it is missing, of another version or of no known dataset."""

    def __init__(self, directory):
        self.directory = Path(directory)
        meta_path = self.directory / "meta.json"
        if not meta_path.exists():
            raise InputError(f"{meta_path} not found. Run: python data_prep.py --dataset "
                             f"{self.directory.name} --raw DIR --out {self.directory}")
        self.meta = read_json(meta_path)
        if self.meta.get("version") != VERSION:
            raise InputError(f"{meta_path}: version {self.meta.get('version')}, this code reads version {VERSION}; "
                             "prepare the dataset again with data_prep.py")
        self.name = self.meta.get("dataset")
        self.dataset = known_dataset(self.name, self.meta.get("row"), meta_path)
        with understanding(meta_path):
            self.longest = {"har": self.dataset.window, "align": int(self.meta["align_lengths"][1])}   # samples
            self.counts = {"har": dict(self.meta["har_windows"]), "align": dict(self.meta["align_pairs"])}
        self.samples = {}                                                     # subject -> memory-mapped (N, C)

    def rows(self, kind, split):
        """The lines of har_SPLIT.jsonl or align_SPLIT.jsonl. InputError unless there are as many as meta.json says."""
        rows, expected = JsonLines(self.directory / f"{kind}_{split}.jsonl"), self.counts[kind].get(split)
        if len(rows) != expected:
            raise InputError(f"{rows.path} holds {len(rows)} lines, meta.json says {expected}; prepare the dataset again")
        return rows

    def window(self, row):
        """The samples (S, C) float32 that a row points at. InputError where they are not there or not finite."""
        subject, start, end = row["subject"], row["start"], row["start"] + row["length"]
        path = self.directory / "samples" / f"{subject}.npy"
        if subject not in self.samples:
            try:
                self.samples[subject] = np.load(path, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:                  # EOFError: an empty file
                raise InputError(f"{path} is missing or truncated ({error}); prepare the dataset again")
        window = self.samples[subject][start:end]
        if len(window) != row["length"] or not np.isfinite(window).all():
            raise InputError(f"{path}: samples {start} to {end} are missing or not finite; prepare the dataset again")
        return window


@dataclass(frozen=True)
class Limits:
    """What the two networks can take."""
    context_length: int                 # samples, of the encoder
    max_positions: int                  # tokens, of the LLM


@dataclass
class Example:
    """One prompt, with its answer in words, its label (stage 2), or both."""
    prompt: list                        # token ids
    answer: list                        # token ids; none for a class head
    series: list                        # of (T,) arrays, one for each run of placeholders
    label: int
    row: dict                           # the line it comes from
    place: int | None = None            # of that line in its file


class Examples:
    """The examples of one split, made when asked for. limit: a seeded sample of so many of them, in their order."""
    kind: str

    def __init__(self, data, split, tokenizer, limits, limit=None, seed=0):
        self.data, self.tokenizer, self.limits = data, tokenizer, limits
        self.rows = data.rows(self.kind, split)
        if not len(self.rows):
            raise InputError(f"{data.directory}: {self.kind}_{split}.jsonl holds no window; "
                             "is the raw archive complete?")
        if data.longest[self.kind] > limits.context_length:
            raise InputError(f"{data.directory}: windows of {data.longest[self.kind]} samples, the encoder's context "
                             f"holds {limits.context_length}; choose another encoder")
        self.index = np.arange(len(self.rows))
        if limit is not None and limit < len(self.rows):
            self.index = np.sort(np.random.default_rng(seed).permutation(len(self.rows))[:limit])
        self.sizes = self.rows.sizes[self.index]                              # bytes: more or less as the tokens
        for i in np.argsort(-self.sizes)[:32]:                                # the longest must fit: better known now
            self[i]

    def __len__(self):
        return len(self.index)

    def __getitem__(self, i):
        row = self.rows[self.index[i]]
        with understanding(f"{self.rows.path}, line {self.index[i] + 1},"):
            example = self.make(row, self.data.window(row))
        example.place = int(self.index[i])
        length = len(example.prompt) + len(example.answer)
        if length > self.limits.max_positions:
            raise InputError(f"{self.data.directory}: {self.kind} window {self.index[i]} makes a prompt of {length} "
                             f"tokens, the LLM takes {self.limits.max_positions}; "
                             + ("prepare shorter windows with data_prep.py --longest" if self.kind == "align" else
                                "leave parts of --text out"))
        return example


def marked(channel, n_samples):
    """A channel in the prompt: start marker, a placeholder for each sample and one for the end of series, end."""
    return channel.start + SENSOR * (n_samples + 1) + channel.end


def align_prompt(tokenizer, channel, n_samples, rate, question):
    """Stage 1: the ids of a question about one channel."""
    return tokenizer.chat(system_prompt(n_samples, rate), marked(channel, n_samples) + question)


def har_prompt(tokenizer, window, dataset, text, channel_names, answer):
    """Stage 2: the ids of all channels of a window (S, C) and a text about them; a dialogue for an answer in words."""
    user = "".join((f"{channel.spoken}: " if channel_names else "") + marked(channel, len(window)) + "\n"
                   for channel in dataset.channels)
    if text:
        user += "\n" + har_text(window, dataset, text)
    if answer == "class":
        return [tokenizer.bos_id] + tokenizer.encode(user)
    return tokenizer.chat(har_system_prompt(len(window), dataset), user)


class AlignExamples(Examples):
    """Stage 1: one channel and a question; the answer describes its trends."""
    kind = "align"

    def __init__(self, data, split, tokenizer, limits, limit=None, seed=0):
        self.channels = {channel.token: (index, channel) for index, channel in enumerate(data.dataset.channels)}
        super().__init__(data, split, tokenizer, limits, limit, seed)

    def make(self, row, window):
        column, channel = self.channels[row["channel"]]
        prompt = align_prompt(self.tokenizer, channel, len(window), self.data.dataset.rate, row["question"])
        return Example(prompt, self.tokenizer.answer(row["answer"]), [window[:, column]], IGNORED, row)


HAR_ANSWERS = ("class", "text", "reasoning")                                  # from a class head, or in words


class HarExamples(Examples):
    """Stage 2: all channels of a window and a text about them; the label is the activity.

    text: parts of HAR_TEXTS. answer: of HAR_ANSWERS; the prompt of an answer in words is a dialogue, as in stage 1.
    """
    kind = "har"

    def __init__(self, data, split, tokenizer, limits, limit=None, seed=0, text=("smry", "Q"), channel_names=False,
                 answer="class"):
        self.text, self.channel_names, self.answer = text, channel_names, answer
        super().__init__(data, split, tokenizer, limits, limit, seed)

    def labels(self):
        return [self.rows[i]["label"] for i in self.index]

    def make(self, row, window):
        dataset, answer = self.data.dataset, []
        if row["label"] not in range(len(dataset.classes)):
            raise ValueError(f"label {row['label']} is not one of {len(dataset.classes)} classes")
        if self.answer != "class":
            answer = self.tokenizer.answer(har_answer(window, dataset, row["label"], self.answer == "reasoning"))
        prompt = har_prompt(self.tokenizer, window, dataset, self.text, self.channel_names, self.answer)
        return Example(prompt, answer, list(window.T), row["label"], row)


@dataclass
class Batch:
    ids: torch.Tensor                   # (B, T) token ids, padded on the right (on the left for generation)
    mask: torch.Tensor                  # (B, T) bool, False at padding
    targets: torch.Tensor               # (B, T): the answer's ids where they stand, IGNORED elsewhere
    series: torch.Tensor                # (N, S) float64, NaN on the left: all channels of all rows, in order
    series_lengths: torch.Tensor        # (N,) samples of each
    labels: torch.Tensor                # (B,)
    examples: list                      # (B,) the line of each in its file

    def to(self, device):
        tensors = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "examples"}
        return Batch(**{name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}, examples=self.examples)


def collate(examples, pad_id, for_generation=False):
    """Examples -> Batch. for_generation: prompts alone, padded on the left."""
    sequences = [example.prompt if for_generation else example.prompt + example.answer for example in examples]
    longest = max(map(len, sequences))
    ids = torch.full((len(examples), longest), pad_id)
    mask = torch.zeros(len(examples), longest, dtype=torch.bool)
    targets = torch.full((len(examples), longest), IGNORED)
    for row, (sequence, example) in enumerate(zip(sequences, examples)):
        place = slice(longest - len(sequence), None) if for_generation else slice(0, len(sequence))
        ids[row, place] = torch.tensor(sequence)
        mask[row, place] = True
        if not for_generation and example.answer:
            targets[row, len(example.prompt):len(sequence)] = torch.tensor(example.answer)
    series = [torch.tensor(one, dtype=torch.float64) for example in examples for one in example.series]
    return Batch(ids, mask, targets, pad_left(series), torch.tensor([len(one) for one in series]),
                 torch.tensor([example.label for example in examples]), [example.place for example in examples])


def epoch_order(sizes, step_size, seed, epoch):
    """The examples of each step of an epoch: a list of index arrays, step_size each, the last one shorter.

    Shuffled; then within pools of 32 steps sorted by size, so that a step's rows are of like length and little is
    padding; then the steps are shuffled. The same for the same (seed, epoch), on any number of processes.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(sizes))
    pools = [order[i:i + 32 * step_size] for i in range(0, len(order), 32 * step_size)]
    order = np.concatenate([pool[np.argsort(sizes[pool], kind="stable")] for pool in pools])
    steps = [order[i:i + step_size] for i in range(0, len(order), step_size)]
    return [steps[i] for i in rng.permutation(len(steps))]


def share(indices, n_parts):
    """Deals indices out into n_parts, as evenly as can be; a part may be empty."""
    return [indices[part::n_parts] for part in range(n_parts)]
