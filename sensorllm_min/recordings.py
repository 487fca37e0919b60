"""Raw files of each dataset -> continuous recordings: one subject, one activity, no gap.

A reader is two functions: `files` says what lies in the raw directory, part by part (a part holds its subjects whole,
so that parts can be read apart, on several processes); `read` turns one part into `Recording`s, all of one subject
before the next. Windows are cut from recordings alone (`prepare.py`), so none can cross an activity, a subject or a gap.

Lost samples (NaN, or a time stamp that jumps), where a dataset has them: up to GAP seconds are interpolated, a longer
gap ends a recording and the next begins behind it.
"""
import re
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .config import InputError
from .sensors import DATASETS

GAP = 0.1                                           # seconds; shorter than any movement that a text could tell of


@dataclass
class Recording:
    subject: int | str
    activity: int                       # index into the dataset's classes
    samples: np.ndarray                 # (N, C) float32, channels in the dataset's order and units
    source: str                         # which raw file it comes from


def find_files(raw, pattern, dataset):
    """The files under raw that match pattern. InputError where the directory is missing or has none."""
    raw = Path(raw)
    where = f"--raw takes the unpacked {dataset} archive ({DATASETS[dataset].source}); --download fetches it"
    if not raw.is_dir():
        raise InputError(f"{raw} is not a directory; {where}")
    files = sorted(path for path in raw.rglob(pattern) if path.is_file())
    if not files:
        raise InputError(f"{raw} holds no file '{pattern}'; {where}")
    return files


def one_file_a_subject(raw, pattern, name, dataset):
    """{subject: [file]} where the file's name holds the subject's number; name is a regular expression for it."""
    parts = {}
    for path in find_files(raw, pattern, dataset):
        match = re.fullmatch(name, path.name)
        if not match:
            raise InputError(f"{path}: a {dataset} file is called {name}; remove or rename it")
        if int(match[1]) in parts:                                            # an archive unpacked into itself
            raise InputError(f"{parts[int(match[1])][0]} and {path} are of the same subject; --raw must hold the archive once")
        parts[int(match[1])] = [path]
    return dict(sorted(parts.items()))


def read_table(path, n_columns=None, columns=None, counts=None):
    """A text file of numbers separated by white space -> (rows, columns) float64.

    n_columns, columns: how many a line has, and which of them to read, in the file's order. A last line with fewer, as an interrupted copy
    leaves it, is left out and counted.
    """
    import pandas as pd                                                       # where it is used: it takes a second
    try:
        table = pd.read_csv(path, sep=r"\s+", header=None, usecols=columns, dtype=np.float64).to_numpy()
        if n_columns:
            with open(path, "rb") as file:
                file.seek(max(0, path.stat().st_size - 4096))
                last_line = file.read().rstrip().rpartition(b"\n")[2]
            if len(last_line.split()) < n_columns:
                table = table[:-1]
                counts["cut last lines"] += 1
    except OSError:
        raise InputError(f"{path} not found or not readable; unpack the archive again")
    except ValueError as error:
        raise InputError(f"{path} is truncated or not a table of numbers ({error}); unpack the archive again")
    return table


# ---- what a log needs that runs on through activities, gaps and all ----

def on_a_grid(samples, labels, seconds, rate, counts):
    """Puts rows where time stamps (N,) skip samples -> samples, labels.

    For a skip of up to GAP as many NaN rows as are missing; for a longer one, or a clock set back, one row without a
    label, which ends the recording.
    """
    steps = np.rint(np.diff(seconds) * rate)
    long = (steps < 0) | (steps > int(GAP * rate) + 1)
    counts["recordings split at a gap"] += int((long & (labels[1:] == labels[:-1]) & (labels[1:] >= 0)).sum())
    skips = np.flatnonzero(long | (steps > 1))
    missing = np.where(long[skips], 1, steps[skips] - 1).astype(int)
    place = np.repeat(skips + 1, missing)
    return (np.insert(samples, place, np.nan, axis=0),
            np.insert(labels, place, np.repeat(np.where(long[skips], -1, labels[skips]), missing)))


