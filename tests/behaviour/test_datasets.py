"""Every dataset in its exact raw form: what is read, at which rate, and that a window crosses no activity, subject or gap.

The tests write their own raw files (`raw_files.py`): the first channel counts the raw samples and the second is the
subject, so that every prepared window tells where it came from. Where the real files lie beside the project, they are
read, too.
"""
import gzip
import shutil
from collections import Counter

import numpy as np
import pytest
from helpers import json_lines, quiet, read_all
from raw_files import (ANNOTATIONS, PEOPLE, STEP, UCI_SIGNALS, usc_had_path, write_capture24, write_mhealth,
                       write_own, write_pamap2, write_uci_har, write_usc_had)

from sensorllm_min.files import InputError
from sensorllm_min.data.prepared import PreparedData
from sensorllm_min.data.prepare import prepare, strided_windows
from sensorllm_min.data.logs import put_on_grid, resample, steady_log, stretches
from sensorllm_min.data.own import own_dataset
from sensorllm_min.data.sensors import DATASETS

# ---- windows against the raw truth ----

def check_windows(folder, labels, classes_of, ratio=1):
    """Every prepared window, of both stages: one subject, one activity, no sample missing.

    labels: {subject: raw label of each count of the ramp}; classes_of: raw label -> class name; ratio: raw samples each.
    """
    data, seen, splits = PreparedData(folder), Counter(), {}
    for kind in ("har", "align"):
        for split in data.dataset.splits:
            rows = data.records(kind, split)
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
    return data


def expected_windows(n, dataset):
    """SPEC's rule, for one stretch: as many as fit at the stride, one more flush with the end."""
    if n < dataset.window:
        return 0
    fit = (n - dataset.window) // dataset.stride + 1
    return fit + ((n - dataset.window) % dataset.stride > 0)


# ---- who is held out ----

TEST_SUBJECTS = {                   # the paper's, but for the demo; in UCI-HAR the archive's own split
    "demo": {9, 10}, "usc-had": {13, 14}, "uci-har": {2, 4, 9, 10, 12, 13, 18, 20, 24}, "mhealth": {1, 3, 6},
    "pamap2": {105, 106}, "capture24": set(range(101, 152))}
SUBJECTS = {"demo": range(1, 11), "usc-had": range(1, 15), "uci-har": range(1, 31), "mhealth": range(1, 11),
            "pamap2": range(101, 110), "capture24": range(1, 152)}


@pytest.mark.parametrize("name", DATASETS)
def test_validation_subjects_are_held_out_of_the_training_subjects(name):
    dataset = DATASETS[name]
    split = {subject: dataset.split_of(subject) for subject in SUBJECTS[name]}
    assert {subject for subject in split if split[subject] == "test"} == TEST_SUBJECTS[name]
    assert {subject for subject in split if split[subject] == "val"} == set(dataset.val_subjects) != set()


# ---- USC-HAD ----

USC_HAD_TRIALS = {(1, 1): 450, (1, 2): 199, (10, 3): 640, (12, 1): 200, (2, 1): 400}


def write_usc_had_subjects(raw):
    """One subject of each split -> {subject: activity of each count of the ramp}."""
    return {subject: write_usc_had(raw, subject, USC_HAD_TRIALS) for subject in (1, 3, 13)}


def test_usc_had_trials_keep_subject_and_activity_of_their_path(tmp_path):
    import scipy.io
    labels = write_usc_had_subjects(tmp_path / "raw")
    dataset = DATASETS["usc-had"]
    meta = prepare("usc-had", tmp_path / "raw", tmp_path / "out", say=quiet)
    data = check_windows(tmp_path / "out", labels, {i + 1: name for i, name in enumerate(dataset.classes)})
    windows = sum(expected_windows(n, dataset) for n in USC_HAD_TRIALS.values())
    assert meta["har_windows"] == {"train": windows, "val": windows, "test": windows}
    raw = scipy.io.loadmat(usc_had_path(tmp_path / "raw", 13, 1, 1))["sensor_readings"]
    np.testing.assert_array_equal(data.window(data.records("har", "test")[0]), raw[:200].astype(np.float32))
    recordings = json_lines(tmp_path / "out/recordings.jsonl")
    assert [(one["activity"], one["length"], one["source"]) for one in recordings[:5]] == [
        ("Walking Forward", 450, "Subject1/a1t1.mat"), ("Walking Forward", 199, "Subject1/a1t2.mat"),
        ("Walking Left", 400, "Subject1/a2t1.mat"), ("Sleeping", 640, "Subject1/a10t3.mat"),
        ("Elevator Down", 200, "Subject1/a12t1.mat")]                         # in the order of activities, not of names


