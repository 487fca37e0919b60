"""Recordings of your own: what dataset.json says, which files are read, and how they are split.

    SUBJECT/ACTIVITY/NAME.csv, .csv.gz or .npy      the folder names the activity
    SUBJECT/NAME.csv, SUBJECT/FOLDER/NAME.csv       where dataset.json names a column of labels

A time column puts samples where they belong: the clock need not be steady, and shows gaps.
"""
import re
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..files import InputError, brief, read_json, understanding
from .logs import Log, cut_log
from .sensors import DATASETS, SPLITS, Channel, DatasetInfo
from .tables import pick_columns, read_frame, to_numbers
from .wording import DIRECTION_OF_WORD

UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}            # of a time column, in seconds
SPLIT_FRACTIONS = {"train": 0.7, "val": 0.15, "test": 0.15}       # by time or by recordings


# ---- dataset.json ----

def normalised(name):
    """A name in Unicode's composed form: folders on a Mac have the decomposed one."""
    return unicodedata.normalize("NFC", str(name))


def own_dataset(raw):
    """(name, DatasetInfo) from RAW/dataset.json; README.md shows one and explains its keys.

    InputError, which names the key, for a value that does not fit.
    """
    path = Path(raw) / "dataset.json"
    if not Path(raw).is_dir():
        raise InputError(f"{raw} is not a directory; --raw takes the folder of dataset.json")
    with understanding(path):
        given = read_json(path)
        name, rate = given.pop("name"), given["rate"]
        window = given.setdefault("window", max(2, round(2 * rate)))
        given.setdefault("stride", max(1, window // 2))
        given.setdefault("align_lengths", (min(5, window), window))
        for key in ("test_subjects", "val_subjects"):
            given[key] = tuple(map(normalised, given.get(key, [])))
        for key in ("time", "label"):                             # {"column": ..., ...}
            for inner, value in given.pop(key, {}).items():
                given[f"{key}_{inner}"] = value
        given["rotation_groups"] = given.pop("places", None)
        dataset = DatasetInfo.from_json(given)
        check_dataset(name, dataset, path)
    return name, dataset


def check_dataset(name, dataset, path):
    """InputError, which says what is wrong, for a dataset.json that makes no sense."""
    def require(good, message):
        if not good:
            raise InputError(f"{path}: {message}")

    require(re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name) and name not in (*DATASETS, "own"),
            f"name '{brief(name)}' must consist of a-z, 0-9, - and _, and be none of "
            f"{', '.join(DATASETS)}")
    require(dataset.rate > 0 and dataset.window >= 2 and dataset.stride >= 1,
            f"rate {dataset.rate} must be above 0, window {dataset.window} and stride "
            f"{dataset.stride} at least 2 and 1")
    shortest, longest = dataset.align_lengths
    require(2 <= shortest <= longest and 0 < dataset.share <= 1,
            f"align_lengths {shortest}, {longest} must ascend from 2, and share {dataset.share} be "
            "above 0 and at most 1")
    claim = re.compile(r"\d|[.\n]|" + "|".join(DIRECTION_OF_WORD))
    for channel in dataset.channels:
        require(re.fullmatch("[a-z0-9_]+", channel.token),
                f"token '{brief(channel.token)}' must consist of a-z, 0-9 and _")
        require(channel.spoken.strip() and not claim.search(channel.spoken),
                f"the spoken name of {channel.token} is empty, or contains a digit, a dot or a "
                f"trend word ({', '.join(DIRECTION_OF_WORD)}), which would be read as a claim")
    tests, vals, split = dataset.test_subjects, dataset.val_subjects, dataset.split
    require(split in SPLITS and bool(tests) == bool(vals) == (split is None),
            "give either test_subjects and val_subjects, at least one each, or, for a single "
            'person, "split": "recordings" or "time"')
    tokens = [channel.token for channel in dataset.channels]
    headings = [channel.heading for channel in dataset.channels]
    for what, values in (("channel tokens", tokens), ("columns", headings),
                         ("classes", dataset.classes), ("test and val subjects", (*tests, *vals))):
        require((values or split) and len(set(values)) == len(values),
                f"{what} {brief(values)} must neither be empty nor repeat a value")
    require(dataset.time_unit in (None, *UNITS),
            f"the unit of time '{brief(dataset.time_unit)}' must be one of {', '.join(UNITS)}")
    values = dataset.label_values
    require(values is None or set(values.values()) == set(dataset.classes),
            f"the values of label {brief(values)} must name each of the classes, and no other")
    groups = dataset.rotation_groups or ()
    turning = [token for group in groups for token in group]
    require(set(turning) <= set(tokens) and len(set(turning)) == len(turning)
            and all(len(group) % 3 == 0 for group in groups),
            f"places {brief(groups)} must name channels once each, x, y and z of each sensor")


# ---- which files ----

def sort_files(raw, dataset):
    """The files under raw -> ({subject: those that are read}, names of the others).

    What a file manager leaves behind counts as neither.
    """
    depths, endings = (3,), (".csv", ".csv.gz", ".npy")
    if dataset.label_column:
        depths, endings = (2, 3), (".csv", ".csv.gz")             # an .npy names no column
    read, left_out = {}, []
    for path in sorted(Path(raw).rglob("*")):
        inside = path.relative_to(raw)
        hidden = any(part.startswith(".") for part in inside.parts)
        if path.is_dir() or hidden or path.name in ("dataset.json", "Thumbs.db", "desktop.ini"):
            continue
        if len(inside.parts) in depths and path.name.lower().endswith(endings):
            read.setdefault(normalised(inside.parts[0]), []).append(path)
        else:
            left_out.append(str(inside))
    return read, left_out


def own_files(raw):
    """{subject: files}. InputError if there are none, or if a subject of dataset.json has none."""
    _, dataset = own_dataset(raw)
    parts, _ = sort_files(raw, dataset)
    if not parts:
        raise InputError(f"{raw} holds no recording; they lie in SUBJECT/ACTIVITY/NAME.csv, "
                         ".csv.gz or .npy beside dataset.json")
    for subject in (*dataset.test_subjects, *dataset.val_subjects):
        if subject not in parts:
            raise InputError(f"{raw}/dataset.json: the subject {brief(subject)} names no folder "
                             f"with recordings; the folders are {brief(', '.join(parts))}")
    return parts


def name_left_out(raw, dataset):
    """One line about the files that are not read, or None if all are."""
    _, names = sort_files(raw, dataset)
    if not names:
        return None
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return (f"not read in {raw}, since they are no .csv, .csv.gz or .npy in SUBJECT/ACTIVITY: "
            f"{', '.join(names[:8])}{more}")


# ---- from a file to a log ----

def read_log(path, dataset, counts, activity=-1) -> Log:
    """A person's file -> Log, whose labels are those of the label column, or else `activity`.

    A channel's column has its heading. With a time column the rate is the dataset's, or the file's
    own if that is higher. InputError for a file that does not fit.
    """
    headings = [channel.heading for channel in dataset.channels]
    frame = read_frame(path, headings, as_text=dataset.label_column)
    clock = dataset.time_column or find_clock(frame)
    others = [name for name in (clock, dataset.label_column) if name]
    frame = pick_columns(frame, [*headings, *others], path)
    samples, rate = to_numbers(frame[headings], path), dataset.file_rate
    labels, seconds = np.full(len(frame), activity), np.arange(len(frame)) / rate
    if dataset.label_column:
        labels = read_labels(frame[dataset.label_column], dataset, path)
        counts["samples without an activity"] += int((labels < 0).sum())
    if clock:
        seconds = read_clock(frame[clock], dataset, path)
        rate = choose_rate(samples, seconds, rate, path, counts)
    return Log(samples, labels, seconds, rate)


def read_labels(texts, dataset, path):
    """A label column -> labels (N,).

    An empty one is no activity, nor, where dataset.json gives values, is one that is not among
    them. Without values, InputError for one that names no class.
    """
    names = dataset.label_values or {name: name for name in dataset.classes}
    index = {text: dataset.classes.index(name) for text, name in names.items()}
    texts = texts.str.strip()
    unknown = sorted(set(texts) - {*names, ""})
    if unknown and not dataset.label_values:
        raise InputError(f"{path}: the label {brief(repr(unknown[0]))} is none of the classes "
                         f"{', '.join(dataset.classes)}; dataset.json may map it (values)")
    return np.array([index.get(text, -1) for text in texts], int)


def find_clock(frame):
    """The name of the time column of a file, or None."""
    return next((name for name in frame.columns if name.lower() == "time"), None)


def read_clock(column, dataset, path):
    """A time column -> seconds (N,) from the first: numbers, ISO 8601 dates or times of day.

    Without a unit in dataset.json the one is taken in which the samples come at the rate, or up to
    ten times as fast. InputError for a time that is missing or cannot be read, and for numbers
    that only count the rows.
    """
    import pandas as pd
    if column.isna().any():
        raise InputError(f"{path}, row {column.isna().argmax() + 1}: the time is missing")
    if not pd.api.types.is_numeric_dtype(column):
        with understanding(path, "has a time column that is neither numbers nor dates"):
            try:
                times = pd.to_datetime(column, format="ISO8601", utc=True)
            except ValueError:
                times = pd.to_timedelta(column)
            return (times - times.iloc[0]).dt.total_seconds().to_numpy()
    times = (column - column.iloc[0]).to_numpy(float)
    steps = np.diff(times)
    rate, unit = dataset.file_rate, dataset.time_unit
    if unit is None:
        step = np.median(steps[steps > 0]) if (steps > 0).any() else 1.0
        fitting = [unit for unit, seconds in UNITS.items()
                   if 0.9 * rate <= 1 / (step * seconds) <= 10 * rate]
        unit = (fitting or ["s"])[0]
        if unit != "s" and (steps == 1).all():
            raise InputError(f"{path}: its time column only counts the rows; rename it, or give "
                             "the unit of time in dataset.json")
    return times * UNITS[unit]


def choose_rate(samples, seconds, rate, path, counts):
    """The rate that a file with times is read at: `rate`, or the file's own if that is higher.

    The file's own comes from the median step of the channel with the longest. InputError for a
    lower rate, and for a clock that stands still.
    """
    steps = [np.diff(seconds[np.isfinite(channel)]) for channel in samples.T]
    medians = [float(np.median(some)) for some in steps if len(some)]
    if not medians:
        return rate
    step = max(medians)
    if step <= 0:
        raise InputError(f"{path}: the time column stands still in most rows; give finer times, or "
                         "remove it if the rate is steady")
    if not 0.9 * rate <= 1 / step <= 100 * rate:
        raise InputError(f"{path}: by its time column the samples come at {1 / step:.4g} Hz, "
                         f"dataset.json says {rate:g} Hz; correct the rate there, or the unit of "
                         "time")
    counts["files read by their time column"] += 1
    if step * rate < 0.9:
        rate = float(f"{1 / step:.2g}")
        counts[f"files resampled from {rate:g} Hz"] += 1
    return rate


# ---- recordings ----

def read_own(subject, files, dataset, seed, counts):
    """The recordings of a person's files; files too short for a window are counted."""
    recordings = []
    for path in files:
        activity = -1
        if not dataset.label_column:
            folder = path.parent.name
            if folder not in dataset.classes:
                raise InputError(f"{path}: '{folder}' is none of the classes in dataset.json: "
                                 f"{', '.join(dataset.classes)}")
            activity = dataset.classes.index(folder)
        log = read_log(path, dataset, counts, activity)
        source = "/".join(path.parts[-3:])
        found = list(cut_log(subject, log, dataset.rate, source, counts))
        longest = max((len(recording.samples) for recording in found), default=0)
        if len(log.samples) and longest < dataset.n_window:
            counts["files too short for a window"] += 1
        recordings += found
    return split_recordings(recordings, dataset) if dataset.split else recordings


def split_recordings(recordings, dataset):
    """A person's recordings -> those of "NAME-train", "NAME-val" and "NAME-test", in this order.

    Each activity is split on its own, unless whole files that hold several are dealt out.
    """
    together = dataset.split == "recordings" and dataset.label_column
    groups, dealt = {}, []
    for recording in recordings:
        groups.setdefault(None if together else recording.activity, []).append(recording)
    for _, group in sorted(groups.items()):
        if dataset.split == "time":
            dealt += split_by_time(group, dataset.n_window)
        else:
            dealt += split_by_file(group)
    return [replace(recording, subject=f"{recording.subject}-{split}")
            for split in SPLIT_FRACTIONS for of, recording in dealt if of == split]


def split_by_time(recordings, n_apart):
    """Recordings of one activity, in their order -> yields (split, recording): first 70 % train.

    n_apart: samples that are left out between the splits.
    """
    total, begin = sum(len(recording.samples) for recording in recordings), 0.0
    for split, fraction in SPLIT_FRACTIONS.items():
        first, last = begin + (n_apart if begin else 0), begin + fraction * total
        offset = 0
        for recording in recordings:
            n = len(recording.samples)
            start, end = max(round(first) - offset, 0), min(round(last) - offset, n)
            if start < end:
                yield split, replace(recording, samples=recording.samples[start:end])
            offset += n
        begin = last


def split_by_file(recordings):
    """Recordings of one activity -> yields (split, recording): the last files are the test.

    InputError for fewer than three files.
    """
    files = list(dict.fromkeys(recording.source for recording in recordings))
    if len(files) < 3:
        raise InputError(f"{files[0]}: a split by recordings needs 3 files of each activity for "
                         f"each person, here are {len(files)}; record more, or split by time")
    n_held_out = max(1, round(SPLIT_FRACTIONS["test"] * len(files)))
    for recording in recordings:
        n_after = len(files) - files.index(recording.source)      # with this one
        if n_after <= n_held_out:
            yield "test", recording
        else:
            yield "val" if n_after <= 2 * n_held_out else "train", recording
