"""Levels: mean and scale of a series, which standardising takes away, as numbers for the model."""
import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import train_align
from helpers import quiet
from raw_files import write_small_own
from untrained import save_untrained, small_dataset

import train_align
import train_har
from sensorllm_min.batch import collate
from sensorllm_min.chronos_tokenizer import ChronosTokenizer
from sensorllm_min.cli import read_settings
from sensorllm_min.config import ChronosConfig
from sensorllm_min.data.examples import AlignExamples, HarExamples, PromptFormat
from sensorllm_min.data.prepare import prepare
from sensorllm_min.data.prepared import PreparedData
from sensorllm_min.evaluation.ask import prepared_window
from sensorllm_min.evaluation.interface import load_model
from sensorllm_min.training.checkpoint import load_checkpoint

# The usual mean and standard deviation of three channels.
USUAL = ((1.0, 2.0), (-5.0, 0.5), (0.0, 1.0))
N_LEVELS = 20


def levels_of(mean, scale, channel):
    """The twenty numbers of one series as the docstring says, in plain Python."""
    usual_mean, usual_scale = USUAL[channel]
    mean, scale = (mean - usual_mean) / usual_scale, scale / usual_scale
    numbers = []
    for level in (math.asinh(mean), math.log10(scale + 1e-4)):
        for wave in (math.sin, math.cos):
            numbers += [wave(2 * math.pi * level / length) for length in (1.5, 3, 6, 12, 24)]
    return numbers


@pytest.fixture(scope="module")
def chronos():
    return ChronosTokenizer(ChronosConfig(), levels=USUAL)


def features(chronos, *series):
    """Level features of series (mean, scale, channel)."""
    means, scales, channels = zip(*series)
    floats = [torch.tensor(values, dtype=torch.float64) for values in (means, scales)]
    return chronos.level_features(*floats, torch.tensor(channels))


# ---- by hand ----

def test_levels_are_sines_and_cosines_in_the_units_of_their_channel(chronos):
    series = [(1.0, 2.0, 0), (9.81, 0.3, 0), (9.81, 0.3, 1), (-7.0, 40.0, 2), (0.0, 0.0, 2)]
    found = features(chronos, *series)
    assert found.shape == (5, chronos.n_levels) == (5, N_LEVELS)
    expected = [levels_of(*one) for one in series]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)      # float64
    usual = found[0].reshape(2, 2, 5)                             # (mean and scale, waves, lengths)
    np.testing.assert_allclose(usual[0, 0], 0, atol=1e-12)        # asinh(0) is 0
    np.testing.assert_allclose(usual[0, 1], 1, atol=1e-12)


def test_levels_are_finite_whatever_a_series_holds(chronos):
    extremes = (0.0, 1e-30, 1e-8, 1.0, 1e9, 1e30)
    series = [(sign * mean, scale, channel) for sign in (1, -1) for mean in extremes
              for scale in extremes for channel in range(3)]
    found = features(chronos, *series)
    assert found.isfinite().all() and found.abs().max() <= 1
    samples = torch.tensor([[0.0] * 8, [1e9] * 8, [-7.7] * 8, [0, 1e9] * 4, [1e-9, 0] * 4],
                           dtype=torch.float64)
    for scaling in ("StanNormalizeUniformBins", "MeanScaleUniformBins"):
        tokenizer = ChronosTokenizer(ChronosConfig(), scaling, USUAL)
        _, _, mean, scale = tokenizer.encode(samples)
        assert tokenizer.level_features(mean, scale, torch.arange(5) % 3).isfinite().all()


def test_usual_units_are_those_of_the_channel_of_each_series(chronos):
    values = torch.tensor([[1.0, 3.0], [-5.0, -4.5], [2.0, 2.0]])
    scaled, scale = chronos.in_usual_units(values, torch.tensor([4.0, 1.0, 7.0]),
                                           torch.tensor([0, 1, 2]))
    assert scaled.tolist() == [[0, 1], [0, 1], [2, 2]] and scale.tolist() == [2, 2, 7]
    plain = ChronosTokenizer(ChronosConfig())
    assert plain.in_usual_units(values, 5.0, None) == (values, 5.0) and plain.n_levels == 0


# ---- what is usual: of the training subjects ----

@pytest.fixture
def own(tmp_path):
    """anna is for the test, ben for validation; the channel `who` is 3 for carl, 4 for dora."""
    write_small_own(tmp_path / "raw")
    prepare("own", tmp_path / "raw", tmp_path / "out", say=quiet)
    return tmp_path / "out"


