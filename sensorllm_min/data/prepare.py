"""Recordings -> a prepared dataset: plain files that a text editor and one line of numpy can open.

    meta.json              what this is: version, dataset, seed, counts
    samples/SUBJECT.npy    (N, C) float32: a subject's recordings one after another
    recordings.jsonl       subject, activity, start, length, source: each recording in its .npy
    har_SPLIT.jsonl        stage-2 windows: subject, start, length, label
    align_SPLIT.jsonl      stage-1 pairs: subject, start, length, channel, question, answer

The same seed gives the same bytes on any number of workers: each part of the raw files (see
`recordings.py`) is prepared alone in a folder of its own, and the parts are merged in order at the
end. A run takes over the parts that an interrupted one finished.
"""
import json
import multiprocessing
import os
import re
import shutil
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import groupby, product
from pathlib import Path

import numpy as np

from ..files import InputError, brief, locked, read_json, write_json
from .own import passed_over
from .prepared import VERSION
from .recordings import READERS
from .sensors import DatasetInfo, choose_dataset, own_description
from .texts import align_pair, pair_rng, trend_line


def strided_windows(n_samples, window, stride):
    """Starts of a recording's windows: all that fit at the stride, and one flush with its end.

    Window and stride may be fractions of samples, where the rate was changed: starts are rounded,
    so that a recording gives as many windows as at the old rate. (Where a fraction of a sample is
    left over, it gives none for that; and one a fraction short of a window still gives one.)
    """
    room = n_samples - window
    last = n_samples - round(window)
    if min(room, last) < 0:
        return []
    starts = [min(round(i * stride), last) for i in range(int(room / stride + 1e-9) + 1)]
    remainder = room - (len(starts) - 1) * stride
    return [*starts, last] if remainder > 1 - 1e-6 else starts


def random_windows(n_samples, shortest, longest, rng):
    """(start, length) of successive windows of random length, until what is left is too short."""
    windows, start = [], 0
    while n_samples - start >= shortest:
        length = min(int(rng.integers(shortest, longest + 1)), n_samples - start)
        windows.append((start, length))
        start += length
    return windows


@dataclass(frozen=True)
class Job:
    """All that decides what becomes of the raw files."""
    name: str
    dataset: DatasetInfo
    seed: int
    answer_kinds: tuple
    lengths: tuple                      # samples of a stage-1 window: shortest, longest
    reader: str                         # of recordings.READERS

    @property
    def files(self):
        windows = product(("har", "align"), self.dataset.splits)
        return ["recordings", *map("_".join, windows)]

    def rng(self, *key):
        """A generator that depends on the seed and the key alone."""
        return np.random.default_rng([self.seed, *" ".join(map(str, key)).encode()])


def make_job(name, dataset, seed=0, answer_kinds=None, longest=None, reader=None):
    """A Job with these settings; None stands for the dataset's own."""
    shortest, usual = dataset.align_lengths
    longest = longest or usual
    lengths = min(shortest, longest), longest
    kinds = tuple(answer_kinds or dataset.answer)
    return Job(name, dataset, seed, kinds, lengths, reader or name)


