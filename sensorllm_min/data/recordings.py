"""Raw files of each dataset -> continuous recordings: one subject, one activity, no gap.

A reader is two functions. `files` says what lies in the raw directory, part by part; a part holds
its subjects whole, so that several processes can read the parts. `read` turns one part into
`Recording`s, all of one subject before the next. `prepare.py` cuts windows within recordings, so
no window crosses an activity, a subject or a gap.
"""
import re
from collections import namedtuple
from functools import partial
from pathlib import Path

import numpy as np

from ..files import InputError, as_input_error
from .logs import Log, Recording, cut_log, resample, steady_log
from .own import own_files, read_own
from .sensors import DATASETS
from .simulate import simulate
from .tables import UNPACK_AGAIN, check_samples, read_table


def find_files(dataset, ending, raw):
    """{subject: its files} under raw, both in the order of the numbers in their paths.
    ending: a regular expression whose first group is the subject, or another part."""
    found = {}
    parts = {}
    for path in Path(raw).rglob("*"):
        match = re.search(rf"(?:^|/){ending}\Z", path.as_posix())
        if not match:
            continue
        key = tuple(int(text) if text.isdecimal() else text for text in match.groups())
        if key in found:                                          # an archive unpacked into itself
            raise InputError(f"{found[key]} and {path} are the same file; --raw must hold the "
                             "archive once")
        found[key] = path
    if not found:
        problem = "is not a directory"
        if Path(raw).is_dir():
            problem = f"holds no file {ending}"
        raise InputError(f"{raw} {problem}; --raw takes the unpacked {dataset} archive "
                         f"({DATASETS[dataset].source}), --download fetches it")
    for key, path in sorted(found.items()):
        parts.setdefault(key[0], []).append(path)
    return parts


def label_indices(numbers, ids, path, others=(0,)):
    """The activity numbers of a file -> indices into `ids`; -1 for `others`, not classes."""
    index = dict.fromkeys(others, -1) | {number: i for i, number in enumerate(ids)}
    numbers = numbers.tolist()
    for number in set(numbers) - index.keys():
        raise InputError(f"{path} holds the activity {number:g}, which is none of "
                         f"{sorted(index)}{UNPACK_AGAIN}")
    return np.array([index[number] for number in numbers], int)


def read_demo(subject, files, dataset, seed, counts):
    """Every activity twice, for 17 seconds each."""
    n_samples = round(17 * dataset.file_rate)
    for activity, name in enumerate(dataset.classes):
        for trial in range(2):
            rng = np.random.default_rng([seed, subject, activity, trial])
            samples = simulate(subject, name, n_samples, dataset.file_rate, rng)
            samples = resample(samples, dataset.file_rate, dataset.rate)
            yield Recording(subject, activity, samples, f"simulated {name} {trial + 1}")


def read_usc_had(subject, files, dataset, seed, counts):
    """Subject*/a*t*.mat, key `sensor_readings` (N, 6): acc in g, gyro in deg/s."""
    from scipy.io import loadmat
    for path in files:
        with as_input_error(path, "is truncated or not a USC-HAD .mat", UNPACK_AGAIN):
            samples = loadmat(path, variable_names=["sensor_readings"])["sensor_readings"]
        check_samples(samples, 6, f"{path}: sensor_readings")
        number = int(re.match(r"a(\d+)", path.name)[1])
        [activity] = label_indices(
            np.array([number]), range(1, 13), path, others=())
        samples = resample(samples, dataset.file_rate, dataset.rate)
        yield Recording(subject, int(activity), samples, f"Subject{subject}/{path.name}")


def join_overlapping(windows, follows):
    """Windows (W, 128, C) -> yields (index of the first window, samples (N, C)) of each recording,
    joining window i + 1 to window i if follows[i] and their overlapping halves are equal."""
    half = windows.shape[1] // 2
    are_equal = windows[:-1, half:] == windows[1:, :half]         # (W-1, 64, C)
    joined = follows & are_equal.all((1, 2))
    ends = np.flatnonzero(~joined) + 1
    for group in np.split(np.arange(len(windows)), ends):
        first = group[0]
        pieces = [windows[first, :half], *windows[group, half:]]
        yield first, np.concatenate(pieces)