def test_what_is_usual_comes_from_the_training_subjects_alone(own):
    data = PreparedData(own)
    samples = np.concatenate([np.load(own / "samples" / name) for name in ("carl.npy", "dora.npy")])
    expected = np.stack([samples.mean(0, dtype=float), samples.std(0, dtype=float)], 1)
    np.testing.assert_allclose(data.levels(), expected, rtol=1e-9)
    assert data.levels()[1] == (3.5, 0.5)
    data.fold = 1, 3                                              # carl is validated: ben and dora
    assert data.levels()[1] == (3.0, 1.0)


def test_a_channel_that_never_changes_keeps_its_unit_and_lost_samples_do_not_count(own):
    usual = PreparedData(own).levels()
    for name in ("carl", "dora"):
        samples = np.load(own / "samples" / f"{name}.npy")
        samples[:, 1] = 7
        extra = np.full((2, 3), [[np.nan, 0, 0], [0, 0, np.inf]], np.float32)
        np.save(own / "samples" / f"{name}.npy", np.concatenate([samples, extra]))
    levels = PreparedData(own).levels()
    assert levels[1] == (7, 1)
    np.testing.assert_allclose([levels[0], levels[2]], [usual[0], usual[2]], rtol=1e-9)


def test_a_long_recording_is_sampled_over_its_whole_length(own):
    long = np.zeros((45_000, 3), np.float32)
    long[:, 0] = np.arange(45_000)
    for name in ("carl", "dora"):
        np.save(own / "samples" / f"{name}.npy", long)
    mean, deviation = PreparedData(own).levels()[0]
    assert mean == pytest.approx(22_500, rel=1e-3)
    assert deviation == pytest.approx(45_000 / np.sqrt(12), rel=1e-3)


# ---- in the model ----

@pytest.fixture(scope="module")
def stage_2(demo, tmp_path_factory):
    """(a folder with data, stage 2 with levels in A, without in B, stage 1 with levels in C)."""
    folder = tmp_path_factory.mktemp("levels")
    small_dataset(demo, folder / "data")
    data = PreparedData(folder / "data")
    save_untrained(folder / "with", folder / "data", "har", text=())
    save_untrained(folder / "without", folder / "data", "har", text=(), levels=None)
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
    """The demo's Sitting and Lying do; without levels their features are the same, bit for bit."""
    _, data, loaded = stage_2
    window = np.resize([0.5, -0.25, 1.0, 0.75, -1.0, 0.0, 0.125], (24, 6))
    others = window + 2.0, window * 4.0
    without = encoded(loaded["without"], data, window, *others)
    assert torch.equal(without[0], without[1]) and torch.equal(without[0], without[2])
    with_levels = encoded(loaded["with"], data, window, *others)
    assert with_levels.shape[-1] == without.shape[-1] + N_LEVELS
    for other in with_levels[1:]:
        assert torch.equal(other[..., :-N_LEVELS], with_levels[0][..., :-N_LEVELS])
        assert (other - with_levels[0]).abs().amax((1, 2)).min() > 0.05       # in each channel


def test_each_step_of_a_series_carries_the_levels_of_its_channel(stage_2):
    _, data, loaded = stage_2
    model, _, _ = loaded["with"]
    window = np.random.default_rng(0).normal(size=(24, 6)) * 3 + np.arange(6)
    found = encoded(loaded["with"], data, window)[0, :, :, -N_LEVELS:]              # (C, S+1, 20)
    mean, scale = torch.tensor(window.mean(0)), torch.tensor(np.sqrt(window.var(0) + 1e-8))
    expected = model.chronos.level_features(mean, scale, torch.arange(6))
    np.testing.assert_allclose(found, expected[:, None].expand_as(found), atol=1e-6)  # float32
    assert model.chronos.levels.tolist() == torch.tensor(data.levels()).tolist()


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
    (_, with_levels, _), (model, without, _) = loaded["with"], loaded["without"]
    assert with_levels.levels == data.levels() and without.levels is None
    assert model.chronos.n_levels == 0


@pytest.mark.parametrize("given,expected", [
    ((), True), (("--encoder", "amazon/chronos-t5-tiny"), False), (("--encoder", "amazon/chronos-t5-tiny", "--levels"), True),
    (("--no-levels",), False)])
def test_levels_are_on_by_default_with_the_built_in_encoder_alone(monkeypatch, given, expected):
    """In both stages; the options of stage 2 are completed once stage 1's checkpoint is known."""
    monkeypatch.setattr(sys, "argv", ["train.py", *given])
    assert train_align.read_arguments().levels is expected
    assert train_har.complete(read_settings(train_har.HarSettings, ""), None).levels is expected
