"""Recordings of one's own: time and label columns, one person, and what dataset.json may say."""
import json
import unicodedata
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from helpers import json_lines, quiet
from raw_files import OWN, write_small_own

from sensorllm_min.data.logs import put_on_grid
from sensorllm_min.data.clocks import read_clock
from sensorllm_min.data.own import own_dataset, read_log
from sensorllm_min.data.prepare import prepare
from sensorllm_min.data.prepared import PreparedData
from sensorllm_min.files import InputError

CHANNELS = [{"token": "ramp", "spoken": "ramp sensor"}, {"token": "wave", "spoken": "bend sensor", "unit": "deg"}]


def write_log(path, seconds, labels=None, headings=("ramp", "wave"), time="time", form="{:.6f}"):
    """A CSV whose ramp is the true time of each line, in samples at 25 Hz."""
    header = [time, *headings, *([] if labels is None else ["what"])]
    lines = [",".join(header)]
    for i, second in enumerate(seconds):
        at = form(second) if callable(form) else form.format(second)
        label = [] if labels is None else [str(labels[i])]
        lines.append(",".join([at, f"{second * 25:.6f}", f"{np.sin(2 * np.pi * second):.6f}", *label]))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def describe(raw, **changes):
    raw.mkdir(parents=True, exist_ok=True)
    described = {key: value for key, value in (OWN | {"channels": CHANNELS} | changes).items() if value is not None}
    (raw / "dataset.json").write_text(json.dumps(described))
    return own_dataset(raw)[1]


def read(path, dataset):
    """The log of a file, on its grid."""
    return put_on_grid(read_log(path, dataset, Counter()), Counter())


@pytest.fixture
def dataset(tmp_path):
    return describe(tmp_path / "raw")


# ---- the time column ----

STEADY = np.arange(100) / 25
JITTER = np.sort(STEADY + np.random.default_rng(0).uniform(-0.015, 0.015, 100))


@pytest.mark.parametrize("seconds", [STEADY, JITTER, STEADY * 1.04, np.delete(STEADY, [30, 31, 70]), STEADY + 1.7e9],
                         ids=["steady", "jitter", "a slow clock", "two skipped", "since 1970"])
def test_samples_stand_where_the_time_column_says(tmp_path, dataset, seconds):
    """The ramp is the time itself: on the grid it rises by the same step from sample to sample. Six decimals."""
    write_log(tmp_path / "a.csv", seconds)
    log = read(tmp_path / "a.csv", dataset)
    n = int((seconds[-1] - seconds[0]) * 25 + 1e-6) + 1
    assert len(log.samples) == n and log.rate == 25
    np.testing.assert_allclose(log.samples[:, 0] - log.samples[0, 0], np.arange(n), atol=2e-5)
    np.testing.assert_allclose(np.diff(log.seconds), 0.04, atol=1e-9)


def test_a_recording_with_a_piece_cut_out_is_two(tmp_path, dataset):
    """24 seconds are missing, and later the clock is set back: no stretch has a seam inside."""
    seconds = np.concatenate([np.arange(200), np.arange(800, 1000), np.arange(500, 600)]) / 25
    for person in ("anna", "ben", "carl"):
        for activity in OWN["classes"]:
            write_log(tmp_path / "raw" / person / activity / "a.csv", seconds)
    meta = prepare("own", tmp_path / "raw", tmp_path / "out", say=quiet)
    assert meta["lost_samples"] == {"files read by their time column": 6, "recordings split at a gap": 12}
    recordings = json_lines(tmp_path / "out/recordings.jsonl")
    assert [one["length"] for one in recordings[:3]] == [200, 200, 100] and len(recordings) == 18
    data = PreparedData(tmp_path / "out")
    rows = data.records("har", "train")
    for row in (rows[i] for i in range(len(rows))):
        np.testing.assert_allclose(np.diff(data.window(row)[:, 0]), 1, atol=1e-3)