def test_windows_with_a_nan_or_an_infinity_are_dropped_and_counted(tmp_path):
    import scipy.io
    write_usc_had_subjects(tmp_path / "raw")
    path = usc_had_path(tmp_path / "raw", 1, 10, 3)
    samples = scipy.io.loadmat(path)["sensor_readings"]
    whole = prepare("usc-had", tmp_path / "raw", tmp_path / "whole", say=quiet)
    samples[150, 2] = np.nan                                                  # in the windows from 0 and 100
    samples[639, 5] = np.inf                                                  # in the last, flush with the end, alone
    scipy.io.savemat(path, {"sensor_readings": samples})
    meta = prepare("usc-had", tmp_path / "raw", tmp_path / "lost", say=quiet)
    assert meta["dropped_windows_with_nan_or_inf"]["har_windows"] == 3
    assert meta["har_windows"]["train"] == whole["har_windows"]["train"] - 3
    assert meta["har_windows"]["test"] == whole["har_windows"]["test"]
    assert meta["dropped_windows_with_nan_or_inf"]["align_windows"] >= 2      # 150 lies in one of each of the two cuts
    data = PreparedData(tmp_path / "lost")
    for kind in ("har", "align"):
        rows = data.records(kind, "train")
        assert all(np.isfinite(data.window(rows[i])).all() for i in range(len(rows)))


def test_raw_files_that_usc_had_does_not_have_are_refused(tmp_path):
    import scipy.io
    raw = tmp_path / "raw"
    write_usc_had(raw, 1, {(1, 1): 300})
    path = usc_had_path(raw, 1, 1, 1)

    def refused(words):
        with pytest.raises(InputError, match=words):
            prepare("usc-had", raw, tmp_path / "out", say=quiet)

    shutil.copytree(raw / "Subject1", raw / "USC-HAD" / "Subject1")
    refused("are the same file; --raw must hold the archive once")
    shutil.rmtree(raw / "USC-HAD")
    shutil.copyfile(path, raw / "Subject1" / "a13t1.mat")
    refused("a13t1.mat holds the activity 13, which is none of")
    (raw / "Subject1" / "a13t1.mat").unlink()
    for content in (np.zeros((300, 9)), "text"):
        scipy.io.savemat(path, {"sensor_readings": content})
        refused(r"a1t1.mat: sensor_readings holds .* expected real numbers of shape \(samples, 6\)")
    scipy.io.savemat(path, {"readings": np.zeros((300, 6))})
    refused("a1t1.mat is truncated or not a USC-HAD .mat")


@pytest.mark.shared("data/USC-HAD")
def test_real_usc_had_holds_the_published_counts(shared):
    """All 840 files: 22,790 windows of training subjects, 4,555 of test subjects."""
    dataset = DATASETS["usc-had"]
    recordings = read_all("usc-had", shared / "data" / "USC-HAD")
    assert len(recordings) == 840 and sum(len(r.samples) for r in recordings) == 2_811_490
    counts = Counter()
    for r in recordings:
        counts[dataset.split_of(r.subject)] += len(strided_windows(len(r.samples), dataset.window, dataset.stride))
    assert counts["train"] + counts["val"] == 22_790 and counts["test"] == 4_555 and counts["val"] > 0


# ---- UCI-HAR ----

