"""Whatever a person hands in: the right value, or one line that names the file; never another column's numbers."""
import gzip
from collections import Counter

import numpy as np
import pytest
from helpers import quiet
from raw_files import own_table, write_capture24, write_mhealth, write_pamap2, write_small_own

from sensorllm_min.data.own import read_log
from sensorllm_min.data.prepare import prepare
from sensorllm_min.data.sensors import DATASETS
from sensorllm_min.files import InputError


def refused(work, *words):
    """work() ends in one short line with these words."""
    with pytest.raises(InputError) as error:
        work()
    line = str(error.value)
    assert "\n" not in line and len(line) < 600 and all(str(word) in line for word in words), line


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
    "decimal commas in quotes": (table_text([[f'"{value}"' for value in row] for row in PLAIN]).replace(".", ","), "row 1: x_acc is '0,25'"),
    "one ragged row": (table_text([*PLAIN[:3], PLAIN[3][:4], *PLAIN[4:]]), "line 5: 4 fields"),
    "a column twice": (table_text([[99, *row] for row in PLAIN], "x_acc," + HEADER), "twice the column x_acc"),
    "a word": (table_text(PLAIN).replace("12.25", "twelve"), "row 3: y_acc is 'twelve', not a number"),
    "an underscore": (table_text(PLAIN).replace("12.25", "1_2"), "row 3: y_acc is '1_2'"),
    "an open quote": (table_text(PLAIN) + '"1,2,3,4,5,6', "cannot be read as CSV"),
    "nothing": ("", "is empty"),
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
    (tmp_path / "my.csv").write_text(f"{HEADER}\n1,,3,NaN,null,6\n\n7,8,9,10, 11 ,-3e1\n")
    samples = read_log(tmp_path / "my.csv", DATASETS["demo"], Counter()).samples
    np.testing.assert_array_equal(samples, [[1, np.nan, 3, np.nan, np.nan, 6], [7, 8, 9, 10, 11, -30]])


@pytest.mark.parametrize("array", [own_table("anna").astype(complex), np.full((9, 3), "1"), np.zeros(9), np.zeros((9, 2))],
                         ids=["complex", "texts", "one dimension", "two columns"])
def test_arrays_that_are_no_samples_are_refused(tmp_path, array):
    write_small_own(tmp_path / "raw", n_recordings=1)
    path = tmp_path / "raw" / "anna" / "waving" / "0.npy"
    np.save(path, array)
    refused(lambda: prepare("own", tmp_path / "raw", tmp_path / "out", say=quiet), path)


# ---- recordings that are empty, short, or not read ----

def test_an_empty_recording_is_counted_and_the_rest_prepared(tmp_path):
    write_small_own(tmp_path / "raw")
    expected = prepare("own", tmp_path / "raw", tmp_path / "whole", say=quiet)["har_windows"]
    folder = tmp_path / "raw" / "anna" / "waving"
    (folder / "header.csv").write_text("ramp,who,bend\n")
    np.save(folder / "empty.npy", np.zeros((0, 3)))
    meta = prepare("own", tmp_path / "raw", tmp_path / "out", say=quiet)
    assert meta["lost_samples"] == {"recordings without a sample": 2} and meta["har_windows"] == expected
    write_capture24(tmp_path, 1, [(None, 300)])                   # a day without an annotation
    meta = prepare("capture24", tmp_path, tmp_path / "day", say=quiet)
    assert meta["lost_samples"] == {"recordings without a sample": 1} and sum(meta["har_windows"].values()) == 0


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
    assert said[0].endswith("since no .csv, .csv.gz or .npy in SUBJECT/ACTIVITY (3): anna/waving/deeper/seven.csv, "
                            "anna/waving/deeper/six.csv, anna/waving/four.txt"), said[0]


# ---- raw logs ----

LOGS = [("mhealth", "a row number", lambda fields: ["7", *fields], "has 25 columns in line 1, expected 24"),
        ("mhealth", "labels of 1.5", lambda fields: [*fields[:-1], "1.5"], "holds the activity 1.5, which is none of"),
        ("pamap2", "no heart rate", lambda fields: fields[:2] + fields[3:], "has 53 columns in line 1, expected 54"),
        ("pamap2", "blank for NaN", lambda fields: [field for field in fields if field != "NaN"], "columns in line"),
        ("pamap2", "labels of NaN", lambda fields: [fields[0], "NaN", *fields[2:]], "holds the activity nan")]


@pytest.mark.parametrize("name,kind,change,words", LOGS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_log_with_other_columns_or_labels_is_refused(tmp_path, name, kind, change, words):
    write, subject = {"mhealth": (write_mhealth, 1), "pamap2": (write_pamap2, 101)}[name]
    write(tmp_path, subject, [(1, 220)])
    [path] = [*tmp_path.rglob("*.log"), *tmp_path.rglob("*.dat")]
    lines = [" ".join(change(line.split())) for line in path.read_text().splitlines()]
    path.write_text("\n".join(lines))
    refused(lambda: prepare(name, tmp_path, tmp_path / "out", say=quiet), path, words)
    assert not (tmp_path / "out").exists()
