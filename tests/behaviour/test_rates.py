"""data_prep.py --rate: what the filter keeps, windows that keep their seconds, what is refused."""
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import digest, quiet, run
from raw_files import OWN, UCI_SIGNALS, usc_had_path, write_small_own

from sensorllm_min.data.prepare import describe, make_job, prepare, strided_windows
from sensorllm_min.data.prepared import PreparedData
from sensorllm_min.data.recordings import READERS, resample
from sensorllm_min.data.sensors import DATASETS, at_rate, known_dataset
from sensorllm_min.files import InputError

# ---- the filter, through each reader ----

LOW = 1.5                                                         # Hz, which 10 Hz holds
STEP_UP = 100.0                                                   # between neighbouring recordings


def tones(n_samples, rate, offset=0.0, high=8.0):
    """(N, 6): a low tone and one that 10 Hz would show as 2 Hz, around a level of its own."""
    seconds = np.arange(n_samples)[:, None] / rate
    phases = np.arange(6)
    low = np.sin(2 * np.pi * LOW * seconds + phases)
    return offset + low + 0.5 * np.sin(2 * np.pi * high * seconds + phases)


def write_tones_usc_had(raw):
    import scipy.io
    for trial in (1, 2):
        path = usc_had_path(raw, 1, 1, trial)
        path.parent.mkdir(parents=True, exist_ok=True)
        scipy.io.savemat(path, {"sensor_readings": tones(600, 100, trial * STEP_UP)})


def write_tones_uci_har(raw):
    """Two recordings of one subject and activity, each in windows of 128 that overlap by half."""
    recordings = [tones(320, 50, trial * STEP_UP) for trial in (1, 2)]
    windows = np.stack([samples[start:start + 128] for samples in recordings
                        for start in range(0, 193, 64)])
    folder = raw / "train" / "Inertial Signals"
    folder.mkdir(parents=True)
    for channel, name in enumerate(UCI_SIGNALS):
        np.savetxt(folder / f"{name}_train.txt", windows[:, :, channel])
    for name in ("y_train.txt", "subject_train.txt"):
        np.savetxt(folder.parent / name, np.ones(len(windows)), fmt="%d")


@pytest.mark.parametrize("name,write", [("usc-had", write_tones_usc_had), ("uci-har", write_tones_uci_har)])
def test_each_recording_is_filtered_alone_to_the_new_rate(tmp_path, name, write):
    """The high tone is gone, the low one stays, and the level of the neighbour does not leak in."""
    write(tmp_path)
    dataset = make_job(name, tmp_path, rate=10).dataset
    reader = READERS[name]
    found = []
    for part, files in reader.files(tmp_path).items():
        recordings = reader.read(part, files, dataset, 0, Counter())
        found += [recording.samples for recording in recordings
                  if recording.activity == 0]
    assert len(found) == 2
    for trial, samples in enumerate(found, start=1):
        assert len(samples) in (60, 64)                           # 6 or 6.4 seconds at 10 Hz
        expected = tones(len(samples), 10, trial * STEP_UP, high=0.0)[:, :samples.shape[1]]
        expected -= 0.5 * np.sin(np.arange(samples.shape[1]))     # of the tone of 0 Hz
        error = np.abs(samples - expected)
        assert error[8:-8].max() < 0.02                           # the tones have 1 and 0.5
        assert error.max() < 2                                    # padding at the ends; not 100


def test_the_demo_at_another_rate_is_the_demo_filtered():
    _, dataset = at_rate("demo", DATASETS["demo"], 10)
    for subject in (1, 9):
        pairs = zip(READERS["demo"].read(subject, [], DATASETS["demo"], 3, Counter()),
                    READERS["demo"].read(subject, [], dataset, 3, Counter()), strict=True)
        for at_20, at_10 in pairs:
            assert at_20.source == at_10.source and len(at_10.samples) == 170
            np.testing.assert_array_equal(at_10.samples, resample(at_20.samples, 20, 10))


def test_a_rate_far_below_the_recordings_own_is_met_exactly():
    """From 44.1 kHz to 20 Hz is 1 to 2205; no fraction of small numbers is near it."""
    n_samples = 44_100 * 3
    ramp = np.arange(n_samples)[:, None] / 44_100
    samples = resample(ramp, 44_100, 20)
    assert samples.shape == (60, 1)
    np.testing.assert_allclose(samples[:, 0], np.arange(60) / 20, atol=1e-4)      # a line stays


# ---- windows ----

def test_windows_of_a_fraction_of_samples_start_at_the_nearest_one():
    """Of UCI-HAR, 128 samples every 64 at 50 Hz, at 20 Hz: 51.2 every 25.6."""
    assert strided_windows(51, 51.2, 25.6) == []
    assert strided_windows(52, 51.2, 25.6) == [0]
    assert strided_windows(77, 51.2, 25.6) == [0, 26]
    assert strided_windows(128, 51.2, 25.6) == [0, 26, 51, 77]
    assert strided_windows(140, 51.2, 25.6) == [0, 26, 51, 77, 89]            # flush with the end


