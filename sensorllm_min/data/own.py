"""Recordings of your own: dataset.json, the files beside it, and how they are split.

    SUBJECT/ACTIVITY/NAME.csv, .csv.gz or .npy      the folder names the activity
    SUBJECT/NAME.csv, SUBJECT/FOLDER/NAME.csv       if dataset.json names a column of labels
"""
import re
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..files import InputError, as_input_error, as_tuples, brief, read_json
from .clocks import UNITS, choose_rate, find_clock, order_rows, read_clock, spread_packets
from .logs import Log, cut_log
from .sensors import DATASETS, SPLITS, DatasetInfo
from .tables import pick_columns, read_frame, to_numbers
from .wording import DIRECTION_OF_WORD

BORDERS = {"train": (0, 0.7), "val": (0.7, 0.85), "test": (0.85, 1)}      # of a split by time


def normalised(name):
    """A name in Unicode's composed form: folders on a Mac have the decomposed one."""
    return unicodedata.normalize("NFC", str(name))


def own_dataset(raw):
    """(name, DatasetInfo) from RAW/dataset.json; README.md shows one and explains its keys."""
    path = Path(raw) / "dataset.json"
    if not Path(raw).is_dir():
        raise InputError(f"{raw} is not a directory; --raw takes the folder of dataset.json")
    with as_input_error(path):
        given = read_json(path)
        name = given.pop("name")
        rate = given["rate"]
        window = given.setdefault("window", max(2, round(2 * rate)))
        given.setdefault("stride", max(1, window // 2))
        given.setdefault("align_lengths", (min(5, window), window))
        for key in ("test_subjects", "val_subjects"):
            given[key] = tuple(map(normalised, given.get(key, [])))
        for key in ("time", "label"):                             # {"column": ..., ...}
            for inner, value in given.pop(key, {}).items():
                given[f"{key}_{inner}"] = as_tuples(value)
        given["rotation_groups"] = given.pop("places", None)
        dataset = DatasetInfo.from_json(given)
        check_dataset(name, dataset, path)
    return name, dataset


def check_dataset(name, dataset, path):
    def are_unique(values):
        return len(set(values)) == len(values) > 0

    values = dataset.label_values
    groups = dataset.rotation_groups or ()
    by_subject = bool(dataset.test_subjects), bool(dataset.val_subjects)
    tokens = [channel.token for channel in dataset.channels]
    turning = [token for group in groups for token in group]
    trends = "|".join(DIRECTION_OF_WORD)
    claims = re.compile(rf"[\d.\n]|{trends}")
    rules = {
        f"name must be none of {', '.join(DATASETS)}":
            name not in (*DATASETS, "own"),
        "there must be channels, and their tokens must not repeat":
            are_unique(tokens),
        "columns must not repeat":
            are_unique([channel.heading for channel in dataset.channels]),
        f"spoken names must not contain digits, dots or {trends.replace('|', ', ')}, which would "
        "be read as claims":
            not any(claims.search(channel.spoken) for channel in dataset.channels),
        "classes must not be empty or repeat":
            are_unique(dataset.classes),
        'give either test_subjects and val_subjects, at least one each, or, for a single person, '
        '"split": "recordings" or "time"':
            dataset.split in SPLITS and by_subject == (dataset.split is None,) * 2,
        f"the unit of time must be one of {', '.join(UNITS)}":
            dataset.time_unit in (None, *UNITS),
        "the values of label must name each of the classes, and no other":
            values is None or set(values.values()) == set(dataset.classes),
        "places must name channels once each, x, y and z of each sensor":
            not turning or are_unique(turning) and set(turning) <= set(tokens)
            and not any(len(group) % 3 for group in groups)}
    for rule, holds in rules.items():
        if not holds:
            raise InputError(f"{path}: {rule}")


def visible_files(raw):
    """The files under raw, but for dataset.json and what a file manager leaves behind."""
    for path in sorted(Path(raw).rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(raw).parts)
        ignored = path.name in ("dataset.json", "Thumbs.db", "desktop.ini")
        if not (path.is_dir() or hidden or ignored):
            yield path


def own_files(raw):
    """{subject: files}. InputError if there are none, or if a subject of dataset.json has none."""
    _, dataset = own_dataset(raw)
    depths = (3,)
    endings = (".csv", ".csv.gz", ".npy")
    if dataset.label_column:
        depths, endings = (2, 3), (".csv", ".csv.gz")             # an .npy names no column
    parts = {}
    for path in visible_files(raw):
        folders = path.relative_to(raw).parts
        ours = path.name.endswith(".predictions.csv")             # written by evaluate.py
        if len(folders) in depths and path.name.lower().endswith(endings) and not ours:
            parts.setdefault(normalised(folders[0]), []).append(path)
    if not parts:
        raise InputError(f"{raw} holds no recording; they lie in SUBJECT/ACTIVITY/NAME.csv, "
                         ".csv.gz or .npy beside dataset.json")
    for subject in dataset.test_subjects + dataset.val_subjects:
        if subject not in parts:
            raise InputError(f"{raw}/dataset.json: the subject {brief(subject)} names no folder "
                             f"with recordings; the folders are {brief(', '.join(parts))}")
    return parts


def report_left_out(raw, parts, say):
    read = set().union(*parts.values())
    names = [str(path.relative_to(raw)) for path in visible_files(raw) if path not in read]
    if names:
        say(f"not read in {raw}, since no .csv, .csv.gz or .npy in SUBJECT/ACTIVITY "
            f"({len(names)}): {', '.join(names[:8])}")


def read_log(path, dataset, counts, activity=-1):
    """A person's file -> Log, whose labels are those of the label column, or else `activity`."""
    headings = [channel.heading for channel in dataset.channels]
    label = [dataset.label_column] if dataset.label_column else []
    frame = read_frame(path, headings, dataset)
    clock = find_clock(frame, [*headings, *label], dataset)
    for name in frame.columns:
        if name not in (*headings, *label, *clock):
            counts[f"files whose column {brief(str(name))} is not used"] += 1
    frame = pick_columns(frame, [*headings, *clock, *label], path)
    if clock and len(frame):
        frame = drop_twins(frame, clock, counts)
    samples = to_numbers(frame[headings], path)
    if len(samples):
        count_absurd(samples, headings, path, counts)
    rate = dataset.file_rate
    labels = np.full(len(frame), activity)
    seconds = np.arange(len(frame)) / rate
    if label:
        labels = read_labels(frame[label[0]], dataset, path, counts)
        counts["samples without an activity"] += int((labels < 0).sum())
    if clock and len(frame):
        if "".join(clock).lower() != "time":
            counts[f"files whose clock is {' and '.join(clock)}"] += 1
        seconds = read_clock(frame[clock], dataset, path)
        order = order_rows(seconds, counts)
        samples = samples[order]
        labels = labels[order]
        seconds = spread_packets(seconds[order], rate, counts)
        rate = choose_rate(samples, seconds, rate, path, counts)
    return Log(samples, labels, seconds, rate)


def drop_twins(frame, clock, counts):
    """The rows without those that are written twice, if most rows that share a time are alike."""
    shares = (frame[clock] == frame[clock].shift()).all(axis=1)
    alike = shares & frame.duplicated()
    if alike.sum() <= shares.sum() / 2 or shares.sum() == len(frame) - 1:
        return frame
    counts["rows written twice"] += int(alike.sum())
    return frame[~alike].reset_index(drop=True)


def count_absurd(samples, headings, path, counts):
    """Counts samples (N, C) a thousand times beyond nearly all others of their channel."""
    sizes = np.nan_to_num(abs(samples))
    usual = np.quantile(sizes, 0.95, axis=0)
    absurd = np.argwhere(sizes > 1000 * usual.clip(min=1e-9))
    where = "/".join(Path(path).parts[-3:])
    for row, column in absurd[:3].tolist():
        value = samples[row, column]
        counts[f"absurd samples: {value:g} in {headings[column]}, row {row + 1} of {where}"] += 1


def read_labels(texts, dataset, path, counts):
    """A label column -> labels (N,), -1 for an empty one, or what dataset.json gives no class."""
    names = dataset.label_values or {name: name for name in dataset.classes}
    index = {text.strip(): dataset.classes.index(name) for text, name in names.items()}
    texts = texts.fillna("").str.strip().str.replace(r"^(\d+)\.0+$", r"\1", regex=True)      # 2.0
    unknown = texts[~texts.isin([*index, ""])].value_counts()
    if len(unknown) and not dataset.label_values:
        first = brief(repr(sorted(unknown.index)[0]))
        raise InputError(f"{path}: the label {first} is none of the classes "
                         f"{', '.join(dataset.classes)}; dataset.json may map it (values)")
    for text, count in unknown.items():
        counts[f"samples labelled {brief(repr(text))}, which is no class"] += int(count)
    return texts.map(lambda text: index.get(text, -1)).to_numpy(int)


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
    """A person's recordings -> those of "NAME-train", "NAME-val" and "NAME-test", in this order."""
    together = dataset.split == "recordings" and dataset.label_column
    groups = {}
    dealt = []
    for recording in recordings:
        key = None if together else recording.activity
        groups.setdefault(key, []).append(recording)
    for _, group in sorted(groups.items()):
        if dataset.split == "time":
            dealt += split_by_time(group, dataset.n_window)
        else:
            dealt += split_by_file(group)
    return [replace(recording, subject=f"{recording.subject}-{split}")
            for split in BORDERS for of, recording in dealt if of == split]


def split_by_time(recordings, n_apart):
    """Cuts recordings of one activity at BORDERS, n_apart samples apart -> (split, recording)."""
    total = sum(len(recording.samples) for recording in recordings)
    offset = 0
    for recording in recordings:
        n = len(recording.samples)
        for split, (first, last) in BORDERS.items():
            start = round(first * total) + (n_apart if first else 0) - offset
            end = round(last * total) - offset
            samples = recording.samples[max(start, 0):max(end, 0)]
            if len(samples):
                yield split, replace(recording, samples=samples)
        offset += n


def split_by_file(recordings):
    """Recordings of one activity -> yields (split, recording): the last files are the test."""
    files = list(dict.fromkeys(recording.source for recording in recordings))
    if len(files) < 3:
        raise InputError(f"{files[0]}: a split by recordings needs 3 files of each activity for "
                         f"each person, here are {len(files)}; record more, or split by time")
    n_held_out = max(1, round(0.15 * len(files)))
    for recording in recordings:
        n_after = len(files) - 1 - files.index(recording.source)
        if n_after < n_held_out:
            yield "test", recording
        elif n_after < 2 * n_held_out:
            yield "val", recording
        else:
            yield "train", recording
