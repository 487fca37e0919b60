"""Small raw files in the exact form of each dataset.

In each, the first channel is a ramp that counts the raw samples of a subject, and the second is the subject's number,
so that every prepared window tells where it came from.
"""
import json

import numpy as np

STEP = 0.01                                                                   # of the ramp, from sample to sample


def labels_of(blocks):
    """[(label, samples), ...] -> one label a sample."""
    return np.concatenate([np.full(n, label) for label, n in blocks])


def ramp_and_noise(n_samples, n_channels, subject, begin=0):
    """(N, C): the ramp from count `begin` on, the subject's number, and noise in the other channels."""
    table = np.random.default_rng([subject, begin]).normal(size=(n_samples, n_channels))
    table[:, 0] = (begin + np.arange(n_samples)) * STEP
    table[:, 1] = subject
    return table


# ---- USC-HAD ----

def usc_had_path(raw, subject, activity, trial):
    return raw / f"Subject{subject}" / f"a{activity}t{trial}.mat"


def write_usc_had(raw, subject, trials):
    """trials: {(activity, trial): samples}, in the order of the ramp -> the activity of each count of the ramp.

    The ids inside the files are wrong, as some are in the archive: what counts is the path.
    """
    import scipy.io
    (raw / f"Subject{subject}").mkdir(parents=True, exist_ok=True)
    begin = 0
    for (activity, trial), n_samples in trials.items():
        scipy.io.savemat(usc_had_path(raw, subject, activity, trial), {
            "sensor_readings": ramp_and_noise(n_samples, 6, subject, begin),
            "subject": "99", "activity_number": "99", "trial": "99"})
        begin += n_samples
    return labels_of([(activity, n_samples) for (activity, _), n_samples in trials.items()])


# ---- UCI-HAR ----

UCI_SIGNALS = ("total_acc_x", "total_acc_y", "total_acc_z", "body_gyro_x", "body_gyro_y", "body_gyro_z")


def write_uci_har(raw, split, blocks):
    """blocks: [(subject, activity, samples)]; each is a continuous signal, cut into windows of 128 that overlap by half.

    -> (windows (W, 128, 6) float32 as they were written, {subject: activity of each count of its ramp}).
    """
    windows, subjects, activities, labels = [], [], [], {}
    for subject, activity, n_samples in blocks:
        before = labels.setdefault(subject, np.zeros(0, int))
        signal = ramp_and_noise(n_samples, 6, subject, len(before))
        labels[subject] = np.append(before, np.full(n_samples, activity))
        starts = range(0, n_samples - 127, 64)
        windows += [signal[start:start + 128] for start in starts]
        subjects += [subject] * len(starts)
        activities += [activity] * len(starts)
    windows = np.stack(windows)
    folder = raw / "UCI HAR Dataset" / split
    (folder / "Inertial Signals").mkdir(parents=True, exist_ok=True)
    np.savetxt(folder / f"y_{split}.txt", activities, fmt="%d")
    np.savetxt(folder / f"subject_{split}.txt", subjects, fmt="%d")
    for channel, name in enumerate(UCI_SIGNALS):
        np.savetxt(folder / "Inertial Signals" / f"{name}_{split}.txt", windows[:, :, channel], fmt="%16.7e")
    for axis in "xyz":                                                        # in the archive, but not to be read
        np.savetxt(folder / "Inertial Signals" / f"body_acc_{axis}_{split}.txt", windows[:, :, 0] * 0 - 77, fmt="%16.7e")
    return np.char.mod("%.7e", windows).astype(np.float32), labels


# ---- MHealth ----

def write_mhealth(raw, subject, blocks, separator="\t"):
    """blocks: [(label, samples)]."""
    labels = labels_of(blocks)
    table = ramp_and_noise(len(labels), 24, subject)
    text = [[f"{row[0]:.2f}", *(f"{value:.5g}" for value in row[1:23]), str(label)] for row, label in zip(table, labels)]
    raw.mkdir(parents=True, exist_ok=True)
    (raw / f"mHealth_subject{subject}.log").write_text("".join(separator.join(row) + "\n" for row in text))
    return labels


# ---- PAMAP2 ----

