"""Recordings -> a prepared dataset: plain files that a text editor and one line of numpy can open.

    meta.json              what this is: version, dataset, seed, counts
    samples/SUBJECT.npy    (N, C) float32: a subject's recordings one after another; memory-mapped when read
    recordings.jsonl       subject, activity, start, length, source: where each recording lies in its subject's file
    har_SPLIT.jsonl        stage-2 windows: subject, start, length, label
    align_SPLIT.jsonl      stage-1 pairs: subject, start, length, channel, question, answer

The same seed gives the same bytes, on any number of workers: each part of the raw files (`recordings.py`) is prepared
alone, into a folder of its own, and at the end the parts are put together in order. What an interrupted run has
finished is taken over by the next one. Validation subjects are taken from the training subjects.
"""
import json
import multiprocessing
import os
import shutil
import signal
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from .config import InputError, read_json, write_json
from .recordings import READERS
from .sensors import DATASETS, Dataset, own_dataset, row_of
from .trend_text import align_pair, pair_rng

VERSION = 2                                                                   # of this layout; readers refuse another


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


@dataclass(frozen=True)
class Job:
    """All that decides what becomes of a part."""
    name: str
    dataset: Dataset
    seed: int
    answer_kinds: tuple
    lengths: tuple                      # samples of a stage-1 window: shortest, longest

    @property
    def files(self):
        return ["recordings", *(f"{kind}_{split}" for kind in ("har", "align") for split in self.dataset.splits)]

    def rng(self, *place):
        """A generator that depends on the seed and the place alone."""
        return np.random.default_rng([self.seed, *" ".join(map(str, place)).encode()])


class PartWriter:
    """Takes the recordings of a part subject by subject and writes the files above, without meta.json, into a folder."""

    def __init__(self, folder, job):
        self.folder, self.job, self.dataset = folder, job, job.dataset
        (folder / "samples").mkdir(parents=True)
        self.files = {name: open(folder / f"{name}.jsonl", "w", encoding="utf-8") for name in job.files}
        self.subjects, self.dropped, self.balance = {}, Counter(), Counter()

    def write(self, file, line):
        self.files[file].write(json.dumps(line, ensure_ascii=False) + "\n")

    def add_subject(self, subject, recordings):
        np.save(self.folder / "samples" / f"{subject}.npy", np.concatenate([r.samples for r in recordings]))
        split, start = self.dataset.split_of(subject), 0
        counts = self.subjects[str(subject)] = {"split": split, "recordings": len(recordings), "samples": 0,
                                                "har_windows": 0, "align_pairs": 0}
        for index, recording in enumerate(recordings):
            self.write("recordings", {"subject": subject, "activity": self.dataset.classes[recording.activity],
                                      "start": start, "length": len(recording.samples), "source": recording.source})
            counts["har_windows"] += self.add_har_windows(recording, start, index, split)
            counts["align_pairs"] += self.add_align_pairs(recording, start, index, split)
            start += len(recording.samples)
        counts["samples"] = start

    def chosen(self, windows, samples, kind, rng):
        """Of the windows (start, length), the dataset's share; one that is not finite throughout is dropped and counted."""
        if self.dataset.share < 1:
            windows = [window for window in windows if rng.random() < self.dataset.share]
        for start, length in windows:
            if np.isfinite(samples[start:start + length]).all():
                yield start, length
            else:
                self.dropped[kind] += 1

    def add_har_windows(self, recording, offset, index, split):
        length, count = self.dataset.window, 0
        windows = [(start, length) for start in strided_windows(len(recording.samples), length, self.dataset.stride)]
        for start, length in self.chosen(windows, recording.samples, "har_windows",
                                         self.job.rng("har", recording.subject, index)):
            self.write(f"har_{split}", {"subject": recording.subject, "start": offset + start, "length": length,
                                        "label": recording.activity})
            self.balance[split, recording.activity] += 1
            count += 1
        return count

    def add_align_pairs(self, recording, offset, index, split):
        """Training recordings are cut twice over, at other lengths; the others once."""
        rng, count = self.job.rng("align", recording.subject, index), 0
        windows = [window for _ in range(2 if split == "train" else 1)
                   for window in random_windows(len(recording.samples), *self.job.lengths, rng)]
        for start, length in self.chosen(windows, recording.samples, "align_windows", rng):
            window = recording.samples[start:start + length]
            for channel, series in zip(self.dataset.channels, window.T):
                place = (recording.subject, offset + start, length, channel.token)
                question, answer = align_pair(series, channel, self.dataset.rate, self.job.answer_kinds,
                                              pair_rng(self.job.seed, self.job.name, self.dataset.paraphrase, *place))
                self.write(f"align_{split}", {"subject": recording.subject, "start": offset + start, "length": length,
                                              "channel": channel.token, "question": question, "answer": answer})
                count += 1
        return count