def read_uci_har(split, files, dataset, seed, counts):
    """{train,test}/Inertial Signals: total acceleration in g, gyroscope in rad/s.
    They are shipped as windows of 128 that overlap by half, in order, and are joined again."""
    [y_path] = files
    signals = []
    for sensor in ("total_acc", "body_gyro"):
        for axis in "xyz":
            path = y_path.parent / "Inertial Signals" / f"{sensor}_{axis}_{split}.txt"
            signals.append(read_table(path, 128).astype(np.float32))
    subject_path = y_path.with_name(f"subject_{split}.txt")
    subject = read_table(subject_path, 1)[:, 0].astype(int)
    activity = read_table(y_path, 1)[:, 0]
    activity = label_indices(activity, range(1, 7), y_path, others=())
    lengths = {len(rows) for rows in (activity, subject, *signals)}
    if len(lengths) > 1:
        raise InputError(f"{y_path.parent} holds files that differ in their number of rows"
                         f"{UNPACK_AGAIN}")
    windows = np.stack(signals, -1)                               # (W, 128, 6)
    same_subject = subject[1:] == subject[:-1]
    same_activity = activity[1:] == activity[:-1]
    recordings = []
    for first, samples in join_overlapping(windows, same_subject & same_activity):
        samples = resample(samples, dataset.file_rate, dataset.rate)
        source = f"{split} window {first + 1}"
        who = int(subject[first])
        what = int(activity[first])
        recordings.append(Recording(who, what, samples, source))
    yield from sorted(recordings, key=lambda recording: recording.subject)


def read_mhealth(subject, files, dataset, seed, counts):
    """One log a subject, of 24 columns: chest, left ankle, right lower arm; the label is last."""
    [path] = files
    columns = [0, 1, 2, *range(5, 11), *range(14, 20), 23]
    table = read_table(path, 24, columns)
    samples = table[:, :-1]
    numbers = table[:, -1]
    labels = label_indices(numbers, range(1, 13), path)
    log = steady_log(samples, labels, dataset.file_rate)
    yield from cut_log(subject, log, dataset.rate, path.name, counts)


PAMAP2_IDS = (1, 2, 3, 4, 5, 6, 7, 12, 13, 16, 17, 24)            # in the order of the classes
PAMAP2_OTHERS = (0, 9, 10, 11, 18, 19, 20)                        # transitions; optional activities


def read_pamap2(subject, files, dataset, seed, counts):
    """54 columns: time, activity, heart rate, then 17 for each unit of hand, chest and ankle.
    Of each: acceleration of the +-16 g sensor (the other saturates), gyroscope, magnetometer."""
    [path] = files
    columns = [0, 1]
    for first in (3, 20, 37):
        columns += range(first + 1, first + 4)
        columns += range(first + 7, first + 13)
    table = read_table(path, 54, columns)
    times = table[:, 0]
    samples = table[:, 2:]
    labels = label_indices(table[:, 1], PAMAP2_IDS, path, PAMAP2_OTHERS)
    log = Log(samples, labels, times - times[0], dataset.file_rate)
    yield from cut_log(subject, log, dataset.rate, path.name, counts)


def read_capture24(subject, files, dataset, seed, counts):
    """P*.csv.gz: time, x, y, z (g), annotation; the dictionary maps annotations to activities."""
    import pandas as pd
    [path] = files
    dictionary_path = path.with_name("annotation-label-dictionary.csv")
    with as_input_error(dictionary_path, "does not hold the labels of capture24", UNPACK_AGAIN):
        dictionary = pd.read_csv(dictionary_path, index_col="annotation")
        label_of = dictionary["label:WillettsSpecific2018"].map(dataset.classes.index)
    columns = {"time": str, "x": np.float32, "y": np.float32, "z": np.float32, "annotation": str}
    samples = []
    labels = []
    times = []
    with as_input_error(path, "is truncated or not a Capture-24 recording", UNPACK_AGAIN):
        for piece in pd.read_csv(path, chunksize=100_000, dtype=columns):
            piece = piece[piece["annotation"].notna()]
            samples.append(piece[["x", "y", "z"]].to_numpy())
            labels.append(piece["annotation"].map(label_of).astype(np.int8))      # not of NaN
            times.append(pd.to_datetime(piece["time"], format="ISO8601"))
        samples, labels, times = map(np.concatenate, (samples, labels, times))
    seconds = (times - times[:1]) / np.timedelta64(1, "s")        # also of a day without rows
    log = Log(samples, labels, seconds, dataset.file_rate)
    yield from cut_log(subject, log, dataset.rate, path.name, counts)


# files: raw -> {part: its files}; read: (part, files, dataset, seed, counts) -> Recordings
Reader = namedtuple("Reader", "files read")


def archive(name, ending, read):
    return Reader(partial(find_files, name, ending), read)


READERS = {
    "demo": Reader(lambda raw: {person: [] for person in range(1, 11)}, read_demo),
    # the path counts, since the ids inside some of the files are wrong
    "usc-had": archive("usc-had", r"Subject(\d+)/a(\d+)t(\d+)\.mat", read_usc_had),
    "uci-har": archive("uci-har", r"y_(train|test)\.txt", read_uci_har),
    "mhealth": archive("mhealth", r"mHealth_subject(\d+)\.log", read_mhealth),
    # the folder beside Protocol holds optional activities
    "pamap2": archive("pamap2", r"Protocol/subject(\d+)\.dat", read_pamap2),
    "capture24": archive("capture24", r"P(\d+)\.csv\.gz", read_capture24),
    "own": Reader(own_files, read_own),
}
