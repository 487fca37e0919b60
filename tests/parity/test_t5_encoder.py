"""The encoder against transformers' T5EncoderModel and recorded outputs, through the production
loader.

`python tests/parity/test_t5_encoder.py` records the outputs of t5_encoder.npz again.
"""
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from helpers import make_chronos
from safetensors.torch import save_file

from sensorllm_min.config import T5Config
from sensorllm_min.t5_encoder import T5Encoder, distance_bucket
from sensorllm_min.weights import load_t5_encoder


@pytest.mark.parametrize("shape", [
    dict(), dict(num_layers=3, num_heads=3, d_kv=12), dict(relative_attention_num_buckets=16,
                                                           relative_attention_max_distance=40),
    dict(layer_norm_epsilon=0.1), dict(d_model=192, num_layers=6, num_heads=12, d_kv=16, d_ff=768)], ids=str)
def test_features_equal_transformers(tmp_path, shape):
    from transformers import T5EncoderModel
    make_chronos(tmp_path, **shape)
    theirs = T5EncoderModel.from_pretrained(tmp_path).eval()
    encoder, _ = load_t5_encoder(tmp_path)
    for length in (1, 13, 201, 300):                                          # beyond the bias's greatest distance
        ids = torch.randint(2, 4096, (3, length), generator=torch.Generator().manual_seed(length))
        mask = torch.ones(3, length, dtype=torch.bool)
        mask[1, : length // 3] = False
        mask[2, length // 2: length // 2 + length // 5] = False
        with torch.no_grad():
            expected = theirs(input_ids=ids, attention_mask=mask).last_hidden_state
            torch.testing.assert_close(encoder(ids, mask), expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_distance_buckets_equal_transformers():
    from transformers.models.t5.modeling_t5 import T5Attention
    distance = torch.arange(-600, 601)
    for n_buckets, farthest in ((32, 128), (16, 40)):
        theirs = T5Attention._relative_position_bucket(distance, True, n_buckets, farthest)
        assert torch.equal(distance_bucket(distance, n_buckets, farthest), theirs)


def test_the_bias_is_computed_once_and_shared_by_all_blocks(tmp_path):
    make_chronos(tmp_path, num_layers=3)
    encoder, _ = load_t5_encoder(tmp_path)
    made, used = [], []
    encoder.relative_bias.register_forward_hook(lambda _, __, bias: made.append(bias))
    for layer in encoder.layers:
        layer.register_forward_pre_hook(lambda _, inputs: used.append(inputs[2]))
    encoder(torch.randint(2, 4096, (2, 20)), torch.ones(2, 20, dtype=torch.bool))
    assert len(made) == 1 and len(used) == 3 and all(bias is made[0] for bias in used)
    assert made[0].stride()[2:] == (32, 1)  # rows start at multiples of 16, for a GPU


def test_an_encoder_from_scratch_begins_with_local_heads_and_smooth_bins():
    config = T5Config(vocab_size=600, d_model=64, d_ff=256, n_layers=2, n_heads=4, head_dim=16)
    torch.manual_seed(0)
    encoder = T5Encoder(config)
    centers = torch.linspace(-15, 15, 500)
    encoder.init_from_scratch(centers, n_special_tokens=2)
    bins = encoder.embed_tokens.weight[3:503]
    near, far = (bins[1:] - bins[:-1]).norm(dim=1), (bins[250:] - bins[:-250]).norm(dim=1)
    assert near.max() < 0.2 * far.min()  # neighbours begin alike, others do not

    bias = encoder.relative_bias(9)[0]                                        # (H, S, S)
    # the sample before, or the one after
    assert (bias[:, 4].argmax(-1) - 4).tolist() == [-1, 1, -1, 1]
    # two heads sharply, two widely
    assert (bias[:2, 4, 4] == -4).all() and (bias[2:, 4, 4] == -0.5).all()

    for layer in encoder.layers:
        q, k, down = (
            part.weight.std().item()
            for part in (layer.attn.q_proj, layer.attn.k_proj, layer.mlp.down_proj)
        )
        # T5's scores are not divided by sqrt(16): its queries are. 1,024 numbers give a deviation
        # to 2 %.
        assert k == pytest.approx(1 / 8, rel=0.1) and q == pytest.approx(1 / 8 / 4, rel=0.1)
        assert down == pytest.approx(1 / 16 / 2, rel=0.1)


@torch.no_grad()
def test_a_sample_that_was_not_observed_influences_no_other(tmp_path):
    make_chronos(tmp_path)
    encoder, _ = load_t5_encoder(tmp_path)
    ids = torch.randint(2, 4096, (1, 30), generator=torch.Generator().manual_seed(0)).repeat(2, 1)
    ids[1, 7], ids[1, 20] = 5, 4000
    mask = torch.ones(2, 30, dtype=torch.bool)
    mask[:, [7, 20]] = False
    first, second = encoder(ids, mask)[:, mask[0]]
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert not torch.equal(*encoder(ids, torch.ones_like(mask))[:, mask[0]])


# ---- recorded outputs: they do not move with the version of transformers that is installed ----

RECORDED = Path(__file__).with_name("t5_encoder.npz")


def save_recorded_model(folder):
    """A Chronos encoder whose weights are numbers of NumPy's frozen generator: d_kv is not
    d_model / n_heads.
    """
    make_chronos(folder, num_heads=3, d_kv=12)
    state = np.random.RandomState(0)
    tensors = {}

    def draw(name, *shape):
        values = 0.3 * state.standard_normal(shape) + ("layer_norm" in name)
        tensors[name] = torch.tensor(values, dtype=torch.float32)

    draw("shared.weight", 4096, 32)
    draw("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", 32, 3)
    for block in range(2):
        attention, feed_forward = (f"encoder.block.{block}.layer.{part}" for part in (0, 1))
        for name in "qkv":
            draw(f"{attention}.SelfAttention.{name}.weight", 36, 32)
        draw(f"{attention}.SelfAttention.o.weight", 32, 36)
        draw(f"{attention}.layer_norm.weight", 32)
        draw(f"{feed_forward}.DenseReluDense.wi.weight", 64, 32)
        draw(f"{feed_forward}.DenseReluDense.wo.weight", 32, 64)
        draw(f"{feed_forward}.layer_norm.weight", 32)
    draw("encoder.final_layer_norm.weight", 32)
    save_file(tensors, Path(folder) / "model.safetensors")


def recorded_inputs():
    """150 samples, beyond the bias's greatest distance: row 0 whole, row 1 padded on the left
    and with a gap.
    """
    ids = torch.tensor(np.random.RandomState(1).randint(2, 4096, (2, 150)))
    mask = torch.ones(2, 150, dtype=torch.bool)
    mask[1, :20] = False
    mask[1, 90:97] = False
    return ids, mask


def test_features_equal_recorded_ones(tmp_path):
    save_recorded_model(tmp_path)
    encoder, _ = load_t5_encoder(tmp_path)
    expected = torch.tensor(np.load(RECORDED)["features"])
    with torch.no_grad():
        found = encoder(*recorded_inputs())
    # float32 rounds sums of 64 products; the order of adding differs between machines
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@pytest.mark.shared("golden")
def test_features_equal_those_of_the_original(shared):
    """Two encoders and series that the original's code was run on: padded, with gaps, clipped,
    of one sample.
    """
    ids, outputs = (np.load(shared / "golden" / file) for file in ("A_tokenizers.npz", "B_t5_encoder.npz"))
    encoders = {
        name: load_t5_encoder(shared / "golden" / name)[0] for name in ("chronos_a", "chronos_b")
    }
    assert {key.split("/")[1] for key in outputs} == set(encoders) and len(outputs) >= 16
    for key in outputs:
        _, name, scaling, case = key.split("/")
        with torch.no_grad():
            ours = encoders[name](
                torch.tensor(ids[f"ids/{scaling}/{case}"]),
                torch.tensor(ids[f"mask/{scaling}/{case}"]),
            )
        np.testing.assert_allclose(ours, outputs[key], rtol=0, atol=1e-5, err_msg=key)


def record():
    import tempfile

    from transformers import T5EncoderModel
    with tempfile.TemporaryDirectory() as folder:
        save_recorded_model(folder)
        theirs = T5EncoderModel.from_pretrained(folder).eval()
        ids, mask = recorded_inputs()
        with torch.no_grad():
            features = theirs(input_ids=ids, attention_mask=mask).last_hidden_state
    np.savez_compressed(RECORDED, features=features.numpy())


if __name__ == "__main__":
    record()