def test_uci_har_windows_are_joined_and_cut_again_into_the_shipped_ones(tmp_path):
    """Neighbours of one subject and activity whose halves differ stay apart; all six channels, bit for bit."""
    blocks = {"train": [(1, 1, 128 + 64 * 3), (1, 1, 128 + 64), (1, 5, 128), (5, 2, 128 + 64 * 2), (3, 2, 128 + 64 * 2),
                        (1, 6, 128 + 64)],                                    # subject 1 comes again after the others
              "test": [(2, 1, 128 + 64 * 2), (4, 3, 128)]}
    shipped, labels = {}, {}
    for split in blocks:
        shipped[split], of_subjects = write_uci_har(tmp_path / "raw", split, blocks[split])
        labels |= of_subjects
    dataset = DATASETS["uci-har"]
    meta = prepare("uci-har", tmp_path / "raw", tmp_path / "out", say=quiet)
    data = check_windows(tmp_path / "out", labels, {i + 1: name for i, name in enumerate(dataset.classes)})
    assert meta["har_windows"] == {"train": 4 + 2 + 1 + 3 + 2, "val": 3, "test": 3 + 1}
    for split, parts in (("train", ("train", "val")), ("test", ("test",))):
        rows = [row for part in parts for row in map(data.records("har", part).__getitem__, range(meta["har_windows"][part]))]
        ours = sorted(data.window(row).tobytes() for row in rows)
        assert ours == sorted(window.tobytes() for window in shipped[split])
    lengths = Counter(one["length"] for one in json_lines(tmp_path / "out/recordings.jsonl"))
    assert lengths == Counter(n for split in blocks.values() for _, _, n in split)


def test_broken_uci_har_files_are_refused_by_name(tmp_path):
    raw = tmp_path / "raw"
    write_uci_har(raw, "train", [(1, 1, 256)])
    folder = raw / "UCI HAR Dataset" / "train"
    for name, content, words in (
            ("y_train.txt", "1\n7\n1\n", "y_train.txt holds the activity 7, which is none of"),
            ("y_train.txt", "1\n1\n", "differ in their number of rows"),
            ("y_train.txt", "1\n1 1\n1\n", "y_train.txt has 2 columns in line 2, expected 1"),
            ("subject_train.txt", "", "subject_train.txt is missing, truncated or not a table"),
            ("Inertial Signals/body_gyro_z_train.txt", None, "body_gyro_z_train.txt is missing")):
        path = folder / name
        good = path.read_text()
        path.unlink()
        if content is not None:
            path.write_text(content)
        with pytest.raises(InputError, match=words):
            prepare("uci-har", raw, tmp_path / "out", say=quiet)
        path.write_text(good)
    shutil.copytree(folder, raw / "again")
    with pytest.raises(InputError, match="are the same file"):
        prepare("uci-har", raw, tmp_path / "out", say=quiet)


@pytest.mark.slow
@pytest.mark.shared("data/UCI HAR Dataset")
def test_real_uci_har_gives_its_shipped_windows_back(shared, tmp_path):
    """The windows put together and cut again are the shipped ones: 2,947 for testing, bit for bit."""
    raw = shared / "data" / "UCI HAR Dataset"
    meta = prepare("uci-har", raw, tmp_path / "uci", say=quiet)
    data = PreparedData(tmp_path / "uci")
    assert meta["har_windows"]["test"] == 2947
    assert meta["har_windows"]["train"] + meta["har_windows"]["val"] == 822   # the part that lies beside the project
    shipped = np.loadtxt(raw / "test" / "Inertial Signals" / "body_gyro_y_test.txt", dtype=np.float32)
    rows = data.records("har", "test")
    ours = np.stack([data.window(rows[i])[:, UCI_SIGNALS.index("body_gyro_y")] for i in range(len(rows))])
    assert sorted(map(bytes, ours)) == sorted(map(bytes, shipped))
    joined = [r for r in read_all("uci-har", raw) if r.source.startswith("test")]
    assert len(joined) < 300 and max(len(r.samples) for r in joined) > 1000   # minutes, not windows


# ---- MHealth ----

BLOCKS = [(0, 70), (1, 330), (2, 220), (0, 5), (2, 150), (3, 100), (4, 99), (12, 400)]