class PartWriter:
    """Writes the recordings of a part, subject by subject, as the files above without meta.json."""

    def __init__(self, folder, job):
        self.folder, self.job, self.dataset = folder, job, job.dataset
        (folder / "samples").mkdir(parents=True)
        self.files = {name: open(folder / f"{name}.jsonl", "w", encoding="utf-8", newline="\n")
                      for name in job.files}
        self.subjects, self.dropped, self.balance = {}, Counter(), Counter()

    def write(self, file, record):
        self.files[file].write(json.dumps(record, ensure_ascii=False) + "\n")

    def add_subject(self, subject, recordings):
        samples = np.concatenate([recording.samples for recording in recordings])
        np.save(self.folder / "samples" / f"{subject}.npy", samples)
        split, start = self.dataset.split_of(subject), 0
        counts = {"split": split, "recordings": len(recordings), "samples": len(samples),
                  "har_windows": 0, "align_pairs": 0}
        self.subjects[str(subject)] = counts
        for index, recording in enumerate(recordings):
            activity, length = self.dataset.classes[recording.activity], len(recording.samples)
            self.write("recordings", {"subject": subject, "activity": activity, "start": start,
                                      "length": length, "source": recording.source})
            self.add_har_windows(recording, start, index, counts)
            self.add_align_pairs(recording, start, index, counts)
            start += length

    def choose_windows(self, windows, samples, kind, rng):
        """Yields the dataset's share of windows (start, length); drops, counts non-finite ones."""
        if self.dataset.share < 1:
            windows = [window for window in windows if rng.random() < self.dataset.share]
        for start, length in windows:
            if np.isfinite(samples[start:start + length]).all():
                yield start, length
            else:
                self.dropped[kind] += 1

    def add_har_windows(self, recording, offset, index, counts):
        """offset: where the recording starts in its subject's samples."""
        subject, label, samples = recording.subject, recording.activity, recording.samples
        length, split = self.dataset.n_window, counts["split"]
        starts = strided_windows(len(samples), self.dataset.window, self.dataset.stride)
        windows, rng = [(start, length) for start in starts], self.job.rng("har", subject, index)
        for start, length in self.choose_windows(windows, samples, "har_windows", rng):
            self.write(f"har_{split}", {"subject": subject, "start": offset + start,
                                        "length": length, "label": label})
            self.balance[split, label] += 1
            counts["har_windows"] += 1

    def add_align_pairs(self, recording, offset, index, counts):
        """Training recordings are cut twice, at other lengths; the others once."""
        job, subject, samples = self.job, recording.subject, recording.samples
        split, rng, windows = counts["split"], job.rng("align", subject, index), []
        for _ in range(2 if split == "train" else 1):
            windows += random_windows(len(samples), *job.lengths, rng)
        for start, length in self.choose_windows(windows, samples, "align_windows", rng):
            where = {"subject": subject, "start": offset + start, "length": length}
            for channel, series in zip(self.dataset.channels, samples[start:start + length].T):
                wording = pair_rng(job.seed, job.name, self.dataset.paraphrase,
                                   *where.values(), channel.token)
                line = trend_line(series, self.dataset)
                question, answer = align_pair(line, channel, self.dataset.rate,
                                              job.answer_kinds, wording)
                self.write(f"align_{split}", {**where, "channel": channel.token,
                                              "question": question, "answer": answer})
                counts["align_pairs"] += 1


def describe_files(raw_files):
    """Name, size and time of change of each: whether they are those that a part was made of."""
    return [[str(path), path.stat().st_size, path.stat().st_mtime_ns]
            for path in raw_files if path.exists()]


def prepare_part(job, part, raw_files, folder):
    """Prepares one part of the raw files into folder, whole or not at all -> its counts."""
    unfinished = folder.with_name(folder.name + ".unfinished")
    for leftover in (unfinished, folder):
        shutil.rmtree(leftover, ignore_errors=True)
    writer, missing = PartWriter(unfinished, job), Counter()
    recordings = READERS[job.reader].read(part, raw_files, job.dataset, job.seed, missing)
    for subject, group in groupby(recordings, key=lambda recording: recording.subject):
        writer.add_subject(subject, list(group))
    for file in writer.files.values():
        file.close()
    balance = [[split, label, count] for (split, label), count in writer.balance.items()]
    counts = {"raw_files": describe_files(raw_files), "subjects": writer.subjects,
              "dropped": writer.dropped, "lost": missing, "balance": balance}
    write_json(unfinished / "counts.json", counts)
    os.replace(unfinished, folder)
    return counts