def runs(values):
    """(start, end) of the runs of equal neighbours."""
    edges = np.flatnonzero(values[1:] != values[:-1]) + 1
    return zip(np.concatenate([[0], edges]), np.concatenate([edges, [len(values)]]))


def without_gaps(samples, rate, counts):
    """Samples (N, C) of one activity -> its stretches without lost samples; short gaps are interpolated, and counted."""
    lost = ~np.isfinite(samples).all(1)                                       # (N,)
    if not lost.any():
        yield samples
        return
    samples, n = samples.copy(), len(samples)
    keep = np.ones(n, dtype=bool)
    for start, end in runs(lost):
        if lost[start] and (start == 0 or end == n or end - start > int(GAP * rate)):
            keep[start:end] = False
            counts["samples lost at ends and in long gaps"] += int(end - start)
            counts["recordings split at a gap"] += int(0 < start and end < n)
    fill = lost & keep
    counts["samples interpolated"] += int(fill.sum())
    for channel in samples.T:                                                 # a view: filled in place
        bad = ~np.isfinite(channel)
        if not bad.all():
            channel[bad] = np.interp(np.flatnonzero(bad), np.flatnonzero(~bad), channel[~bad])
    for start, end in runs(keep):
        if keep[start]:
            yield samples[start:end]


def to_rate(samples, raw_rate, rate):
    """Resampled through scipy's anti-aliasing filter, float32. A straight line, rest among them, stays as it is."""
    if raw_rate in (None, rate):
        return samples.astype(np.float32)
    from scipy.signal import resample_poly
    resampled = resample_poly(samples.astype(np.float64), int(rate), int(raw_rate), axis=0, padtype="line")
    return resampled.astype(np.float32)


def cut_log(subject, samples, labels, dataset, source, counts, seconds=None):
    """A log (N, C) with a label for each sample, -1 for none -> Recordings at the dataset's rate."""
    rate = dataset.raw_rate or dataset.rate
    if seconds is not None:
        samples, labels = on_a_grid(samples, labels, seconds, rate, counts)
    for start, end in runs(labels):
        if labels[start] >= 0:
            for stretch in without_gaps(samples[start:end], rate, counts):
                yield Recording(subject, int(labels[start]), to_rate(stretch, dataset.raw_rate, dataset.rate), source)


def label_index(raw_labels, ids, path):
    """Labels of a file -> indices into the classes: ids are the file's numbers in the order of the classes.

    -1 for 0, no activity, and for numbers that are not of the classes.
    """
    if not (raw_labels >= 0).all():
        raise InputError(f"{path}: a line is cut short or has no label; unpack the archive again")
    table = np.full(int(max(raw_labels.max(initial=0), *ids)) + 1, -1)
    table[list(ids)] = np.arange(len(ids))
    return table[raw_labels.astype(int)]


# ---- demo: simulated people; numpy alone, the same for the same seed ----

RESOLUTION = np.array([0.005] * 3 + [0.5] * 3)      # g and deg/s: the smallest step that the sensor tells apart
NOISE = 0.05                                        # of that step: seldom enough to tip a resting reading over


