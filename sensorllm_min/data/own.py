"""Recordings of your own: which files are read, what their columns mean, and how they are split.

    SUBJECT/ACTIVITY/NAME.csv, .csv.gz or .npy      the folder names the activity
    SUBJECT/NAME.csv, SUBJECT/FOLDER/NAME.csv       where dataset.json names a column of labels

A time column puts the samples where they belong: it need not be steady, and tells gaps.
"""
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..files import InputError, brief, understanding
from .logs import GAP, cut_log
from .sensors import UNITS, normalised, own_dataset
from .tables import csv_header, number, read_csv, read_npy

SHARES = {"train": 0.7, "val": 0.15, "test": 0.15}                # of a split by time or recordings


# ---- which files ----

def is_left_behind(place):
    """Whether a file manager or an editor has left a file there, of which nobody needs to know."""
    hidden = any(part.startswith(".") for part in place.parts)
    return hidden or place.name.lower() in ("thumbs.db", "desktop.ini")


def sort_files(raw, dataset):
    """The files under raw -> ({subject: those that are read}, {reason: those that are not})."""
    depths, endings = (3,), (".csv", ".csv.gz", ".npy")
    if dataset.label_column:
        depths, endings = (2, 3), (".csv", ".csv.gz")             # an .npy names no column
    read, passed_over, folders = {}, {}, {}
    for path in sorted(Path(raw).rglob("*")):
        place = path.relative_to(raw)
        if path.is_dir() or is_left_behind(place) or str(place) == "dataset.json":
            continue
        if not path.name.lower().endswith(endings):
            kind = f"of another kind than {', '.join(endings)}"
            passed_over.setdefault(kind, []).append(str(place))
        elif len(place.parts) not in depths:
            passed_over.setdefault("not in SUBJECT/ACTIVITY", []).append(str(place))
        else:
            subject = normalised(place.parts[0])
            if folders.setdefault(subject, place.parts[0]) != place.parts[0]:
                raise InputError(f"{raw} holds two folders named {subject}, in two Unicode forms; "
                                 "rename one of them")
            read.setdefault(subject, []).append(path)
    return read, passed_over


def own_files(raw):
    """{subject: files}. InputError where there are none, or where dataset.json fits no folder."""
    _, dataset = own_dataset(raw)
    parts, _ = sort_files(raw, dataset)
    if not parts:
        raise InputError(f"{raw} holds no recording; they lie in SUBJECT/ACTIVITY/NAME.csv, "
                         ".csv.gz or .npy beside dataset.json")
    held_out = (*dataset.test_subjects, *dataset.val_subjects)
    missing = [subject for subject in held_out if subject not in parts]
    if missing:
        raise InputError(f"{raw}/dataset.json: the subject {brief(missing[0])} names no folder "
                         f"with recordings; the folders are {brief(', '.join(parts))}")
    if set(parts) == set(held_out):
        raise InputError(f"{raw}: each subject is one of test_subjects or val_subjects; leave at "
                         "least one for training")
    return parts


def passed_over(raw, dataset):
    """One line about the files that are not read, with the reasons, or None."""
    _, reasons = sort_files(raw, dataset)
    parts = []
    for reason, names in reasons.items():
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        files = "1 file" if len(names) == 1 else f"{len(names)} files"
        parts.append(f"{files} {reason} ({', '.join(names[:8])}{more})")
    return f"not read in {raw}: {'; '.join(parts)}" if parts else None


# ---- from a file to a log ----

@dataclass
class Log:
    """Samples at a steady rate, with what is known of each."""
    samples: np.ndarray                 # (N, C) float64, NaN where one is missing
    labels: np.ndarray                  # (N,) index into the classes, -1: none
    seconds: np.ndarray                 # (N,) from the first sample of the file
    rate: float                         # Hz


def read_labels(texts, lines, dataset, path):
    """The texts of a label column -> labels (N,).

    An empty one is no activity, nor is, where dataset.json gives values, one that is not among
    them. InputError, with the line, for what names no class.
    """
    values = dataset.label_values or {name: name for name in dataset.classes}
    index = {text: dataset.classes.index(name) for text, name in values.items()}
    if not dataset.label_values:
        for text, line in zip(texts, lines):
            if text and text not in index:
                raise InputError(f"{path}, line {line}: {brief(repr(text))} is none of the classes "
                                 f"{', '.join(dataset.classes)}; dataset.json may map it (values)")
    return np.array([index.get(text, -1) for text in texts], int)


