"""Raw files of each dataset -> continuous recordings: one subject, one activity, no gap.

A reader is two functions. `files` says what lies in the raw directory, part by part; a part holds
its subjects whole, so that several processes can read the parts. `read` turns one part into
`Recording`s, all of one subject before the next. `prepare.py` cuts windows from recordings alone,
so that no window crosses an activity, a subject or a gap.
"""
import re
import warnings
from collections import namedtuple
from itertools import product
from pathlib import Path

import numpy as np

from ..files import InputError, brief, understanding
from .logs import Recording, cut_log, put_on_grid, resample
from .own import own_files, read_own
from .sensors import DATASETS
from .simulate import simulate
from .tables import broken, check_samples, check_whole, read_table

UNPACK_AGAIN = "; unpack the archive again"


def find_files(raw, pattern, dataset):
    """The files under raw that match pattern. InputError where there is no directory or no file."""
    raw = Path(raw)
    source = DATASETS[dataset].source
    advice = f"--raw takes the unpacked {dataset} archive ({source}); --download fetches it"
    if not raw.is_dir():
        raise InputError(f"{raw} is not a directory; {advice}")
    files = sorted(path for path in raw.rglob(pattern) if path.is_file())
    if not files:
        raise InputError(f"{raw} holds no file '{pattern}'; {advice}")
    return files


def files_of_subjects(raw, pattern, form, dataset, what="subject"):
    """{subject: its files}, both in the order of the numbers in their paths.

    form: how a path ends, such as "Subject<N>/a<N>t<N>.mat"; the first number is the subject's.
    what: that of which there is one file. InputError for another path, and for a second file.
    """
    ending = re.escape(form).replace("<N>", r"(\d+)")
    found = {}                                                    # numbers -> path
    for path in find_files(raw, pattern, dataset):
        match = re.search(rf"(?:^|/){ending}\Z", path.as_posix())
        if not match:
            raise InputError(f"{path}: expected {form}; remove or rename it")
        numbers = tuple(map(int, match.groups()))
        if numbers in found:                                      # an archive unpacked into itself
            raise InputError(f"{found[numbers]} and {path} are of the same {what}; --raw must "
                             "hold the archive once")
        found[numbers] = path
    parts = {}
    for (subject, *_), path in sorted(found.items()):
        parts.setdefault(subject, []).append(path)
    return parts


def label_indices(raw_labels, ids, path, others=(0,)):
    """Labels of a file -> indices into the classes; ids are the file's numbers, in their order.

    -1 for the other numbers: 0, which is no activity, and activities that are not classes here.
    """
    labels = check_whole(raw_labels, {*ids, *others}, path, "labels")
    table = np.full(max(*ids, *others) + 1, -1)
    table[list(ids)] = np.arange(len(ids))
    return table[labels]


# ---- demo: ten simulated people ----

def demo_files(raw):
    return {subject: [] for subject in range(1, 11)}


def read_demo(subject, files, dataset, seed, counts):
    """Every activity twice, for 17 seconds each."""
    raw_rate = dataset.raw_rate or dataset.rate
    n_samples = round(17 * raw_rate)
    for activity, name in enumerate(dataset.classes):
        for trial in range(2):
            rng = np.random.default_rng([seed, subject, activity, trial])
            samples = simulate(subject, name, n_samples, raw_rate, rng)
            samples = resample(samples, dataset.raw_rate, dataset.rate)
            yield Recording(subject, activity, samples, f"simulated {name} {trial + 1}")


# ---- USC-HAD: one .mat a trial ----

def usc_had_files(raw):
    """{subject: trials}, told apart by their paths: the ids inside some files are wrong."""
    return files_of_subjects(raw, "a*t*.mat", "Subject<N>/a<N>t<N>.mat", "usc-had", "trial")


