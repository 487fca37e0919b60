"""The Chronos tokenizer against the chronos-forecasting package and against recorded outputs of the original."""
import numpy as np
import pytest
import torch

from sensorllm_min.chronos_tokenizer import SCALINGS, ChronosTokenizer, pad_left
from sensorllm_min.config import ChronosConfig

CASES = ["normal", "normal_scaled", "constant_pos", "constant_neg", "zeros", "left_nan", "interior_nan", "all_nan",
         "len_512", "len_600", "len_1", "huge_1e30", "huge_1e200", "tiny_1e-30", "tiny_1e-5", "spike", "spike_neg", "empty"]


@pytest.fixture(scope="module")
def golden(shared):
    return np.load(shared / "golden" / "A_tokenizers.npz")


@pytest.mark.shared("golden")
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("case", CASES)
def test_ids_equal_the_original(golden, scaling, case):
    ids, mask, offset, scale = ChronosTokenizer(ChronosConfig(), scaling).encode(torch.tensor(golden[f"in/{case}"]))
    assert np.array_equal(ids, golden[f"ids/{scaling}/{case}"])
    assert np.array_equal(mask, golden[f"mask/{scaling}/{case}"])
    seen = ~np.isnan(golden[f"in/{case}"]).all(1) & (golden[f"in/{case}"].shape[1] > 0)
    names = ("scale",) if scaling == "MeanScaleUniformBins" else ("mean", "std")
    for name, ours in zip(names, (scale,) if len(names) == 1 else (offset, scale)):
        np.testing.assert_allclose(ours.numpy()[seen], golden[f"{name}/{scaling}/{case}"].ravel()[seen], rtol=1e-12)


@pytest.mark.shared("golden")
def test_bins_equal_the_original(golden):
    for scaling in SCALINGS:
        tokenizer = ChronosTokenizer(ChronosConfig(), scaling)
        assert np.array_equal(tokenizer.centers, golden["centers"])
        assert np.array_equal(tokenizer.boundaries, golden["boundaries"])
        ids, _, offset, scale = tokenizer.encode(torch.tensor(golden["in/normal"]))
        np.testing.assert_allclose(tokenizer.decode(ids[:, :-1], offset, scale).numpy().ravel(),
                                   golden[f"output_transform/{scaling}/normal"].ravel(), rtol=1e-6, atol=1e-6)


@pytest.mark.shared("golden")
def test_a_value_on_a_boundary_goes_up(golden):
    """The second sample brings the mean of |x| to 1 exactly, so that the first one meets the boundary unscaled."""
    values = torch.tensor(golden["boundary_values"], dtype=torch.float64).ravel()
    values = values[values.abs() < 2]
    places = torch.tensor(np.isin(golden["boundary_values"].ravel(), values.numpy()))
    assert len(values) >= 3
    tokenizer = ChronosTokenizer(ChronosConfig(), "MeanScaleUniformBins")
    for name, sample in (("boundary_ids", values), ("boundary_below_ids", torch.nextafter(values, values - 1))):
        ids, _, _, scale = tokenizer.encode(torch.stack([sample, 2 - sample.abs()], 1))
        assert (scale == 1).all()
        assert ids[:, 0].tolist() == torch.tensor(golden[f"{name}/MeanScaleUniformBins"]).ravel()[places].tolist()


@pytest.mark.shared("golden")
def test_infinite_samples_stay_inside_the_vocabulary(golden):
    for case in ("pos_inf", "neg_inf"):
        for scaling in SCALINGS:
            ids, _, _, _ = ChronosTokenizer(ChronosConfig(), scaling).encode(torch.tensor(golden[f"in/{case}"]))
            assert ids.max() < 4096 and ids.min() >= 0


def test_equals_the_chronos_package():
    """Their tokenizer on their own kind of input: a list of series of unequal length, NaN inside, beyond the context."""
    from chronos.chronos import ChronosConfig as TheirConfig
    from chronos.utils import left_pad_and_stack_1D
    theirs = TheirConfig(
        tokenizer_class="MeanScaleUniformBins", tokenizer_kwargs={"low_limit": -15.0, "high_limit": 15.0},
        context_length=512, prediction_length=64, n_tokens=4096, n_special_tokens=2, pad_token_id=0, eos_token_id=1,
        use_eos_token=True, model_type="seq2seq", num_samples=20, temperature=1.0, top_k=50, top_p=1.0).create_tokenizer()
    generator = torch.Generator().manual_seed(0)
    series = [torch.randn(n, generator=generator) * 10 ** (n % 5) for n in (1, 7, 100, 511, 512, 700)]
    series[2][[3, 50]] = float("nan")
    series[3][:] = 0
    stacked = pad_left(series)
    torch.testing.assert_close(stacked, left_pad_and_stack_1D(series), equal_nan=True, rtol=0, atol=0)

    ids, mask, scale = theirs.context_input_transform(stacked)
    tokenizer = ChronosTokenizer(ChronosConfig(), "MeanScaleUniformBins")
    our_ids, our_mask, offset, our_scale = tokenizer.encode(stacked)
    assert torch.equal(our_ids, ids) and torch.equal(our_mask, mask)
    torch.testing.assert_close(our_scale, scale, rtol=1e-6, atol=0)
    back = theirs.output_transform(ids[:, None, :-1], scale)[:, 0]
    torch.testing.assert_close(tokenizer.decode(our_ids[:, :-1], offset, our_scale), back)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_decoding_is_exact_to_half_a_bin(scaling):
    samples = torch.randn(5, 200, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 3 + 1
    tokenizer = ChronosTokenizer(ChronosConfig(), scaling)
    ids, _, offset, scale = tokenizer.encode(samples)
    half_bin = 30 / 4092 / 2
    error = (tokenizer.decode(ids[:, :-1], offset, scale) - samples).abs() / scale[:, None]
    assert error.max() < half_bin * 1.001
    assert error.max() > half_bin * 0.9                                       # and no better: the bins are that wide
