"""Every dataset in its exact raw form: what is read, at which rate, and that a window crosses no activity, subject or gap.

Where the real files are not beside the project, the tests write their own: in each, the first channel is a ramp that
counts the raw samples and the second is the subject, so that every prepared window tells where it came from.
"""
import gzip
import json
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from helpers import ROOT, digest, quiet, read_all

from sensorllm_min.config import InputError
from sensorllm_min.data import PreparedData
from sensorllm_min.prepare import prepare
from sensorllm_min.recordings import on_a_grid, runs, to_rate, without_gaps
from sensorllm_min.sensors import DATASETS, own_dataset

STEP = 0.01                                                                   # of the ramp, a raw sample


def labels_of(blocks):
    """[(label, samples), ...] -> one label a sample."""
    return np.concatenate([np.full(n, label) for label, n in blocks])


# ---- the raw forms ----

def write_mhealth(raw, subject, blocks, separator="\t", cut=False):
    labels = labels_of(blocks)
    table = np.random.default_rng(subject).normal(size=(len(labels), 24)).round(4)
    table[:, 0], table[:, 1], table[:, 23] = np.arange(len(labels)) * STEP, subject, labels
    lines = [separator.join([f"{value:.5g}" if abs(value) < 1000 else f"{value:.2f}" for value in row[:23]] + [str(int(row[23]))])
             for row in table]
    lines = [f"{row[0]:.2f}{separator}" + line.split(separator, 1)[1] for row, line in zip(table, lines)]
    raw.mkdir(parents=True, exist_ok=True)
    (raw / f"mHealth_subject{subject}.log").write_text("\n".join(lines) + ("\n1.0" + separator + "2.0" if cut else "\n"))
    return labels


def write_pamap2(raw, subject, blocks, lost=(), jumps=(), cut=False):
    """lost: (start, end) of rows whose chest IMU is NaN; jumps: (row, seconds) where the clock skips before a row."""
    labels = labels_of(blocks)
    n = len(labels)
    table = np.random.default_rng(subject).normal(size=(n, 54)).round(4)
    table[:, 0] = 8.38 + np.arange(n) / 100
    for row, seconds in jumps:
        table[row:, 0] += seconds
    table[:, 1] = labels
    table[:, 2] = np.where(np.arange(n) % 11, np.nan, 100)                    # the heart rate comes at 9 Hz
    table[:, 4], table[:, 5] = (table[:, 0] - 8.38) * 100 * STEP, subject     # counts samples of the clock
    for start, end in lost:
        table[start:end, 20:37] = np.nan
    path = raw / "PAMAP2_Dataset" / "Protocol" / f"subject{subject}.dat"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        for row in table:
            file.write(" ".join([f"{row[0]:.2f}", f"{row[1]:.0f}"] + ["NaN" if np.isnan(v) else f"{v:.6g}" for v in row[2:]]) + "\n")
        file.write("9.99 1 NaN 30.1 2.3" if cut else "")
    return labels


ANNOTATIONS = {"7030 sleeping;MET 0.95": "sleep", "walking;5060 shopping;MET 2.3": "walking",
               "home;9060 sitting, reading;MET 1.3": "sitting", "office;11580 sitting;MET 1.5": "sitting"}


def write_capture24(raw, subject, blocks, jumps=()):
    annotations = np.concatenate([np.full(n, label, dtype=object) for label, n in blocks])
    n = len(annotations)
    seconds = np.arange(n) / 100
    for row, skip in jumps:
        seconds[row:] += skip
    raw.mkdir(parents=True, exist_ok=True)
    (raw / "annotation-label-dictionary.csv").write_text(
        "annotation,label:WillettsSpecific2018,label:Walmsley2020\n" + "".join(f'"{key}",{value},x\n' for key, value in ANNOTATIONS.items()))
    pd.DataFrame({
        "time": pd.Timestamp("2015-03-01 10:00:30") + pd.to_timedelta(seconds, unit="s").round("ms"),
        "x": (seconds * 100 * STEP).round(4), "y": float(subject), "z": 0.25, "annotation": annotations,
    }).to_csv(raw / f"P{subject:03}.csv.gz", index=False, date_format="%Y-%m-%d %H:%M:%S.%f")


# ---- windows against the raw truth ----