def prepare_part(job, part, raw_files, folder):
    """Reads one part of the raw files and writes it, prepared, into folder, whole or not at all -> its counts."""
    unfinished = folder.with_name(folder.name + ".unfinished")
    for leftover in (unfinished, folder):
        shutil.rmtree(leftover, ignore_errors=True)
    writer, lost = PartWriter(unfinished, job), Counter()
    reader = READERS[job.name if job.name in READERS else "own"]
    for subject, recordings in groupby(reader.read(part, raw_files, job.dataset, job.seed, lost), key=lambda r: r.subject):
        writer.add_subject(subject, list(recordings))
    for file in writer.files.values():
        file.close()
    counts = {"raw_files": described(raw_files), "subjects": writer.subjects, "dropped": writer.dropped, "lost": lost,
              "balance": [[split, activity, count] for (split, activity), count in writer.balance.items()]}
    write_json(unfinished / "counts.json", counts)
    os.replace(unfinished, folder)
    return counts


def described(raw_files):
    """Name, size and time of change of raw files: whether they are still those that a part was made of."""
    return [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in raw_files if path.exists()]


def results_of(jobs, workers):
    """Calls prepare_part with each of jobs {part: arguments}, on several processes -> (part, counts) as they come."""
    if workers == 1:
        yield from ((part, prepare_part(*arguments)) for part, arguments in jobs.items())
        return
    context = multiprocessing.get_context("forkserver")                       # a fork of a process that has threads may hang
    with ProcessPoolExecutor(workers, context, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        running = {pool.submit(prepare_part, *arguments): part for part, arguments in jobs.items()}
        try:
            yield from ((running[future], future.result()) for future in as_completed(running))
        except BrokenProcessPool:
            raise InputError("a worker was killed, for lack of memory perhaps; run the same command again with fewer "
                             "--workers: it goes on where this one stopped")
        finally:
            pool.shutdown(cancel_futures=True)


def prepare_parts(job, parts, folder, workers, say):
    """Prepares what is not prepared yet -> {part: counts}; says after each part how far it is."""
    done, jobs = {}, {}
    for part, raw_files in parts.items():
        path = folder / str(part) / "counts.json"
        if path.exists() and read_json(path)["raw_files"] == described(raw_files):
            done[part] = read_json(path)
        else:
            jobs[part] = (job, part, raw_files, folder / str(part))
    if done:
        say(f"going on where an interrupted run stopped: {len(done)} of {len(parts)} parts are done")
    began, samples, pairs = time.time(), 0, 0
    for count, (part, counts) in enumerate(results_of(jobs, min(workers, len(jobs) or 1)), start=1):
        done[part] = counts
        samples += sum(subject["samples"] for subject in counts["subjects"].values())
        pairs += sum(subject["align_pairs"] for subject in counts["subjects"].values())
        seconds = time.time() - began
        say(f"part {part}: {len(done)}/{len(parts)} done; {samples} samples, {pairs} pairs, {pairs / seconds:.0f} pairs/s, "
            f"{seconds / count * (len(jobs) - count):.0f} s left")
    return {part: done[part] for part in parts}


def put_together(job, done, folder, out):
    """The parts' folders, in their order, become one prepared dataset in `out` -> its meta."""
    (out / "samples").mkdir(parents=True)
    lines = Counter()
    for file in job.files:
        with open(out / f"{file}.jsonl", "wb") as whole:
            for part in done:
                with open(folder / str(part) / f"{file}.jsonl", "rb") as piece:
                    shutil.copyfileobj(piece, whole, 1 << 20)
    subjects, lost, dropped, balance = {}, Counter(), Counter(), Counter()
    for part, counts in done.items():
        for path in (folder / str(part) / "samples").iterdir():
            try:
                os.link(path, out / "samples" / path.name)                    # the part stays whole until all is done
            except OSError:                                                   # a file system without links
                shutil.copyfile(path, out / "samples" / path.name)
        subjects |= counts["subjects"]
        lost.update(counts["lost"])
        dropped.update(counts["dropped"])
        for split, activity, count in counts["balance"]:
            balance[split, activity] += count
    for counts in subjects.values():
        for what in ("har_windows", "align_pairs"):
            lines[what, counts["split"]] += counts[what]
    dataset = job.dataset
    meta = {
        "version": VERSION, "dataset": job.name, "seed": job.seed, "answer": "+".join(job.answer_kinds),
        "rate": dataset.rate, "align_lengths": job.lengths, "channels": [channel.token for channel in dataset.channels],
        "classes": list(dataset.classes), "source": dataset.source, "row": row_of(job.name, dataset),
        **{what: {split: lines[what, split] for split in dataset.splits} for what in ("har_windows", "align_pairs")},
        "dropped_windows_with_nan_or_inf": {kind: dropped[kind] for kind in ("har_windows", "align_windows")},
        "lost_samples": dict(sorted((+lost).items())),
        "class_balance": {split: {name: balance[split, label] for label, name in enumerate(dataset.classes)}
                          for split in dataset.splits},
        "subjects": subjects,
    }
    write_json(out / "meta.json", meta)
    return meta


def discard(unfinished):
    """Removes what runs left in OUT.unfinished; its settings first, so that no run resumes from the half that is left."""
    (unfinished / "settings.json").unlink(missing_ok=True)
    shutil.rmtree(unfinished, ignore_errors=True)


def prepare(name, raw, out, seed=0, answer_kinds=None, longest=None, workers=1, say=print):
    """Reads the raw recordings of a dataset and writes it prepared into the directory `out` -> its meta.

    answer_kinds: of trend_text.ANSWER_KINDS; longest: samples of a stage-1 window; None, the dataset's own.
    Everything is written into OUT.unfinished and moved to `out` when whole. InputError for raw files that are missing
    or broken, and for an `out` that holds something else.
    """
    out = Path(out).resolve()
    if out.exists() and not (out / "meta.json").exists() and (out.is_file() or any(out.iterdir())):
        raise InputError(f"{out} exists and is not a prepared dataset; choose another --out, or remove it")
    reader = READERS[name]
    name, dataset = own_dataset(raw) if name == "own" else (name, DATASETS[name])
    shortest, usual = dataset.align_lengths
    job = Job(name, dataset, seed, tuple(answer_kinds or dataset.answer), (min(shortest, longest or usual), longest or usual))
    parts = reader.files(raw)
    unfinished, old = out.with_name(out.name + ".unfinished"), out.with_name(out.name + ".old")
    settings = {"version": VERSION, "job": repr(job)}
    if not (unfinished / "settings.json").exists() or read_json(unfinished / "settings.json") != settings:
        discard(unfinished)
        unfinished.mkdir(parents=True)
        write_json(unfinished / "settings.json", settings)
    done = prepare_parts(job, parts, unfinished / "parts", workers, say)
    whole = unfinished / "whole"
    shutil.rmtree(whole, ignore_errors=True)
    meta = put_together(job, done, unfinished / "parts", whole)
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        os.replace(out, old)
    os.replace(whole, out)
    shutil.rmtree(old, ignore_errors=True)
    discard(unfinished)
    return meta
