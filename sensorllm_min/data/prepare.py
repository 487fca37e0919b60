"""Recordings -> a prepared dataset: files that a text editor and one line of numpy can open.

    meta.json              version, dataset, seed, counts, and the DatasetInfo as "row"
    samples/SUBJECT.npy    (N, C) float32: a subject's recordings one after another
    recordings.jsonl       subject, activity, start, length, source: each recording in its .npy
    har_SPLIT.jsonl        stage-2 windows: subject, start, length, label
    align_SPLIT.jsonl      stage-1 pairs: subject, start, length, channel, question, answer

The raw files come in parts (see `recordings.py`). Several processes may prepare them; the results
are written in the order of the parts, so the same seed gives the same bytes.
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
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from itertools import groupby, repeat
from pathlib import Path

import numpy as np

from ..files import InputError, locked, read_json, write_json
from .own import own_dataset, report_left_out
from .prepared import VERSION
from .recordings import READERS
from .sensors import DATASETS, DatasetInfo, at_rate
from .texts import describe_series, pair_rng


@dataclass(frozen=True)
class Job:
    """Everything that determines what is prepared from the raw files."""
    name: str                           # of the prepared dataset
    dataset: DatasetInfo
    seed: int
    reader: str                         # of recordings.READERS


def make_job(name, raw, seed=0, rate=None, longest=None, **changes):
    """The Job for a dataset of the table, or for RAW/dataset.json if name is "own".

    rate: Hz, as for `at_rate`. longest: samples of the longest stage-1 window. changes: smooth,
    band and answer of the DatasetInfo. None leaves a value as it is."""
    reader = name
    if name == "own":
        name, dataset = own_dataset(raw)
    else:
        dataset = DATASETS[name]
    if rate is not None:
        name, dataset = at_rate(name, dataset, rate)
    if longest is not None:
        changes["align_lengths"] = min(dataset.align_lengths[0], longest), longest
    given = {key: value for key, value in changes.items() if value is not None}
    dataset = replace(dataset, **given)
    if dataset.band >= 1:
        raise InputError(f"--band {dataset.band:g}: give a fraction below 1")
    return Job(name, dataset, seed, reader)


def strided_windows(n_samples, window, stride):
    """Starts of a recording's windows: all that fit at the stride, and one flush with its end.
    Window and stride may be fractions: at another rate a recording gives as many windows."""
    room = n_samples - window
    last = n_samples - round(window)
    if min(room, last) < 0:
        return []
    n_strides = int(room / stride + 1e-9)
    starts = [min(round(i * stride), last) for i in range(n_strides + 1)]
    remainder = room - n_strides * stride
    if remainder > 1 - 1e-6:                                      # at least one sample
        starts.append(last)
    return starts


def random_windows(n_samples, shortest, longest, rng):
    """(start, length) of successive windows of random length, until what is left is too short."""
    windows = []
    start = 0
    while n_samples - start >= shortest:
        length = min(
            int(rng.integers(shortest, longest + 1)), n_samples - start)
        windows.append((start, length))
        start += length
    return windows


@dataclass
class PreparedSubject:
    subject: int | str
    samples: np.ndarray                 # (N, C) float32
    records: dict                       # {file without its ending: records}
    counts: dict                        # as in meta.json
    tally: Counter                      # windows of (split, activity), and ("dropped", kind)


def cut_windows(job, kind, recording, index):
    """Windows (start, length) of a recording, for "har" or "align": then twice for training."""
    dataset = job.dataset
    n_samples = len(recording.samples)
    key = f"{kind} {recording.subject} {index}"
    rng = np.random.default_rng([job.seed, *key.encode()])
    if kind == "har":
        starts = strided_windows(n_samples, dataset.window, dataset.stride)
        windows = [(start, dataset.n_window) for start in starts]
    else:
        windows = random_windows(n_samples, *dataset.align_lengths, rng)
        if dataset.split_of(recording.subject) == "train":
            windows += random_windows(n_samples, *dataset.align_lengths, rng)
    if dataset.share < 1:
        windows = [window for window in windows if rng.random() < dataset.share]
    return windows


def describe_channels(job, where, window):
    """The stage-1 records of a window (S, C), one a channel. where: subject, start, length."""
    dataset = job.dataset
    for channel, series in zip(dataset.channels, window.T):
        record = where | {"channel": channel.token}
        rng = pair_rng(job.seed, job.name, *record.values())
        question, answer = describe_series(series, channel, dataset, rng)
        yield record | {"question": question, "answer": answer}


def prepare_subject(job, subject, recordings):
    """A subject's recordings -> PreparedSubject, without windows that hold NaN or infinity."""
    dataset = job.dataset
    split = job.dataset.split_of(subject)
    wholes = []
    har = []
    align = []
    tally = Counter()
    offset = 0
    for index, recording in enumerate(recordings):
        samples = recording.samples
        activity = dataset.classes[recording.activity]
        wholes.append({"subject": subject, "activity": activity, "start": offset,
                       "length": len(samples), "source": recording.source})
        for kind in ("har", "align"):
            for start, length in cut_windows(job, kind, recording, index):
                window = samples[start:start + length]
                where = {"subject": subject, "start": offset + start, "length": length}
                if not np.isfinite(window).all():
                    tally["dropped", kind] += 1
                elif kind == "har":
                    har.append(where | {"label": recording.activity})
                    tally[split, activity] += 1
                else:
                    align += describe_channels(job, where, window)
        offset += len(samples)
    samples = np.concatenate([recording.samples for recording in recordings])
    records = {"recordings": wholes, f"har_{split}": har, f"align_{split}": align}
    counts = {"split": split, "recordings": len(recordings), "samples": offset,
              "har_windows": len(har), "align_pairs": len(align)}
    return PreparedSubject(subject, samples, records, counts, tally)


