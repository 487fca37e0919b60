"""Statistics of a series as numbers for the model, what standardising takes away among them."""
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import train_align
from helpers import quiet
from raw_files import write_small_own
from untrained import save_untrained, small_dataset

import train_har
from sensorllm_min.batch import Batch, collate
from sensorllm_min.cli import read_settings
from sensorllm_min.data.examples import AlignExamples, HarExamples, PromptFormat
from sensorllm_min.data.prepare import prepare
from sensorllm_min.data.prepared import PreparedData
from sensorllm_min.evaluation.ask import prepared_window
from sensorllm_min.evaluation.interface import load_model
from sensorllm_min.statistics import LIMIT, Statistics, count_statistics
from sensorllm_min.training.checkpoint import load_checkpoint


# ---- by hand ----

LAGS = 0, 1, 2, 4, 8                                              # of windows of 40 samples
N = count_statistics(6)                                           # of a channel of the demo


def numpy_statistics(window, edges=np.geomspace(1 / 80, 1 / 2, 9), lags=LAGS):
    """The statistics of a window (C, S) as their docstrings say; a spectrum is spread over half-way intervals."""
    rows = []
    for series in window:
        energy = np.abs(np.fft.rfft(series - series.mean())) ** 2 / len(series)
        limits = np.arange(len(energy) + 1) - 0.5                 # in cycles per series
        bands = []
        for low, high in zip(edges * len(series), edges[1:] * len(series)):
            shares = (np.minimum(limits[1:], high) - np.maximum(limits[:-1], low)).clip(0)
            bands.append((shares * energy)[1:].sum())
        quantiles = np.quantile(series, [0, 0.1, 0.25, 0.5, 0.75, 0.9, 1])
        sizes = [series.std(), np.abs(np.diff(series)).mean(), *bands]
        correlations = []
        for other in window:
            a, b = ((x - x.mean()) / (x.std() + 1e-3) for x in (series, other))
            correlations += [sum(a[i] * b[i + lag] for i in range(len(a) - lag)) / len(a) for lag in lags]
        rows.append([*np.arcsinh([series.mean(), *quantiles]), *np.log10(np.array(sizes) + 1e-4), *correlations])
    return np.array(rows)


def unscaled(n_channels, n_window=40):
    usual = np.broadcast_to([0.0, 1.0], (n_channels, 1 + count_statistics(n_channels), 2))
    return Statistics(usual, n_window)


def test_statistics_equal_numpy():
    """Of series of 2 samples up; of rest, which has no energy, as well."""
    rng = np.random.default_rng(0)
    for n_samples in (2, 3, 24, 41, 500):
        window = rng.normal(size=(5, n_samples)) * np.array([[1, 100, 1e-3, 0, 3]]).T
        window += np.array([[0, 9, 1, -7, 0]]).T
        found = unscaled(5).raw(torch.tensor(window)[None], torch.arange(5))[0]
        assert found.shape == (5, count_statistics(5)) and found.isfinite().all()
        np.testing.assert_allclose(found, numpy_statistics(window), rtol=0, atol=1e-9)      # float64 sums


def test_a_rhythm_is_in_the_band_of_its_frequency_whatever_the_length():
    statistics = unscaled(1)
    for n_samples in (40, 64, 80):
        waves = torch.sin(2 * torch.pi * 0.1 * torch.arange(n_samples, dtype=torch.float64))
        bands = statistics.raw(waves[None, None], torch.tensor([0]))[0, 0, 10:18]
        assert bands.argmax() == np.searchsorted(statistics.edges, 0.1) - 1
    assert statistics.lags == [*LAGS]


def batch_of(*windows, channels):
    """A Batch that holds nothing but windows (n, S) of different lengths, with as many channels each."""
    series = [torch.as_tensor(one) for window in windows for one in window]
    lengths = torch.tensor([len(one) for one in series])
    padded = torch.full((len(series), int(lengths.max())), float("nan"), dtype=torch.float64)
    for row, one in zip(padded, series):
        row[-len(one):] = one
    return Batch(None, None, None, padded, lengths, None, [*range(len(windows))], torch.tensor(channels))


