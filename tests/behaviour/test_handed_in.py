"""Whatever a person hands in: the right value, or one line that names the file; never another column's numbers."""
import gzip
import json
import shutil
from collections import Counter

import numpy as np
import pytest
import scipy.io
import scipy.sparse
from helpers import quiet
from raw_files import (labels_of, own_table, usc_had_path, write_capture24, write_mhealth, write_pamap2, write_small_own,
                       write_uci_har, write_usc_had)

from sensorllm_min.data.prepare import prepare
from sensorllm_min.data.prepared import PreparedData
from sensorllm_min.data.logs import cut_log, put_on_grid, resample
from sensorllm_min.data.sensors import DATASETS
from sensorllm_min.data.own import read_log
from sensorllm_min.data.tables import read_csv
from sensorllm_min.files import InputError


def refused(work, *words):
    """work() ends in one short line with these words -> the line."""
    with pytest.raises(InputError) as error:
        work()
    line = str(error.value)
    assert "\n" not in line and len(line) < 600 and all(str(word) in line for word in words), line
    return line


# ---- tables with names: --csv and own recordings ----

HEADER = "x_acc,y_acc,z_acc,x_gyro,y_gyro,z_gyro"
PLAIN = [[channel * 10 + i + 0.25 for channel in range(6)] for i in range(24)]


def table_text(rows, header=HEADER, end=""):
    return "\n".join([header, *(",".join(map(str, row)) + end for row in rows)]) + "\n"


def with_row_numbers(rows):
    return [[40 * i, *row] for i, row in enumerate(rows)]


GOOD = {
    "plain": table_text(PLAIN),
    "a trailing comma": table_text(PLAIN, end=","),
    "a trailing comma in the header, too": table_text(PLAIN, HEADER + ",", ","),
    "row numbers under an empty name": table_text(with_row_numbers(PLAIN), "," + HEADER),
    "another order, a column too many": table_text([row[::-1] + ["x"] for row in PLAIN],
                                                   ",".join(HEADER.split(",")[::-1]) + ",comment"),
    "a byte order mark, blank lines, spaces": "\ufeff" + table_text(PLAIN, HEADER.replace(",", " , ")).replace("\n", "\r\n\r\n"),
    "the unused column twice": table_text([[*row, 9, 9] for row in PLAIN], HEADER + ",note,note"),
}
BAD = {
    "row numbers": (table_text(with_row_numbers(PLAIN)), "line 2: 7 fields, the header has 6"),
    "an unnamed last column": (table_text([[*row, 0.5] for row in PLAIN]), "line 2: 7 fields"),
    "decimal commas": (table_text(PLAIN).replace(".25", ",25"), "line 2: 12 fields"),
    "decimal commas in quotes": (table_text([[f'"{value}"' for value in row] for row in PLAIN]).replace(".", ","), "line 2"),
    "one ragged row": (table_text([*PLAIN[:3], PLAIN[3][:4], *PLAIN[4:]]), "line 5: 4 fields"),
    "a column twice": (table_text([[99, *row] for row in PLAIN], "x_acc," + HEADER), "twice the column x_acc"),
    "a word": (table_text(PLAIN).replace("12.25", "twelve"), "line 4"),
    "an underscore": (table_text(PLAIN).replace("12.25", "1_2"), "line 4"),
    "an open quote": (table_text(PLAIN) + '"1,2,3,4,5,6', "cannot be read as CSV"),
    "nothing": ("", "cannot be read as CSV"),
    "another text encoding": ("\xff\xfe", "cannot be read as CSV"),
    "no such column": (table_text(PLAIN).replace("y_gyro", "gyro_y"), "no column y_gyro"),
}


@pytest.mark.parametrize("text", GOOD.values(), ids=GOOD)
def test_columns_are_read_by_their_names(tmp_path, text):
    (tmp_path / "my.csv").write_text(text, encoding="utf-8")
    np.testing.assert_array_equal(read_log(tmp_path / "my.csv", DATASETS["demo"], Counter()).samples, PLAIN)


