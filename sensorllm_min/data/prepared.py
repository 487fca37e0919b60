"""A prepared dataset, opened: memory-mapped samples, and the records that point at them."""
import json
from pathlib import Path

import numpy as np

from ..files import InputError, read_json, understanding
from .sensors import known_dataset

VERSION = 2                             # of the layout that `prepare` writes; others are refused


class JsonLines:
    """A JSON-lines file, memory-mapped: a record is parsed when asked for. sizes: bytes of each."""

    def __init__(self, path):
        if not path.exists():
            raise InputError(f"{path} not found; prepare the dataset again with data_prep.py")
        self.path = path
        empty = path.stat().st_size == 0
        self.bytes = np.zeros(0, np.uint8) if empty else np.memmap(path, np.uint8, "r")
        ends, step = [np.array([-1])], 1 << 24                    # 16 MiB: the file may be large
        for start in range(0, len(self.bytes), step):
            ends.append(start + np.flatnonzero(self.bytes[start:start + step] == ord("\n")))
        self.ends = np.concatenate(ends)
        self.sizes = np.diff(self.ends)

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, index):
        with understanding(f"{self.path}, line {index + 1},"):
            return json.loads(self.bytes[self.ends[index] + 1:self.ends[index + 1]].tobytes())


class RecordsOf:
    """The records of some subjects in several JsonLines, one file after another, as one file."""

    def __init__(self, files, subjects):
        self.path = files[0].path
        self.places = [(file, i) for file in files for i in range(len(file))
                       if str(file[i]["subject"]) in subjects]
        self.sizes = np.array([file.sizes[i] for file, i in self.places], int)

    def __len__(self):
        return len(self.places)

    def __getitem__(self, index):
        file, i = self.places[index]
        return file[i]


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
            raise InputError(f"{path} not found. Run: python data_prep.py --dataset "
                             f"{self.directory.name} --raw DIR --out {self.directory}")
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
        self.samples = {}                                         # subject -> memory-mapped (N, C)

    def records(self, kind, split) -> JsonLines:
        """The records of har_SPLIT.jsonl or align_SPLIT.jsonl. InputError unless all are there."""
        if self.fold and split in ("train", "val"):
            both = [self.read_records(kind, part) for part in ("train", "val")]
            return RecordsOf(both, self.subjects(split))
        return self.read_records(kind, split)

    def subjects(self, split):
        """The subjects of a split, as texts."""
        split_of = {subject: counts["split"] for subject, counts in self.meta["subjects"].items()}
        if self.fold and split != "test":
            k, n_folds = self.fold
            not_test = [subject for subject in split_of if split_of[subject] != "test"]
            validated = not_test[k::n_folds]
            return [subject for subject in not_test if (subject in validated) == (split == "val")]
        return [subject for subject in split_of if split_of[subject] == split]

    def read_records(self, kind, split):
        records = JsonLines(self.directory / f"{kind}_{split}.jsonl")
        expected = self.counts[kind].get(split)
        if len(records) != expected:
            raise InputError(f"{records.path} holds {len(records)} lines, meta.json says "
                             f"{expected}; prepare the dataset again")
        return records

    def levels(self):
        """The usual (mean, standard deviation) of each channel: of the training subjects."""
        samples = []
        for subject in self.subjects("train"):
            stored = self.samples_of(subject)
            samples.append(stored[::len(stored) // 10_000 + 1])           # enough for both
        samples = np.concatenate(samples).astype(float)
        deviations = samples.std(0)
        deviations[deviations == 0] = 1.0
        return tuple(zip(samples.mean(0).tolist(), deviations.tolist()))

    def samples_of(self, subject):
        """A subject's samples (N, C), memory-mapped. InputError where they cannot be read."""
        path = self.directory / "samples" / f"{subject}.npy"
        if subject not in self.samples:
            try:
                self.samples[subject] = np.load(path, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:      # EOFError: an empty file
                raise InputError(f"{path} is missing or truncated ({error}); prepare the dataset "
                                 "again")
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