def test_statistics_are_in_usual_units_of_their_channel_and_limited():
    """Twice: the samples in those of the channel, then each statistic in its own. Padding counts for nothing,
    and a channel that is asked about alone has no correlations but its own."""
    rng = np.random.default_rng(0)
    usual = rng.uniform(0.5, 2, size=(3, 1 + count_statistics(3), 2))
    windows = rng.normal(size=(1, 9)), rng.normal(size=(1, 5)) * 3, np.full((1, 2), 1e30)
    found = Statistics(usual, 40)(batch_of(*windows, channels=[2, 0, 1]))
    for window, channel, row in zip(windows, (2, 0, 1), found):
        (mean, deviation), of_statistics = usual[channel, 0], usual[channel, 1:]
        alone = numpy_statistics((window - mean) / deviation)[0]
        expected = np.full(count_statistics(3), np.nan)
        expected[:18], expected[18:].reshape(3, 5)[channel] = alone[:18], alone[18:]
        expected = (expected - of_statistics[:, 0]) / of_statistics[:, 1]
        np.testing.assert_allclose(row, np.nan_to_num(expected).clip(-LIMIT, LIMIT), rtol=0, atol=1e-9)
    assert found.isfinite().all() and found.abs().max() == LIMIT
    whole = rng.normal(size=(3, 12))
    together = Statistics(usual, 40)(batch_of(whole, channels=[0, 1, 2]))
    in_units = (whole - usual[:, 0, :1]) / usual[:, 0, 1:]
    expected = (numpy_statistics(in_units) - usual[:, 1:, 0]) / usual[:, 1:, 1]
    np.testing.assert_allclose(together, expected.clip(-LIMIT, LIMIT), rtol=0, atol=1e-9)


# ---- what is usual: of the training subjects ----

@pytest.fixture
def own(tmp_path):
    """anna is for the test, ben for validation; the channel `who` is 3 for carl, 4 for dora."""
    write_small_own(tmp_path / "raw")
    prepare("own", tmp_path / "raw", tmp_path / "out", say=quiet)
    return tmp_path / "out"


def test_what_is_usual_comes_from_the_training_subjects_alone(own):
    data = PreparedData(own)
    usual = np.array(data.usual())
    assert usual.shape == (3, 1 + count_statistics(3), 2)
    samples = np.concatenate([np.load(own / "samples" / name) for name in ("carl.npy", "dora.npy")]).astype(float)
    samples = np.sort(samples, 0)
    samples[0], samples[-1] = samples[1], samples[-2]             # a thousandth at each end, of fewer than a thousand
    np.testing.assert_allclose(usual[:, 0], np.stack([samples.mean(0), samples.std(0)], 1), rtol=1e-9)
    assert usual[1, 0].tolist() == [3.5, 0.5]
    records = data.records("har", "train")
    windows = [(data.window(record) - usual[:, 0, 0]) / usual[:, 0, 1] for record in records]
    size = data.dataset.n_window
    edges, lags = np.geomspace(0.5 / size, 0.5, 9), [round(size * lag / 40) for lag in LAGS]
    found = np.array([numpy_statistics(window.T, edges, lags) for window in windows])                # (W, C, n)
    found = np.sort(found, 0)
    found[0], found[-1] = found[1], found[-2]
    np.testing.assert_allclose(usual[:, 1:, 0], found.mean(0), rtol=0, atol=1e-6)      # windows are float32
    moving = usual[:, 1:, 1] != 1
    assert moving.any() and not moving.all()                      # `who` is constant within a person
    np.testing.assert_allclose(usual[:, 1:, 1][moving], found.std(0)[moving], rtol=1e-5)
    assert np.array(PreparedData(own, (0, 4)).usual())[1, 0].tolist() == [3.5, 0.5]    # anna, then ben
    assert np.array(PreparedData(own, (3, 4)).usual())[1, 0, 0] == 2.5                # dora, then anna