@pytest.mark.parametrize("text,words", BAD.values(), ids=BAD)
def test_a_table_that_cannot_be_matched_with_its_header_is_refused(tmp_path, text, words):
    """In a question and as a recording alike."""
    path = tmp_path / "raw" / "anna" / "waving" / "0.csv"
    channels = [{"token": token, "spoken": token.replace("_", " "), "unit": "g"} for token in HEADER.split(",")]
    write_small_own(tmp_path / "raw", n_recordings=0, channels=channels, split="time", test_subjects=None, val_subjects=None)
    path.write_text(text, encoding="latin-1" if "\xff" in text else "utf-8")
    refused(lambda: read_log(path, DATASETS["demo"], Counter()), path, words)
    refused(lambda: prepare("own", tmp_path / "raw", tmp_path / "out", say=quiet), path, words)


def test_missing_values_of_a_table_are_missing_samples(tmp_path):
    (tmp_path / "my.csv").write_text("a,b\n1,\n,2\nNaN,null\n\n-3e1,4\n")
    samples, lines, _ = read_csv(tmp_path / "my.csv", ["b", "a"])
    np.testing.assert_array_equal(samples, [[np.nan, 1], [2, np.nan], [np.nan, np.nan], [4, -30]])
    assert lines.tolist() == [2, 3, 4, 6]


NO_SAMPLES = {
    "complex": own_table("anna").astype(complex), "dates": np.zeros((9, 3), "M8[s]"), "texts": np.full((9, 3), "1"),
    "records": np.zeros(9, [("a", float), ("b", float), ("c", float)]), "one dimension": np.zeros(9),
    "three dimensions": np.zeros((3, 3, 3)), "two columns": np.zeros((9, 2))}


@pytest.mark.parametrize("array", NO_SAMPLES.values(), ids=NO_SAMPLES)
def test_arrays_that_are_no_samples_are_refused(tmp_path, demo, array):
    write_small_own(tmp_path / "raw", n_recordings=1)
    path = tmp_path / "raw" / "anna" / "waving" / "0.npy"
    np.save(path, array)
    refused(lambda: prepare("own", tmp_path / "raw", tmp_path / "out", say=quiet), path)
    (tmp_path / "demo" / "samples").mkdir(parents=True)                       # the same where prepared samples are
    for file in demo.glob("*.json*"):
        shutil.copy(file, tmp_path / "demo")
    np.save(tmp_path / "demo" / "samples" / "9.npy", array)
    data = PreparedData(tmp_path / "demo")
    refused(lambda: data.window(data.records("har", "test")[0]), "9.npy")


@pytest.mark.parametrize("change", [lambda s: s[:, :5], lambda s: s.astype(np.float64), lambda s: s.view(np.int32), lambda s: s.T])
def test_prepared_samples_of_another_kind_are_refused(tmp_path, demo, change):
    shutil.copytree(demo, tmp_path / "demo")
    data = PreparedData(tmp_path / "demo")
    np.save(tmp_path / "demo" / "samples" / "9.npy", change(np.load(demo / "samples" / "9.npy")))
    refused(lambda: data.window(data.records("har", "test")[0]), "9.npy")


RECORDS = [{"start": -3}, {"start": 1.5}, {"length": 10**9}, {"length": 0}, {"subject": "../9"}, {"label": 5}, {"label": 1.0},
           {"label": None}, {"start": None}, {"length": True}]


@pytest.mark.parametrize("change", RECORDS, ids=str)
def test_prepared_records_out_of_range_are_refused(tmp_path, demo, change):
    shutil.copytree(demo, tmp_path / "demo")
    path = tmp_path / "demo" / "har_test.jsonl"
    first, *lines = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps(json.loads(first) | change), *lines]) + "\n")
    refused(lambda: PreparedData(tmp_path / "demo").records("har", "test")[0], path, "line 1")


# ---- recordings that are empty, short, or not read ----

def test_an_empty_recording_is_counted_and_the_rest_prepared(tmp_path):
    write_small_own(tmp_path / "raw")
    expected = prepare("own", tmp_path / "raw", tmp_path / "whole", say=quiet)["har_windows"]
    folder = tmp_path / "raw" / "anna" / "waving"
    (folder / "header.csv").write_text("ramp,who,bend\n")
    np.save(folder / "empty.npy", np.zeros((0, 3)))
    meta = prepare("own", tmp_path / "raw", tmp_path / "out", say=quiet)
    assert meta["lost_samples"] == {"recordings without a sample": 2} and meta["har_windows"] == expected