def begin_worker():
    """Ctrl-C is for the parent alone, and a worker ends with its parent, however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def end_with_parent():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def run_jobs(jobs, workers):
    """prepare_part for {part: arguments}, on several processes -> (part, counts) as they end."""
    if workers == 1:
        for part, arguments in jobs.items():
            yield part, prepare_part(*arguments)
        return
    # a fork of a process that has threads may hang; Windows knows none
    context = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")
    with ProcessPoolExecutor(workers, context, begin_worker) as pool:
        running = {pool.submit(prepare_part, *arguments): part for part, arguments in jobs.items()}
        try:
            for future in as_completed(running):
                yield running[future], future.result()
        except BrokenProcessPool:
            raise InputError("a worker was killed, perhaps for lack of memory; run the command "
                             "again with fewer --workers: it resumes where this one stopped")
        finally:
            pool.shutdown(cancel_futures=True)


def read_or_none(path):
    """The object in a JSON file of an interrupted run; None where there is none to rely on."""
    try:
        return read_json(path)
    except InputError:
        return None


def prepare_parts(job, parts, folder, workers, say):
    """Prepares the parts that are not prepared yet -> {part: counts}; reports after each."""
    done, jobs = {}, {}
    for part, raw_files in parts.items():
        path = folder / str(part) / "counts.json"
        counts = read_or_none(path)
        if counts and counts.get("raw_files") == describe_files(raw_files):
            done[part] = counts
        else:
            jobs[part] = job, part, raw_files, folder / str(part)
    if done:
        say(f"resuming an interrupted run: {len(done)} of {len(parts)} parts are done")
    began, samples, pairs = time.monotonic(), 0, 0
    results = run_jobs(jobs, min(workers, len(jobs) or 1))
    for count, (part, counts) in enumerate(results, start=1):
        done[part] = counts
        samples += sum(subject["samples"] for subject in counts["subjects"].values())
        pairs += sum(subject["align_pairs"] for subject in counts["subjects"].values())
        seconds = max(time.monotonic() - began, 1e-9)
        left = seconds / count * (len(jobs) - count)
        say(f"part {part}: {len(done)}/{len(parts)} done; {samples} samples, {pairs} pairs, "
            f"{pairs / seconds:.0f} pairs/s, {left:.0f} s left")
    return {part: done[part] for part in parts}


def merge_parts(job, done, folder, out):
    """Merges the folders of the parts, in their order, into one dataset in `out` -> its meta."""
    (out / "samples").mkdir(parents=True)
    for file in job.files:
        with open(out / f"{file}.jsonl", "wb") as whole:
            for part in done:
                with open(folder / str(part) / f"{file}.jsonl", "rb") as piece:
                    shutil.copyfileobj(piece, whole, 1 << 20)
    subjects, missing, dropped, balance = {}, Counter(), Counter(), Counter()
    for part, counts in done.items():
        for path in (folder / str(part) / "samples").iterdir():
            try:
                os.link(path, out / "samples" / path.name)        # so the part stays whole
            except OSError:                                       # a file system without links
                shutil.copyfile(path, out / "samples" / path.name)
        subjects |= counts["subjects"]
        missing.update(counts["lost"])
        dropped.update(counts["dropped"])
        for split, label, count in counts["balance"]:
            balance[split, label] += count
    dataset = job.dataset
    meta = {
        "version": VERSION, "dataset": job.name, "seed": job.seed,
        "answer": "+".join(job.answer_kinds), "rate": dataset.rate, "align_lengths": job.lengths,
        "channels": [channel.token for channel in dataset.channels],
        "classes": list(dataset.classes), "source": dataset.source, "held_out": dataset.held_out,
        "row": own_description(job.name, dataset),
        "har_windows": dict.fromkeys(dataset.splits, 0),
        "align_pairs": dict.fromkeys(dataset.splits, 0),
        "dropped_windows_with_nan_or_inf": {kind: dropped[kind]
                                            for kind in ("har_windows", "align_windows")},
        "lost_samples": dict(sorted((+missing).items())),
        "class_balance": {}, "subjects": subjects,
    }
    for counts in subjects.values():
        for what in ("har_windows", "align_pairs"):
            meta[what][counts["split"]] += counts[what]
    for split in dataset.splits:
        meta["class_balance"][split] = {name: balance[split, label]
                                        for label, name in enumerate(dataset.classes)}
    write_json(out / "meta.json", meta)
    return meta


def check_splits(meta, raw):
    """InputError where recordings of your own leave a split without a window or a pair."""
    for what in ("har_windows", "align_pairs"):
        empty = [split for split, count in meta[what].items() if not count]
        if empty:
            lost = ", ".join(f"{key} {count}" for key, count in meta["lost_samples"].items())
            raise InputError(
                f"{raw} gives no {what} for {' and '.join(empty)}; its recordings may be shorter "
                f"than a window of dataset.json ({lost or 'nothing was lost'}), or its subjects "
                "too few")


OURS = re.compile(r"meta\.json|samples(/[^/]+\.npy)?|recordings\.jsonl|window_\d+\.png|"
                  r"(har|align)_(train|val|test)\.jsonl")


def check_replaceable(out, name):
    """The meta.json of what `out` holds, or None where it is empty or missing.

    InputError unless all of it was written here, and for the same dataset: nothing else may go.
    """
    if not out.exists() or out.is_dir() and not any(out.iterdir()):
        return None
    path, advice = out / "meta.json", "choose another --out, or remove it"
    if not path.is_file():
        raise InputError(f"{out} exists and is not a prepared dataset; {advice}")
    meta = read_json(path)
    if meta.get("dataset") != name or "version" not in meta:
        raise InputError(f"{out} holds the dataset {brief(meta.get('dataset'))}, not {name}; "
                         f"{advice}")
    for found in sorted(out.rglob("*")):
        if not OURS.fullmatch(found.relative_to(out).as_posix()):
            raise InputError(f"{out} holds {found.relative_to(out)}, which data_prep.py has not "
                             "written and would remove; move it, or choose another --out")
    return meta


def discard(unfinished):
    """Removes OUT.unfinished, its settings first, so that no run resumes from what is left."""
    (unfinished / "settings.json").unlink(missing_ok=True)
    shutil.rmtree(unfinished, ignore_errors=True)


def prepare(name, raw, out, workers=1, say=print, **settings):
    """Prepares the raw recordings of a dataset in the directory `out` -> its meta.

    settings: rate, smooth and band, as for `choose_dataset`; seed (default 0); answer_kinds, of
    texts.ANSWER_KINDS, and longest, the samples of the longest stage-1 window (default: the
    dataset's own). All is written to OUT.unfinished and moved when whole. InputError where raw
    files are missing or broken, where `out` holds something else, or another run writes there.
    """
    out = Path(out).resolve()
    reader = READERS[name]
    changes = {key: settings.pop(key, None) for key in ("rate", "smooth", "band")}
    job = make_job(*choose_dataset(name, raw, **changes), reader=name, **settings)
    name = job.name
    check_replaceable(out, name)
    parts = reader.files(raw)
    if reader is READERS["own"] and (left_out := passed_over(raw, job.dataset)):
        say(left_out)
    unfinished = out.with_name(out.name + ".unfinished")
    foreign = {path.name for path in unfinished.glob("*")} - {
        "settings.json", "settings.json.unfinished", "parts", "whole", "old"}
    if foreign:
        raise InputError(f"{unfinished} holds {foreign.pop()}, which data_prep.py has not written; "
                         "move it, or choose another --out")
    old, whole = unfinished / "old", unfinished / "whole"
    job_path, settings = unfinished / "settings.json", {"version": VERSION, "job": repr(job)}
    with locked(unfinished):
        if old.exists() and not out.exists():                     # killed between the two moves
            os.replace(old, out)
        if read_or_none(job_path) != settings:
            discard(unfinished)
    with locked(unfinished):
        write_json(job_path, settings)
        done = prepare_parts(job, parts, unfinished / "parts", workers, say)
        shutil.rmtree(whole, ignore_errors=True)
        meta = merge_parts(job, done, unfinished / "parts", whole)
        if reader is READERS["own"]:
            check_splits(meta, raw)
        replaced = check_replaceable(out, name)
        if replaced:
            say(f"replacing {out}, which held {name} of seed {replaced.get('seed')}")
        if out.exists():
            shutil.rmtree(old, ignore_errors=True)                # a run was killed after its moves
            os.replace(out, old)
        os.replace(whole, out)
        discard(unfinished)
    return meta