def simulate(subject, activity, n_samples, rate, rng):
    """Samples (N, 6) of one simulated person's wrist: gravity, gait harmonics, turns, noise.

    A limb moves, then rests at the end of its swing (a clipped sine), so that signals rise, fall and hold.
    What differs between people: how the sensor sits on the wrist, pace, vigour.
    """
    person = np.random.default_rng(subject)
    tilt, pace, vigour = person.normal(0, 0.1, 3), person.normal(1, 0.05), person.normal(1, 0.1)
    seconds = np.arange(n_samples) / rate

    # per activity: gravity's direction; strides a second; swing of acc (g) and of gyro (deg/s); turns (deg/s)
    gravity, strides, acc_swing, gyro_swing, turn = {
        "Walking": ((0, 1, 0), 0.9, (0.5, 0.8, 0.4), (80, 30, 60), 0),
        "Running": ((0, 1, 0), 1.5, (1.6, 2.4, 1.0), (250, 100, 180), 0),
        "Turning": ((0, 1, 0), 0.5, (0.3, 0.4, 0.3), (40, 60, 40), 220),
        "Sitting": ((0, 0.3, 0.95), 0.25, (0.3, 0.2, 0.3), (30, 20, 30), 0),
        "Lying": ((0.95, 0, 0.3), 0.15, (0.2, 0.2, 0.2), (20, 20, 20), 0),
    }[activity]
    angle = 2 * np.pi * strides * pace * seconds[:, None] * (1 + 0.02 * rng.normal())       # (N, 1)
    phase = rng.uniform(0, 2 * np.pi, 6)
    wave = 1.3 * np.sin(angle + phase) + 0.1 * np.sin(2 * angle + phase[::-1])              # (N, 6): and one harmonic
    samples = np.array(acc_swing + gyro_swing) * vigour * rng.uniform(0.8, 1.2, 6) * wave.clip(-1, 1)
    samples[:, :3] += np.array(gravity) + tilt
    samples[:, 5] += turn * vigour * (1.3 * np.sin(angle[:, 0] + phase[5])).clip(-1, 1)     # z: where a turn shows
    samples += NOISE * RESOLUTION * rng.normal(size=samples.shape)
    return (np.round(samples / RESOLUTION) * RESOLUTION).astype(np.float32)


def demo_files(raw):
    return {subject: [] for subject in range(1, 11)}


def read_demo(subject, files, dataset, seed, counts):
    """One of ten simulated people, who do every activity twice for 17 seconds."""
    for activity, name in enumerate(dataset.classes):
        for trial in range(2):
            rng = np.random.default_rng([seed, subject, activity, trial])
            yield Recording(subject, activity, simulate(subject, name, 17 * dataset.rate, dataset.rate, rng),
                            f"simulated {name} {trial + 1}")


# ---- USC-HAD: one .mat a trial ----

def usc_had_files(raw):
    """{subject: trials}. Subject, activity and trial come from the path: the ids inside some files are wrong."""
    parts, seen = {}, {}
    for path in find_files(raw, "a*t*.mat", "usc-had"):
        match = re.fullmatch(r"Subject(\d+)/a(\d+)t(\d+)\.mat", f"{path.parent.name}/{path.name}")
        if not match:
            raise InputError(f"{path}: expected Subject<N>/a<activity>t<trial>.mat; remove or rename it")
        trial = tuple(map(int, match.groups()))
        if trial in seen:                                                     # an archive unpacked into itself
            raise InputError(f"{seen[trial]} and {path} are the same trial; --raw must hold the archive once")
        seen[trial] = path
    for (subject, _, _), path in sorted(seen.items()):
        parts.setdefault(subject, []).append(path)
    return parts


def read_usc_had(subject, files, dataset, seed, counts):
    """Subject*/a*t*.mat, key `sensor_readings` (N, 6): acc in g, gyro in deg/s."""
    from scipy.io import loadmat
    for path in files:
        activity = int(re.match(r"a(\d+)", path.name)[1])
        if not 1 <= activity <= len(dataset.classes):
            raise InputError(f"{path}: activity {activity} is not one of 1 to {len(dataset.classes)}")
        try:
            samples = loadmat(path, variable_names=["sensor_readings"])["sensor_readings"]
        except Exception as error:                                            # scipy raises many kinds on a broken file
            raise InputError(f"{path} is truncated or not a USC-HAD .mat ({type(error).__name__}: {error}); "
                             "unpack the archive again")
        if samples.ndim != 2 or samples.shape[1] != 6:
            raise InputError(f"{path}: sensor_readings has shape {samples.shape}, expected (N, 6)")
        yield Recording(subject, activity - 1, samples.astype(np.float32), f"Subject{subject}/{path.name}")


# ---- UCI-HAR: windows of 128 that overlap by half, put together again ----

