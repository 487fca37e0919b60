"""Loading public weights: single files, shards, strictness in both directions, hostile and broken files."""
import json
import sys

import pytest
import torch
from conftest import make_chronos, make_llama
from safetensors.torch import load_file, save_file

from sensorllm_min.config import InputError, LlamaConfig
from sensorllm_min.weights import load_llama, load_t5_encoder


@pytest.fixture
def folder(tmp_path):
    make_llama(tmp_path)
    return tmp_path


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def refused(folder, *words, load=load_llama):
    with pytest.raises(InputError) as error:
        load(folder)
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


def test_shards_equal_the_single_file(folder, tmp_path_factory):
    sharded = tmp_path_factory.mktemp("sharded")
    from transformers import LlamaForCausalLM
    LlamaForCausalLM.from_pretrained(folder).save_pretrained(sharded, max_shard_size="40KB")
    assert len(list(sharded.glob("model-*.safetensors"))) > 2
    for (name, one), (_, other) in zip(load_llama(folder).named_parameters(), load_llama(sharded).named_parameters()):
        assert torch.equal(one, other), name


def test_dtype_on_request_and_as_stored(folder):
    assert {p.dtype for p in load_llama(folder, torch.bfloat16).parameters()} == {torch.bfloat16}
    edit_weights(folder, lambda tensors: tensors.update({k: v.half() for k, v in tensors.items()}))
    assert {p.dtype for p in load_llama(folder).parameters()} == {torch.float16}


def own_memory():
    """Bytes that this process holds for itself; pages of mapped files are not among them."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_weights_are_mapped_not_copied(tmp_path):
    """Loading 25 MB leaves them in the file, where they are read when used."""
    big = tmp_path / "big"
    make_llama(big, vocab_size=200_000, hidden_size=32, num_hidden_layers=1, tie_word_embeddings=True)
    size = (big / "model.safetensors").stat().st_size
    before = own_memory()
    model = load_llama(big)
    assert own_memory() - before < size / 4
    assert model.embed_tokens.weight.sum().isfinite()


def test_missing_and_unused_tensors_are_errors(folder):
    edit_weights(folder, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    refused(folder, "layers.1.mlp.up_proj.weight", "missing")
    edit_weights(folder, lambda tensors: tensors.update({"model.layers.1.mlp.up_proj.weight": torch.zeros(96, 48),
                                                         "model.layers.0.self_attn.q_proj.bias": torch.zeros(48)}))
    refused(folder, "model.layers.0.self_attn.q_proj.bias", "unused")


def test_wrong_shape_is_an_error(folder):
    edit_config(folder, intermediate_size=95)
    refused(folder, "gate_proj", "(96, 48)", "(95, 48)")


def test_quantised_weights_are_refused(folder):
    edit_weights(folder, lambda tensors: tensors.update({"model.norm.weight": torch.zeros(48, dtype=torch.int8)}))
    refused(folder, "model.norm.weight", "quantised")


def test_tied_head_may_be_stored_twice(tmp_path):
    make_llama(tmp_path, tie_word_embeddings=True)
    edit_weights(tmp_path, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}))
    load_llama(tmp_path)


def test_broken_and_hostile_files(folder):
    path = folder / "model.safetensors"
    good = path.read_bytes()
    for bad in (good[:1000], good[:-100], b"", b"\xff" * 7 + b"\x7f" + good[8:], b"not weights at all",
                good[:8] + good[8:].replace(b'"F32"', b'"F99"', 1)):
        path.write_bytes(bad)
        refused(folder, "model.safetensors", "truncated")
    path.unlink()
    refused(folder, "neither")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../secrets.safetensors"}}))
    refused(folder, "../../secrets.safetensors")


@pytest.mark.parametrize("changes,words", [
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}, "rope_parameters": None}, ["rope type 'yarn'", "llama3"]),
    ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4}}, ["rope type 'dynamic'"]),
    ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}}, ["low_freq_factor", "missing"]),
    ({"model_type": "qwen2"}, ["qwen2", "LLaMA"]),
    ({"attention_bias": True}, ["attention_bias"]),
    ({"hidden_size": None}, ["does not hold"]),
    ({"rope_scaling": "yarn", "rope_parameters": None}, ["does not hold"]),
])
def test_configs_that_are_not_ours(folder, changes, words):
    edit_config(folder, **changes)
    refused(folder, "config.json", *words)


def test_both_spellings_of_rope():
    shape = {"model_type": "llama", "vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
             "num_attention_heads": 2}
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    old = LlamaConfig.from_hf(shape | {"rope_theta": 5e5, "rope_scaling": scaling | {"rope_type": "llama3"}})
    older = LlamaConfig.from_hf(shape | {"rope_theta": 5e5, "rope_scaling": scaling | {"type": "llama3"}})
    new = LlamaConfig.from_hf(shape | {"rope_parameters": scaling | {"rope_type": "llama3", "rope_theta": 5e5}})
    assert old == new == older and new.rope_theta == 5e5 and new.rope_scaling.factor == 8.0


def test_t5_copies_and_decoder_are_known_by_name(tmp_path):
    make_chronos(tmp_path)
    plain, _ = load_t5_encoder(tmp_path)
    edit_weights(tmp_path, lambda t: t.update({"encoder.embed_tokens.weight": t["shared.weight"].clone()}))
    with_copy, _ = load_t5_encoder(tmp_path)
    assert torch.equal(plain.embed_tokens.weight, with_copy.embed_tokens.weight)
    edit_weights(tmp_path, lambda t: t.update({"encoder.block.0.layer.0.SelfAttention.q.bias": torch.zeros(4)}))
    refused(tmp_path, "SelfAttention.q.bias", load=load_t5_encoder)
    edit_config(tmp_path, feed_forward_proj="gated-gelu")
    refused(tmp_path, "gated-gelu", load=load_t5_encoder)


def test_a_directory_that_is_not_there(tmp_path):
    refused(tmp_path / "nowhere", "config.json", "not found")