def read_clock(texts, lines, dataset, path):
    """The texts of a time column -> seconds (N,) from the first: numbers, dates or times of day.

    Without a unit in dataset.json the one is taken in which the samples come at the rate, or up to
    ten times as fast. InputError, with the line, for what is no time, and for numbers of lines.
    """
    try:
        times = np.array([number(text) for text in texts])
    except ValueError:
        return read_dates(texts, path)
    missing = ~np.isfinite(times)
    if missing.any():
        raise InputError(f"{path}, line {lines[missing.argmax()]}: the time is missing")
    steps = np.diff(times)
    if not (steps > 0).any():
        return np.zeros(len(times))
    rate, step = dataset.raw_rate or dataset.rate, np.median(steps[steps > 0])
    fitting = [unit for unit, seconds in UNITS.items()
               if 0.9 * rate <= 1 / (step * seconds) <= 10 * rate]
    unit = dataset.time_unit or (fitting or ["s"])[0]
    if unit != dataset.time_unit and unit != "s" and (steps == 1).all():
        raise InputError(f"{path}: its time column only counts the lines; rename it, or give the "
                         "unit of time in dataset.json")
    return (times - times[0]) * UNITS[unit]


def read_dates(texts, path):
    """Dates, or times of day, as texts -> seconds (N,) from the first."""
    import pandas as pd                                           # here, since it takes a second
    with understanding(path, "has a time column that is neither numbers nor dates"):
        try:
            times = pd.to_datetime(texts, format="ISO8601", utc=True)
        except ValueError:
            times = pd.to_timedelta(texts)
        if times.isna().any():
            raise ValueError("a time is missing")
        return np.array((times - times[0]).total_seconds())


def sampling_step(samples, seconds):
    """The median seconds between samples, of the channel that has the longest."""
    steps = [np.diff(seconds[np.isfinite(channel)]) for channel in samples.T]
    return max([float(np.median(step)) for step in steps if len(step)], default=0.0)


def put_on_clock(log, path, counts) -> Log:
    """A log whose `seconds` are those of its time column -> one at a steady rate, NaN in gaps.

    Between samples it is interpolated. The rate is the log's, or the file's own where it is
    higher (then preparation filters and resamples). A row without label stands at each long gap,
    and where the clock goes back. InputError for a lower rate, and a clock that stands still.
    """
    rate = log.rate
    if len(log.seconds) < 2 or not np.isfinite(log.samples).any():
        return log
    step = sampling_step(log.samples, log.seconds)
    if step <= 0:
        raise InputError(f"{path}: the time column stands still in most lines; give finer times, "
                         "or remove it where the rate is steady")
    if not 0.9 * rate <= 1 / step <= 100 * rate:
        raise InputError(f"{path}: by its time column the samples come at {1 / step:.4g} Hz, "
                         f"dataset.json says {rate:g} Hz; correct the rate there, or the unit of "
                         "time")
    if step * rate < 0.9:
        rate = float(f"{1 / step:.2g}")
        counts[f"files resampled from {rate:g} Hz"] += 1
    counts["files read by their time column"] += 1
    skips = np.diff(log.seconds)
    ends = (skips < 0) | (np.rint(skips / step) > int(GAP / step) + 1)
    within_activity = (log.labels[1:] == log.labels[:-1]) & (log.labels[1:] >= 0)
    counts["recordings split at a gap"] += int((ends & within_activity).sum())
    separator = np.full((1, log.samples.shape[1]), np.nan), np.array([-1]), np.array([np.nan])
    pieces = []                                                   # (samples, labels, seconds) each
    edges = [0, *(np.flatnonzero(ends) + 1), len(log.seconds)]
    for start, end in zip(edges, edges[1:]):
        rows = slice(start, end)
        piece = place_on_grid(log.samples[rows], log.labels[rows], log.seconds[rows], rate)
        pieces += [piece, separator]
    return Log(*map(np.concatenate, zip(*pieces[:-1])), rate)


def place_on_grid(samples, labels, seconds, rate):
    """Rows at any times, without a long gap -> (samples, labels, seconds) at a steady rate.

    A channel is NaN where its own samples leave a gap of more than GAP.
    """
    grid = seconds[0] + np.arange(int((seconds[-1] - seconds[0]) * rate + 1e-6) + 1) / rate
    grid = grid.clip(max=seconds[-1])
    placed = np.full((len(grid), samples.shape[1]), np.nan)
    for column, channel in enumerate(samples.T):
        good = np.isfinite(channel)
        good[1:] &= np.diff(seconds) > 0                          # of equal times the first
        times = seconds[good]
        if len(times) < 2:
            continue
        placed[:, column] = np.interp(grid, times, channel[good], left=np.nan, right=np.nan)
        after = np.searchsorted(times, grid).clip(1, len(times) - 1)          # the next sample
        since, until = grid - times[after - 1], times[after] - grid           # seconds
        in_gap = (since + until > GAP + 1.5 / rate) & (np.minimum(since, until) > 1e-6 / rate)
        placed[in_gap, column] = np.nan
    nearest = np.searchsorted((seconds[1:] + seconds[:-1]) / 2, grid - 1e-9)
    return placed, labels[nearest], grid


