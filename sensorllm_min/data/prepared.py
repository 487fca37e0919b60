"""A prepared dataset, opened: memory-mapped samples, and the records that point at them."""
import json
import re
from pathlib import Path

import numpy as np
import torch

from ..files import InputError, as_input_error, as_tuples, read_json
from ..statistics import Statistics
from .sensors import DatasetInfo
from .tables import check_samples

VERSION = 3                             # of the layout that `prepare` writes; others are refused
AGAIN = "; prepare the dataset again with data_prep.py"


class Records:
    """The records of JSON-lines files; each is parsed when it is indexed.
    subjects: whose; None: all. sizes: bytes of each record."""

    def __init__(self, paths, subjects=None):
        self.paths = paths
        self.n_lines = 0
        kept = []
        for i, path in enumerate(paths):
            start = 0
            with as_input_error(path, "cannot be read", AGAIN), open(path, "rb") as file:
                for number, line in enumerate(file, start=1):
                    if subjects is None or str(json.loads(line)["subject"]) in subjects:
                        kept.append((i, number, start, len(line)))
                    start += len(line)
                    self.n_lines += 1
        self.lines = np.array(kept, int).reshape(-1, 4)           # path, number, start, size
        self.sizes = self.lines[:, 3]

    def __len__(self):
        return len(self.lines)

    def __getitem__(self, index):
        path, number, start, size = self.lines[index].tolist()
        with open(self.paths[path], "rb") as file:
            file.seek(start)
            line = file.read(size)
        with as_input_error(f"{self.paths[path]}, line {number},"):
            return json.loads(line)


def mean_and_deviation(values):
    """Values (N, ...) -> (..., 2): their mean and standard deviation, 1 where they never change.
    The thousandth of the values at each end counts as its limit: one may be absurd."""
    least = np.quantile(values, 0.001, axis=0, method="higher")
    most = np.quantile(values, 0.999, axis=0, method="lower")
    values = values.clip(least, most)
    deviation = values.std(0)
    deviation[deviation == 0] = 1.0
    return np.stack([values.mean(0), deviation], -1)


class PreparedData:
    """A directory that `prepare` wrote. InputError if it is missing or cannot be read.

    fold (k, N): part k of a cross-validation over all people, instead of the dataset's own split.
    Every N-th person, from the k-th on (from 0), is for the test, the next part for validation."""

    def __init__(self, directory, fold=None):
        self.directory = Path(directory)
        self.fold = fold
        path = self.directory / "meta.json"
        if not path.exists():
            name, hertz = re.match(r"(?s)(.*?)(?:-([\d.]+)hz)?$", self.directory.name).groups()
            rate = f"--rate {hertz} " if hertz else ""
            raise InputError(f"{path} not found. Run: python data_prep.py --dataset {name} "
                             f"--raw DIR {rate}--out {self.directory}")
        self.meta = read_json(path)
        version = self.meta.get("version")
        if version != VERSION:
            raise InputError(f"{path}: version {version}, this code reads {VERSION}{AGAIN}")
        with as_input_error(path, advice=AGAIN):
            self.name = self.meta["dataset"]
            self.dataset = DatasetInfo.from_json(self.meta["row"])
        self.longest = {"har": self.dataset.n_window,             # samples of a window
                        "align": self.dataset.align_lengths[1]}
        self.tokens = [channel.token for channel in self.dataset.channels]
        self.samples = {}                                         # subject -> memory-mapped (N, C)
        if fold:
            check_fold(self)

    def subjects_of(self, split):
        """The people of a split, or of all splits together (None)."""
        people = self.meta["subjects"]
        found = []
        for i, name in enumerate(people):
            part = people[name]["split"]
            if self.fold:
                k, n_folds = self.fold
                part = {k: "test", (k + 1) % n_folds: "val"}.get(i % n_folds, "train")
            if split in (None, part):
                found.append(name)
        return found

    def records(self, kind, split):
        """The records of har_SPLIT.jsonl or align_SPLIT.jsonl. InputError unless all are there."""
        counts = self.meta[{"har": "har_windows", "align": "align_pairs"}[kind]]
        splits = (split,)
        subjects = None
        if self.fold:
            splits = self.dataset.splits
            subjects = self.subjects_of(split)
        records = Records(
            [self.directory / f"{kind}_{one}.jsonl" for one in splits], subjects)
        expected = sum(counts[one] for one in splits)
        if records.n_lines != expected:
            raise InputError(f"{records.paths[0]} holds {records.n_lines} lines, meta.json says "
                             f"{expected}{AGAIN}")
        return records

    def usual(self, n_windows=1000):
        """What is usual in training, for statistics.Statistics: (C, 1 + n, 2)."""
        stored = [self.samples_of(subject) for subject in self.subjects_of("train")]
        some = [samples[::len(samples) // 10_000 + 1] for samples in stored]      # enough for both
        samples = np.concatenate(some).astype(float)
        samples = samples[np.isfinite(samples).all(1)]            # the others are in no window
        units = mean_and_deviation(samples)[:, None]              # (C, 1, 2)
        records = self.records("har", "train")
        every = len(records) // n_windows + 1
        chosen = range(0, len(records), every)
        windows = np.stack([self.window(records[i]).T for i in chosen])
        windows = torch.from_numpy(windows.astype(float))         # (W, C, S)
        statistics = Statistics(units, self.dataset.n_window)
        found = statistics.raw(windows, torch.arange(len(units)))
        usual = mean_and_deviation(found.numpy())                 # (C, n, 2)
        return as_tuples(np.concatenate([units, usual], 1).tolist())

    def samples_of(self, subject):
        """A subject's samples (N, C), memory-mapped. InputError if they cannot be read."""
        if subject not in self.samples:
            path = self.directory / "samples" / f"{subject}.npy"
            with as_input_error(path, "is missing or truncated", AGAIN):
                samples = np.load(path, mmap_mode="r", allow_pickle=False)
            self.samples[subject] = check_samples(samples, len(self.tokens), path)
        return self.samples[subject]

    def window(self, record):
        """The samples (S, C) float32 of a record. InputError if they are missing or not finite."""
        subject = record["subject"]
        start = record["start"]
        length = record["length"]
        window = self.samples_of(subject)[start:start + length]
        if len(window) != length or not np.isfinite(window).all():
            raise InputError(f"{self.directory}/samples/{subject}.npy: samples {start} to "
                             f"{start + length} are missing or not finite{AGAIN}")
        return window


def check_fold(data):
    """Raises an InputError unless a dataset has people enough for its fold."""
    k, n_folds = data.fold
    people = data.subjects_of(None)
    if data.dataset.split:
        raise InputError(f"folds leave people out; {data.directory} is split by "
                         f"{data.dataset.split}, within each person")
    if not 3 <= n_folds <= len(people) or not 0 <= k < n_folds:
        n_people = len(people)
        raise InputError(f"fold {k + 1}/{n_folds}: {data.directory} has {n_people} people; give "
                         f"K/N with N from 3 to {n_people} and K from 1 to N")
