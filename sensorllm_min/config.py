"""The shapes of the two networks, read from a Hugging Face `config.json`.

Everything downstream uses the names on the left; Hugging Face's names end here (and in
`weights.py`).
"""
from dataclasses import asdict, dataclass
from pathlib import Path

from .files import InputError, brief, check_types, read_json, understanding

SIGNED = ("bos_id", "pad_id", "eos_id", "low_limit")              # all other numbers are above 0
MOST_LAYERS = 1000                                                # of any model that there is


def checked(config, where):
    """A config of this file. InputError where a value is of another type, or out of range."""
    check_types(config, where)
    for name, value in asdict(config).items():
        if type(value) in (int, float) and value <= 0 and name not in SIGNED:
            raise InputError(f"{where}: {name} is {value}, which must be above 0")
    if getattr(config, "n_layers", 0) > MOST_LAYERS:
        raise InputError(f"{where}: n_layers is {config.n_layers}, more than {MOST_LAYERS}")
    return config


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
    head_dim: int                       # read, not derived: n_heads * head_dim need not be d_model
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    tie_embeddings: bool = False        # the output head is the embedding matrix
    max_positions: int = 4096
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()

    @classmethod
    def from_hf(cls, raw, where="config.json"):
        """The config of a LLaMA-family checkpoint. InputError for another family or rope type."""
        family = raw.get("model_type")
        if family != "llama":
            raise InputError(f"{where}: model_type '{brief(family)}' is not a LLaMA; give a "
                             "directory of the LLaMA family (Llama 2, 3, 3.1, 3.2, TinyLlama, "
                             "SmolLM2)")
        has_bias = raw.get("attention_bias") or raw.get("mlp_bias")
        if raw.get("hidden_act", "silu") != "silu" or has_bias:
            raise InputError(f"{where}: only the bias-free SwiGLU LLaMA is implemented (hidden_act "
                             "silu, attention_bias and mlp_bias false)")
        n_heads = raw["num_attention_heads"]
        head_dim = raw.get("head_dim") or raw["hidden_size"] // n_heads   # older files leave it out
        theta, scaling = read_rope(raw, where)
        eos = raw.get("eos_token_id")
        if not isinstance(eos, list):
            eos = [] if eos is None else [eos]
        config = cls(
            vocab_size=raw["vocab_size"],
            d_model=raw["hidden_size"],
            d_ff=raw["intermediate_size"],
            n_layers=raw["num_hidden_layers"],
            n_heads=n_heads,
            n_kv_heads=raw.get("num_key_value_heads") or n_heads,
            head_dim=head_dim,
            norm_eps=raw.get("rms_norm_eps", 1e-6),
            rope_theta=theta,
            rope_scaling=scaling,
            tie_embeddings=raw.get("tie_word_embeddings", False),
            max_positions=raw.get("max_position_embeddings", 2048),
            bos_id=raw.get("bos_token_id"),
            eos_ids=tuple(eos))
        checked(config, where)
        if n_heads % config.n_kv_heads or config.head_dim % 2:
            raise InputError(f"{where}: {n_heads} heads do not share {config.n_kv_heads} keys, or "
                             f"the width of a head, {config.head_dim}, is odd")
        return config


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
    keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    return theta, checked(RopeScaling(*(rope[key] for key in keys)), where)


@dataclass(frozen=True)
class ChronosConfig:
    """How samples become ids: `chronos_config` of the checkpoint (arXiv 2403.07815)."""
    low_limit: float = -15.0
    high_limit: float = 15.0
    n_tokens: int = 4096
    n_special_tokens: int = 2
    pad_id: int = 0
    eos_id: int = 1
    context_length: int = 512           # samples; the EOS comes on top

    @classmethod
    def from_hf(cls, raw, where="config.json"):
        chronos = raw["chronos_config"]
        is_seq2seq = chronos.get("model_type", "seq2seq") == "seq2seq"
        if not is_seq2seq or not chronos.get("use_eos_token", True):
            raise InputError(f"{where}: only Chronos T5 (model_type seq2seq, use_eos_token true) "
                             "is implemented")
        limits = chronos["tokenizer_kwargs"]
        config = cls(
            limits["low_limit"], limits["high_limit"], chronos["n_tokens"],
            chronos["n_special_tokens"], chronos["pad_token_id"], chronos["eos_token_id"],
            chronos["context_length"])
        return checked(config, where)


@dataclass(frozen=True)
class T5Config:
    vocab_size: int
    d_model: int
    d_ff: int
    n_layers: int
    n_heads: int
    head_dim: int                       # n_heads * head_dim need not equal d_model
    n_buckets: int = 32                 # of relative distances, half for each direction
    max_distance: int = 128             # samples; everything farther shares a bucket
    norm_eps: float = 1e-6

    @classmethod
    def from_hf(cls, raw, where="config.json"):
        """The encoder of a T5 checkpoint. InputError for another family or feed-forward."""
        family, activation = raw.get("model_type"), raw.get("feed_forward_proj", "relu")
        if family != "t5":
            raise InputError(f"{where}: model_type '{brief(family)}' is not a T5; give a "
                             "chronos-t5 directory")
        if activation != "relu":
            raise InputError(f"{where}: feed_forward_proj '{activation}' is not implemented; "
                             "Chronos T5 uses 'relu'")
        config = cls(
            vocab_size=raw["vocab_size"],
            d_model=raw["d_model"],
            d_ff=raw["d_ff"],
            n_layers=raw["num_layers"],
            n_heads=raw["num_heads"],
            head_dim=raw["d_kv"],
            n_buckets=raw.get("relative_attention_num_buckets", 32),
            max_distance=raw.get("relative_attention_max_distance", 128),
            norm_eps=raw.get("layer_norm_epsilon", 1e-6))
        return checked(config, where)


# The built-in sizes: trained from scratch where no --encoder or --llm is given, on two cores.
TINY_ENCODER = T5Config(vocab_size=4096, d_model=64, d_ff=256, n_layers=2, n_heads=4, head_dim=16)
TINY_CHRONOS = ChronosConfig()
TINY_LLAMA = LlamaConfig(vocab_size=1024, d_model=128, d_ff=384, n_layers=2, n_heads=4,
                         n_kv_heads=2, head_dim=32, tie_embeddings=True)


def read_model_config(directory):
    """The path and object of a directory's config.json. InputError for what is no model."""
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
        with understanding(where):
            method = brief(raw["quantization_config"].get("quant_method", "unknown"))
        raise InputError(f"{where}: the weights are quantised ({method}); give the model they were "
                         "made from")
    return where, raw


def read_llama_config(directory) -> LlamaConfig:
    """The config of an LLM directory in Hugging Face layout."""
    where, raw = read_model_config(directory)
    with understanding(where):
        return LlamaConfig.from_hf(raw, where)


def read_chronos_configs(directory) -> tuple[T5Config, ChronosConfig]:
    """The configs of a Chronos T5 directory in Hugging Face layout."""
    where, raw = read_model_config(directory)
    with understanding(where):
        config, chronos = T5Config.from_hf(raw, where), ChronosConfig.from_hf(raw, where)
    if chronos.n_tokens > config.vocab_size:
        raise InputError(f"{where}: {chronos.n_tokens} bins and special ids, the T5 has "
                         f"{config.vocab_size} embeddings")
    return config, chronos
