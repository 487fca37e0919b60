"""data_prep.py --rate: what the filter keeps, windows that keep their seconds, what is refused."""
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from raw_files import UCI_SIGNALS, usc_had_path

from sensorllm_min.data.prepare import describe, make_job, strided_windows
from sensorllm_min.data.recordings import READERS, resample
from sensorllm_min.data.sensors import DATASETS, DatasetInfo, at_rate
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
    dataset, reader = make_job(name, tmp_path, rate=10).dataset, READERS[name]
    [(part, files)] = reader.files(tmp_path).items()
    found = [recording.samples for recording in reader.read(part, files, dataset, 0, Counter())]
    assert len(found) == 2
    for trial, samples in enumerate(found, start=1):
        assert len(samples) in (60, 64)                           # 6 or 6.4 seconds at 10 Hz
        expected = tones(len(samples), 10, trial * STEP_UP, high=0.0)[:, :samples.shape[1]]
        expected -= 0.5 * np.sin(np.arange(samples.shape[1]))     # of the tone of 0 Hz
        error = np.abs(samples - expected)
        assert error[8:-8].max() < 0.02                           # the tones have 1 and 0.5
        assert error.max() < 2                                    # padding at the ends; not 100


def test_a_rate_far_below_the_recordings_own_is_met_exactly():
    """From 44.1 kHz to 20 Hz is 1 to 2205; no fraction of small numbers is near it."""
    n_samples = 44_100 * 3
    ramp = np.arange(n_samples)[:, None] / 44_100
    samples = resample(ramp, 44_100, 20)
    assert samples.shape == (60, 1)
    np.testing.assert_allclose(samples[:, 0], np.arange(60) / 20, atol=1e-4)      # a line stays


# ---- windows ----

def test_windows_of_a_fraction_of_samples_start_at_the_nearest_one():
    """UCI-HAR's windows at 20 Hz; then USC-HAD's, of which each rate holds as many at the same times to half a sample."""
    assert strided_windows(51, 51.2, 25.6) == []
    assert strided_windows(52, 51.2, 25.6) == [0]
    assert strided_windows(77, 51.2, 25.6) == [0, 26]
    assert strided_windows(128, 51.2, 25.6) == [0, 26, 51, 77]
    assert strided_windows(140, 51.2, 25.6) == [0, 26, 51, 77, 89]            # flush with the end
    for rate in (30, 20):
        _, dataset = at_rate("usc-had", DATASETS["usc-had"], rate)
        for n_samples in range(200, 900):
            before = strided_windows(n_samples, 200, 100)
            after = strided_windows(-(-n_samples * rate // 100), dataset.window, dataset.stride)
            assert len(after) == len(before), n_samples
            if n_samples % 100 == 0:
                np.testing.assert_allclose(np.array(after) / rate, np.array(before) / 100, atol=0.5 / rate)


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
    assert dataset.align_lengths == (min(max(2, round(rate)), dataset.n_window), max(2, round(4 * rate)))    # 1 to 4 seconds
    assert dataset.channels == own.channels and dataset.test_subjects == own.test_subjects and dataset.share == own.share


@pytest.mark.parametrize("name", DATASETS)
def test_a_dataset_at_another_rate_is_known_again(name):
    table, at_10_hz, smoother = make_job(name, None), make_job(name, None, rate=10, smooth=0.5), make_job(name, None, smooth=0.5)
    assert table.dataset == DATASETS[name]                        # without options the paper's
    for job in (table, at_10_hz, smoother):
        row = json.loads(json.dumps(describe(job, {}, Counter(), Counter())))["row"]
        assert DatasetInfo.from_json(row) == job.dataset


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