def read_usc_had(subject, files, dataset, seed, counts):
    """Subject*/a*t*.mat, key `sensor_readings` (N, 6): acc in g, gyro in deg/s."""
    from scipy.io import loadmat
    for path in files:
        activity = int(re.match(r"a(\d+)", path.name)[1])
        n_classes = len(dataset.classes)
        if not 1 <= activity <= n_classes:
            raise InputError(f"{path}: activity {activity} is not one of 1 to {n_classes}")
        with understanding(path, "is truncated or not a USC-HAD .mat", UNPACK_AGAIN):
            samples = loadmat(path, variable_names=["sensor_readings"])["sensor_readings"]
        check_samples(samples, 6, f"{path}: sensor_readings")
        source = f"Subject{subject}/{path.name}"
        samples = resample(samples, dataset.raw_rate, dataset.rate)
        yield Recording(subject, activity - 1, samples, source)


# ---- UCI-HAR: shipped as windows of 128 that overlap by half, joined again here ----

def uci_har_files(raw):
    """{split: its files}. A file holds windows of many subjects, none of whom is in both splits."""
    parts = {}
    for y_path in find_files(raw, "y_*.txt", "uci-har"):
        split, folder = y_path.stem.removeprefix("y_"), y_path.parent
        if split in parts:
            raise InputError(f"{parts[split][0]} and {y_path} are the same part; --raw must hold "
                             "the archive once")
        signals = [folder / "Inertial Signals" / f"{sensor}_{axis}_{split}.txt"
                   for sensor, axis in product(("total_acc", "body_gyro"), "xyz")]
        parts[split] = [y_path, folder / f"subject_{split}.txt", *signals]
    return parts


def join_overlapping(windows, follows):
    """Windows (W, 128, C) -> yields (index of the first window, samples (N, C)) of each recording.

    Window i + 1 continues window i if follows[i] and their overlapping halves are equal.
    """
    half = windows.shape[1] // 2
    joined = follows & (windows[:-1, half:] == windows[1:, :half]).all((1, 2))
    for group in np.split(np.arange(len(windows)), np.flatnonzero(~joined) + 1):
        yield group[0], np.concatenate([windows[group[0], :half], *windows[group, half:]])


def read_uci_har(split, files, dataset, seed, counts):
    """{train,test}/Inertial Signals: total acceleration in g, gyroscope in rad/s; y_*, subject_*.

    The files hold windows in the order of recording. Neighbours of one subject and activity whose
    overlapping halves are equal are one recording; cut at 128/64, it gives the shipped windows.
    """
    activity, subject = (read_table(path, 1)[:, 0] for path in files[:2])
    signals = [read_table(path, 128).astype(np.float32) for path in files[2:]]
    activity = check_whole(activity, range(1, 7), f"{files[0]}:", "activities")
    subject = check_whole(subject, range(1, 31), f"{files[1]}:", "subjects")
    if len({len(activity), len(subject), *map(len, signals)}) > 1:
        raise broken(files[0].parent, "holds files that differ in their number of rows")
    windows = np.stack(signals, -1)                               # (W, 128, 6)
    follows = (subject[1:] == subject[:-1]) & (activity[1:] == activity[:-1])
    recordings = []
    for first, samples in join_overlapping(windows, follows):
        samples = resample(samples, dataset.raw_rate, dataset.rate)
        recordings.append(Recording(int(subject[first]), int(activity[first]) - 1, samples,
                                    f"{split} window {first + 1}"))
    yield from sorted(recordings, key=lambda recording: recording.subject)


# ---- MHealth and PAMAP2: one log a subject ----

def mhealth_files(raw):
    return files_of_subjects(raw, "mHealth_subject*.log", "mHealth_subject<N>.log", "mhealth")


def read_mhealth(subject, files, dataset, seed, counts):
    """24 columns: acc of the chest; acc and gyro of left ankle and right lower arm; label last."""
    columns = [0, 1, 2, *range(5, 11), *range(14, 20), 23]
    table = read_table(files[0], 24, columns, counts)
    labels = label_indices(table[:, -1], range(1, 13), files[0])
    yield from cut_log(subject, table[:, :-1], labels, dataset, files[0].name, counts)


PAMAP2_IDS = (1, 2, 3, 4, 5, 6, 7, 12, 13, 16, 17, 24)            # in the order of the classes
PAMAP2_OTHERS = (0, 9, 10, 11, 18, 19, 20)                        # transitions; optional activities


