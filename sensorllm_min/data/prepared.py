"""A prepared dataset, opened: memory-mapped samples, and the records that point at them."""
import json
import re
from functools import partial
from pathlib import Path

import numpy as np

from ..files import InputError, is_a, read_json, understanding
from .sensors import known_dataset
from .tables import check_samples

VERSION = 2                             # of the layout that `prepare` writes; others are refused


class JsonLines:
    """A JSON-lines file, memory-mapped: a record is parsed when asked for. sizes: bytes of each.

    check(record) raises a ValueError for one that is not as it should be.
    """

    def __init__(self, path, check):
        if not path.exists():
            raise InputError(f"{path} not found; prepare the dataset again with data_prep.py")
        self.path, self.check = path, check
        empty = path.stat().st_size == 0
        self.bytes = np.zeros(0, np.uint8) if empty else np.memmap(path, np.uint8, "r")
        ends, step = [np.array([-1])], 1 << 24                    # 16 MiB: the file may be large
        for start in range(0, len(self.bytes), step):
            ends.append(start + np.flatnonzero(self.bytes[start:start + step] == ord("\n")))
        self.ends = np.concatenate(ends)
        self.sizes = np.diff(self.ends)

    def __len__(self):
        return len(self.sizes)

    def place(self, index):
        return f"{self.path}, line {index + 1},"

    def __getitem__(self, index):
        with understanding(self.place(index)):
            line = self.bytes[self.ends[index] + 1:self.ends[index + 1]].tobytes()
            record = json.loads(line)
            self.check(record)
            return record


class RecordsOf:
    """The records of some subjects in several JsonLines, one file after another, as one file."""

    def __init__(self, files, subjects):
        self.path = files[0].path                                 # for what concerns them all
        self.places = [(file, i) for file in files for i in range(len(file))
                       if str(file[i]["subject"]) in subjects]
        self.sizes = np.array([file.sizes[i] for file, i in self.places], int)

    def __len__(self):
        return len(self.places)

    def __getitem__(self, index):
        file, i = self.places[index]
        return file[i]

    def place(self, index):
        file, i = self.places[index]
        return file.place(i)


class PreparedData:
    """A directory that `prepare` wrote. InputError where it is missing or cannot be read.

    fold (k, K): part k of a cross-validation; every K-th of the subjects that are not for the test,
    from the k-th on, is validated, the others train.
    """

    fold = None

    def __init__(self, directory):
        self.directory = Path(directory)
        path = self.directory / "meta.json"
        if not path.exists():
            name, rate = re.match(r"(?s)(.*?)(?:-([\d.]+)hz)?$", self.directory.name).groups()
            rate = f"--rate {rate} " if rate else ""
            raise InputError(f"{path} not found. Run: python data_prep.py --dataset {name} "
                             f"--raw DIR {rate}--out {self.directory}")
        self.meta = read_json(path)
        version = self.meta.get("version")
        if version != VERSION:
            raise InputError(f"{path}: version {version}, this code reads version {VERSION}; "
                             "prepare the dataset again with data_prep.py")
        self.name = self.meta.get("dataset")
        self.dataset = known_dataset(self.name, self.meta.get("row"), path)
        with understanding(path):
            longest = int(self.meta["align_lengths"][1])
            self.longest = {"har": self.dataset.n_window, "align": longest}   # samples of a window
            self.counts = {"har": dict(self.meta["har_windows"]),
                           "align": dict(self.meta["align_pairs"])}
            self.subjects = {subject: str(counts["split"])
                             for subject, counts in self.meta["subjects"].items()}
        self.tokens = [channel.token for channel in self.dataset.channels]
        self.samples = {}                                         # subject -> memory-mapped (N, C)

    def records(self, kind, split) -> JsonLines:
        """The records of har_SPLIT.jsonl or align_SPLIT.jsonl. InputError unless all are there."""
        if self.fold and split in ("train", "val"):
            both = [self.read_records(kind, part) for part in ("train", "val")]
            return RecordsOf(both, self.subjects_of(split))
        return self.read_records(kind, split)

    def subjects_of(self, split):
        """The subjects of a split, as texts."""
        split_of = self.subjects
        if self.fold and split != "test":
            k, n_folds = self.fold
            not_test = [subject for subject in split_of if split_of[subject] != "test"]
            validated = not_test[k::n_folds]
            return [subject for subject in not_test if (subject in validated) == (split == "val")]
        return [subject for subject in split_of if split_of[subject] == split]

    def read_records(self, kind, split):
        path = self.directory / f"{kind}_{split}.jsonl"
        records = JsonLines(path, partial(self.check_record, kind))
        expected = self.counts[kind].get(split)
        if len(records) != expected:
            raise InputError(f"{records.path} holds {len(records)} lines, meta.json says "
                             f"{expected}; prepare the dataset again")
        return records

    def levels(self):
        """The usual (mean, standard deviation) of each channel: of the training subjects."""
        samples = []
        for subject in self.subjects_of("train"):
            stored = self.samples_of(subject)
            samples.append(stored[::len(stored) // 10_000 + 1])           # enough for both
        samples = np.concatenate(samples).astype(float)
        samples = samples[np.isfinite(samples).all(1)]            # no window has the others
        deviations = samples.std(0)
        deviations[deviations == 0] = 1.0
        return tuple(zip(samples.mean(0).tolist(), deviations.tolist()))

    def check_record(self, kind, record):
        """ValueError unless a record names a subject, a window, and a class or a pair of texts."""
        start, length = record["start"], record["length"]
        if str(record["subject"]) not in self.subjects:
            raise ValueError("it names a subject that meta.json does not know")
        if not (is_a(start, int) and is_a(length, int) and 0 <= start):
            raise ValueError("start and length must be whole numbers")
        if not 1 <= length <= self.longest[kind]:
            raise ValueError(f"a window of {length} samples, the longest has {self.longest[kind]}")
        if kind == "har":
            label, n_classes = record["label"], len(self.dataset.classes)
            if not is_a(label, int) or not 0 <= label < n_classes:
                raise ValueError(f"label {label} is not one of {n_classes} classes")
        else:
            texts = [record[key] for key in ("channel", "question", "answer")]
            if texts[0] not in self.tokens or not is_a(tuple(texts), tuple[str, ...]):
                raise ValueError("channel, question and answer must be a token and two texts")

    def samples_of(self, subject):
        """A subject's samples (N, C), memory-mapped. InputError where they cannot be read."""
        path = self.directory / "samples" / f"{subject}.npy"
        if subject not in self.samples:
            with understanding(path, "is missing or truncated", "; prepare the dataset again"):
                samples = np.load(path, mmap_mode="r", allow_pickle=False)
            check_samples(samples, len(self.dataset.channels), path)
            if samples.dtype != np.float32:
                raise InputError(f"{path} holds {samples.dtype}, not float32; prepare the dataset "
                                 "again")
            self.samples[subject] = samples
        return self.samples[subject]

    def window(self, record):
        """The samples (S, C) float32 of a record. InputError if they are missing or not finite."""
        subject, start, end = record["subject"], record["start"], record["start"] + record["length"]
        path = self.directory / "samples" / f"{subject}.npy"
        window = self.samples_of(subject)[start:end]
        if len(window) != record["length"] or not np.isfinite(window).all():
            raise InputError(f"{path}: samples {start} to {end} are missing or not finite; prepare "
                             "the dataset again")
        return window
