"""The shapes of both networks, from config.json; Hugging Face's names end here and in weights."""
from dataclasses import dataclass
from pathlib import Path

from .files import InputError, as_input_error, brief, read_json


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's stretching of the low rotary frequencies (rope_type "llama3")."""
    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclass(frozen=True)
class LlamaConfig:
    vocab_size: int
    d_model: int
    d_ff: int
    n_layers: int
    n_heads: int
    n_kv_heads: int                     # fewer than n_heads: grouped-query attention
    head_dim: int                       # n_heads * head_dim need not equal d_model
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    tie_embeddings: bool = False        # the output head is the embedding matrix
    max_positions: int = 4096
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class ChronosConfig:
    """How samples become ids: `chronos_config` in the checkpoint (arXiv 2403.07815)."""
    low_limit: float = -15.0
    high_limit: float = 15.0
    n_tokens: int = 4096
    n_special_tokens: int = 2
    pad_id: int = 0
    eos_id: int = 1
    context_length: int = 512           # samples; the EOS id is added to them


@dataclass(frozen=True)
class T5Config:
    vocab_size: int
    d_model: int
    d_ff: int
    n_layers: int
    n_heads: int
    head_dim: int                       # n_heads * head_dim need not equal d_model
    n_buckets: int = 32                 # relative distances, half for each direction
    max_distance: int = 128             # samples; all larger distances share a bucket
    norm_eps: float = 1e-6


# The built-in sizes, trained from scratch without --encoder or --llm, on two cores.
TINY_ENCODER = T5Config(
    vocab_size=4096, d_model=64, d_ff=256, n_layers=2, n_heads=4, head_dim=16)
TINY_CHRONOS = ChronosConfig()
TINY_LLAMA = LlamaConfig(vocab_size=1024, d_model=128, d_ff=384, n_layers=2, n_heads=4,
                         n_kv_heads=2, head_dim=32, tie_embeddings=True)


def read_model_config(directory):
    """The path and content of config.json. InputError for adapters, GGUF and quantised weights."""
    directory = Path(directory)
    where = directory / "config.json"
    if not where.exists() and (directory / "adapter_config.json").exists():
        raise InputError(f"{directory} is an adapter, not a model; merge it into its base model "
                         "(peft: merge_and_unload, then save_pretrained) and give that directory")
    if not where.exists() and list(directory.glob("*.gguf")):
        raise InputError(f"{directory} holds a GGUF file; give the model in Hugging Face layout "
                         "(config.json, safetensors)")
    raw = read_json(where)
    if raw.get("quantization_config"):
        method = brief(raw["quantization_config"])
        raise InputError(f"{where}: the weights are quantised ({method}); give the model they were "
                         "made from")
    return where, raw


def read_rope(raw, where):
    """(theta, RopeScaling or None), spelled as rope_theta + rope_scaling or as rope_parameters."""
    rope = dict(raw.get("rope_scaling") or {}) | dict(raw.get("rope_parameters") or {})
    theta = float(rope.get("rope_theta", raw.get("rope_theta", 10000.0)))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise InputError(f"{where}: rope type '{brief(kind)}' is unknown; 'default' and 'llama3' "
                         "are implemented")
    return theta, RopeScaling(
        factor=float(rope["factor"]),
        low_freq_factor=float(rope["low_freq_factor"]),
        high_freq_factor=float(rope["high_freq_factor"]),
        original_max_positions=int(rope["original_max_position_embeddings"]))


def read_llama_config(directory):
    """The config of an LLM directory; InputError for another family, activation or rope type."""
    where, raw = read_model_config(directory)
    family = raw.get("model_type")
    if family != "llama":
        raise InputError(f"{where}: model_type '{brief(family)}' is not a LLaMA; give a directory "
                         "of the LLaMA family (Llama 2, 3, 3.1, 3.2, TinyLlama, SmolLM2)")
    has_bias = raw.get("attention_bias") or raw.get("mlp_bias")
    if raw.get("hidden_act", "silu") != "silu" or has_bias:
        raise InputError(f"{where}: only the bias-free SwiGLU LLaMA is implemented (hidden_act "
                         "silu, attention_bias and mlp_bias false)")
    with as_input_error(where):
        d_model = int(raw["hidden_size"])
        n_heads = int(raw["num_attention_heads"])
        theta, scaling = read_rope(raw, where)
        bos = raw.get("bos_token_id")
        eos = raw.get("eos_token_id")
        if eos is None:
            eos = []
        elif not isinstance(eos, list):
            eos = [eos]
        return LlamaConfig(
            vocab_size=int(raw["vocab_size"]),
            d_model=d_model,
            d_ff=int(raw["intermediate_size"]),
            n_layers=int(raw["num_hidden_layers"]),
            n_heads=n_heads,
            n_kv_heads=int(raw.get("num_key_value_heads") or n_heads),
            head_dim=int(raw.get("head_dim") or d_model // n_heads),    # older files leave it out
            norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
            rope_theta=theta,
            rope_scaling=scaling,
            tie_embeddings=bool(raw.get("tie_word_embeddings", False)),
            max_positions=int(raw.get("max_position_embeddings", 2048)),
            bos_id=None if bos is None else int(bos),
            eos_ids=tuple(map(int, eos)))


def read_chronos_configs(directory):
    """The configs of a Chronos T5 directory; InputError for another family or feed-forward."""
    where, raw = read_model_config(directory)
    family = raw.get("model_type")
    activation = raw.get("feed_forward_proj", "relu")
    if family != "t5":
        raise InputError(f"{where}: model_type '{brief(family)}' is not a T5; give a chronos-t5 "
                         "directory")
    if activation != "relu":
        raise InputError(f"{where}: feed_forward_proj '{activation}' is not implemented; Chronos "
                         "T5 uses 'relu'")
    with as_input_error(where):
        encoder = T5Config(
            vocab_size=int(raw["vocab_size"]),
            d_model=int(raw["d_model"]),
            d_ff=int(raw["d_ff"]),
            n_layers=int(raw["num_layers"]),
            n_heads=int(raw["num_heads"]),
            head_dim=int(raw["d_kv"]),
            n_buckets=int(raw.get("relative_attention_num_buckets", 32)),
            max_distance=int(raw.get("relative_attention_max_distance", 128)),
            norm_eps=float(raw.get("layer_norm_epsilon", 1e-6)))
        chronos = raw["chronos_config"]
        limits = chronos["tokenizer_kwargs"]
        if not chronos.get("use_eos_token", True):
            raise InputError(f"{where}: only a Chronos with use_eos_token true is implemented")
        return encoder, ChronosConfig(
            low_limit=float(limits["low_limit"]),
            high_limit=float(limits["high_limit"]),
            n_tokens=int(chronos["n_tokens"]),
            n_special_tokens=int(chronos["n_special_tokens"]),
            pad_id=int(chronos["pad_token_id"]),
            eos_id=int(chronos["eos_token_id"]),
            context_length=int(chronos["context_length"]))
