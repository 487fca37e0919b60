"""A prepared dataset, opened: memory-mapped samples, and the records that point at them."""
import json
import re
from pathlib import Path

import numpy as np

from ..files import InputError, as_input_error, read_json
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


class PreparedData:
    """A directory that `prepare` wrote. InputError if it is missing or cannot be read.

    fold (k, K): part k of a cross-validation. It validates on every K-th subject that is not for
    the test, starting at the k-th, and trains on the rest."""
    fold = None

    def __init__(self, directory):
        self.directory = Path(directory)
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

    def subjects_of(self, split):
        split_of = {subject: counts["split"] for subject, counts in self.meta["subjects"].items()}
        if self.fold and split != "test":
            k, n_folds = self.fold
            not_test = [subject for subject in split_of if split_of[subject] != "test"]
            validated = not_test[k::n_folds]
            if split == "val":
                return validated
            return [subject for subject in not_test if subject not in validated]
        return [subject for subject in split_of if split_of[subject] == split]

    def records(self, kind, split):
        """The records of har_SPLIT.jsonl or align_SPLIT.jsonl. InputError unless all are there."""
        counts = self.meta[{"har": "har_windows", "align": "align_pairs"}[kind]]
        splits = (split,)
        subjects = None
        if self.fold and split != "test":
            splits = ("train", "val")
            subjects = self.subjects_of(split)
        records = Records([self.directory / f"{kind}_{one}.jsonl" for one in splits], subjects)
        expected = sum(counts[one] for one in splits)
        if records.n_lines != expected:
            raise InputError(f"{records.paths[0]} holds {records.n_lines} lines, meta.json says "
                             f"{expected}{AGAIN}")
        return records

    def levels(self):
        """The usual (mean, standard deviation) of each channel among the training subjects."""
        stored = [self.samples_of(subject) for subject in self.subjects_of("train")]
        some = [samples[::len(samples) // 10_000 + 1] for samples in stored]      # enough for both
        samples = np.concatenate(some).astype(float)
        samples = samples[np.isfinite(samples).all(1)]            # the others are in no window
        deviations = samples.std(0)
        deviations[deviations == 0] = 1.0
        return tuple(zip(samples.mean(0).tolist(), deviations.tolist()))

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