def pamap2_files(raw):
    """Protocol/subject1*.dat; the optional activities lie in other folders and are not read."""
    return files_of_subjects(raw, "Protocol/subject*.dat", "subject<N>.dat", "pamap2")


def read_pamap2(subject, files, dataset, seed, counts):
    """54 columns: time, activity, heart rate, then 17 for each sensor unit of hand, chest, ankle.

    Read from each unit: acceleration of the +-16 g sensor (the +-6 g one saturates), gyroscope,
    magnetometer. The orientation is invalid in this dataset.
    """
    columns = [0, 1]
    for first in (3, 20, 37):
        columns += range(first + 1, first + 4)
        columns += range(first + 7, first + 13)
    table = read_table(files[0], 54, columns, counts)
    labels = label_indices(table[:, 1], PAMAP2_IDS, files[0], PAMAP2_OTHERS)
    with understanding(files[0]):
        samples, labels = put_on_grid(table[:, 2:], labels, table[:, 0], 100, counts)
    yield from cut_log(subject, samples, labels, dataset, files[0].name, counts)


# ---- Capture-24: one compressed CSV a participant, a day long ----

def capture24_files(raw):
    """{participant: [recording, label dictionary]}."""
    dictionary = find_files(raw, "annotation-label-dictionary.csv", "capture24")[0]
    parts = files_of_subjects(raw, "P*.csv.gz", "P<N>.csv.gz", "capture24")
    return {subject: [*files, dictionary] for subject, files in parts.items()}


def read_capture24(subject, files, dataset, seed, counts):
    """P*.csv.gz: time, x, y, z (g), annotation; the dictionary maps annotations to activities.

    The day is read in pieces and without what has no annotation, to hold little but its numbers.
    """
    import pandas as pd
    path, dictionary_path = files
    with understanding(dictionary_path, "does not hold the labels of capture24", UNPACK_AGAIN):
        dictionary = pd.read_csv(dictionary_path).set_index("annotation")
        label_of = {annotation: dataset.classes.index(label) for annotation, label
                    in dictionary["label:WillettsSpecific2018"].items()}
    columns = {"time": str, "x": np.float32, "y": np.float32, "z": np.float32, "annotation": str}
    pieces = [(np.zeros((0, 3), np.float32), np.zeros(0, np.int8), np.zeros(0))]
    with (understanding(path, "is truncated or not a Capture-24 recording", UNPACK_AGAIN),
          warnings.catch_warnings(action="error", category=pd.errors.ParserWarning)):
        # without index_col, a line of more fields than the header would shift them all
        for piece in pd.read_csv(path, chunksize=100_000, index_col=False, dtype=columns):
            piece = piece[piece["annotation"].notna()]
            labels = piece["annotation"].map(label_of)
            if labels.isna().any():
                unknown = piece["annotation"][labels.isna()].iloc[0]
                raise InputError(f"{path}: '{brief(unknown)}' is not in {dictionary_path}")
            times = pd.to_datetime(piece["time"], format="ISO8601").to_numpy("datetime64[ns]")
            seconds = times.astype(np.int64) / 1e9
            samples = piece[["x", "y", "z"]].to_numpy()
            pieces.append((samples, labels.to_numpy(np.int8), seconds))
        samples, labels, seconds = map(np.concatenate, zip(*pieces))
        pieces.clear()
        samples, labels = put_on_grid(samples, labels, seconds, 100, counts)
    yield from cut_log(subject, samples, labels, dataset, path.name, counts)


# files: raw -> {part: its files}; read: (part, files, dataset, seed, counts) -> Recordings
Reader = namedtuple("Reader", "files read")

READERS = {
    "demo": Reader(demo_files, read_demo),
    "usc-had": Reader(usc_had_files, read_usc_had),
    "uci-har": Reader(uci_har_files, read_uci_har),
    "mhealth": Reader(mhealth_files, read_mhealth),
    "pamap2": Reader(pamap2_files, read_pamap2),
    "pamap2-100hz": Reader(pamap2_files, read_pamap2),
    "capture24": Reader(capture24_files, read_capture24),
    "own": Reader(own_files, read_own),
}
