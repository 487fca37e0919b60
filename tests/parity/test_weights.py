"""Loading public weights: single files, shards, strictness in both directions, hostile and broken files."""
import json
import shutil
import sys

import pytest
import torch
from helpers import make_chronos, make_llama
from safetensors.torch import load_file, save_file

from sensorllm_min.config import read_llama_config
from sensorllm_min.files import InputError
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


@pytest.mark.parametrize("make,load", [(make_llama, load_llama), (make_chronos, lambda *args: load_t5_encoder(*args)[0])])
def test_weights_have_the_dtype_asked_for_or_the_stored_one(tmp_path, make, load):
    make(tmp_path)
    exact = dict(load(tmp_path).named_parameters())
    for name, parameter in load(tmp_path, torch.bfloat16).named_parameters():
        assert torch.equal(parameter, exact[name].bfloat16()), name
    edit_weights(tmp_path, lambda tensors: tensors.update({k: v.half() for k, v in tensors.items()}))
    assert {p.dtype for p in load(tmp_path).parameters()} == {torch.float16}
    assert {p.dtype for p in load(tmp_path, torch.float32).parameters()} == {torch.float32}


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
    refused(folder, "missing ['layers.1.mlp.up_proj.weight']", "unused nothing")
    edit_weights(folder, lambda tensors: tensors.update({"model.layers.1.mlp.up_proj.weight": torch.zeros(96, 48),
                                                         "model.layers.0.self_attn.q_proj.bias": torch.zeros(48)}))
    refused(folder, "missing nothing", "unused ['model.layers.0.self_attn.q_proj.bias']")
    edit_weights(folder, lambda tensors: tensors.pop("model.layers.0.self_attn.q_proj.bias"))
    edit_weights(folder, lambda tensors: tensors.update({"model.norm.weight_scale": torch.ones(48)}))
    # begins as a known name does
    refused(folder, "missing nothing", "unused ['model.norm.weight_scale']")


def test_a_head_is_taken_from_the_embeddings_only_if_tied_and_rotary_buffers_are_known(folder):
    edit_weights(folder, lambda tensors: tensors.pop("lm_head.weight"))
    refused(folder, "missing ['lm_head.weight']")
    edit_config(folder, tie_word_embeddings=True)                             # unless config.json says so
    buffer = "model.layers.0.self_attn.rotary_emb.inv_freq"                   # older files carry it
    edit_weights(folder, lambda tensors: tensors.update({buffer: torch.ones(6)}))
    load_llama(folder)


def test_tensors_of_another_shape_and_quantised_ones_are_refused(folder):
    edit_config(folder, intermediate_size=95)
    refused(folder, "gate_proj", "(96, 48)", "(95, 48)")
    edit_weights(folder, lambda tensors: tensors.update({"model.norm.weight": torch.zeros(48, dtype=torch.int8)}))
    refused(folder, "model.norm.weight", "quantised")


