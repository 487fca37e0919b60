"""The encoder against transformers' T5EncoderModel and recorded outputs, through the production loader."""
import numpy as np
import pytest
import torch
from helpers import make_chronos

from sensorllm_min.t5_encoder import distance_bucket
from sensorllm_min.weights import load_t5_encoder


@pytest.mark.parametrize("shape", [
    dict(), dict(num_layers=3, num_heads=3, d_kv=12), dict(relative_attention_num_buckets=16,
                                                           relative_attention_max_distance=40)], ids=str)
def test_equals_transformers(tmp_path, shape):
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


@pytest.mark.shared("golden")
@pytest.mark.parametrize("name", ["chronos_a", "chronos_b"])
def test_equals_the_original(shared, name):
    encoder, _ = load_t5_encoder(shared / "golden" / name)
    ids, outputs = (np.load(shared / "golden" / file) for file in ("A_tokenizers.npz", "B_t5_encoder.npz"))
    cases = [key for key in outputs if key.startswith(f"enc/{name}/")]
    assert cases
    for key in cases:
        _, _, scaling, case = key.split("/")
        with torch.no_grad():
            ours = encoder(torch.tensor(ids[f"ids/{scaling}/{case}"]), torch.tensor(ids[f"mask/{scaling}/{case}"]))
        np.testing.assert_allclose(ours, outputs[key], rtol=0, atol=1e-5)


@pytest.mark.shared("weights")
def test_loads_the_dummy_of_the_chronos_package(shared):
    from transformers import T5EncoderModel
    folder = shared / "weights" / "chronos-t5-dummy"
    encoder, chronos = load_t5_encoder(folder, torch.float32)
    ids = torch.randint(2, 32, (2, 50), generator=torch.Generator().manual_seed(0))
    theirs = T5EncoderModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        torch.testing.assert_close(encoder(ids, torch.ones(2, 50, dtype=torch.bool)), theirs(ids).last_hidden_state,
                                   rtol=0, atol=1e-5)
    assert chronos.n_tokens == 32