def test_a_participant_without_an_annotation_gives_no_window(tmp_path):
    write_capture24(tmp_path, 1, [(None, 300)])
    meta = prepare("capture24", tmp_path, tmp_path / "out", say=quiet)
    assert meta["lost_samples"] == {"recordings without a sample": 1} and sum(meta["har_windows"].values()) == 0


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_few_samples_stay_finite_when_the_rate_is_halved(n):
    assert np.isfinite(resample(np.full((n, 2), 3.0), 100, 50)).all()


def test_files_that_are_not_read_are_named(tmp_path):
    write_small_own(tmp_path / "raw", n_recordings=1)
    folder = tmp_path / "raw" / "anna" / "waving"
    (folder / "TWO.CSV").write_text("ramp,who,bend\n" + "1,1,1\n" * 60)
    (folder / "three.csv.gz").write_bytes(gzip.compress(b"ramp,who,bend\n" + b"1,1,1\n" * 70))
    (folder / "short.csv").write_text("ramp,who,bend\n1,1,1\n")
    for name in ("four.txt", "._five.csv", ".DS_Store", "Thumbs.db", "deeper/six.csv", "deeper/seven.csv"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"\x00")
    said = []
    meta = prepare("own", tmp_path / "raw", tmp_path / "out", say=said.append)
    assert meta["subjects"]["anna"]["samples"] == 2 * 230 + 60 + 70 + 1
    assert meta["lost_samples"] == {"files too short for a window": 1}
    assert said[0].endswith(
        "2 files not in SUBJECT/ACTIVITY (anna/waving/deeper/seven.csv, anna/waving/deeper/six.csv); "
        "1 file of another kind than .csv, .csv.gz, .npy (anna/waving/four.txt)"), said[0]


# ---- raw logs ----

def rewrite(path, change):
    """Changes the fields of each line of a log."""
    lines = [change(line.split()) for line in path.read_text().splitlines()]
    path.write_text("".join(" ".join(fields) + "\n" for fields in lines))


LOGS = {
    "a row number": (lambda fields: ["7", *fields], "columns in line 1, expected"),
    "a column too few": (lambda fields: fields[:2] + fields[3:], "columns in line 1, expected"),
    "blank for NaN": (lambda fields: [field for field in fields if field != "NaN"], "columns in line"),
    "labels of 1.5": (None, "labels other than 0 to"),
    "labels of 1e9": (None, "labels other than 0 to"),
    "labels of NaN": (None, "labels other than 0 to"),
}


@pytest.mark.parametrize("name,kind", [(name, kind) for name in ("mhealth", "pamap2") for kind in LOGS
                                       if (name, kind) != ("mhealth", "blank for NaN")])
def test_a_log_with_other_columns_or_labels_is_refused(tmp_path, name, kind):
    change, words = LOGS[kind]
    place = 23 if name == "mhealth" else 1
    if change is None:
        label = kind.removeprefix("labels of ")
        change = lambda fields: [*fields[:place], label, *fields[place + 1:]]             # noqa: E731
    if name == "mhealth":
        write_mhealth(tmp_path, 1, [(1, 120)])
        path = tmp_path / "mHealth_subject1.log"
    else:
        write_pamap2(tmp_path, 101, [(1, 220)])
        path = tmp_path / "PAMAP2_Dataset" / "Protocol" / "subject101.dat"
    rewrite(path, change)
    refused(lambda: prepare(name, tmp_path, tmp_path / "out", say=quiet), path, words)
    assert not (tmp_path / "out").exists()


def test_one_line_of_other_columns_within_a_log_is_refused(tmp_path):
    write_mhealth(tmp_path, 1, [(1, 120)])
    path = tmp_path / "mHealth_subject1.log"
    lines = path.read_text().splitlines()
    for fields in (lines[60].split()[1:], [*lines[60].split(), "1"]):
        path.write_text("\n".join([*lines[:60], "\t".join(fields), *lines[61:]]) + "\n")
        refused(lambda: prepare("mhealth", tmp_path, tmp_path / "out", say=quiet), path, "in line 61, expected 24")


def test_the_optional_activities_of_pamap2_are_no_class_and_no_mistake(tmp_path):
    write_pamap2(tmp_path, 101, [(0, 50), (1, 220), (9, 100), (20, 100)])
    meta = prepare("pamap2", tmp_path, tmp_path / "out", say=quiet)
    assert {name for name, count in meta["class_balance"]["train"].items() if count} == {"lying"}


