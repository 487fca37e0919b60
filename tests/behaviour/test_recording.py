"""Recordings of any length, from a CSV: which windows, what is written, and the picture."""
import csv
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import json_lines
from untrained import evaluate_here, save_untrained, small_dataset

import sensorllm_min
from sensorllm_min.data.sensors import WRIST
from sensorllm_min.evaluation import recording
from sensorllm_min.evaluation.recording import Prediction, activities_at, bar_of

HEADER = ",".join(channel.token for channel in WRIST)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, demo):
    folder = tmp_path_factory.mktemp("recordings")
    save_untrained(folder / "out/har", small_dataset(demo, folder / "data/demo"), "har")
    return folder


@pytest.fixture
def evaluated(folder, monkeypatch, capsys):
    return partial(evaluate_here, monkeypatch, capsys, folder, "--checkpoint", "out/har")


@pytest.fixture(scope="module")
def samples(demo):
    """Two activities of a test subject, one after the other."""
    lines = [line for line in json_lines(demo / "recordings.jsonl") if line["subject"] == 9]
    stored = np.load(demo / "samples/9.npy")
    return np.concatenate([stored[line["start"]:line["start"] + 100] for line in (lines[0], lines[4])])


def write_rows(path, samples, seconds=None, labels=None):
    header, columns = [HEADER], [[",".join(map(str, row)) for row in samples.tolist()]]
    for name, values in (("time", seconds), ("label", labels)):
        if values is not None:
            header.append(name)
            columns.append(map(str, values))
    path.write_text("\n".join([",".join(header), *map(",".join, zip(*columns))]) + "\n")


def test_a_recording_gets_an_activity_for_each_window_and_a_picture(folder, evaluated, samples, monkeypatch):
    """The same as in Python; with a label column the true activities, as a second bar."""
    drawn, draw = [], recording.draw_recording
    monkeypatch.setattr(recording, "draw_recording", lambda *args: drawn.append(args[-1]) or draw(*args))
    write_rows(folder / "walk.csv", samples, labels=["Walking"] * 100 + [""] * 20 + ["Turning"] * 80)
    out = evaluated("--csv", "walk.csv")
    rows = list(csv.DictReader(open(folder / "walk.csv.predictions.csv")))
    found = sensorllm_min.load(folder / "out/har").classify(samples)
    assert len(rows) == len(found) == 16
    for row, one in zip(rows, found):
        assert row == {"start": f"{one.start:.3f}", "end": f"{one.end:.3f}", "activity": one.activity,
                       "probability": f"{one.probabilities[one.activity]:.4f}"}
    assert (folder / "walk.csv.predictions.png").read_bytes().startswith(b"\x89PNG")
    assert "200 samples at 20 Hz, 16 windows of 1.2 s" in out and "of the 9.0 labelled seconds" in out
    assert out.endswith("wrote walk.csv.predictions.csv, and drew walk.csv.predictions.png\n")
    (bars,) = drawn
    assert bars["true"] == [(0.0, 5.0, "Walking"), (6.0, 10.0, "Turning")] and list(bars) == ["predicted", "true"]
    assert (bars["predicted"][0][0], bars["predicted"][-1][1]) == (0.0, 10.0)


def test_times_of_a_recording_are_used_and_no_window_crosses_a_gap(folder, evaluated, samples, monkeypatch):
    """At twice the rate, with a short and a long gap: windows lie on the clock of the file."""
    drawn = []
    monkeypatch.setattr(recording, "draw_recording", lambda *args: drawn.append(args[-1]))
    seconds = np.arange(400) / 40
    seconds[200:] += 3
    keep = np.delete(np.arange(400), [60, 61])
    write_rows(folder / "gaps.csv", np.repeat(samples, 2, axis=0)[keep], [f"{s:.3f}" for s in seconds[keep]])
    out = evaluated("--csv", "gaps.csv")
    starts = [float(row["start"]) for row in csv.DictReader(open(folder / "gaps.csv.predictions.csv"))]
    assert starts == [round(x, 3) for x in [*np.arange(7) * 0.6, 3.8, *(8 + np.arange(7) * 0.6), 11.8]]
    assert "at 40 Hz, 16 windows" in out and list(drawn[0]) == ["predicted"]
    assert not any(start < 5 < end or start < 8 < end for start, end, _ in drawn[0]["predicted"])
    assert "files resampled from 40 Hz 1; samples interpolated 2\n" in out


def test_each_moment_has_the_activity_of_the_nearest_window():
    windows = [(0, 2, "a"), (1, 3, "a"), (2, 4, "b"), (2.5, 4.5, None), (9, 11, "b")]
    log = SimpleNamespace(seconds=np.arange(0, 12, 0.25), rate=4)
    activities = activities_at(log.seconds, [Prediction(*window, None) for window in windows])
    assert bar_of(activities, log) == [(0, 2.5, "a"), (2.5, 3.25, "b"), (3.25, 4.5, "no class"), (9, 11, "b")]