@pytest.mark.parametrize("rate", [30, 20, 12.5])
def test_a_recording_gives_as_many_windows_at_any_rate(rate):
    """USC-HAD's windows of two seconds: at each rate as many, at the same times to half a sample.

    At 12.5 Hz the stride is 12.5 samples: what is left over at the end may be less than one.
    """
    _, dataset = at_rate("usc-had", DATASETS["usc-had"], rate)
    for n_samples in range(200, 900):
        before = strided_windows(n_samples, 200, 100)
        left_over = (n_samples - 200) % 100
        if left_over and rate == 12.5:
            continue
        n_resampled = -(-n_samples * rate // 100)
        after = strided_windows(int(n_resampled), dataset.window, dataset.stride)
        assert len(after) == len(before), n_samples
        if not left_over:
            np.testing.assert_allclose(np.array(after) / rate, np.array(before) / 100,
                                       atol=0.5 / rate)


@pytest.mark.parametrize("name,raw_rate,rate", [
    ("usc-had", 100, 7.5), ("uci-har", 50, 20), ("pamap2", 100, 30), ("capture24", 100, 0.5)])
def test_windows_keep_their_seconds(name, raw_rate, rate):
    own = DATASETS[name]
    called, dataset = at_rate(name, own, rate)
    assert called == f"{name}-{rate}hz"
    assert (dataset.rate, dataset.raw_rate) == (rate, raw_rate)
    assert dataset.window / rate == pytest.approx(own.window / own.rate)
    assert dataset.stride / rate == pytest.approx(own.stride / own.rate)
    assert abs(dataset.n_window - dataset.window) <= 0.5
    shortest, longest = dataset.align_lengths
    assert shortest == max(2, round(rate)) or shortest == dataset.n_window    # a second, or less
    assert longest == max(2, round(4 * rate))
    unchanged = ("channels", "classes", "test_subjects", "val_subjects", "share", "citation")
    assert all(getattr(dataset, field) == getattr(own, field) for field in unchanged)


# ---- the prepared dataset ----

def test_the_options_reach_the_dataset_whose_name_and_meta_json_tell_the_rate(tmp_path):
    """The same bytes as from a call; opened again, the dataset is the one that was prepared."""
    write_small_own(tmp_path / "raw")
    out = run("data_prep.py", "--dataset", "own", "--raw", "raw", "--rate", 12.5, "--smooth", 0.4,
              "--band", 0.1, "--workers", 1, cwd=tmp_path)
    folder = tmp_path / "data" / "gloves-12.5hz"
    changes = {"rate": 12.5, "smooth": 0.4, "band": 0.1}
    assert "look at a window with --show 0 --out data/gloves-12.5hz" in out
    data = PreparedData(folder)
    assert (data.name, data.meta["rate"]) == ("gloves-12.5hz", 12.5)
    assert data.meta["answer"] == "simple_trend" and data.meta["align_lengths"] == [12, 50]
    expected = make_job("own", tmp_path / "raw", **changes).dataset
    assert data.dataset == expected
    assert (expected.smooth, expected.band, expected.raw_rate) == (0.4, 0.1, OWN["rate"])
    prepare("own", tmp_path / "raw", tmp_path / "called", **changes, say=quiet)
    assert digest(folder) == digest(tmp_path / "called")
    usual = prepare("own", tmp_path / "raw", tmp_path / "usual", say=quiet)
    assert usual["dataset"] == "gloves" and usual["rate"] == 25
    assert data.meta["har_windows"] == usual["har_windows"]


@pytest.mark.parametrize("name", DATASETS)
def test_a_dataset_at_another_rate_is_known_again(name):
    table, at_10_hz, smoother = make_job(name, None), make_job(name, None, rate=10, smooth=0.5), make_job(name, None, smooth=0.5)
    assert table.dataset == DATASETS[name]                        # without options the paper's
    for job in (table, at_10_hz, smoother):
        row = json.loads(json.dumps(describe(job, {}, Counter(), Counter())))["row"]
        assert known_dataset(job.name, row, "meta.json") == job.dataset and (row is None) == (job is table)


@pytest.mark.parametrize("options,words", [
    (("--rate", 40), "--rate 40: the recordings of demo have 20 Hz .* give another rate"),
    (("--rate", 1), "their windows would hold 1.2 samples, 0.6 apart"),
    (("--rate", "fast"), "argument --rate: invalid"), (("--band", 1), "--band 1: .*below 1")])
def test_rates_and_bands_that_do_not_fit_are_refused_before_anything_is_written(
        tmp_path, options, words, monkeypatch, capsys):
    import data_prep
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["data_prep.py", *map(str, options)])
    with pytest.raises((InputError, SystemExit), match=words) as error:
        try:
            data_prep.main()
        except SystemExit as ended:                               # argparse
            assert ended.code == 2
            raise InputError(capsys.readouterr().err)
    assert not list(Path(tmp_path).iterdir()), error
