"""Raw files of each dataset -> continuous recordings: one subject, one activity, no gap.

A reader takes the raw directory and yields `Recording`s, all of one subject before the next. Windows are cut from
recordings alone (`prepare.py`), so none can cross an activity, a subject or a gap.
"""
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.io

from .config import InputError
from .sensors import DATASETS


@dataclass
class Recording:
    subject: int
    activity: int                       # index into the dataset's classes
    samples: np.ndarray                 # (N, C) float32, channels in the dataset's order and units
    source: str                         # which raw file it comes from


def find_files(raw, pattern, dataset):
    """The files under raw that match pattern. InputError where the directory is missing or has none."""
    raw = Path(raw)
    if not raw.is_dir():
        raise InputError(f"{raw} is not a directory; --raw takes the unpacked {dataset} archive "
                         f"({DATASETS[dataset].source})")
    files = [path for path in raw.rglob(pattern) if path.is_file()]
    if not files:
        raise InputError(f"{raw} holds no file '{pattern}'; --raw takes the unpacked {dataset} archive "
                         f"({DATASETS[dataset].source})")
    return files


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


def read_demo(raw, seed):
    """Ten simulated people, each doing every activity twice for 17 seconds. raw is not used."""
    dataset = DATASETS["demo"]
    for subject in range(1, 11):
        for activity, name in enumerate(dataset.classes):
            for trial in range(2):
                rng = np.random.default_rng([seed, subject, activity, trial])
                yield Recording(subject, activity, simulate(subject, name, 17 * dataset.rate, dataset.rate, rng),
                                f"simulated {name} {trial + 1}")


# ---- USC-HAD: one .mat a trial ----

def read_usc_had(raw, seed):
    """Subject*/a*t*.mat, key `sensor_readings` (N, 6): acc in g, gyro in deg/s.

    Subject, activity and trial come from the path: the ids inside some files are wrong.
    """
    n_classes = len(DATASETS["usc-had"].classes)
    trials = []
    for path in find_files(raw, "a*t*.mat", "usc-had"):
        match = re.fullmatch(r"Subject(\d+)/a(\d+)t(\d+)\.mat", f"{path.parent.name}/{path.name}")
        if not match:
            raise InputError(f"{path}: expected Subject<N>/a<activity>t<trial>.mat; remove or rename it")
        subject, activity, trial = map(int, match.groups())
        if not 1 <= activity <= n_classes:
            raise InputError(f"{path}: activity {activity} is not one of 1 to {n_classes}")
        trials.append((subject, activity, trial, path))
    trials.sort()
    for one, other in zip(trials, trials[1:]):
        if one[:3] == other[:3]:                                              # an archive unpacked into itself
            raise InputError(f"{one[3]} and {other[3]} are the same trial; --raw must hold the archive once")
    for subject, activity, trial, path in trials:
        try:
            samples = scipy.io.loadmat(path, variable_names=["sensor_readings"])["sensor_readings"]
        except Exception as error:                                            # scipy raises many kinds on a broken file
            raise InputError(f"{path} is truncated or not a USC-HAD .mat ({type(error).__name__}: {error}); "
                             "unpack the archive again")
        if samples.ndim != 2 or samples.shape[1] != 6:
            raise InputError(f"{path}: sensor_readings has shape {samples.shape}, expected (N, 6)")
        yield Recording(subject, activity - 1, samples.astype(np.float32), f"Subject{subject}/{path.name}")


# ---- UCI-HAR: windows of 128 that overlap by half, put together again ----

def read_table(path):
    """A text file of numbers separated by white space -> (rows, columns) float32."""
    try:
        return pd.read_csv(path, sep=r"\s+", header=None, dtype=np.float32).to_numpy()
    except OSError:
        raise InputError(f"{path} not found or not readable; unpack the uci-har archive again")
    except (ValueError, pd.errors.ParserError) as error:
        raise InputError(f"{path} is truncated or not a table of numbers ({error}); unpack the archive again")


def join_overlapping(windows, follows):
    """Windows (W, 128, C) -> recordings (N, C): window i+1 goes on where i does if follows[i] and their halves agree."""
    half = windows.shape[1] // 2
    joined = follows & (windows[:-1, half:] == windows[1:, :half]).all((1, 2))
    for group in np.split(np.arange(len(windows)), np.flatnonzero(~joined) + 1):
        yield group[0], np.concatenate([windows[group[0], :half], *windows[group, half:]])


def read_uci_har(raw, seed):
    """{train,test}/Inertial Signals: total acceleration in g, gyroscope in rad/s; y_*.txt; subject_*.txt.

    The files hold windows in the order of recording. Neighbours of one subject and activity whose overlapping
    halves are equal are one recording; cut anew at 128/64 it gives the shipped windows back.
    """
    recordings = []
    for y_path in sorted(find_files(raw, "y_*.txt", "uci-har")):
        split = y_path.stem.removeprefix("y_")
        folder = y_path.parent
        activity = read_table(y_path)[:, 0]
        if not np.isin(activity, np.arange(1, 7)).all():
            raise InputError(f"{y_path}: holds activities other than 1 to 6; unpack the archive again")
        subject = read_table(folder / f"subject_{split}.txt")[:, 0].astype(int)
        signals = [f"{kind}_{axis}_{split}.txt" for kind in ("total_acc", "body_gyro") for axis in "xyz"]
        signals = [read_table(folder / "Inertial Signals" / name) for name in signals]
        if len({len(activity), len(subject), *map(len, signals)}) > 1:
            raise InputError(f"{folder}: the files differ in their number of rows; unpack the archive again")
        windows = np.stack(signals, -1)                                       # (W, 128, 6)
        follows = (subject[1:] == subject[:-1]) & (activity[1:] == activity[:-1])
        recordings += [Recording(int(subject[first]), int(activity[first]) - 1, samples, f"{split} window {first + 1}")
                       for first, samples in join_overlapping(windows, follows)]
    yield from sorted(recordings, key=lambda recording: recording.subject)


READERS = {"demo": read_demo, "usc-had": read_usc_had, "uci-har": read_uci_har}