def check_windows(folder, labels, classes_of, ratio=1):
    """Every prepared window, of both stages: one subject, one activity, no sample missing.

    labels: {subject: raw label of each count of the ramp}; classes_of: raw label -> class name; ratio: raw samples each.
    """
    data, seen, splits = PreparedData(folder), Counter(), {}
    for kind in ("har", "align"):
        for split in data.dataset.splits:
            rows = data.rows(kind, split)
            for i in range(0, len(rows), len(data.dataset.channels) if kind == "align" else 1):
                row = rows[i]
                window = data.window(row)
                place = np.rint(window[:, 0].astype(float) / STEP).astype(int)
                assert (np.diff(place) == ratio).all(), "a sample is missing"
                assert set(window[:, 1]) == {row["subject"]}
                found = {classes_of[labels[row["subject"]][p]] for p in place if p < len(labels[row["subject"]])}
                assert len(found) == 1, f"a window crosses {found}"
                if kind == "har":
                    assert data.dataset.classes[row["label"]] == found.pop()
                splits.setdefault(split, set()).add(row["subject"])
                seen[kind, split] += 1
    assert all(seen[kind, split] for kind in ("har", "align") for split in data.dataset.splits), seen
    assert not splits["train"] & splits["test"] and not splits["train"] & splits["val"] and not splits["val"] & splits["test"]
    assert splits["test"] <= set(data.dataset.test_subjects) and splits["val"] <= set(data.dataset.val_subjects)
    return data


def expected_windows(n, dataset):
    """SPEC's rule, for one stretch: as many as fit at the stride, one more flush with the end."""
    if n < dataset.window:
        return 0
    fit = (n - dataset.window) // dataset.stride + 1
    return fit + ((n - dataset.window) % dataset.stride > 0)


BLOCKS = [(0, 70), (1, 330), (2, 220), (0, 5), (2, 150), (3, 100), (4, 99), (12, 400)]


def test_mhealth(tmp_path):
    subjects = {1: dict(), 2: dict(), 4: dict(separator=" "), 6: dict(cut=True)}
    labels = {subject: write_mhealth(tmp_path / "raw", subject, BLOCKS, **options) for subject, options in subjects.items()}
    meta = prepare("mhealth", tmp_path / "raw", tmp_path / "out", say=quiet)
    dataset = DATASETS["mhealth"]
    data = check_windows(tmp_path / "out", labels, {0: None} | {i + 1: name for i, name in enumerate(dataset.classes)})
    assert len(dataset.channels) == 15 and [c.token for c in dataset.channels[:4]] == ["chest_x_acc", "chest_y_acc", "chest_z_acc", "la_x_acc"]
    per_subject = sum(expected_windows(n, dataset) for label, n in BLOCKS if label)
    assert {s["har_windows"] for s in meta["subjects"].values()} == {per_subject} and meta["lost_samples"] == {"cut last lines": 1}
    raw = np.loadtxt(tmp_path / "raw" / "mHealth_subject2.log")
    columns = [0, 1, 2, 5, 6, 7, 8, 9, 10, 14, 15, 16, 17, 18, 19]
    np.testing.assert_array_equal(data.window(data.rows("har", "val")[0]), raw[70:170, columns].astype(np.float32))


@pytest.mark.shared("data/MHEALTHDATASET")
def test_mhealth_real_lines(shared):
    """36 true lines each of two subjects, three of each activity: every value in its channel."""
    recordings = read_all("mhealth", shared / "data" / "MHEALTHDATASET")
    assert [(r.subject, r.activity, len(r.samples)) for r in recordings] == [(s, a, 3) for s in (1, 2) for a in range(12)]
    line = (shared / "data" / "MHEALTHDATASET" / "mHealth_subject1.log").read_text().split("\n")[0].split("\t")
    assert recordings[0].samples[0].tolist() == pytest.approx([float(line[i]) for i in (0, 1, 2, *range(5, 11), *range(14, 20))])


PAMAP2_CLASSES = {0: None, 1: "lying", 4: "walking", 24: "rope jumping", 9: None}
PAMAP2_BLOCKS = [(0, 50), (1, 900), (4, 1000), (9, 300), (4, 700), (24, 500), (0, 30)]