def test_mhealth_lines_keep_channel_and_activity(tmp_path):
    subjects = {1: dict(), 2: dict(), 4: dict(separator=" "), 6: dict()}
    labels = {subject: write_mhealth(tmp_path / "raw", subject, BLOCKS, **options) for subject, options in subjects.items()}
    meta = prepare("mhealth", tmp_path / "raw", tmp_path / "out", say=quiet)
    dataset = DATASETS["mhealth"]
    data = check_windows(tmp_path / "out", labels, {0: None} | {i + 1: name for i, name in enumerate(dataset.classes)})
    assert len(dataset.channels) == 15 and [c.token for c in dataset.channels[:4]] == ["chest_x_acc", "chest_y_acc", "chest_z_acc", "la_x_acc"]
    per_subject = sum(expected_windows(n, dataset) for label, n in BLOCKS if label)
    assert {s["har_windows"] for s in meta["subjects"].values()} == {per_subject} and meta["lost_samples"] == {}
    raw = np.loadtxt(tmp_path / "raw" / "mHealth_subject2.log")
    columns = [0, 1, 2, 5, 6, 7, 8, 9, 10, 14, 15, 16, 17, 18, 19]
    np.testing.assert_array_equal(data.window(data.records("har", "val")[0]), raw[70:170, columns].astype(np.float32))


@pytest.mark.shared("data")
def test_real_lines_of_mhealth_and_real_labels_of_capture24(shared, tmp_path):
    """36 true lines each of two subjects, every value in its channel; every annotation of the dictionary has its class."""
    recordings = read_all("mhealth", shared / "data" / "MHEALTHDATASET")
    found = [(r.subject, r.activity, len(r.samples)) for r in recordings]
    assert found == [(subject, activity, 3) for subject in (1, 2) for activity in range(12)]
    line = (shared / "data" / "MHEALTHDATASET" / "mHealth_subject1.log").read_text().split("\n")[0].split("\t")
    values = [float(line[i]) for i in (0, 1, 2, *range(5, 11), *range(14, 20))]
    assert recordings[0].samples[0].tolist() == pytest.approx(values)         # float32 of them

    import pandas as pd
    classes = DATASETS["capture24"].classes
    dictionary = pd.read_csv(shared / "data/capture24/annotation-label-dictionary.csv")
    spoken = dictionary["label:WillettsSpecific2018"]
    assert set(spoken) == set(classes) and len(dictionary) == 206
    write_capture24(tmp_path, 7, [(name, 20) for name in dictionary["annotation"]])
    shutil.copy(shared / "data/capture24/annotation-label-dictionary.csv", tmp_path)
    found = np.concatenate([np.full(len(r.samples), r.activity) for r in read_all("capture24", tmp_path)])
    np.testing.assert_array_equal(found, np.repeat([classes.index(label) for label in spoken], 10))


# ---- PAMAP2 ----

PAMAP2_CLASSES = {0: None, 1: "lying", 4: "walking", 24: "rope jumping", 9: None}
PAMAP2_BLOCKS = [(0, 50), (1, 900), (4, 1000), (9, 300), (4, 700), (24, 500), (0, 30)]