def read_log(path, dataset, counts, activity=-1) -> Log:
    """A CSV -> its Log; labels are those of its column, else all `activity`.

    A channel's column has its heading; the time column is dataset.json's, or called "time".
    """
    header = csv_header(path)
    times = [name for name in header if name.lower() == "time"]
    time = dataset.time_column or (times[0] if times else None)
    others = [name for name in (time, dataset.label_column) if name]
    table = read_csv(path, [channel.heading for channel in dataset.channels], others)
    rate = dataset.raw_rate or dataset.rate
    labels = np.full(len(table.lines), activity)
    if dataset.label_column:
        texts = table.texts[dataset.label_column]
        labels = read_labels(texts, table.lines, dataset, path)
        counts["samples without an activity"] += int((labels < 0).sum())
    log = Log(table.samples, labels, np.arange(len(labels)) / rate, rate)
    if time:
        log.seconds = read_clock(table.texts[time], table.lines, dataset, path)
        log = put_on_clock(log, path, counts)
    return log


# ---- recordings ----

def read_own(subject, files, dataset, seed, counts):
    """The recordings of a person's files; of a file without one whole window it is counted."""
    recordings = []
    for path in files:
        activity = -1
        if not dataset.label_column:
            if path.parent.name not in dataset.classes:
                raise InputError(f"{path}: '{path.parent.name}' is none of the classes in "
                                 f"dataset.json: {', '.join(dataset.classes)}")
            activity = dataset.classes.index(path.parent.name)
        if path.suffix.lower() == ".npy":
            samples = read_npy(path, [channel.token for channel in dataset.channels])
            n, rate = len(samples), dataset.raw_rate or dataset.rate
            log = Log(samples.astype(float), np.full(n, activity), np.arange(n) / rate, rate)
        else:
            log = read_log(path, dataset, counts, activity)
        at_its_rate = replace(dataset, raw_rate=log.rate)
        source = "/".join(path.parts[-3:])
        found = list(cut_log(subject, log.samples, log.labels, at_its_rate, source, counts))
        if len(log.samples) and max([len(one.samples) for one in found] + [0]) < dataset.n_window:
            counts["files too short for a window"] += 1
        recordings += found
    return split_recordings(recordings, dataset) if dataset.split else recordings


def split_recordings(recordings, dataset):
    """A person's recordings -> those of "NAME-train", "NAME-val" and "NAME-test", in this order."""
    split = {"time": split_by_time, "recordings": split_by_file}[dataset.split]
    by_part, groups = {part: [] for part in SHARES}, {}
    for recording in recordings:
        together = split is split_by_file and dataset.label_column    # a file holds many activities
        groups.setdefault(None if together else recording.activity, []).append(recording)
    for _, group in sorted(groups.items()):
        for part, recording in split(group, dataset):
            subject = f"{recording.subject}-{part}"
            by_part[part].append(replace(recording, subject=subject))
    return [recording for part in by_part.values() for recording in part]


def split_by_time(recordings, dataset):
    """Recordings of one activity, in their order -> (part, recording): the first 70 % train.

    Between the parts as many samples are left out as a window has.
    """
    total, begin = sum(len(recording.samples) for recording in recordings), 0.0
    for part, share in SHARES.items():
        first, last = begin + (dataset.n_window if begin else 0), begin + share * total
        at = 0
        for recording in recordings:
            n = len(recording.samples)
            start, end = max(round(first) - at, 0), min(round(last) - at, n)
            if start < end:
                yield part, replace(recording, samples=recording.samples[start:end])
            at += n
        begin = last


def split_by_file(recordings, dataset):
    """Recordings of one activity -> (part, recording): its last files are the test.

    InputError where there are fewer than three files.
    """
    files = list(dict.fromkeys(recording.source for recording in recordings))
    if len(files) < len(SHARES):
        raise InputError(f"{files[0]}: a split by recordings needs 3 files of each activity for "
                         f"each person, here are {len(files)}; record more, or split by time")
    n_held_out = max(1, round(SHARES["test"] * len(files)))
    borders = len(files) - 2 * n_held_out, len(files) - n_held_out
    for recording in recordings:
        part = np.searchsorted(borders, files.index(recording.source), "right")
        yield list(SHARES)[part], recording
