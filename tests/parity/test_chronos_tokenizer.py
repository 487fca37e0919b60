"""The Chronos tokenizer against recorded outputs of the original, the chronos-forecasting package, and plain numpy."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sensorllm_min.batch import Example, collate
from sensorllm_min.chronos_tokenizer import SCALINGS, ChronosTokenizer
from sensorllm_min.config import ChronosConfig

GOLDEN = json.loads((Path(__file__).parent / "golden_tokenizer.json").read_text())
ALL_CASES = ["normal", "normal_scaled", "constant_pos", "constant_neg", "zeros", "left_nan", "interior_nan", "all_nan",
             "len_512", "len_600", "len_1", "huge_1e30", "huge_1e200", "tiny_1e-30", "tiny_1e-5", "spike", "spike_neg",
             "empty"]


def written_out(values):
    """[5, [7, 3], None] -> [5, 7, 7, 7, nan]."""
    series = []
    for value in values:
        value, times = value if isinstance(value, list) else (value, 1)
        series += [float("nan") if value is None else value] * times
    return series


@pytest.fixture(scope="module")
def chronos():
    """The tokenizer of the chronos-forecasting package, which has mean scaling alone."""
    from chronos.chronos import ChronosConfig as TheirConfig
    return TheirConfig(
        tokenizer_class="MeanScaleUniformBins", tokenizer_kwargs={"low_limit": -15.0, "high_limit": 15.0},
        context_length=512, prediction_length=64, n_tokens=4096, n_special_tokens=2, pad_token_id=0, eos_token_id=1,
        use_eos_token=True, model_type="seq2seq", num_samples=20, temperature=1.0, top_k=50,
        top_p=1.0).create_tokenizer()


# ---- recorded outputs of the original ----

@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("recorded", GOLDEN["series"], ids=lambda recorded: recorded["case"])
def test_ids_mask_and_scale_equal_the_original(recorded, scaling):
    expected = recorded[scaling]
    samples = torch.tensor([written_out(recorded["samples"])], dtype=torch.float64)
    ids, mask, offset, scale = ChronosTokenizer(ChronosConfig(), scaling).encode(samples)
    assert ids[0].tolist() == written_out(expected["ids"])
    assert mask[0].tolist() == written_out(expected["mask"])
    # float64 sums of up to 200 samples, perhaps in another order
    assert offset.item() == pytest.approx(expected["offset"], rel=1e-12)
    assert scale.item() == pytest.approx(expected["scale"], rel=1e-12)


def test_a_value_on_a_boundary_goes_up():
    """The second sample brings the mean of |x| to 1 exactly, so that the first one meets the boundary unscaled."""
    tokenizer = ChronosTokenizer(ChronosConfig(), "MeanScaleUniformBins")
    recorded = [row for row in zip(*GOLDEN["boundaries"].values()) if abs(row[0]) < 2]
    assert len(recorded) >= 3
    for value, at_boundary, just_below in recorded:
        for sample, expected in ((value, at_boundary), (np.nextafter(value, -20), just_below)):
            ids, _, _, scale = tokenizer.encode(torch.tensor([[sample, 2 - abs(sample)]], dtype=torch.float64))
            assert scale == 1 and ids[0, 0] == expected


@pytest.mark.shared("golden")
def test_every_recorded_case_equals_the_original(shared):
    """All of them, batches and long series included; a series without a sample has NaN statistics there, 0 and 1 here."""
    golden = np.load(shared / "golden" / "A_tokenizers.npz")
    for scaling in SCALINGS:
        tokenizer = ChronosTokenizer(ChronosConfig(), scaling)
        names = {"MeanScaleUniformBins": ("none", "scale"), "StanNormalizeUniformBins": ("mean", "std")}[scaling]
        for case in ALL_CASES:
            samples = golden[f"in/{case}"]
            ids, mask, *statistics = tokenizer.encode(torch.tensor(samples))
            assert np.array_equal(ids, golden[f"ids/{scaling}/{case}"]), case
            assert np.array_equal(mask, golden[f"mask/{scaling}/{case}"]), case
            seen = (~np.isnan(samples)).any(1)
            for name, ours in zip(names, statistics):
                if name != "none":
                    theirs = golden[f"{name}/{scaling}/{case}"].ravel()
                    np.testing.assert_allclose(ours.numpy()[seen], theirs[seen], rtol=1e-12, err_msg=case)
        ids, _, offset, scale = tokenizer.encode(torch.tensor(golden["in/normal"]))
        theirs = golden[f"output_transform/{scaling}/normal"].ravel()
        ours = tokenizer.decode(ids[:, :-1], offset, scale).numpy().ravel()
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)        # centers are float32


# ---- the chronos-forecasting package ----

def test_bins_equal_those_of_the_chronos_package(chronos):
    for scaling in SCALINGS:
        tokenizer = ChronosTokenizer(ChronosConfig(), scaling)
        assert torch.equal(tokenizer.centers, chronos.centers)
        assert torch.equal(tokenizer.boundaries, chronos.boundaries)


def test_mean_scaling_equals_the_chronos_package(chronos):
    """On their own kind of input: a list of series of unequal length, NaN inside, beyond the context."""
    from chronos.utils import left_pad_and_stack_1D
    generator = torch.Generator().manual_seed(0)
    series = [torch.randn(n, generator=generator) * 10 ** (n % 5) for n in (1, 7, 100, 511, 512, 700)]
    series[2][[3, 50]] = float("nan")
    series[3][:] = 0
    examples = [Example([1], [], [one.numpy()], 0, {}) for one in series]
    stacked = collate(examples, 0).series.float()
    torch.testing.assert_close(stacked, left_pad_and_stack_1D(series), equal_nan=True, rtol=0, atol=0)

    ids, mask, scale = chronos.context_input_transform(stacked)
    tokenizer = ChronosTokenizer(ChronosConfig(), "MeanScaleUniformBins")
    our_ids, our_mask, offset, our_scale = tokenizer.encode(stacked)
    assert torch.equal(our_ids, ids) and torch.equal(our_mask, mask)
    torch.testing.assert_close(our_scale, scale, rtol=1e-6, atol=0)           # float32 sums of up to 512 samples
    back = chronos.output_transform(ids[:, None, :-1], scale)[:, 0]
    torch.testing.assert_close(tokenizer.decode(our_ids[:, :-1], offset, our_scale), back)


# ---- plain numpy ----

def numpy_statistics(series, scaling):
    """(offset, scale) of one series as the formulas say."""
    series = series[-512:]
    seen = series[~np.isnan(series)]
    if scaling == "MeanScaleUniformBins":
        mean_abs = np.abs(seen).mean() if len(seen) else 0
        return 0, mean_abs if mean_abs > 0 else 1
    if not len(seen):
        return 0, 1
    mean = seen.mean()
    return mean, np.sqrt(((seen - mean) ** 2).mean() + 1e-8)                  # population variance


@pytest.mark.parametrize("scaling", SCALINGS)
def test_both_scalings_equal_numpy(chronos, scaling):
    """Offset, small spread, gaps, more samples than the context holds, none at all: one batch, each row for itself."""
    rng = np.random.default_rng(0)
    batch = rng.normal(size=(6, 600))
    batch[0] += 7
    batch[1] = 9.81 + 1e-5 * batch[1]                                         # a resting sensor: the 1e-8 counts
    batch[2, rng.random(600) < 0.2] = np.nan
    batch[3, :-40] = np.nan
    batch[4] = np.nan
    batch[5, :88] = 1e6                                                       # beyond the context: must not count
    ids, mask, offset, scale = ChronosTokenizer(ChronosConfig(), scaling).encode(torch.tensor(batch))
    expected = np.array([numpy_statistics(series, scaling) for series in batch])
    np.testing.assert_allclose(np.stack([offset, scale], 1), expected, rtol=1e-12, atol=1e-12)
    scaled = (batch[:, -512:] - offset.numpy()[:, None]) / scale.numpy()[:, None]
    bins = np.searchsorted(chronos.boundaries.double().numpy(), scaled, side="right") + 2
    observed = ~np.isnan(batch[:, -512:])
    np.testing.assert_array_equal(ids[:, :-1], np.where(observed, bins, 0))
    np.testing.assert_array_equal(mask[:, :-1], observed)
    assert (ids[:, -1] == 1).all() and mask[:, -1].all()                      # the end of the series


@pytest.mark.parametrize("scaling", SCALINGS)
def test_infinite_samples_stay_inside_the_vocabulary(scaling):
    samples = torch.tensor([[0.5, float("inf"), -1.0], [0.5, -float("inf"), -1.0]], dtype=torch.float64)
    ids, _, _, _ = ChronosTokenizer(ChronosConfig(), scaling).encode(samples)
    assert ids.max() < 4096 and ids.min() >= 0


def test_special_ids_and_limits_come_from_the_config():
    """Another checkpoint: other limits, number of bins, special ids and context."""
    config = ChronosConfig(-2.0, 2.0, n_tokens=14, n_special_tokens=3, pad_id=2, eos_id=0, context_length=4)
    tokenizer = ChronosTokenizer(config, "MeanScaleUniformBins")
    assert tokenizer.centers.tolist() == pytest.approx(np.linspace(-2, 2, 10), abs=1e-6)
    samples = torch.tensor([[50.0, -1.0, float("nan"), 0.6, 1.4]], dtype=torch.float64)
    ids, mask, _, scale = tokenizer.encode(samples)
    assert scale.item() == 1                                                  # the first sample is beyond the context
    bins = [3, None, 7, 9]                # bins counted from 1 lie around -2, -1.56, -1.11, ...: worked out by hand
    assert ids[0].tolist() == [2 if one is None else one + 3 for one in bins] + [0]
    assert mask[0].tolist() == [True, False, True, True, True]


@pytest.mark.parametrize("scaling", SCALINGS)
def test_decoding_is_exact_to_half_a_bin(scaling):
    samples = torch.randn(5, 200, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 3 + 1
    tokenizer = ChronosTokenizer(ChronosConfig(), scaling)
    ids, _, offset, scale = tokenizer.encode(samples)
    half_bin = 30 / 4092 / 2
    error = (tokenizer.decode(ids[:, :-1], offset, scale) - samples).abs() / scale[:, None]
    assert error.max() < half_bin * 1.001                                     # centers are float32
    assert error.max() > half_bin * 0.9                                       # and no better: the bins are that wide