def prepare_part(job, part, raw_files):
    """Prepares one part of the raw files -> ([PreparedSubject], Counter of lost samples)."""
    lost = Counter()
    recordings = READERS[job.reader].read(
        part, raw_files, job.dataset, job.seed, lost)
    by_subject = groupby(recordings, key=lambda recording: recording.subject)
    return [prepare_subject(job, subject, list(group)) for subject, group in by_subject], lost


def begin_worker():
    """Leaves Ctrl-C to the parent, and ends this worker when the parent dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: parent.join() or os._exit(1), daemon=True).start()


def prepare_parts(job, parts, workers):
    """Yields the result of `prepare_part` for each part, in order. InputError if a worker dies."""
    work = prepare_part, repeat(job), parts.keys(), parts.values()
    workers = min(workers, len(parts))
    if workers == 1:
        yield from map(*work)
        return
    context = multiprocessing.get_context("spawn")                # a fork with threads may hang
    with ProcessPoolExecutor(workers, context, begin_worker) as pool:
        try:
            yield from pool.map(*work)
        except BrokenProcessPool:
            raise InputError("a worker was killed, perhaps for lack of memory; run the command "
                             "again with fewer --workers")


def report_units(folder, dataset, say):
    """Names recordings that are, in most channels, 9.81 or 57.3 times as large or small as usual
    for their activity: m/s^2 for g, degrees for rad."""
    sizes = {}                                                    # activity -> [(file, sizes (C,))]
    for line in open(folder / "recordings.jsonl", encoding="utf-8"):
        one = json.loads(line)
        end = one["start"] + one["length"]
        samples = np.load(
            folder / "samples" / f"{one['subject']}.npy", mmap_mode="r")
        size = np.nanmedian(abs(samples[one["start"]:end]), 0) + 1e-9
        sizes.setdefault(one["activity"], []).append((one["source"], size))
    for files in sizes.values():
        usual = np.median([size for _, size in files], 0)
        for source, size in files:
            ratio = abs(np.log(size / usual))
            for factor in (9.81, 57.3):
                is_off = abs(ratio - np.log(factor)) < 0.2
                if is_off.mean() >= 0.5:
                    say(f"{source}: its samples differ from those of others by a factor of about "
                        f"{factor}; are they in another unit?")


def write_dataset(job, parts, folder, workers, say):
    """Prepares the parts and writes all files to `folder`; reports after each part -> meta."""
    shutil.rmtree(folder / "samples", ignore_errors=True)         # left by an interrupted run
    (folder / "samples").mkdir()
    (folder / "recordings.jsonl").write_bytes(b"")
    for split in job.dataset.splits:
        (folder / f"har_{split}.jsonl").write_bytes(b"")
        (folder / f"align_{split}.jsonl").write_bytes(b"")
    subjects = {}
    tally = Counter()
    lost = Counter()
    began = time.monotonic()
    results = prepare_parts(job, parts, workers)
    for n_done, (part, (prepared_subjects, lost_samples)) in enumerate(zip(parts, results), 1):
        for prepared in prepared_subjects:
            np.save(
                folder / "samples" / f"{prepared.subject}.npy", prepared.samples)
            for name, records in prepared.records.items():
                with open(folder / f"{name}.jsonl", "ab") as file:
                    for record in records:
                        line = json.dumps(record, ensure_ascii=False) + "\n"
                        file.write(line.encode())
            subjects[str(prepared.subject)] = prepared.counts
            tally += prepared.tally
        lost += lost_samples
        left = (time.monotonic() - began) / n_done * (len(parts) - n_done)
        say(f"part {part}: {n_done}/{len(parts)} done, {left:.0f} s left")
    meta = describe(job, subjects, tally, lost)
    write_json(folder / "meta.json", meta)
    return meta


def describe(job, subjects, tally, lost):
    """The content of meta.json. subjects: {name: counts}; tally: of them all; lost: samples."""
    dataset = job.dataset
    balance = {}
    pairs = dict.fromkeys(dataset.splits, 0)
    for split in dataset.splits:
        balance[split] = {activity: tally[split, activity] for activity in dataset.classes}
    for counts in subjects.values():
        pairs[counts["split"]] += counts["align_pairs"]
    return {
        "version": VERSION,
        "dataset": job.name,
        "seed": job.seed,
        "source": dataset.source,
        "held_out": dataset.held_out,
        "row": asdict(dataset),
        "har_windows": {split: sum(counts.values()) for split, counts in balance.items()},
        "align_pairs": pairs,
        "dropped_windows_with_nan_or_inf": {"har_windows": tally["dropped", "har"],
                                            "align_windows": tally["dropped", "align"]},
        "lost_samples": dict(sorted(lost.items())),
        "class_balance": balance,
        "subjects": subjects}


OURS = re.compile(r"meta\.json|samples(/[^/]+\.npy)?|recordings\.jsonl|window_\d+\.png|"
                  r"(har|align)_(train|val|test)\.jsonl")


def check_only_ours(folder):
    """InputError if a folder holds anything that is not named like a file of a dataset."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not OURS.fullmatch(name):
            raise InputError(f"{folder} holds {name}, which data_prep.py has not written and would "
                             "remove; move it, or choose another --out")