def uci_har_files(raw):
    """{split: its files}: a file holds the windows of many subjects, none of them in both splits."""
    parts = {}
    for y_path in find_files(raw, "y_*.txt", "uci-har"):
        split, folder = y_path.stem.removeprefix("y_"), y_path.parent
        if split in parts:
            raise InputError(f"{parts[split][0]} and {y_path} are the same part; --raw must hold the archive once")
        signals = [f"{kind}_{axis}_{split}.txt" for kind in ("total_acc", "body_gyro") for axis in "xyz"]
        parts[split] = [y_path, folder / f"subject_{split}.txt", *(folder / "Inertial Signals" / name for name in signals)]
    return parts


def join_overlapping(windows, follows):
    """Windows (W, 128, C) -> recordings (N, C): window i+1 goes on where i does if follows[i] and their halves agree."""
    half = windows.shape[1] // 2
    joined = follows & (windows[:-1, half:] == windows[1:, :half]).all((1, 2))
    for group in np.split(np.arange(len(windows)), np.flatnonzero(~joined) + 1):
        yield group[0], np.concatenate([windows[group[0], :half], *windows[group, half:]])


def read_uci_har(split, files, dataset, seed, counts):
    """{train,test}/Inertial Signals: total acceleration in g, gyroscope in rad/s; y_*.txt; subject_*.txt.

    The files hold windows in the order of recording. Neighbours of one subject and activity whose overlapping
    halves are equal are one recording; cut anew at 128/64 it gives the shipped windows back.
    """
    activity, subject, *signals = [read_table(path).astype(np.float32) for path in files]
    if not np.isin(activity, np.arange(1, 7)).all():
        raise InputError(f"{files[0]}: holds activities other than 1 to 6; unpack the archive again")
    if len({len(activity), len(subject), *map(len, signals)}) > 1:
        raise InputError(f"{files[0].parent}: the files differ in their number of rows; unpack the archive again")
    activity, subject = activity[:, 0].astype(int), subject[:, 0].astype(int)
    windows = np.stack(signals, -1)                                           # (W, 128, 6)
    follows = (subject[1:] == subject[:-1]) & (activity[1:] == activity[:-1])
    recordings = [Recording(int(subject[first]), int(activity[first]) - 1, samples, f"{split} window {first + 1}")
                  for first, samples in join_overlapping(windows, follows)]
    yield from sorted(recordings, key=lambda recording: recording.subject)


# ---- MHealth and PAMAP2: one log a subject ----

def mhealth_files(raw):
    return one_file_a_subject(raw, "mHealth_subject*.log", r"mHealth_subject(\d+)\.log", "mhealth")


def read_mhealth(subject, files, dataset, seed, counts):
    """mHealth_subject*.log: 24 columns; acc of the chest, acc and gyro of left ankle and right lower arm; label last."""
    columns = [0, 1, 2, *range(5, 11), *range(14, 20), 23]
    table = read_table(files[0], 24, columns, counts)
    yield from cut_log(subject, table[:, :-1], label_index(table[:, -1], range(1, 13), files[0]), dataset, files[0].name,
                       counts)


PAMAP2_IDS = (1, 2, 3, 4, 5, 6, 7, 12, 13, 16, 17, 24)                        # in the order of the classes


def pamap2_files(raw):
    """Protocol/subject1*.dat; the optional activities in other folders are not part of the protocol."""
    return one_file_a_subject(raw, "Protocol/subject*.dat", r"subject(\d+)\.dat", "pamap2")


def read_pamap2(subject, files, dataset, seed, counts):
    """54 columns: time, activity, heart rate, then 17 for each IMU of hand, chest, ankle.

    Of an IMU: acceleration of the +-16 g sensor (the +-6 g one saturates), gyroscope, magnetometer. Orientation is
    invalid in this dataset.
    """
    columns = [0, 1] + [imu + offset for imu in (3, 20, 37) for offset in (1, 2, 3, 7, 8, 9, 10, 11, 12)]
    table = read_table(files[0], 54, columns, counts)
    yield from cut_log(subject, table[:, 2:], label_index(table[:, 1], PAMAP2_IDS, files[0]), dataset, files[0].name,
                       counts, seconds=table[:, 0])


# ---- Capture-24: one compressed CSV a participant, a day long ----