def write_pamap2(raw, subject, blocks, lost=(), jumps=()):
    """lost: (start, end) of rows whose chest IMU is NaN; jumps: (row, seconds) where the clock skips before a row."""
    labels = labels_of(blocks)
    n = len(labels)
    table = np.random.default_rng(subject).normal(size=(n, 54)).round(4)
    table[:, 0] = 8.38 + np.arange(n) / 100
    for row, seconds in jumps:
        table[row:, 0] += seconds
    table[:, 1] = labels
    table[:, 2] = np.where(np.arange(n) % 11, np.nan, 100)                    # the heart rate comes at 9 Hz
    table[:, 4] = (table[:, 0] - 8.38) * 100 * STEP                           # counts samples of the clock
    table[:, 5] = subject
    for start, end in lost:
        table[start:end, 20:37] = np.nan
    path = raw / "PAMAP2_Dataset" / "Protocol" / f"subject{subject}.dat"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        for row in table:
            values = ["NaN" if np.isnan(value) else f"{value:.6g}" for value in row[2:]]
            file.write(" ".join([f"{row[0]:.2f}", f"{row[1]:.0f}", *values]) + "\n")
    return labels


# ---- Capture-24 ----

ANNOTATIONS = {"7030 sleeping;MET 0.95": "sleep", "walking;5060 shopping;MET 2.3": "walking",
               "home;9060 sitting, reading;MET 1.3": "sitting", "office;11580 sitting;MET 1.5": "sitting"}


def write_capture24(raw, subject, blocks, jumps=()):
    """blocks: [(annotation or None, samples)]; jumps: (row, seconds) where the clock skips before a row."""
    annotations = np.concatenate([np.full(n, label, dtype=object) for label, n in blocks])
    import pandas as pd
    n = len(annotations)
    seconds = np.arange(n) / 100
    for row, skip in jumps:
        seconds[row:] += skip
    raw.mkdir(parents=True, exist_ok=True)
    dictionary = "".join(f'"{key}",{value},x\n' for key, value in ANNOTATIONS.items())
    (raw / "annotation-label-dictionary.csv").write_text(
        "annotation,label:WillettsSpecific2018,label:Walmsley2020\n" + dictionary)
    pd.DataFrame({
        "time": pd.Timestamp("2015-03-01 10:00:30") + pd.to_timedelta(seconds, unit="s").round("ms"),
        "x": (seconds * 100 * STEP).round(4), "y": float(subject), "z": 0.25, "annotation": annotations,
    }).to_csv(raw / f"P{subject:03}.csv.gz", index=False, date_format="%Y-%m-%d %H:%M:%S.%f",
              compression={"method": "gzip", "compresslevel": 1})


# ---- recordings of one's own ----

OWN = {"name": "gloves", "rate": 25, "classes": ["waving", "typing"],
       "test_subjects": ["anna"], "val_subjects": ["ben"],
       "channels": [{"token": "ramp", "spoken": "ramp sensor", "unit": "steps"},
                    {"token": "who", "spoken": "identity", "unit": "1"},
                    {"token": "bend", "spoken": "bend sensor", "unit": "deg"}]}
PEOPLE = {"anna": 1, "ben": 2, "carl": 3, "dora": 4}


def own_table(person, n_samples=230):
    counts = np.arange(n_samples)
    return np.stack([counts * STEP, np.full(n_samples, PEOPLE[person]), np.sin(counts)], 1)


def write_small_own(raw, n_recordings=2, **changes):
    """Four people's whole recordings in .npy files; changes to dataset.json, None for a key that is left out."""
    raw.mkdir(exist_ok=True)
    described = {key: value for key, value in (OWN | changes).items() if value is not None}
    (raw / "dataset.json").write_text(json.dumps(described))
    for person in PEOPLE:
        for activity in OWN["classes"]:
            folder = raw / person / activity
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(n_recordings):
                np.save(folder / f"{number}.npy", own_table(person))


def write_own(raw, **changes):
    """The same people with a whole second.npy and a first.csv with gaps, of which one is filled."""
    import pandas as pd
    write_small_own(raw, n_recordings=0, **changes)
    for folder in raw.glob("*/*"):
        table = own_table(folder.parent.name)
        np.save(folder / "second.npy", table)
        table[100:102] = np.nan                                               # filled: 0.08 s
        table[150:160] = np.nan                                               # splits: 0.4 s
        frame = pd.DataFrame(table, columns=["ramp", "who", "bend"])
        frame = frame[["bend", "who", "ramp"]].assign(comment="x")            # another order, and a column too many
        frame.to_csv(folder / "first.csv", index=False)
