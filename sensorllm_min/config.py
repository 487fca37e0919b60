"""The shapes of the two networks, read from a Hugging Face `config.json`, and the one error a person meets.

Everything downstream uses the names on the left; Hugging Face's names end here (and in `weights.py`).
"""
import json
import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


class InputError(Exception):
    """Something a person gave is wrong: one line that says what, where, and the mend. The scripts exit with code 2."""


@contextmanager
def understanding(where):
    """Turns what goes wrong while the content of a file is taken apart into an InputError that names the file."""
    try:
        yield
    except KeyError as error:
        raise InputError(f"{where}: the key {error} is missing")
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        raise InputError(f"{where} does not hold what it should ({type(error).__name__}: {error})")


def read_json(path):
    """The object in a JSON file. InputError where the file is missing or holds anything else."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError:
        raise InputError(f"{path} not found or not readable")
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error})")
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a JSON {type(content).__name__}, not an object")
    return content


@contextmanager
def write_bytes(path):
    """A binary file to write into, which takes the name `path` when all is written: whole or not at all."""
    unfinished = Path(f"{path}.unfinished")
    with open(unfinished, "wb") as file:
        yield file
    os.replace(unfinished, path)


def write_whole(path, text):
    """Writes a text file whole or not at all."""
    with write_bytes(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path, content):
    write_whole(path, json.dumps(content, indent=2) + "\n")


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
    head_dim: int                       # read, not derived: n_heads * head_dim need not equal d_model
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    tie_embeddings: bool = False        # the output head is the embedding matrix
    max_positions: int = 4096
    bos_id: int | None = None
    eos_ids: tuple = ()

    @classmethod
    def from_hf(cls, raw, where="config.json"):
        """The config of a LLaMA-family checkpoint. InputError for another family or an unknown rope type."""
        if raw.get("model_type") != "llama":
            raise InputError(f"{where}: model_type '{raw.get('model_type')}' is not a LLaMA; "
                             "give a directory of the LLaMA family (Llama 2, 3, 3.1, 3.2, TinyLlama, SmolLM2)")
        if raw.get("hidden_act", "silu") != "silu" or raw.get("attention_bias") or raw.get("mlp_bias"):
            raise InputError(f"{where}: only the bias-free SwiGLU LLaMA is implemented "
                             "(hidden_act silu, attention_bias and mlp_bias false)")
        n_heads = int(raw["num_attention_heads"])
        eos = raw.get("eos_token_id")
        theta, scaling = read_rope(raw, where)
        return cls(
            vocab_size=int(raw["vocab_size"]),
            d_model=int(raw["hidden_size"]),
            d_ff=int(raw["intermediate_size"]),
            n_layers=int(raw["num_hidden_layers"]),
            n_heads=n_heads,
            n_kv_heads=int(raw.get("num_key_value_heads") or n_heads),
            head_dim=int(raw.get("head_dim") or raw["hidden_size"] // n_heads),    # older files leave it out
            norm_eps=raw.get("rms_norm_eps", 1e-6),
            rope_theta=theta,
            rope_scaling=scaling,
            tie_embeddings=raw.get("tie_word_embeddings", False),
            max_positions=raw.get("max_position_embeddings", 2048),
            bos_id=raw.get("bos_token_id"),
            eos_ids=tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,),
        )


def read_rope(raw, where):
    """(theta, RopeScaling or None) from either spelling: `rope_theta` + `rope_scaling`, or `rope_parameters`."""
    rope = dict(raw.get("rope_scaling") or {}) | dict(raw.get("rope_parameters") or {})
    theta = float(rope.get("rope_theta", raw.get("rope_theta", 10000.0)))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise InputError(f"{where}: rope type '{kind}' is unknown; 'default' and 'llama3' are implemented")
    return theta, RopeScaling(*(rope[key] for key in (
        "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")))


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
        limits = chronos["tokenizer_kwargs"]
        if not chronos.get("use_eos_token", True) or chronos.get("model_type", "seq2seq") != "seq2seq":
            raise InputError(f"{where}: only Chronos T5 (model_type seq2seq, use_eos_token true) is implemented")
        return cls(limits["low_limit"], limits["high_limit"], chronos["n_tokens"], chronos["n_special_tokens"],
                   chronos["pad_token_id"], chronos["eos_token_id"], chronos["context_length"])


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
        if raw.get("model_type") != "t5":
            raise InputError(f"{where}: model_type '{raw.get('model_type')}' is not a T5; give a chronos-t5 directory")
        if raw.get("feed_forward_proj", "relu") != "relu":
            raise InputError(f"{where}: feed_forward_proj '{raw['feed_forward_proj']}' is not implemented; "
                             "Chronos T5 uses 'relu'")
        return cls(
            vocab_size=int(raw["vocab_size"]),
            d_model=int(raw["d_model"]),
            d_ff=int(raw["d_ff"]),
            n_layers=int(raw["num_layers"]),
            n_heads=int(raw["num_heads"]),
            head_dim=int(raw["d_kv"]),
            n_buckets=raw.get("relative_attention_num_buckets", 32),
            max_distance=raw.get("relative_attention_max_distance", 128),
            norm_eps=raw.get("layer_norm_epsilon", 1e-6),
        )


# The built-in sizes: what is trained from scratch where no --encoder or --llm is given. Small enough for two cores.
TINY_ENCODER = T5Config(vocab_size=4096, d_model=64, d_ff=256, n_layers=2, n_heads=4, head_dim=16)
TINY_CHRONOS = ChronosConfig()
TINY_LLAMA = LlamaConfig(vocab_size=1024, d_model=128, d_ff=384, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=32,
                         tie_embeddings=True)


def read_model_config(directory):
    """The config.json of a directory in Hugging Face layout -> (its path, object). InputError for what is no model."""
    where = Path(directory) / "config.json"
    if not where.exists() and (Path(directory) / "adapter_config.json").exists():
        raise InputError(f"{directory} is an adapter, not a model; merge it into its base model (peft: "
                         "merge_and_unload, then save_pretrained) and give that directory")
    if not where.exists() and list(Path(directory).glob("*.gguf")):
        raise InputError(f"{directory} holds a GGUF file; give the model in Hugging Face layout (config.json, safetensors)")
    raw = read_json(where)
    if raw.get("quantization_config"):
        method = dict(raw["quantization_config"]).get("quant_method", "unknown")
        raise InputError(f"{where}: the weights are quantised ({method}); give the model they were made from")
    return where, raw


def read_llama_config(directory):
    """LlamaConfig of a directory in Hugging Face layout."""
    where, raw = read_model_config(directory)
    with understanding(where):
        return LlamaConfig.from_hf(raw, where)


def read_chronos_configs(directory):
    """(T5Config, ChronosConfig) of a directory in Hugging Face layout."""
    where, raw = read_model_config(directory)
    with understanding(where):
        config, chronos = T5Config.from_hf(raw, where), ChronosConfig.from_hf(raw, where)
    if chronos.n_tokens > config.vocab_size:
        raise InputError(f"{where}: {chronos.n_tokens} bins and special ids, the T5 has {config.vocab_size} embeddings")
    return config, chronos