def test_an_equal_copy_is_dropped_and_a_table_of_its_own_is_used(tmp_path):
    """As transformers, whatever config.json says of tied embeddings; Chronos' T5 likewise."""
    from transformers import LlamaForCausalLM, T5ForConditionalGeneration
    make_llama(tmp_path / "llama", tie_word_embeddings=True)
    make_chronos(tmp_path / "t5")
    ids = torch.tensor([[1, 5, 20, 33, 40]])
    for folder, name, like in (("llama", "lm_head.weight", "model.embed_tokens.weight"),
                               ("t5", "encoder.embed_tokens.weight", "shared.weight")):
        folder = tmp_path / folder
        edit_weights(folder, lambda tensors: tensors.update({name: tensors[like].clone()}))
        if folder.name == "llama":
            assert not hasattr(load_llama(folder), "lm_head")
        edit_weights(folder, lambda tensors: tensors.update({name: torch.randn_like(tensors[like])}))
    with pytest.warns(UserWarning, match="llama: the model is declared as tied"):
        llama = load_llama(tmp_path / "llama")
    with pytest.warns(UserWarning, match="t5: the model is declared as tied"):
        encoder, _ = load_t5_encoder(tmp_path / "t5")
    with torch.no_grad():
        logits = LlamaForCausalLM.from_pretrained(tmp_path / "llama")(ids).logits
        features = T5ForConditionalGeneration.from_pretrained(tmp_path / "t5").encoder(ids)[0]
        torch.testing.assert_close(llama.logits(llama(llama.embed_tokens(ids))), logits, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(encoder(ids, torch.ones_like(ids, dtype=bool)), features, atol=1e-4, rtol=1e-4)


def test_broken_files_are_named_with_what_to_do(folder):
    path = folder / "model.safetensors"
    good = path.read_bytes()
    for bad in (good[:1000], good[:-100], b"", b"\xff" * 7 + b"\x7f" + good[8:], b"not weights at all",
                good[:8] + good[8:].replace(b'"F32"', b'"F99"', 1)):
        path.write_bytes(bad)
        refused(folder, "model.safetensors", "truncated")
    path.unlink()
    refused(folder, "neither")


def test_an_index_cannot_name_files_outside_its_directory(folder, tmp_path_factory):
    """The files are there, and are the model's own: read, they would be a good model."""
    outside = tmp_path_factory.mktemp("outside") / "model.safetensors"
    (folder / "model.safetensors").rename(outside)
    (folder / "below").mkdir()
    shutil.copy(outside, folder / "below")
    for name in (outside, f"../{outside.parent.name}/{outside.name}", f"below/{outside.name}"):
        assert (folder / name).is_file()
        index = {"weight_map": {tensor: str(name) for tensor in load_file(outside)}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        refused(folder, str(name), "not a file beside it")
    shutil.copy(outside, folder / "beside.safetensors")
    index = {"weight_map": {tensor: "beside.safetensors" for tensor in load_file(outside)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    load_llama(folder)


@pytest.mark.parametrize("changes,words", [
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}, "rope_parameters": None}, ["rope type 'yarn'", "llama3"]),
    ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4}}, ["rope type 'dynamic'"]),
    ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}}, ["low_freq_factor", "missing"]),
    ({"model_type": "qwen2"}, ["qwen2", "LLaMA"]),
    ({"attention_bias": True}, ["attention_bias"]),
    ({"hidden_size": None}, ["does not hold"]),
    ({"rope_scaling": "yarn", "rope_parameters": None}, ["does not hold"]),
])
def test_a_config_that_is_no_llama_is_named_with_the_reason(folder, changes, words):
    edit_config(folder, **changes)
    refused(folder, "config.json", *words)


def test_quantised_gguf_and_adapter_folders_are_named(folder):
    edit_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    refused(folder, "quantised", "gptq")
    (folder / "config.json").unlink()
    (folder / "llama.Q4_K_M.gguf").write_bytes(b"GGUF")
    refused(folder, "GGUF", "safetensors")
    (folder / "adapter_config.json").write_text("{}")
    refused(folder, "adapter", "base model")


def test_a_folder_of_pickles_and_one_that_is_not_there_are_refused(folder):
    refused(folder / "nowhere", "config.json", "not found")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(folder, "pickles", "safetensors")


