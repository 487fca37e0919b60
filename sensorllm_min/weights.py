"""Public weights -> our modules: safetensors files, two tables of names, nothing missing and nothing left over.

A safetensors file is mapped, not read: a tensor that keeps its dtype is a view of the file, so a model never stands
in memory twice, and processes on one machine share the pages. Nothing here can run code (no pickle).
"""
import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch.overrides import TorchFunctionMode

from .config import InputError, read_chronos_configs, read_json, read_llama_config, understanding
from .llama import Llama
from .t5_encoder import T5Encoder

# A name in the checkpoint (regular expression) -> the name in our module. None: known, and not needed.
LLAMA_NAMES = {
    r"model\.embed_tokens\.weight": "embed_tokens.weight",
    r"model\.layers\.(\d+)\.self_attn\.([qkvo]_proj)\.weight": r"layers.\1.attn.\2.weight",
    r"model\.layers\.(\d+)\.mlp\.(gate|up|down)_proj\.weight": r"layers.\1.mlp.\2_proj.weight",
    r"model\.layers\.(\d+)\.input_layernorm\.weight": r"layers.\1.attn_norm.weight",
    r"model\.layers\.(\d+)\.post_attention_layernorm\.weight": r"layers.\1.mlp_norm.weight",
    r"model\.norm\.weight": "norm.weight",
    r"lm_head\.weight": "lm_head.weight",
    r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq": None,             # older files carry it; it follows from theta
}
T5_NAMES = {
    r"shared\.weight": "embed_tokens.weight",
    r"encoder\.block\.0\.layer\.0\.SelfAttention\.relative_attention_bias\.weight": "relative_bias.bias.weight",
    r"encoder\.block\.(\d+)\.layer\.0\.SelfAttention\.([qkvo])\.weight": r"layers.\1.attn.\2_proj.weight",
    r"encoder\.block\.(\d+)\.layer\.0\.layer_norm\.weight": r"layers.\1.attn_norm.weight",
    r"encoder\.block\.(\d+)\.layer\.1\.DenseReluDense\.wi\.weight": r"layers.\1.mlp.up_proj.weight",
    r"encoder\.block\.(\d+)\.layer\.1\.DenseReluDense\.wo\.weight": r"layers.\1.mlp.down_proj.weight",
    r"encoder\.block\.(\d+)\.layer\.1\.layer_norm\.weight": r"layers.\1.mlp_norm.weight",
    r"encoder\.final_layer_norm\.weight": "norm.weight",
    r"encoder\.embed_tokens\.weight|decoder\..*|lm_head\.weight": None,       # a copy of `shared`; the decoder's side
}


def open_safetensors(path):
    """safe_open, with an InputError where the file is missing, truncated or malformed."""
    try:
        return safe_open(path, framework="pt")
    except OSError:                                                           # FileNotFoundError among them
        raise InputError(f"{path} not found or not readable")
    except SafetensorError as error:
        raise InputError(f"{path} is truncated or not a safetensors file ({error}); it must be fetched, or made, again")


def safetensors_files(directory):
    """The weight files of a checkpoint directory: `model.safetensors`, or the shards its index names."""
    directory = Path(directory)
    index = directory / "model.safetensors.index.json"
    if (directory / "model.safetensors").exists():
        return [directory / "model.safetensors"]
    if not index.exists():
        pickled = ", only pickles (.bin), which can run code when they are loaded" * bool(list(directory.glob("*.bin")))
        raise InputError(f"{directory} holds neither model.safetensors nor model.safetensors.index.json{pickled}; take a "
                         "revision of the model with safetensors (of a hub id: NAME@REVISION, often @refs/pr/1)")
    with understanding(index):
        shards = sorted(set(read_json(index)["weight_map"].values()))
    for name in shards:
        if Path(name).name != name:                                           # never outside the directory
            raise InputError(f"{index} names '{name}', which is not a file beside it")
    return [directory / name for name in shards]


def renamed_tensors(directory, names, dtype):
    """All tensors of a checkpoint under our names -> (dict, names in the files that the table does not know)."""
    tensors, unknown = {}, []
    for path in safetensors_files(directory):
        with open_safetensors(path) as file:
            for name in file.keys():
                pattern = next((p for p in names if re.fullmatch(p, name)), None)
                if pattern is None:
                    unknown.append(name)
                elif names[pattern] is not None:
                    tensor = file.get_tensor(name)
                    if not tensor.is_floating_point():
                        raise InputError(f"{path}: {name} is {tensor.dtype}; quantised weights are not supported")
                    tensors[re.sub(pattern, names[pattern], name)] = tensor.to(dtype or tensor.dtype)
    return tensors, unknown


class Unfilled(TorchFunctionMode):
    """Modules made in this context take no memory and no time: on the meta device, without a random start."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == "torch.nn.init":          # on meta it would import half a compiler
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return function(*args, **kwargs)


def load_strictly(module, tensors, unknown, where):
    """Makes `tensors` the parameters of `module` (on the meta device until now). InputError on any difference."""
    wanted = {name: parameter.shape for name, parameter in module.named_parameters()}
    missing = sorted(wanted.keys() - tensors.keys())
    unused = sorted(tensors.keys() - wanted.keys()) + unknown
    if missing or unused:
        raise InputError(f"{where}: missing {missing[:4] or 'nothing'}, unused {unused[:4] or 'nothing'}; "
                         "the weights do not fit config.json")
    for name, shape in wanted.items():
        if tensors[name].shape != shape:
            raise InputError(f"{where}: {name} has shape {tuple(tensors[name].shape)}, config.json says {tuple(shape)}")
    module.load_state_dict(tensors, assign=True)
    return module


def load_llama(directory, dtype=None):
    """A LLaMA-family directory in Hugging Face layout -> Llama. dtype None keeps what is on disk."""
    config = read_llama_config(directory)
    tensors, unknown = renamed_tensors(directory, LLAMA_NAMES, dtype)
    if config.tie_embeddings:
        tensors.pop("lm_head.weight", None)                                   # some files hold the tied copy, too
    with torch.device("meta"), Unfilled():
        model = Llama(config)
    return load_strictly(model, tensors, unknown, directory)


def load_t5_encoder(directory, dtype=None):
    """A Chronos T5 directory in Hugging Face layout -> (T5Encoder, ChronosConfig). The decoder is left on disk."""
    config, chronos = read_chronos_configs(directory)
    tensors, unknown = renamed_tensors(directory, T5_NAMES, dtype)
    with torch.device("meta"), Unfilled():
        model = T5Encoder(config)
    return load_strictly(model, tensors, unknown, directory), chronos
