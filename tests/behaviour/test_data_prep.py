"""Prepared datasets: counts, splits, windows that cross nothing, the same bytes for the same seed, broken raw files."""
import json
import re
import shutil

import numpy as np
import pytest
import scipy.io
from helpers import digest, quiet, read_all

from sensorllm_min.config import InputError
from sensorllm_min.data import PreparedData
from sensorllm_min.metrics import parse_claims
from sensorllm_min.prepare import prepare, random_windows, strided_windows
from sensorllm_min.recordings import join_overlapping
from sensorllm_min.sensors import DATASETS
from sensorllm_min.trend_scores import truth_sums
from sensorllm_min.trend_text import HAR_TEXTS, align_pair, har_text, pair_rng, trend_segments


def check_prepared(folder):
    """What must hold of every prepared dataset."""
    data = PreparedData(folder)
    recordings = [json.loads(line) for line in open(folder / "recordings.jsonl")]
    spans = {}
    for one in recordings:
        spans.setdefault(one["subject"], []).append((one["start"], one["start"] + one["length"], one["activity"]))
    subjects = {}
    for kind, count in (("har", "har_windows"), ("align", "align_pairs")):
        for split in ("train", "val", "test"):
            rows = data.rows(kind, split)
            assert len(rows) == data.meta[count][split] > 0
            for i in range(0, len(rows), max(1, len(rows) // 500)):
                row = rows[i]
                subjects.setdefault(split, set()).add(row["subject"])
                inside = [activity for start, end, activity in spans[row["subject"]]
                          if start <= row["start"] and row["start"] + row["length"] <= end]
                assert len(inside) == 1                                       # within one recording: crosses nothing
                if kind == "har":
                    assert data.dataset.classes[row["label"]] == inside[0]
                    assert row["length"] == data.dataset.window
                else:
                    shortest, longest = data.dataset.align_lengths
                    assert shortest <= row["length"] <= longest
    assert not (subjects["train"] & subjects["val"] or subjects["train"] & subjects["test"]
                or subjects["val"] & subjects["test"])
    assert subjects["test"] <= set(data.dataset.test_subjects) and subjects["val"] <= set(data.dataset.val_subjects)
    return data


def test_windows_fill_a_recording():
    assert strided_windows(199, 200, 100) == []
    assert strided_windows(200, 200, 100) == [0]
    assert strided_windows(400, 200, 100) == [0, 100, 200]
    assert strided_windows(450, 200, 100) == [0, 100, 200, 250]               # the last one flush with the end
    windows = random_windows(1000, 5, 200, np.random.default_rng(0))
    assert all(5 <= length <= 200 for _, length in windows)
    ends = [start + length for start, length in windows]
    assert [start for start, _ in windows] == [0, *ends[:-1]] and 1000 - ends[-1] < 5


def test_demo(demo):
    data = check_prepared(demo)
    assert np.load(demo / "samples" / "1.npy").dtype == np.float32            # one line of numpy
    assert {path.suffix for path in demo.rglob("*") if path.is_file()} == {".npy", ".jsonl", ".json"}
    for split, times in (("train", 2), ("val", 1), ("test", 1)):              # cut twice over for training, once else
        rows = data.rows("align", split)
        cut = sum(rows[i]["length"] for i in range(0, len(rows), len(data.dataset.channels)))
        samples = sum(counts["samples"] for counts in data.meta["subjects"].values() if counts["split"] == split)
        assert 0.98 * times * samples < cut <= times * samples
    tokens = [channel.token for channel in data.dataset.channels]
    for i in range(0, len(rows), 50):                                         # every stored answer is true of its series
        series = data.window(rows[i])[:, tokens.index(rows[i]["channel"])]
        claims = parse_claims(rows[i]["answer"])
        sums = truth_sums(claims, claims, series, data.dataset.rate)
        assert all(sums[name][0] == sums[name][1] for name in ("direction", "segment_f1", "well_formed")), rows[i]


def test_shorter_windows_and_other_answers_on_request(tmp_path):
    meta = prepare("demo", None, tmp_path / "short", answer_kinds=("trend", "summary"), longest=8, say=quiet)
    data = PreparedData(tmp_path / "short")
    rows = data.rows("align", "test")
    assert max(rows[i]["length"] for i in range(len(rows))) == 8 == meta["align_lengths"][1]
    assert rows[0]["answer"].startswith("From 0.0s to") and "\n\n" in rows[0]["answer"]


def test_same_seed_same_bytes(demo, tmp_path):
    prepare("demo", None, tmp_path / "again", say=quiet)
    assert digest(tmp_path / "again") == digest(demo)
    prepare("demo", None, tmp_path / "again", seed=1, say=quiet)              # replaces what was prepared there
    assert digest(tmp_path / "again") != digest(demo)


@pytest.mark.shared("data/USC-HAD")
def test_usc_had_counts(shared):
    """All 840 files: 22,790 windows of training subjects, 4,555 of test subjects."""
    dataset = DATASETS["usc-had"]
    recordings = read_all("usc-had", shared / "data" / "USC-HAD")
    assert len(recordings) == 840 and sum(len(r.samples) for r in recordings) == 2_811_490
    counts = {"train": 0, "val": 0, "test": 0}
    for r in recordings:
        counts[dataset.split_of(r.subject)] += len(strided_windows(len(r.samples), dataset.window, dataset.stride))
    assert counts["train"] + counts["val"] == 22_790 and counts["test"] == 4_555 and counts["val"] > 0


@pytest.fixture
def few_usc_had(shared, tmp_path):
    """Two activities of four subjects, one of each split among them."""
    raw = tmp_path / "raw"
    for subject in (1, 3, 13):
        (raw / f"Subject{subject}").mkdir(parents=True)
        for name in ("a1t1.mat", "a10t3.mat"):
            shutil.copyfile(shared / "data" / "USC-HAD" / f"Subject{subject}" / name, raw / f"Subject{subject}" / name)
    return raw


@pytest.mark.shared("data/USC-HAD")
def test_usc_had_prepared(few_usc_had, tmp_path):
    prepare("usc-had", few_usc_had, tmp_path / "out", say=quiet)
    data = check_prepared(tmp_path / "out")
    raw = scipy.io.loadmat(few_usc_had / "Subject13" / "a1t1.mat")["sensor_readings"]
    np.testing.assert_array_equal(data.window(data.rows("har", "test")[0]), raw[:200].astype(np.float32))
    rows = data.rows("align", "train")
    row = rows[len(rows) // 2]                                                # any pair can be made again alone
    channel = next(c for c in data.dataset.channels if c.token == row["channel"])
    series = data.window(row)[:, data.dataset.channels.index(channel)]
    place = (row["subject"], row["start"], row["length"], row["channel"])
    again = align_pair(series, channel, 100, ("simple_trend", "summary"), pair_rng(0, "usc-had", True, *place))
    assert again == (row["question"], row["answer"])


@pytest.mark.shared("data/USC-HAD")
def test_windows_with_lost_samples_are_dropped_and_counted(few_usc_had, tmp_path):
    path = few_usc_had / "Subject1" / "a1t1.mat"
    samples = scipy.io.loadmat(path)["sensor_readings"].astype(float)
    prepare("usc-had", few_usc_had, tmp_path / "whole", say=quiet)
    samples[150, 2], samples[1000, 5] = np.nan, np.inf                        # 150: two windows; 1000: two (900, 1000)
    scipy.io.savemat(path, {"sensor_readings": samples})
    meta = prepare("usc-had", few_usc_had, tmp_path / "lost", say=quiet)
    whole = json.loads((tmp_path / "whole" / "meta.json").read_text())
    assert meta["dropped_windows_with_nan_or_inf"]["har_windows"] == 4
    assert meta["har_windows"]["train"] == whole["har_windows"]["train"] - 4
    assert meta["dropped_windows_with_nan_or_inf"]["align_windows"] >= 2
    data = check_prepared(tmp_path / "lost")
    assert all(np.isfinite(data.window(data.rows("align", "train")[i])).all() for i in range(meta["align_pairs"]["train"]))


@pytest.mark.shared("data/UCI HAR Dataset")
def test_uci_har(shared, tmp_path):
    """The windows put together and cut again are the shipped ones: 2,947 for testing, bit for bit."""
    raw = shared / "data" / "UCI HAR Dataset"
    meta = prepare("uci-har", raw, tmp_path / "uci", say=quiet)
    data = check_prepared(tmp_path / "uci")
    assert meta["har_windows"]["test"] == 2947
    assert meta["har_windows"]["train"] + meta["har_windows"]["val"] == 822   # the part that lies beside the project
    shipped = np.loadtxt(raw / "test" / "Inertial Signals" / "body_gyro_y_test.txt", dtype=np.float32)
    rows = data.rows("har", "test")
    ours = np.stack([data.window(rows[i])[:, 4] for i in range(len(rows))])
    assert sorted(map(bytes, ours)) == sorted(map(bytes, shipped))
    joined = [r for r in read_all("uci-har", raw) if r.source.startswith("test")]
    assert len(joined) < 300 and max(len(r.samples) for r in joined) > 1000   # minutes, not windows


def test_overlapping_windows_join_only_where_they_agree():
    signal = np.arange(320, dtype=np.float32)[:, None]
    windows = np.stack([signal[i:i + 128] for i in (0, 64, 128, 192)])
    assert [len(r) for _, r in join_overlapping(windows, np.array([True, True, True]))] == [320]
    np.testing.assert_array_equal(next(join_overlapping(windows, np.array([True] * 3)))[1], signal)
    assert [len(r) for _, r in join_overlapping(windows, np.array([True, False, True]))] == [192, 192]
    windows[2, 5] += 1                                                        # a gap: halves that differ
    assert [len(r) for _, r in join_overlapping(windows, np.array([True, True, True]))] == [192, 192]


def refused(*words, **options):
    with pytest.raises(InputError) as error:
        prepare(say=quiet, **options)
    assert all(str(word) in str(error.value) for word in words), error.value


def test_raw_directories_that_are_missing_or_empty(tmp_path):
    for name in ("usc-had", "uci-har"):
        refused("nowhere", "not a directory", name=name, raw=tmp_path / "nowhere", out=tmp_path / "out")
        (tmp_path / "empty").mkdir(exist_ok=True)
        refused("empty", "holds no file", name=name, raw=tmp_path / "empty", out=tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]            # nothing half-written


@pytest.mark.shared("data/USC-HAD")
def test_a_truncated_mat_file(few_usc_had, tmp_path):
    path = few_usc_had / "Subject3" / "a1t1.mat"
    good = path.read_bytes()
    prepare("usc-had", few_usc_had, tmp_path / "out", say=quiet)
    before = digest(tmp_path / "out")
    for bad in (good[: len(good) // 2], good[:100], b""):
        path.write_bytes(bad)
        refused(path, "truncated", name="usc-had", raw=few_usc_had, out=tmp_path / "out")
    assert digest(tmp_path / "out") == before                                 # what was good stays
    path.write_bytes(good)                                                    # what was finished before is taken over
    prepare("usc-had", few_usc_had, tmp_path / "out", say=quiet)
    assert digest(tmp_path / "out") == before and not (tmp_path / "out.unfinished").exists()


@pytest.mark.shared("data/USC-HAD")
def test_an_archive_that_is_there_twice(few_usc_had, tmp_path):
    shutil.copytree(few_usc_had / "Subject1", few_usc_had / "USC-HAD" / "Subject1")
    refused("the same trial", name="usc-had", raw=few_usc_had, out=tmp_path / "out")


def test_an_out_that_holds_something_else(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    refused("not a prepared dataset", name="demo", raw=None, out=tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_prepared_data_of_another_version(demo, tmp_path):
    shutil.copytree(demo, tmp_path / "old")
    meta = json.loads((demo / "meta.json").read_text())
    for change, word in (({"version": 0}, "version 0"), ({"dataset": "moon-walk"}, "moon-walk"),
                         ({"align_lengths": None}, "does not hold"), ({"har_windows": 7}, "does not hold")):
        (tmp_path / "old" / "meta.json").write_text(json.dumps(meta | change))
        with pytest.raises(InputError, match=word):
            PreparedData(tmp_path / "old")


def test_prepared_lines_that_are_lost_or_broken(demo, tmp_path):
    shutil.copytree(demo, tmp_path / "cut")
    path = tmp_path / "cut" / "align_train.jsonl"
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(InputError, match="align_train.jsonl holds .* lines, meta.json says"):
        PreparedData(tmp_path / "cut").rows("align", "train")
    path.write_bytes(b"{" + good)
    with pytest.raises(InputError, match="align_train.jsonl, line 1, does not hold"):
        PreparedData(tmp_path / "cut").rows("align", "train")[0]


def test_prepared_samples_that_are_broken(demo, tmp_path):
    shutil.copytree(demo, tmp_path / "broken")
    path = tmp_path / "broken" / "samples" / "9.npy"
    row = PreparedData(demo).rows("har", "test")[0]
    samples = np.load(path)
    samples[3] = np.inf
    np.save(path, samples)
    with pytest.raises(InputError, match="not finite"):
        PreparedData(tmp_path / "broken").window(row)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match="truncated"):
        PreparedData(tmp_path / "broken").window(row)


SPEC_COMBINATIONS = ["smry", "trend", "corr", "smry+Q", "smry+meta", "smry+meta+Q", "smry+corr", "smry+corr+Q", "smry+trend",
                     "smry+trend+Q", "smry+trend+corr", "smry+trend+corr+Q"]


@pytest.mark.parametrize("name", ["demo", "pamap2"])
def test_stage_2_texts_tell_the_truth(name):
    """Every combination: statistics to eight decimals, correlations in the words of their strength, trends, units, classes."""
    dataset, rng = DATASETS[name], np.random.default_rng(0)
    n = len(dataset.channels)
    window = rng.normal(size=(dataset.window, n)).round(3).astype(np.float32)
    for i in range(0, n - 1, 2):                                              # some pairs of every strength
        window[:, i + 1] = window[:, i] * rng.choice([-2, -0.5, 0.1, 0.5, 2]) + window[:, i + 1]
    window[:, n - 1] = 0.25                                                   # one that never changes
    names = [channel.spoken for channel in dataset.channels]
    parts = {part: har_text(window, dataset, (part,)) for part in HAR_TEXTS}
    for combination in SPEC_COMBINATIONS:
        assert har_text(window, dataset, combination.split("+")) == "\n".join(parts[part] for part in combination.split("+"))
    for line, spoken, column in zip(parts["smry"].split("\n"), names, window.T.astype(float), strict=True):
        found = re.fullmatch(r"(.*): Mean=(-?\d+(?:\.\d*[1-9])?), StdDev=(\d+(?:\.\d*[1-9])?)", line)
        assert found[1] == spoken
        assert [float(found[2]), float(found[3])] == pytest.approx([column.mean(), np.sqrt(((column - column.mean()) ** 2).mean())], abs=1e-8)
    strengths, lines = set(), iter(parts["corr"].split("\n"))
    for i in range(n):
        for j in range(i + 1, n):
            a, b = window[:, i].astype(float), window[:, j].astype(float)
            covariance = ((a - a.mean()) * (b - b.mean())).mean()
            r = covariance / (a.std() * b.std()) if a.std() * b.std() else 0
            strength = "strongly" if abs(r) >= 0.7 else "moderately" if abs(r) >= 0.3 else "weakly" if abs(r) >= 0.1 else None
            words = f"{strength} {'positively' if r > 0 else 'negatively'}" if strength else "not significantly"
            assert next(lines) == f"{names[i]} and {names[j]} are {words} correlated."
            strengths.add(words)
    assert len(strengths) >= (6 if n > 10 else 3) and next(lines, None) is None
    for line, spoken, series in zip(parts["trend"].split("\n"), names, window.T, strict=True):
        claims = parse_claims(line)
        assert spoken in line and claims.changes == len(trend_segments(series)[0]) - 1
        assert claims.overall == int(np.sign(series[-1] - series[0]))
    assert all(unit in parts["meta"] for unit in {channel.unit for channel in dataset.channels})
    assert f"{dataset.window} samples of {n} channels at {dataset.rate} Hz" in parts["meta"]
    assert all(activity in parts["Q"] for activity in dataset.classes)