# What is in the config.json of each, but for the sizes, which are smaller here in the same proportions.
ARCHITECTURES = {
    "Meta-Llama-3-8B-Instruct": dict(
        hidden_size=128, intermediate_size=448, num_attention_heads=8, num_key_value_heads=2, vocab_size=501,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0}, rms_norm_eps=1e-5, max_position_embeddings=8192,
        bos_token_id=1, eos_token_id=2),
    "Llama-3.2-1B": dict(
        hidden_size=128, intermediate_size=512, num_attention_heads=8, num_key_value_heads=2, head_dim=16, vocab_size=501,
        rope_parameters={"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
        rms_norm_eps=1e-5, max_position_embeddings=131072, tie_word_embeddings=True, bos_token_id=1, eos_token_id=[2, 3]),
    "SmolLM2-135M-Instruct": dict(
        hidden_size=144, intermediate_size=384, num_attention_heads=9, num_key_value_heads=3, vocab_size=384,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0}, rms_norm_eps=1e-5, max_position_embeddings=8192,
        tie_word_embeddings=True, bos_token_id=1, eos_token_id=2),
    "TinyLlama-1.1B-Chat-v1.0": dict(
        hidden_size=128, intermediate_size=352, num_attention_heads=16, num_key_value_heads=2, vocab_size=320,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, rms_norm_eps=1e-5, max_position_embeddings=2048,
        bos_token_id=1, eos_token_id=2)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_public_llamas_equal_transformers(tmp_path, name, dtype):
    """Each family member through our loader, stored in each dtype, in shards: the logits of transformers, to 1e-5."""
    from transformers import LlamaForCausalLM
    make_llama(tmp_path / "whole", **ARCHITECTURES[name]).to(dtype).save_pretrained(tmp_path / "shards", max_shard_size="200KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 1
    reference = LlamaForCausalLM.from_pretrained(tmp_path / "shards", dtype=torch.float32).eval()
    ours = load_llama(tmp_path / "shards", torch.float32)
    assert {p.dtype for p in load_llama(tmp_path / "shards").parameters()} == {dtype}
    torch.manual_seed(0)
    ids = torch.randint(ours.config.vocab_size, (2, 60))
    with torch.no_grad():
        expected = reference(ids).logits
        found = ours.logits(ours(ours.embed_tokens(ids)))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


SHAPE = {"model_type": "llama", "vocab_size": 8, "hidden_size": 32, "intermediate_size": 8, "num_hidden_layers": 1,
         "num_attention_heads": 4}


def read_config(folder, **settings):
    (folder / "config.json").write_text(json.dumps(SHAPE | settings))
    return read_llama_config(folder)


@pytest.mark.parametrize("given", [{}, {
    "num_key_value_heads": 2, "head_dim": 20, "max_position_embeddings": 777, "tie_word_embeddings": True,
    "rms_norm_eps": 0.5}])
def test_older_configs_leave_out_what_has_a_default(tmp_path, given):
    """As transformers reads them: heads without groups, d_model / n_heads wide, untied, 2048 positions."""
    from transformers import LlamaConfig as Theirs
    ours, theirs = read_config(tmp_path, **given), Theirs(**SHAPE | given)
    assert (ours.n_kv_heads, ours.head_dim) == (theirs.num_key_value_heads, theirs.head_dim)
    assert ours.max_positions == theirs.max_position_embeddings
    assert ours.tie_embeddings == theirs.tie_word_embeddings
    assert (ours.norm_eps, ours.rope_theta) == (theirs.rms_norm_eps, theirs.rope_parameters["rope_theta"])


def test_every_spelling_of_rope_is_read(tmp_path):
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    old = read_config(tmp_path, rope_theta=5e5, rope_scaling=scaling | {"rope_type": "llama3"})
    older = read_config(tmp_path, rope_theta=5e5, rope_scaling=scaling | {"type": "llama3"})
    new = read_config(tmp_path, rope_parameters=scaling | {"rope_type": "llama3", "rope_theta": 5e5})
    assert old == new == older and new.rope_theta == 5e5 and new.rope_scaling.factor == 8.0


@pytest.mark.parametrize("eos,ids", [(2, (2,)), ([128001, 128008], (128001, 128008)), (0, (0,)), (None, ())])
def test_all_end_tokens_of_a_config_are_read(tmp_path, eos, ids):
    assert read_config(tmp_path, eos_token_id=eos).eos_ids == ids


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