def test_a_channel_that_never_changes_keeps_its_unit_and_lost_or_absurd_samples_do_not_count(own):
    usual = np.array(PreparedData(own).usual())
    for name in ("carl", "dora"):
        samples = np.load(own / "samples" / f"{name}.npy")
        samples[:, 1] = 7
        extra = np.full((3, 3), [[np.nan, 0, 0], [0, 0, np.inf], [usual[0, 0, 0], 7, 1e30]], np.float32)
        np.save(own / "samples" / f"{name}.npy", np.concatenate([samples, extra]))
    found = np.array(PreparedData(own).usual())
    assert found[1, 0].tolist() == [7, 1]
    np.testing.assert_allclose(found[[0, 2], 0], usual[[0, 2], 0], atol=0.02 * usual[[0, 2], 0, 1].max())


# ---- in the model ----

@pytest.fixture(scope="module")
def stage_2(demo, tmp_path_factory):
    """(a folder with data, and models of stage 2 with statistics and without, and of stage 1)."""
    folder = tmp_path_factory.mktemp("statistics")
    small_dataset(demo, folder / "data")
    data = PreparedData(folder / "data")
    save_untrained(folder / "with", folder / "data", "har", text=())
    save_untrained(folder / "without", folder / "data", "har", text=(), usual=None)
    save_untrained(folder / "align", folder / "data", "align")
    loaded = {path.name: load_checkpoint(path / "best.safetensors")
              for path in (folder / "with", folder / "without", folder / "align")}
    return folder, data, loaded


def encoded(loaded, data, *windows):
    """Windows (S, C) -> the features that the projector gets, (windows, C, S+1, width)."""
    model, recipe, _ = loaded
    like = HarExamples(data, "train", PromptFormat.of(model, recipe))[0]
    examples = [replace(like, series=list(window.T)) for window in windows]
    batch = collate(examples, model.tokenizer.pad_id)
    with torch.no_grad():
        return model.encode(batch).unflatten(0, (len(windows), windows[0].shape[1], -1))


def test_windows_that_differ_by_offset_or_scale_alone_are_told_apart(stage_2):
    """The demo's Sitting and Lying do; without statistics their features are the same, bit for bit."""
    _, data, loaded = stage_2
    window = np.resize([0.5, -0.25, 1.0, 0.75, -1.0, 0.0, 0.125], (24, 6))
    others = window + 20.0, window * 4.0
    without = encoded(loaded["without"], data, window, *others)
    assert torch.equal(without[0], without[1]) and torch.equal(without[0], without[2])
    with_numbers = encoded(loaded["with"], data, window, *others)
    assert with_numbers.shape[-1] == without.shape[-1] + N
    for other in with_numbers[1:]:
        assert torch.equal(other[..., :-N], with_numbers[0][..., :-N])
        assert (other - with_numbers[0]).abs().amax((1, 2)).min() > 0.05       # in each channel


def test_each_step_of_a_series_carries_the_statistics_of_its_channel(stage_2):
    _, data, loaded = stage_2
    window = np.random.default_rng(0).normal(size=(24, 6)) * 3 + np.arange(6)
    found = encoded(loaded["with"], data, window)[0, :, :, -N:]          # (C, S+1, n)
    expected = Statistics(data.usual(), 24)(batch_of(window.T, channels=[*range(6)]))
    np.testing.assert_allclose(found, expected[:, None].expand_as(found), atol=1e-6)  # float32