@pytest.mark.parametrize("file,change,words", [
    ("Inertial Signals/total_acc_x_train.txt", lambda fields: fields[:-1], "127 columns in line 1, expected 128"),
    ("Inertial Signals/body_gyro_z_train.txt", lambda fields: [*fields, "0"], "129 columns"),
    ("subject_train.txt", lambda fields: ["NaN"], "subjects other than 1 to 30: nan"),
    ("subject_train.txt", lambda fields: ["1.5"], "subjects other than"),
    ("y_train.txt", lambda fields: ["1", "1"], "2 columns"),
    ("y_train.txt", lambda fields: ["2.5"], "activities other than 1 to 6: 2.5")])
def test_uci_har_files_of_other_widths_or_numbers_are_refused(tmp_path, file, change, words):
    write_uci_har(tmp_path, "train", [(1, 1, 256), (5, 2, 256)])
    path = tmp_path / "UCI HAR Dataset" / "train" / file
    rewrite(path, change)
    refused(lambda: prepare("uci-har", tmp_path, tmp_path / "out", say=quiet), path, words)


@pytest.mark.parametrize("content", [
    np.array([[np.zeros((300, 6))]], dtype=object), scipy.sparse.csc_matrix(np.ones((300, 6))), np.ones((300, 6), complex),
    "three hundred", np.zeros((300, 6, 1))], ids=["cells", "sparse", "complex", "text", "three dimensions"])
def test_mat_files_of_other_content_are_refused(tmp_path, content):
    write_usc_had(tmp_path, 1, {(1, 1): 300})
    path = usc_had_path(tmp_path, 1, 1, 1)
    scipy.io.savemat(path, {"sensor_readings": content})
    refused(lambda: prepare("usc-had", tmp_path, tmp_path / "out", say=quiet), path)


def test_capture24_lines_of_more_fields_than_the_header_are_refused(tmp_path):
    write_capture24(tmp_path, 1, [("7030 sleeping;MET 0.95", 300)])
    path = tmp_path / "P001.csv.gz"
    header, *lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    for changed in ([f"{i},{line}" for i, line in enumerate(lines)], [*lines[:9], lines[9] + ",1", *lines[10:]]):
        path.write_bytes(gzip.compress("\n".join([header, *changed]).encode()))
        refused(lambda: prepare("capture24", tmp_path, tmp_path / "out", say=quiet), path)


def test_a_clock_that_stands_still_is_refused_and_one_that_goes_back_ends_a_recording():
    samples, labels = np.zeros((50, 1)), labels_of([(0, 50)])
    for seconds in (np.full(50, 7.0), np.append(np.arange(49) / 100, np.nan)):
        with pytest.raises(ValueError, match="time stamp"):
            put_on_grid(samples, labels, seconds, 100, Counter())
    seconds = np.concatenate([np.arange(30), np.arange(20)]) / 100
    samples, labels = put_on_grid(samples, labels, seconds, 100, Counter())
    found = list(cut_log(1, samples, labels, DATASETS["demo"], "x", Counter()))
    assert [len(recording.samples) for recording in found] == [30, 20]


@pytest.mark.parametrize("changes", [
    {"classes": "waving"}, {"rate": float("nan")}, {"window": 12.5}, {"window": True}, {"classes": ["waving", "typ\ning"]},
    {"channels": [{"token": 1, "spoken": "x", "unit": "g"}]}, {"channels": {"token": "a"}}, {"align_lengths": [5]},
    {"citation": ["C"]}, {"share": "all"}, {"test_subjects": "anna"}, {"name": 7}], ids=str)
def test_values_of_dataset_json_of_another_type_are_refused(tmp_path, changes):
    write_small_own(tmp_path, n_recordings=1, **changes)
    refused(lambda: prepare("own", tmp_path, tmp_path / "out", say=quiet), tmp_path / "dataset.json")


def test_deeply_nested_json_is_refused(tmp_path):
    write_small_own(tmp_path, n_recordings=1)
    (tmp_path / "dataset.json").write_text("[" * 100_000)
    refused(lambda: prepare("own", tmp_path, tmp_path / "out", say=quiet), tmp_path / "dataset.json", "not valid JSON")
