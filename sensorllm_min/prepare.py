"""Recordings -> a prepared dataset: plain files that a text editor and one line of numpy can open.

    meta.json              what this is: version, dataset, seed, counts
    samples/SUBJECT.npy    (N, C) float32: a subject's recordings one after another; memory-mapped when read
    recordings.jsonl       subject, activity, start, length, source: where each recording lies in its subject's file
    har_SPLIT.jsonl        stage-2 windows: subject, start, length, label
    align_SPLIT.jsonl      stage-1 pairs: subject, start, length, channel, question, answer

The same seed gives the same bytes. Validation subjects are taken from the training subjects.
"""
import json
import shutil
import time
from collections import Counter
from itertools import groupby
from pathlib import Path

import numpy as np

from .config import InputError
from .recordings import READERS
from .sensors import DATASETS
from .trend_text import align_pair, pair_rng

VERSION = 1                                                                   # of this layout; readers refuse another


def strided_windows(n_samples, window, stride):
    """Starts of the windows of a recording: as many as fit at the stride, and one more flush with its end."""
    if n_samples < window:
        return []
    starts = list(range(0, n_samples - window + 1, stride))
    return starts if starts[-1] + window == n_samples else starts + [n_samples - window]


def random_windows(n_samples, shortest, longest, rng):
    """(start, length) of windows of random length, one behind the other, until what is left is too short."""
    windows, start = [], 0
    while n_samples - start >= shortest:
        length = min(int(rng.integers(shortest, longest + 1)), n_samples - start)
        windows.append((start, length))
        start += length
    return windows


class Writer:
    """Takes recordings subject by subject and writes the files above into `out`."""

    def __init__(self, out, name, seed, answer_kinds, longest):
        self.out, self.name, self.seed, self.answer_kinds = out, name, seed, answer_kinds
        self.dataset = DATASETS[name]
        shortest, usual = self.dataset.align_lengths
        self.lengths = (min(shortest, longest or usual), longest or usual)
        self.files = {key: open(out / f"{key}.jsonl", "w", encoding="utf-8") for key in
                      ["recordings", *(f"{kind}_{split}" for kind in ("har", "align") for split in self.dataset.splits)]}
        self.lines, self.dropped, self.balance = Counter(), Counter(), Counter()

    def write(self, file, line):
        self.files[file].write(json.dumps(line, ensure_ascii=False) + "\n")
        self.lines[file] += 1

    def add_subject(self, subject, recordings):
        np.save(self.out / "samples" / f"{subject}.npy", np.concatenate([r.samples for r in recordings]))
        start = 0
        for index, recording in enumerate(recordings):
            self.write("recordings", {"subject": subject, "activity": self.dataset.classes[recording.activity],
                                      "start": start, "length": len(recording.samples), "source": recording.source})
            self.add_har_windows(recording, start)
            self.add_align_pairs(recording, start, index)
            start += len(recording.samples)

    def usable(self, window, kind):
        """Whether a window is finite throughout; one that is not is dropped and counted."""
        finite = bool(np.isfinite(window).all())
        self.dropped[kind] += not finite
        return finite

    def add_har_windows(self, recording, offset):
        split, length = self.dataset.split_of(recording.subject), self.dataset.window
        for start in strided_windows(len(recording.samples), length, self.dataset.stride):
            if self.usable(recording.samples[start:start + length], "har_windows"):
                self.write(f"har_{split}", {"subject": recording.subject, "start": offset + start, "length": length,
                                            "label": recording.activity})
                self.balance[split, recording.activity] += 1

    def add_align_pairs(self, recording, offset, index):
        """Training recordings are cut twice over, at other lengths; the others once."""
        split = self.dataset.split_of(recording.subject)
        rng = np.random.default_rng([self.seed, recording.subject, index])
        for _ in range(2 if split == "train" else 1):
            for start, length in random_windows(len(recording.samples), *self.lengths, rng):
                window = recording.samples[start:start + length]
                if not self.usable(window, "align_windows"):
                    continue
                for channel, series in zip(self.dataset.channels, window.T):
                    place = (recording.subject, offset + start, length, channel.token)
                    question, answer = align_pair(series, channel, self.dataset.rate, self.answer_kinds,
                                                  pair_rng(self.seed, self.name, self.dataset.paraphrase, *place))
                    self.write(f"align_{split}", {"subject": recording.subject, "start": offset + start,
                                                  "length": length, "channel": channel.token,
                                                  "question": question, "answer": answer})

    def finish(self):
        for file in self.files.values():
            file.close()
        splits = self.dataset.splits
        meta = {
            "version": VERSION, "dataset": self.name, "seed": self.seed, "answer": "+".join(self.answer_kinds),
            "rate": self.dataset.rate, "align_lengths": self.lengths,
            "channels": [channel.token for channel in self.dataset.channels],
            "classes": list(self.dataset.classes), "source": self.dataset.source,
            "har_windows": {split: self.lines[f"har_{split}"] for split in splits},
            "align_pairs": {split: self.lines[f"align_{split}"] for split in splits},
            "dropped_windows_with_nan_or_inf": {kind: self.dropped[kind] for kind in ("har_windows", "align_windows")},
            "class_balance": {split: {name: self.balance[split, label] for label, name in enumerate(self.dataset.classes)}
                              for split in splits},
        }
        (self.out / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
        return meta


def prepare(name, raw, out, seed=0, answer_kinds=None, longest=None, say=print):
    """Reads the raw recordings of a dataset and writes it prepared into the directory `out` -> its meta.

    answer_kinds: of trend_text.ANSWER_KINDS; longest: samples of a stage-1 window; None, the dataset's own.
    Everything is written beside `out` and moved there when whole. InputError for raw files that are missing or
    broken, and for an `out` that holds something else.
    """
    out = Path(out).resolve()
    if out.exists() and not (out / "meta.json").exists() and (out.is_file() or any(out.iterdir())):
        raise InputError(f"{out} exists and is not a prepared dataset; choose another --out, or remove it")
    unfinished = out.with_name(out.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    (unfinished / "samples").mkdir(parents=True)
    began, n_samples = time.time(), 0
    writer = Writer(unfinished, name, seed, answer_kinds or DATASETS[name].answer, longest)
    try:
        by_subject = groupby(READERS[name](raw, seed), key=lambda recording: recording.subject)
        for done, (subject, recordings) in enumerate(by_subject, start=1):
            recordings = list(recordings)
            writer.add_subject(subject, recordings)
            n_samples += sum(len(recording.samples) for recording in recordings)
            pairs, seconds = sum(writer.lines[f"align_{split}"] for split in writer.dataset.splits), time.time() - began
            say(f"subject {subject}: {len(recordings)} recordings; so far {n_samples} samples, {pairs} pairs, "
                f"{pairs / seconds:.0f} pairs/s, {seconds / done * max(0, writer.dataset.subjects - done):.0f} s left")
        meta = writer.finish()
        shutil.rmtree(out, ignore_errors=True)
        unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return meta