def check_replaceable(out, name):
    """The meta.json in `out`, {} without one. InputError unless all of `out` may be removed."""
    if not out.exists() or not any(out.iterdir()):
        return {}
    path = out / "meta.json"
    meta = {}
    if path.is_file():
        meta = read_json(path)
    if meta.get("dataset") != name or "version" not in meta:
        raise InputError(f"{out} is not a prepared dataset {name}; choose another --out, or remove "
                         "it")
    check_only_ours(out)
    return meta


def prepare(name, raw, out, workers=1, say=print, **settings):
    """Prepares the raw recordings of a dataset in the directory `out` -> its meta.

    settings: as for `make_job`. All is written to OUT.unfinished, which is renamed when complete.
    InputError if raw files are missing or broken, or if `out` holds anything else."""
    out = Path(out).resolve()
    job = make_job(name, raw, **settings)
    check_replaceable(out, job.name)
    parts = READERS[name].files(raw)
    if name == "own":
        report_left_out(raw, parts, say)
    unfinished = out.with_name(out.name + ".unfinished")
    check_only_ours(unfinished)
    with locked(unfinished):
        try:
            meta = write_dataset(job, parts, unfinished, workers, say)
            empty = [split for split, count in meta["har_windows"].items() if not count]
            if name == "own" and empty:
                lost = meta["lost_samples"] or "nothing"
                raise InputError(f"{raw} gives no har_windows for {' and '.join(empty)}; its "
                                 "recordings may be shorter than a window, or its subjects too "
                                 f"few (lost: {lost})")
            if name == "own":
                report_units(unfinished, job.dataset, say)
            for split, counts in meta["class_balance"].items():
                absent = [activity for activity, count in counts.items() if not count]
                if absent:
                    say(f"no {split} window of {', '.join(absent)}")
            old = check_replaceable(out, job.name)
            if old:
                say(f"replacing {out}, which held {job.name} of seed {old.get('seed')}")
                shutil.rmtree(out)
            os.replace(unfinished, out)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return meta