def test_a_faster_recording_is_resampled_and_a_slower_one_refused(tmp_path, dataset):
    raw = tmp_path / "raw"
    for person in ("anna", "ben", "carl"):
        for activity in OWN["classes"]:
            write_log(raw / person / activity / "a.csv", np.arange(400) / 50)
    meta = prepare("own", raw, tmp_path / "out", say=quiet)
    assert meta["lost_samples"] == {"files read by their time column": 6, "files resampled from 50 Hz": 6}
    assert meta["subjects"]["anna"]["samples"] == 400
    middle = PreparedData(tmp_path / "out").samples_of("anna")[30:170, 0]     # the filter reaches over the ends
    np.testing.assert_allclose(np.diff(middle), 1, atol=2e-3)
    write_log(raw / "anna" / "waving" / "a.csv", np.arange(400) / 10)
    with pytest.raises(InputError, match="waving/a.csv: by its time column the samples come at 10 Hz.*should be 25 Hz"):
        prepare("own", raw, tmp_path / "out", say=quiet)


def as_date(second):
    return str(np.datetime64("2026-11-25T10:00:00.000000") + np.timedelta64(round(second * 1e6), "us"))


@pytest.mark.parametrize("form", [
    lambda s: f"{1e3 * s:.3f}", lambda s: f"{1e6 * s + 1.7e15:.0f}", lambda s: f"{1e9 * s:.0f}", as_date,
    lambda s: as_date(s) + "+02:00", lambda s: as_date(s).replace("T", " "), lambda s: f"10:00:{s:09.6f}"],
    ids=["ms", "us since 1970", "ns", "ISO 8601", "with a zone", "with a space", "of day"])
def test_times_are_read_in_their_unit(tmp_path, dataset, form):
    write_log(tmp_path / "a.csv", STEADY, form=form)
    log = read(tmp_path / "a.csv", dataset)
    np.testing.assert_allclose(log.seconds, STEADY, atol=1e-6)
    np.testing.assert_allclose(log.samples[:, 0], np.arange(100), atol=2e-5)


def test_the_unit_of_dataset_json_comes_first(tmp_path):
    dataset = describe(tmp_path / "raw", time={"column": "at", "unit": "s"})
    assert read_clock(pd.DataFrame([0, 40, 80]), dataset, "a.csv").tolist() == [0, 40, 80]
    write_log(tmp_path / "a.csv", STEADY, time="at")
    assert len(read(tmp_path / "a.csv", dataset).samples) == 100
    write_log(tmp_path / "a.csv", STEADY, time="when")
    with pytest.raises(InputError, match="no column at; it needs ramp, wave, at, its columns are when, ramp, wave"):
        read(tmp_path / "a.csv", dataset)


@pytest.mark.parametrize("times,words", [
    (["0"] * 5, "stands still"), (["0", "0.04", "", "0.12", "0.16"], "row 3: the time is missing"),
    (["7", "8", "9", "10", "11"], "by its time column the samples come at 1 Hz"),
    (["0", "x", "y", "z", "1"], "neither numbers nor dates"), (["0", "200", "400", "600", "800"], "0.005 Hz")], ids=str)
def test_a_time_column_that_makes_no_sense_is_refused(tmp_path, dataset, times, words):
    (tmp_path / "a.csv").write_text("time,ramp,wave\n" + "".join(f"{time},1,2\n" for time in times))
    with pytest.raises(InputError, match=words):
        read(tmp_path / "a.csv", dataset)


def test_numbers_of_lines_are_no_times(tmp_path):
    """At 100 Hz they would pass for milliseconds of a file at 1,000 Hz."""
    dataset = describe(tmp_path / "raw", rate=100)
    with pytest.raises(InputError, match="only counts the rows"):
        read_clock(pd.DataFrame(range(50)), dataset, "a.csv")