def test_a_class_head_with_statistics_reads_each_channel_and_the_last_token(stage_2, monkeypatch):
    """The mean of what the LLM makes of each channel's <ts>; without statistics the last token alone, as in the paper."""
    _, data, loaded = stage_2
    for name, n_read in (("with", 7), ("without", 1)):
        model, recipe, _ = loaded[name]
        examples = HarExamples(data, "test", PromptFormat.of(model, recipe))
        batch = collate([examples[0], examples[1]], model.tokenizer.pad_id)
        with torch.no_grad():
            hidden = model.llm(model.embed(batch))
            rows = []
            for ids, mask, states in zip(batch.ids, batch.mask, hidden):
                channels = states[ids == model.sensor_id].unflatten(0, (6, -1)).mean(1)
                last = states[int(mask.sum()) - 1]
                rows.append(torch.cat([channels.flatten(), last]) if n_read == 7 else last)
            expected = torch.stack(rows) @ model.head.weight.T
            torch.testing.assert_close(model.class_logits(batch), expected, rtol=0, atol=1e-5)
        assert model.head.in_features == n_read * 128


def test_labels_are_smoothed_in_training_alone(stage_2):
    _, data, loaded = stage_2
    losses = {}
    for name in ("with", "without"):
        model, recipe, _ = loaded[name]
        batch = collate([HarExamples(data, "test", PromptFormat.of(model, recipe))[0]], model.tokenizer.pad_id)
        with torch.no_grad():
            losses[name] = [(model.train(training)(batch)[0] / model(batch)[1]).item() for training in (True, False)]
            log_p = model.class_logits(batch).log_softmax(-1)[0]
        model.eval()
        plain = -log_p[batch.labels[0]].item()
        smooth = 0.9 * plain - 0.1 * log_p.mean().item()
        assert losses[name] == pytest.approx([smooth if name == "with" else plain, plain], rel=1e-5)
        assert abs(smooth - plain) > 1e-3


def test_a_question_about_one_channel_carries_the_number_of_that_channel(stage_2):
    """In training, in evaluation and when it is asked: what is usual differs between channels."""
    folder, data, loaded = stage_2
    align, recipe, _ = loaded["align"]
    asked = {name: load_model(folder / name, None, None, "cpu", "float32") for name in ("align", "with")}
    examples = AlignExamples(data, "test", PromptFormat.of(align, recipe))
    tokens = [channel.token for channel in data.dataset.channels]
    drawn = [examples[i] for i in range(40)]
    chosen = {example.record["channel"]: example for example in drawn}
    batch = collate(list(chosen.values()), align.tokenizer.pad_id)
    assert batch.channels.tolist() == [tokens.index(token) for token in chosen]
    assert len(chosen) > 3
    for column, token in enumerate(tokens):
        window = prepared_window(data, "align", "test", 5, token)
        example = asked["align"].example(window.samples, window.dataset, window.title, "Why?")
        assert collate([example], 0).channels.tolist() == [column]
    whole = prepared_window(data, "har", "test", 5)
    example = asked["with"].example(whole.samples, whole.dataset, whole.title)
    assert collate([example], 0).channels.tolist() == list(range(6))


# ---- kept in the checkpoint ----

def test_the_checkpoint_keeps_them(stage_2):
    """Bit for bit, whatever the dataset holds by then."""
    _, data, loaded = stage_2
    assert loaded["with"][1].usual == data.usual() and loaded["without"][1].usual is None
    assert loaded["without"][0].chronos.statistics is None


@pytest.mark.parametrize("given,expected", [
    ((), True), (("--encoder", "amazon/chronos-t5-tiny"), False),
    (("--encoder", "amazon/chronos-t5-tiny", "--statistics"), True), (("--no-statistics",), False)])
def test_statistics_are_on_by_default_with_the_built_in_encoder_alone(monkeypatch, given, expected):
    """In both stages; the options of stage 2 are completed once stage 1's checkpoint is known."""
    monkeypatch.setattr(sys, "argv", ["train.py", *given])
    assert train_align.read_arguments().statistics is expected
    assert train_har.complete(read_settings(train_har.HarSettings, ""), None).statistics is expected