def capture24_files(raw):
    """{participant: [recording, label dictionary]}."""
    dictionary = find_files(raw, "annotation-label-dictionary.csv", "capture24")[0]
    parts = one_file_a_subject(raw, "P*.csv.gz", r"P(\d+)\.csv\.gz", "capture24")
    return {subject: [*files, dictionary] for subject, files in parts.items()}


def read_capture24(subject, files, dataset, seed, counts):
    """P*.csv.gz: time, x, y, z (g), annotation; the dictionary's label:WillettsSpecific2018 is the activity.

    Read in pieces, without what has no annotation: of a day at 100 Hz, never more than the numbers are in memory.
    """
    import pandas as pd
    path, dictionary_path = files
    try:
        dictionary = pd.read_csv(dictionary_path).set_index("annotation")["label:WillettsSpecific2018"]
        label_of = {annotation: dataset.classes.index(label) for annotation, label in dictionary.items()}
    except (KeyError, ValueError) as error:
        raise InputError(f"{dictionary_path} does not hold the labels of capture24 ({error}); unpack the archive again")
    pieces = []
    try:
        columns = {"time": str, "x": np.float32, "y": np.float32, "z": np.float32, "annotation": str}
        for piece in pd.read_csv(path, chunksize=100_000, usecols=list(columns), dtype=columns):
            piece = piece[piece["annotation"].notna()]
            labels = piece["annotation"].map(label_of)
            if labels.isna().any():
                raise InputError(f"{path}: '{piece['annotation'][labels.isna()].iloc[0]}' is not in {dictionary_path}")
            seconds = pd.to_datetime(piece["time"], format="ISO8601").to_numpy("datetime64[ns]").astype(np.int64) / 1e9
            pieces.append((piece[["x", "y", "z"]].to_numpy(), labels.to_numpy(np.int8), seconds))
    except (OSError, EOFError, ValueError, KeyError) as error:
        raise InputError(f"{path} is truncated or not a Capture-24 recording ({error}); unpack the archive again")
    if pieces:
        samples, labels, seconds = map(np.concatenate, zip(*pieces))
        pieces.clear()
        yield from cut_log(subject, samples, labels, dataset, path.name, counts, seconds)


# ---- recordings of one's own ----

def own_files(raw):
    """SUBJECT/ACTIVITY/NAME.csv or .npy beside dataset.json: {subject: files}."""
    parts = {}
    for path in sorted(Path(raw).glob("*/*/*")):
        if path.suffix in (".csv", ".npy"):
            parts.setdefault(path.parent.parent.name, []).append(path)
    if not parts:
        raise InputError(f"{raw} holds no recording; they lie in SUBJECT/ACTIVITY/NAME.csv or .npy beside dataset.json")
    return parts


def read_own(subject, files, dataset, seed, counts):
    """A CSV has a column for each channel, named by its token; an npy is (N, C), channels in the order of dataset.json.

    An empty or NaN value is a lost sample.
    """
    import pandas as pd
    tokens = [channel.token for channel in dataset.channels]
    for path in files:
        if path.parent.name not in dataset.classes:
            raise InputError(f"{path}: '{path.parent.name}' is none of the classes in dataset.json: "
                             f"{', '.join(dataset.classes)}")
        try:
            samples = (pd.read_csv(path, usecols=tokens)[tokens].to_numpy(np.float64) if path.suffix == ".csv"
                       else np.load(path, allow_pickle=False).astype(np.float64))
        except (OSError, ValueError, EOFError) as error:                      # EOFError: an empty .npy
            raise InputError(f"{path} does not hold the channels {', '.join(tokens)} ({error})")
        if samples.ndim != 2 or samples.shape[1] != len(tokens):
            raise InputError(f"{path} has shape {samples.shape}, expected (samples, {len(tokens)})")
        labels = np.full(len(samples), dataset.classes.index(path.parent.name))
        yield from cut_log(subject, samples, labels, dataset, "/".join(path.parts[-3:]), counts)


Reader = namedtuple("Reader", "files read")     # raw -> {part: its files}; (part, files, dataset, seed, counts) -> Recordings

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