def test_a_channel_that_comes_less_often_is_interpolated_and_missing_in_its_long_gaps(tmp_path, dataset):
    """As a phone logs: each line has one sensor."""
    lines = ["time,ramp,wave"]
    for i in range(200):
        if i % 2 == 0:
            lines.append(f"{i / 50:.3f},{i / 2},")
        elif not 60 < i < 100:
            lines.append(f"{i / 50:.3f},,{i / 2}")
    (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")
    log = read(tmp_path / "a.csv", dataset)
    np.testing.assert_allclose(log.samples[:, 0], np.arange(100), atol=1e-9)
    there = np.isfinite(log.samples[:, 1])
    np.testing.assert_allclose(log.samples[there, 1], np.arange(100)[there], atol=1e-9)
    assert np.flatnonzero(~there).tolist() == [0, *range(30, 51)]


# ---- columns and labels ----

def test_one_file_with_many_activities_and_columns_of_other_names(tmp_path):
    channels = [CHANNELS[0] | {"column": "Accelerometer X (g)"}, CHANNELS[1]]
    describe(tmp_path / "raw", channels=channels, time={"column": "at", "unit": "s"},
             label={"column": "what", "values": {"1": "waving", "2": "typing"}})
    labels = [0] * 50 + [1] * 150 + [2] * 200 + [1] * 100
    for person in ("anna", "ben"):
        write_log(tmp_path / "raw" / person / "day.csv", np.arange(500) / 25, labels, ("Accelerometer X (g)", "wave"), "at")
    write_log(tmp_path / "raw/carl/monday/day.csv", np.arange(500) / 25, labels, ("Accelerometer X (g)", "wave"), "at")
    meta = prepare("own", tmp_path / "raw", tmp_path / "out", say=quiet)
    assert meta["lost_samples"] == {
        "files read by their time column": 3, "files whose clock is at": 3, "samples without an activity": 150,
        "samples labelled '0', which is no class": 150}
    found = [(one["activity"], one["length"]) for one in json_lines(tmp_path / "out/recordings.jsonl")]
    assert found == [("waving", 150), ("typing", 200), ("waving", 100)] * 3
    data = PreparedData(tmp_path / "out")
    assert data.dataset == own_dataset(tmp_path / "raw")[1]       # also through meta.json
    assert data.samples_of("carl")[0, 0] == 50


def test_a_label_without_values_names_a_class_or_is_empty(tmp_path):
    dataset = describe(tmp_path / "raw", label={"column": "what"})
    write_log(tmp_path / "a.csv", STEADY, ["typing"] * 60 + [""] * 10 + ["waving"] * 30)
    assert read(tmp_path / "a.csv", dataset).labels.tolist() == [1] * 60 + [-1] * 10 + [0] * 30
    write_log(tmp_path / "a.csv", STEADY, ["typing"] * 60 + ["tping"] * 40)
    with pytest.raises(InputError, match="the label 'tping' is none of the classes waving, typing"):
        read(tmp_path / "a.csv", dataset)


# ---- one person, and subjects ----

def test_one_person_is_split_by_time_with_a_window_left_out(tmp_path):
    """70, 15 and 15 % of each activity, in its order: the ramp tells which samples are where."""
    describe(tmp_path / "raw", split="time", test_subjects=None, val_subjects=None)
    for activity in OWN["classes"]:
        write_log(tmp_path / "raw/anna" / activity / "1.csv", np.arange(600) / 25)
        write_log(tmp_path / "raw/anna" / activity / "2.csv", np.arange(600, 2000) / 25)
    meta = prepare("own", tmp_path / "raw", tmp_path / "out", say=quiet)
    assert {name: counts["split"] for name, counts in meta["subjects"].items()} == {
        "anna-train": "train", "anna-val": "val", "anna-test": "test"}
    data = PreparedData(tmp_path / "out")
    for split, (first, last) in {"train": (0, 1400), "val": (1450, 1700), "test": (1750, 2000)}.items():
        samples = data.samples_of(f"anna-{split}")[:, 0]
        np.testing.assert_allclose(samples, np.tile(np.arange(first, last), 2), atol=1e-2)
        assert data.records("har", split)[0]["subject"] == f"anna-{split}" and data.subjects_of(split) == [f"anna-{split}"]
    assert "says nothing about other people" in meta["held_out"] == data.dataset.held_out
    with pytest.raises(InputError, match="folds leave people out"):
        PreparedData(tmp_path / "out", (0, 3))


def test_one_person_is_split_by_recordings(tmp_path):
    describe(tmp_path / "raw", split="recordings", test_subjects=None, val_subjects=None)
    for activity in OWN["classes"]:
        for number in range(8):
            write_log(tmp_path / "raw/anna" / activity / f"{number}.csv", np.arange(100) / 25 + number)
    prepare("own", tmp_path / "raw", tmp_path / "out", say=quiet)
    recordings = json_lines(tmp_path / "out/recordings.jsonl")
    found = {split: [one["source"] for one in recordings if one["subject"] == f"anna-{split}"] for split in ("train", "val", "test")}
    assert found["val"] == ["anna/waving/6.csv", "anna/typing/6.csv"] and found["test"] == ["anna/waving/7.csv", "anna/typing/7.csv"]
    assert len(found["train"]) == 12
    for number in range(2, 8):
        (tmp_path / "raw/anna/typing" / f"{number}.csv").unlink()
    with pytest.raises(InputError, match="typing/0.csv: a split by recordings needs 3 files"):
        prepare("own", tmp_path / "raw", tmp_path / "out", say=quiet)


def test_subjects_are_compared_normalised_and_must_name_a_folder(tmp_path):
    composed = unicodedata.normalize("NFC", "zoe\u0308")
    write_small_own(tmp_path / "raw", test_subjects=[composed])
    (tmp_path / "raw/anna").rename(tmp_path / "raw" / unicodedata.normalize("NFD", composed))     # as on a Mac
    meta = prepare("own", tmp_path / "raw", tmp_path / "out", say=quiet)
    assert meta["subjects"][composed]["split"] == "test"


@pytest.mark.parametrize("changes,words", [
    (dict(name="usc-had"), "none of demo"), (dict(rate="fast"), "does not hold"), (dict(windw=5), "unexpected keyword argument 'windw'"),
    (dict(channels=None), "'channels' is missing"),
    (dict(channels=[OWN["channels"][0] | {"spoken": "rising edge"}]), "steady.*would be read as claims"),
    (dict(channels=[channel | {"column": "a"} for channel in OWN["channels"]]), "columns must not repeat"),
    (dict(channels=OWN["channels"] + [{"token": "extra", "spoken": "extra"}]), "0.npy holds .* expected .* 4"),
    (dict(classes=["waving"]), "'typing' is none of the classes"),
    (dict(val_subjects=[]), "at least one each"),
    (dict(test_subjects=["1"]), "the subject 1 names no folder with recordings; the folders are anna, ben"),
    (dict(test_subjects=["anna", "carl"], val_subjects=["ben", "dora"]), "no har_windows for train; .* or its subjects too few"),
    (dict(split="time"), "give either"), (dict(split="days", test_subjects=None, val_subjects=None), "recordings.* or .*time"),
    (dict(window=300), "no har_windows for train and val and test"),
    (dict(time={"column": "at", "unit": "min"}), "s, ms, us, ns"),
    (dict(label={"column": "x", "values": {"1": "waving"}}), "name each of the classes")], ids=str)
def test_what_dataset_json_cannot_mean_is_refused_at_preparation(tmp_path, changes, words):
    write_small_own(tmp_path / "raw", n_recordings=1, **changes)
    with pytest.raises(InputError, match=words):
        prepare("own", tmp_path / "raw", tmp_path / "out", say=quiet)
    assert not (tmp_path / "out").exists()
