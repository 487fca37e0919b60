"""Public weights -> our modules: safetensors files, two tables of names, nothing left over.

A tensor that keeps its dtype is a view of the memory-mapped file: a model is never in memory twice,
and processes share its pages. Nothing here can run code (no pickle).
"""
import re
import warnings
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch.overrides import TorchFunctionMode

from .config import read_chronos_configs, read_llama_config
from .files import InputError, as_input_error, brief, read_json
from .llama import Llama
from .t5_encoder import T5Encoder

# A name in the checkpoint (regular expression) -> the name in our module; None: not needed.
LLAMA_NAMES = {
    r"model\.embed_tokens\.weight": "embed_tokens.weight",
    r"model\.layers\.(\d+)\.self_attn\.([qkvo]_proj)\.weight": r"layers.\1.attn.\2.weight",
    r"model\.layers\.(\d+)\.mlp\.(gate|up|down)_proj\.weight": r"layers.\1.mlp.\2_proj.weight",
    r"model\.layers\.(\d+)\.input_layernorm\.weight": r"layers.\1.attn_norm.weight",
    r"model\.layers\.(\d+)\.post_attention_layernorm\.weight": r"layers.\1.mlp_norm.weight",
    r"model\.norm\.weight": "norm.weight",
    r"lm_head\.weight": "lm_head.weight",
    # older files carry this one, which follows from theta
    r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq": None,
}
BLOCK = r"encoder\.block\.(\d+)"
ATTENTION, MLP = r"layer\.0\.SelfAttention", r"layer\.1\.DenseReluDense"
BIAS = rf"encoder\.block\.0\.{ATTENTION}\.relative_attention_bias\.weight"
T5_NAMES = {
    r"shared\.weight": "embed_tokens.weight",
    BIAS: "relative_bias.bias.weight",
    rf"{BLOCK}\.{ATTENTION}\.([qkvo])\.weight": r"layers.\1.attn.\2_proj.weight",
    rf"{BLOCK}\.layer\.0\.layer_norm\.weight": r"layers.\1.attn_norm.weight",
    rf"{BLOCK}\.{MLP}\.wi\.weight": r"layers.\1.mlp.up_proj.weight",
    rf"{BLOCK}\.{MLP}\.wo\.weight": r"layers.\1.mlp.down_proj.weight",
    rf"{BLOCK}\.layer\.1\.layer_norm\.weight": r"layers.\1.mlp_norm.weight",
    r"encoder\.final_layer_norm\.weight": "norm.weight",
    r"encoder\.embed_tokens\.weight": "own_embed_tokens.weight",     # most often equal to `shared`
    r"decoder\..*|lm_head\.weight": None,
}


def open_safetensors(path):
    """safe_open; raises an InputError if the file is missing, truncated or malformed."""
    try:
        return safe_open(path, framework="pt")
    except OSError:
        raise InputError(f"{path} not found or not readable")
    except SafetensorError as error:
        raise InputError(f"{path} is truncated or not a safetensors file ({brief(error)}); fetch "
                         "it again")


def safetensors_files(directory):
    """The weight files of a directory: `model.safetensors`, or the shards that its index names."""
    directory = Path(directory)
    single = directory / "model.safetensors"
    index = directory / "model.safetensors.index.json"
    if single.exists():
        return [single]
    if not index.exists():
        raise InputError(f"{directory} holds neither {single.name} nor {index.name}, and pickles "
                         "(.bin) are not read, since they can run code; take a revision of the "
                         "model with safetensors (of a hub id: NAME@REVISION, often @refs/pr/1)")
    with as_input_error(index):
        shards = sorted(set(read_json(index)["weight_map"].values()))
        outside = [name for name in shards if Path(name).name != name]
    if outside:
        raise InputError(f"{index} names '{brief(outside[0])}', which is not a file beside it")
    return [directory / name for name in shards]


def rename_tensors(directory, names, dtype):
    """All tensors of a directory under our names -> (dict, the names missing in `names`)."""
    tensors = {}
    unknown = []
    for path in safetensors_files(directory):
        with open_safetensors(path) as file, as_input_error(path):
            for name in file.keys():
                patterns = [pattern for pattern in names if re.fullmatch(pattern, name)]
                if not patterns:
                    unknown.append(name)
                    continue
                pattern = patterns[0]
                if names[pattern] is None:
                    continue
                tensor = file.get_tensor(name)
                if not tensor.is_floating_point():
                    raise InputError(f"{path}: {name} is {tensor.dtype}; quantised weights are not "
                                     "supported")
                our_name = re.sub(pattern, names[pattern], name)
                tensors[our_name] = tensor.to(dtype or tensor.dtype)
    return tensors, unknown


class Unfilled(TorchFunctionMode):
    """Modules made in this context are not initialised: on "meta" that would import a compiler."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return function(*args, **kwargs)


def load_strictly(module, tensors, unknown, where):
    """Makes `tensors`, which must all fit, the parameters of a module on the meta device."""
    wanted = {name: parameter.shape for name, parameter in module.named_parameters()}
    missing = sorted(wanted.keys() - tensors.keys())
    unused = sorted(tensors.keys() - wanted.keys()) + unknown
    if missing or unused:
        raise InputError(f"{where}: missing {brief(missing[:4] or 'nothing')}, unused "
                         f"{brief(unused[:4] or 'nothing')}; the weights do not fit config.json")
    for name, shape in wanted.items():
        given = tensors[name].shape
        if given != shape:
            raise InputError(f"{where}: {name} has shape {tuple(given)}, "
                             f"config.json says {tuple(shape)}")
    module.load_state_dict(tensors, assign=True)
    return module


def pop_untied(tensors, name, where):
    """Removes the table `name` -> itself if it differs from the embeddings that it should equal."""
    table = tensors.pop(name, None)
    if table is None or torch.equal(table, tensors.get("embed_tokens.weight", table[:0])):
        return None
    warnings.warn(f"{where}: the model is declared as tied, but its weights hold two different "
                  "tables; the file's own are used")
    return table


def load_llama(directory, dtype=None):
    """The model of a LLaMA-family directory; dtype None keeps the stored one."""
    config = read_llama_config(directory)
    tensors, unknown = rename_tensors(directory, LLAMA_NAMES, dtype)
    if config.tie_embeddings:
        head = pop_untied(tensors, "lm_head.weight", directory)
        if head is not None:
            tensors["lm_head.weight"] = head
            config = replace(config, tie_embeddings=False)
    with torch.device("meta"), Unfilled():
        model = Llama(config)
    return load_strictly(model, tensors, unknown, directory)


def load_t5_encoder(directory, dtype=None):
    """The encoder of a Chronos T5 directory -> (T5Encoder, ChronosConfig)."""
    config, chronos = read_chronos_configs(directory)
    tensors, unknown = rename_tensors(directory, T5_NAMES, dtype)
    table = pop_untied(tensors, "own_embed_tokens.weight", directory)
    if table is not None:
        tensors["embed_tokens.weight"] = table
    with torch.device("meta"), Unfilled():
        model = T5Encoder(config)
    return load_strictly(model, tensors, unknown, directory), chronos