def test_pamap2(tmp_path):
    """NaN runs of 3 and 10 are filled, one of 11 splits; the clock skips 2 samples (filled) and 3 seconds (splits)."""
    lost = [(200, 203), (400, 410), (1300, 1311), (2948, 2960), (3448, 3450)]       # the last two end or begin an activity
    jumps = [(700, 0.02), (3200, 3.0)]
    labels, dataset = {}, DATASETS["pamap2"]
    for subject in (101, 105, 108):
        raw = write_pamap2(tmp_path / "raw", subject, PAMAP2_BLOCKS, lost, jumps, cut=subject == 105)
        on_clock = np.concatenate([raw[:700], [1, 1], raw[700:3200], np.zeros(300, int), raw[3200:]])
        labels[subject] = on_clock
    (tmp_path / "raw/PAMAP2_Dataset/Optional").mkdir()
    (tmp_path / "raw/PAMAP2_Dataset/Optional/subject101.dat").write_text("not of the protocol")
    meta = prepare("pamap2", tmp_path / "raw", tmp_path / "out", say=quiet)
    data = check_windows(tmp_path / "out", labels, PAMAP2_CLASSES, ratio=2)
    assert meta["lost_samples"] == {
        "cut last lines": 1, "recordings split at a gap": 6, "samples interpolated": 3 * (3 + 10 + 2),
        "samples lost at ends and in long gaps": 3 * (11 + 12 + 2)}
    lengths = sorted(json.loads(line)["length"] for line in open(tmp_path / "out/recordings.jsonl") if '"subject": 101' in line)
    truth = sorted(-(-n // 2) for n in pamap2_stretches(lost, jumps))
    assert lengths == truth
    assert meta["subjects"]["101"]["har_windows"] == sum(expected_windows(n, dataset) for n in truth)
    assert len(data.dataset.channels) == 27 and np.isfinite(data.window(data.rows("har", "train")[0])).all()


def pamap2_stretches(lost, jumps):
    """Raw samples of each stretch that the rule leaves, worked out sample by sample."""
    gone = np.zeros(4000, int)
    labels = labels_of(PAMAP2_BLOCKS)
    for start, end in lost:
        gone[start:end] = 1
    extra = {row: round(seconds * 100) for row, seconds in jumps}
    stretches, length, hole = [], 0, 0
    for row, label in enumerate(labels):
        new = row == 0 or label != labels[row - 1] or extra.get(row, 0) > 10
        if new:
            stretches.append(length)
            length = hole = 0
        if PAMAP2_CLASSES[label] is None:
            continue
        if gone[row]:
            hole += 1
            continue
        hole += 0 if new else extra.get(row, 0)
        if hole and length and hole > 10:
            stretches.append(length)
            length = 0
        length += 1 + (hole if length else 0)
        hole = 0
    return [n for n in [*stretches, length] if n]


def test_pamap2_columns_and_the_full_rate(tmp_path):
    """At 100 Hz nothing is filtered: each channel is its column, bit for bit; 27 of them in the data's order."""
    for subject in (101, 105, 108):
        write_pamap2(tmp_path / "raw", subject, [(1, 450), (4, 400)])
    prepare("pamap2-100hz", tmp_path / "raw", tmp_path / "out", say=quiet)
    data = PreparedData(tmp_path / "out")
    raw = np.loadtxt(tmp_path / "raw/PAMAP2_Dataset/Protocol/subject101.dat")
    columns = [imu + c for imu in (3, 20, 37) for c in (1, 2, 3, 7, 8, 9, 10, 11, 12)]
    np.testing.assert_array_equal(data.window(data.rows("har", "train")[0]), raw[:200, columns].astype(np.float32))
    tokens = [channel.token for channel in data.dataset.channels]
    assert tokens[0] == "hand_x_acc" and tokens[10] == "chest_y_acc" and tokens[26] == "ankle_z_mag" and len(set(tokens)) == 27
    spoken = [channel.spoken for channel in data.dataset.channels]
    assert len(set(spoken)) == 27 and all(s.split()[0] == t.split("_")[0] for s, t in zip(spoken, tokens))


def test_capture24(tmp_path):
    names = list(ANNOTATIONS)
    blocks = [(names[0], 30_000), (None, 2_500), (names[0], 20_000), (names[1], 9_000), (names[2], 20_000),
              (names[3], 20_000)]                                             # the last two are both sitting: one activity
    jumps, labels = [(70_000, 40.0), (95_000, 0.03)], {}
    for subject in (1, 95, 120):
        write_capture24(tmp_path / "raw", subject, blocks, jumps)
        raw = np.concatenate([np.full(n, ANNOTATIONS.get(label), dtype=object) for label, n in blocks])
        labels[subject] = np.concatenate([raw[:70_000], [None] * 4000, raw[70_000:95_000],
                                          np.full(3, "sitting", dtype=object), raw[95_000:]])
    meta = prepare("capture24", tmp_path / "raw", tmp_path / "out", say=quiet)
    classes = {name: name for name in DATASETS["capture24"].classes} | {None: None}
    check_windows(tmp_path / "out", labels, classes, ratio=2)
    lengths = [json.loads(line)["length"] for line in open(tmp_path / "out/recordings.jsonl")][:5]
    assert lengths == [15_000, 10_000, 4_500, (70_000 - 61_500) // 2, (101_500 - 70_000 + 3 + 1) // 2]
    assert meta["lost_samples"] == {"recordings split at a gap": 6, "samples interpolated": 9}
    windows = 3 * sum(expected_windows(n, DATASETS["capture24"]) for n in lengths)
    assert 0.02 < sum(meta["har_windows"].values()) / windows < 0.09          # a seeded 5 % of them
    z = PreparedData(tmp_path / "out").window(PreparedData(tmp_path / "out").rows("har", "train")[0])[:, 2]
    assert set(z.tolist()) == {0.25}                                          # rest stays rest through the filter


@pytest.mark.shared("data/capture24")
def test_capture24_real_dictionary(shared, tmp_path):
    """The shipped dictionary: every label is a class; all its annotations are understood."""
    dictionary = pd.read_csv(shared / "data/capture24/annotation-label-dictionary.csv")
    assert set(dictionary["label:WillettsSpecific2018"]) == set(DATASETS["capture24"].classes) and len(dictionary) == 206
    names = dictionary["annotation"].tolist()
    write_capture24(tmp_path, 7, [(name, 20) for name in names])
    shutil.copy(shared / "data/capture24/annotation-label-dictionary.csv", tmp_path)
    labels = [DATASETS["capture24"].classes.index(label) for label in dictionary["label:WillettsSpecific2018"]]
    found = np.concatenate([np.full(len(r.samples), r.activity) for r in read_all("capture24", tmp_path)])
    np.testing.assert_array_equal(found, np.repeat(labels, 10))


# ---- rates, gaps ----

def test_resampling_filters_what_the_lower_rate_cannot_hold():
    seconds = np.arange(1000) / 100
    for hertz, kept in ((5, 1), (15, 1), (35, 0), (45, 0)):                   # 35 and 45 Hz would come back as 15 and 5
        out = to_rate(np.sin(2 * np.pi * hertz * seconds)[:, None] + 3, 100, 50)[50:-50, 0]
        assert abs((out - 3).std() * np.sqrt(2) - kept) < 0.03, hertz
    np.testing.assert_allclose(to_rate(seconds[:, None], 100, 50)[:, 0], seconds[::2], atol=1e-4)   # a line, to its ends
    assert set(to_rate(np.full((77, 2), 0.3), 100, 50).ravel().tolist()) == {np.float32(0.3)}
    for n in (1, 2, 3):
        assert to_rate(np.ones((n, 3)), 100, 50).shape == (-(-n // 2), 3)


def test_gaps():
    counts = Counter()
    samples = np.stack([np.arange(100.0), np.arange(100.0) * 2], 1)
    broken = samples.copy()
    broken[:3] = broken[10:20] = broken[40:51] = np.nan
    broken[70, 1] = np.inf                                                    # one channel alone
    first, second = without_gaps(broken, 100, counts)
    np.testing.assert_allclose(first, samples[3:40])
    np.testing.assert_allclose(second, samples[51:])
    assert counts == {"samples interpolated": 11, "samples lost at ends and in long gaps": 14, "recordings split at a gap": 1}
    assert list(without_gaps(np.full((5, 2), np.nan), 100, counts)) == []
    seconds = np.array([0, 0.01, 0.02, 0.05, 0.06, 5.0, 5.01, 1.0, 1.011, 1.019, 1.0201])
    grid, labels = on_a_grid(np.arange(11.0)[:, None], np.zeros(11, int), seconds, 100, counts)
    assert [labels[start:end].tolist() for start, end in runs(labels)] == [[0] * 7, [-1], [0] * 2, [-1], [0] * 4]
    np.testing.assert_array_equal(grid[:7, 0], [0, 1, 2, np.nan, np.nan, 3, 4])


# ---- recordings of one's own ----

OWN = {"name": "gloves", "rate": 25, "classes": ["waving", "typing"], "test_subjects": ["anna"], "val_subjects": ["ben"],
       "channels": [{"token": "ramp", "spoken": "ramp sensor", "unit": "steps"}, {"token": "who", "spoken": "identity", "unit": "1"},
                    {"token": "bend", "spoken": "bend sensor", "unit": "deg"}]}
PEOPLE = {"anna": 1, "ben": 2, "carl": 3, "dora": 4}


def write_own(raw, **changes):
    raw.mkdir(exist_ok=True)
    (raw / "dataset.json").write_text(json.dumps({key: value for key, value in (OWN | changes).items() if value is not None}))
    for person, number in PEOPLE.items():
        for activity in OWN["classes"]:
            folder = raw / person / activity
            folder.mkdir(parents=True, exist_ok=True)
            table = np.stack([np.arange(230) * STEP, np.full(230, number), np.sin(np.arange(230))], 1)
            np.save(folder / "second.npy", table)
            table[100:102] = np.nan                                           # filled: 0.08 s
            table[150:160] = np.nan                                           # splits: 0.4 s
            frame = pd.DataFrame(table, columns=["ramp", "who", "bend"])[["bend", "who", "ramp"]].assign(comment="x")
            frame.to_csv(folder / "first.csv", index=False)


def test_own_recordings(tmp_path):
    write_own(tmp_path / "raw")
    meta = prepare("own", tmp_path / "raw", tmp_path / "out", say=quiet)
    data = PreparedData(tmp_path / "out")
    assert data.name == "gloves" and data.dataset == own_dataset(tmp_path / "raw")[1] and data.dataset.window == 50
    assert meta["lost_samples"] == {"recordings split at a gap": 8, "samples interpolated": 16,
                                    "samples lost at ends and in long gaps": 80}
    for kind in ("har", "align"):
        for split, people in (("train", {"carl", "dora"}), ("val", {"ben"}), ("test", {"anna"})):
            rows = data.rows(kind, split)
            assert {rows[i]["subject"] for i in range(len(rows))} == people
            for i in range(len(rows)):
                window = data.window(rows[i])
                np.testing.assert_allclose(np.diff(window[:, 0]), STEP, atol=1e-4)
                assert set(window[:, 1]) == {PEOPLE[rows[i]["subject"]]}
    assert meta["har_windows"] == {"train": 2 * 2 * (9 + 5 + 2), "val": 2 * 16, "test": 2 * 16}


@pytest.mark.parametrize("changes,words", [
    (dict(name="usc-had"), "none of demo"), (dict(rate=0), "above 0"), (dict(rate="fast"), "does not hold"), (dict(windw=5), "unknown keys windw"),
    (dict(channels=None), "'channels' is missing"), (dict(channels=[]), "channel tokens"),
    (dict(channels=[{"token": "a b", "spoken": "x", "unit": "g"}]), "token 'a b'"),
    (dict(channels=[{"token": "a", "spoken": "rising edge", "unit": "g"}]), "trend word"),
    (dict(test_subjects=["anna", "ben"]), "test and val subjects"), (dict(window=1), "window 1"), (dict(share=0), "share"),
    (dict(classes=["waving"]), "'typing' is none of the classes"), (dict(align_lengths=[9, 3]), "align_lengths"),
    (dict(channels=OWN["channels"] + [{"token": "extra", "spoken": "extra", "unit": "g"}]), "channels ramp, who, bend, extra"),
], ids=str)
def test_own_recordings_described_wrongly(tmp_path, changes, words):
    write_own(tmp_path / "raw", **changes)
    with pytest.raises(InputError, match=words):
        prepare("own", tmp_path / "raw", tmp_path / "out", say=quiet)


def test_own_recordings_that_are_not_there(tmp_path):
    with pytest.raises(InputError, match="not a directory"):
        prepare("own", tmp_path / "nowhere", tmp_path / "out", say=quiet)
    (tmp_path / "raw").mkdir()
    with pytest.raises(InputError, match="dataset.json not found"):
        prepare("own", tmp_path / "raw", tmp_path / "out", say=quiet)
    (tmp_path / "raw/dataset.json").write_text(json.dumps(OWN))
    with pytest.raises(InputError, match="holds no recording"):
        prepare("own", tmp_path / "raw", tmp_path / "out", say=quiet)


# ---- broken files ----

def test_broken_logs(tmp_path):
    raw = tmp_path / "raw"
    write_mhealth(raw, 1, BLOCKS)
    path = raw / "mHealth_subject1.log"
    good = path.read_text()
    for bad in ("", good.replace("\t", "\tx", 1), good + "1 2 3\n" + good, "1\t2\n3\t4\n"):
        path.write_text(bad)
        with pytest.raises(InputError, match="mHealth_subject1.log"):
            prepare("mhealth", raw, tmp_path / "out", say=quiet)
    path.write_text(good)
    shutil.copytree(raw, raw / "again")
    with pytest.raises(InputError, match="the same subject"):
        prepare("mhealth", raw, tmp_path / "out", say=quiet)


def test_broken_capture24(tmp_path):
    raw = tmp_path / "raw"
    write_capture24(raw, 1, [("7030 sleeping;MET 0.95", 500)])
    path = raw / "P001.csv.gz"
    good = path.read_bytes()
    for bad in (good[:-200], b"no gzip", gzip.compress(b"time,x,y\n1,2,3\n")):
        path.write_bytes(bad)
        with pytest.raises(InputError, match="P001.csv.gz is truncated or not"):
            prepare("capture24", raw, tmp_path / "out", say=quiet)
    write_capture24(raw, 1, [("moon walk", 500)])
    with pytest.raises(InputError, match="'moon walk' is not in"):
        prepare("capture24", raw, tmp_path / "out", say=quiet)


# ---- workers, interruptions ----

@pytest.mark.parametrize("workers", [2, 3])
def test_any_number_of_workers_writes_the_same_bytes(demo, tmp_path, workers):
    prepare("demo", None, tmp_path / "out", workers=workers, say=quiet)
    assert digest(tmp_path / "out") == digest(demo)


def test_killed_and_run_again(demo, tmp_path):
    """Killed with SIGKILL at random moments, the same command goes on, and ends with the same bytes."""
    command = [sys.executable, str(ROOT / "data_prep.py"), "--out", str(tmp_path / "demo"), "--workers", "1"]
    rng, taken_over = np.random.default_rng(0), 0
    for _ in range(6):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        for line in process.stdout:                                           # from the first part on: some are done
            taken_over += line.startswith("going on")
            if line.startswith("part"):
                break
        time.sleep(rng.uniform(0, 0.6))
        process.send_signal(signal.SIGKILL)
        process.wait()
        if (tmp_path / "demo").exists():
            break
        assert (tmp_path / "demo.unfinished").exists()
    if not (tmp_path / "demo").exists():
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert taken_over and digest(tmp_path / "demo") == digest(demo) and [p.name for p in tmp_path.iterdir()] == ["demo"]


def test_a_raw_file_that_changed_is_read_again(tmp_path):
    raw = tmp_path / "raw"
    for subject in (1, 2, 4):
        write_mhealth(raw, subject, BLOCKS)
    bad = raw / "mHealth_subject4.log"
    good = bad.read_text()
    bad.write_text(good.replace("\t", "\tx", 1))
    lines = []
    with pytest.raises(InputError):
        prepare("mhealth", raw, tmp_path / "out", say=lines.append)
    bad.write_text(good)
    write_mhealth(raw, 1, BLOCKS[:4])                                         # was done; is another now
    prepare("mhealth", raw, tmp_path / "out", say=lines.append)
    prepare("mhealth", raw, tmp_path / "fresh", say=quiet)
    assert any("1 of 3 parts are done" in line for line in lines) and digest(tmp_path / "out") == digest(tmp_path / "fresh")
    assert PreparedData(tmp_path / "out").meta["subjects"]["1"]["samples"] == 330 + 220