def test_pamap2_gaps_are_filled_or_end_a_recording(tmp_path):
    """NaN runs of 3 and 10 are filled, one of 11 splits; the clock skips 2 samples (filled) and 3 seconds (splits)."""
    lost = [(200, 203), (400, 410), (1300, 1311), (2948, 2960), (3448, 3450)]       # the last two end or begin an activity
    jumps = [(700, 0.02), (3200, 3.0)]
    labels, dataset = {}, DATASETS["pamap2"]
    for subject in (101, 105, 108):
        raw = write_pamap2(tmp_path / "raw", subject, PAMAP2_BLOCKS, lost, jumps)
        on_clock = np.concatenate([raw[:700], [1, 1], raw[700:3200], np.zeros(300, int), raw[3200:]])
        labels[subject] = on_clock
    (tmp_path / "raw/PAMAP2_Dataset/Optional").mkdir()
    (tmp_path / "raw/PAMAP2_Dataset/Optional/subject101.dat").write_text("not of the protocol")
    meta = prepare("pamap2", tmp_path / "raw", tmp_path / "out", say=quiet)
    data = check_windows(tmp_path / "out", labels, PAMAP2_CLASSES, ratio=2)
    assert meta["lost_samples"] == {
        "recordings split at a gap": 6, "samples interpolated": 3 * (3 + 10 + 2 + 2),
        "samples lost at ends and in long gaps": 3 * (11 + 12)}
    lengths = sorted(one["length"] for one in json_lines(tmp_path / "out/recordings.jsonl") if one["subject"] == 101)
    truth = [-(-n // 2) for n in (240, 250, 350, 639, 698, 902)]              # raw samples of each stretch, by hand
    assert lengths == truth
    assert meta["subjects"]["101"]["har_windows"] == sum(expected_windows(n, dataset) for n in truth)
    assert len(data.dataset.channels) == 27 and np.isfinite(data.window(data.records("har", "train")[0])).all()


def test_pamap2_at_100_hz_holds_the_raw_columns(tmp_path):
    """At 100 Hz nothing is filtered: each channel is its column, bit for bit; 27 of them in the data's order."""
    for subject in (101, 105, 108):
        write_pamap2(tmp_path / "raw", subject, [(1, 450), (4, 400)])
    prepare("pamap2", tmp_path / "raw", tmp_path / "out", rate=100, say=quiet)
    data = PreparedData(tmp_path / "out")
    raw = np.loadtxt(tmp_path / "raw/PAMAP2_Dataset/Protocol/subject101.dat")
    columns = [imu + c for imu in (3, 20, 37) for c in (1, 2, 3, 7, 8, 9, 10, 11, 12)]
    np.testing.assert_array_equal(data.window(data.records("har", "train")[0]), raw[:200, columns].astype(np.float32))
    tokens = [channel.token for channel in data.dataset.channels]
    assert tokens[0] == "hand_x_acc" and tokens[10] == "chest_y_acc" and tokens[26] == "ankle_z_mag" and len(set(tokens)) == 27
    spoken = [channel.spoken for channel in data.dataset.channels]
    assert len(set(spoken)) == 27 and all(s.split()[0] == t.split("_")[0] for s, t in zip(spoken, tokens))


# ---- Capture-24 ----

def test_capture24_days_are_read_in_pieces_and_a_share_is_kept(tmp_path):
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
    lengths = [one["length"] for one in json_lines(tmp_path / "out/recordings.jsonl")][:5]
    assert lengths == [15_000, 10_000, 4_500, (70_000 - 61_500) // 2, (101_500 - 70_000 + 3 + 1) // 2]
    assert meta["lost_samples"] == {"recordings split at a gap": 6, "samples interpolated": 9}
    windows = 3 * sum(expected_windows(n, DATASETS["capture24"]) for n in lengths)
    assert 0.02 < sum(meta["har_windows"].values()) / windows < 0.09          # a seeded 5 % of them
    z = PreparedData(tmp_path / "out").window(PreparedData(tmp_path / "out").records("har", "train")[0])[:, 2]
    assert set(z.tolist()) == {0.25}                                          # rest stays rest through the filter


# ---- rates, gaps ----

def test_resampling_filters_what_the_lower_rate_cannot_hold():
    seconds = np.arange(1000) / 100
    for hertz, kept in ((5, 1), (15, 1), (35, 0), (45, 0)):                   # 35 and 45 Hz would come back as 15 and 5
        out = resample(np.sin(2 * np.pi * hertz * seconds)[:, None] + 3, 100, 50)[50:-50, 0]
        assert abs((out - 3).std() * np.sqrt(2) - kept) < 0.03, hertz
    np.testing.assert_allclose(resample(seconds[:, None], 100, 50)[:, 0], seconds[::2], atol=1e-4)   # a line, to its ends
    assert set(resample(np.full((77, 2), 0.3), 100, 50).ravel().tolist()) == {np.float32(0.3)}
    for n in (1, 2, 3):
        assert resample(np.ones((n, 3)), 100, 50).shape == (-(-n // 2), 3)


def continuous(samples, rate, counts):
    """[(start, samples)] of the stretches of a log of one activity."""
    log = put_on_grid(steady_log(samples, np.zeros(len(samples), int), rate), counts)
    return [(start, log.samples[start:end]) for start, end in stretches(log.samples, counts)]


def test_short_gaps_are_interpolated_and_long_ones_end_a_recording():
    counts = Counter()
    broken = np.arange(100.0)[:, None].repeat(2, 1)
    broken[:3] = broken[10:20] = broken[40:51] = np.nan
    ((at, first), (then, second)) = continuous(broken, 100, counts)
    assert (at, then) == (3, 51)
    np.testing.assert_allclose(first[:, 0], np.arange(3, 40))
    np.testing.assert_allclose(second[:, 1], np.arange(51, 100))
    assert counts == {"samples interpolated": 10, "samples lost at ends and in long gaps": 14, "recordings split at a gap": 1}
    assert continuous(np.full((5, 2), np.nan), 100, counts) == []


def test_what_is_interpolated_is_the_lost_value_alone():
    """A channel that was there while another was lost keeps its samples; the lost ones lie on a straight line."""
    samples = np.random.default_rng(0).normal(size=(60, 3))
    broken = samples.copy()
    broken[20:24, 1] = np.nan
    broken[40, 2] = -np.inf
    ((_, filled),) = continuous(broken, 100, Counter())
    expected = samples.copy()
    expected[20:24, 1] = samples[19, 1] + (samples[24, 1] - samples[19, 1]) * np.arange(1, 5) / 5
    expected[40, 2] = (samples[39, 2] + samples[41, 2]) / 2
    good = np.isfinite(broken)
    np.testing.assert_array_equal(filled[good], samples[good])
    np.testing.assert_allclose(filled, expected, rtol=0, atol=1e-12)          # rounding of float64 alone
    assert np.isnan(broken[20, 1])                                            # what was passed in is not changed


# ---- recordings of one's own ----

def test_own_csv_and_npy_recordings_are_prepared(tmp_path):
    write_own(tmp_path / "raw")
    meta = prepare("own", tmp_path / "raw", tmp_path / "out", say=quiet)
    data = PreparedData(tmp_path / "out")
    assert data.name == "gloves" and data.dataset == own_dataset(tmp_path / "raw")[1] and data.dataset.window == 50
    assert meta["lost_samples"] == {
        "files whose column comment is not used": 8, "recordings split at a gap": 8, "samples interpolated": 16,
                                    "samples lost at ends and in long gaps": 80}
    for kind in ("har", "align"):
        for split, people in (("train", {"carl", "dora"}), ("val", {"ben"}), ("test", {"anna"})):
            rows = data.records(kind, split)
            assert {rows[i]["subject"] for i in range(len(rows))} == people
            for i in range(len(rows)):
                window = data.window(rows[i])
                np.testing.assert_allclose(np.diff(window[:, 0]), STEP, atol=1e-4)
                assert set(window[:, 1]) == {PEOPLE[rows[i]["subject"]]}
    assert meta["har_windows"] == {"train": 2 * 2 * (9 + 5 + 2), "val": 2 * 16, "test": 2 * 16}


def test_broken_capture24_files_are_refused_by_name(tmp_path):
    write_capture24(tmp_path, 1, [("7030 sleeping;MET 0.95", 500)])
    path = tmp_path / "P001.csv.gz"
    good = path.read_bytes()
    lines = gzip.decompress(good).splitlines()
    one_more_field = gzip.compress(b"\n".join([*lines[:9], lines[9] + b",1", *lines[10:]]))
    unknown_label = gzip.compress(b"\n".join(lines).replace(b"7030 sleeping;MET 0.95", b"moon walk"))
    for bad in (good[:-200], b"no gzip", gzip.compress(b"time,x,y\n1,2,3\n"), one_more_field, unknown_label):
        path.write_bytes(bad)
        with pytest.raises(InputError, match="P001.csv.gz is truncated or not a Capture-24 recording"):
            prepare("capture24", tmp_path, tmp_path / "out", say=quiet)
