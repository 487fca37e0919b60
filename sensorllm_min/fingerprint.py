"""A hash of a network's contents, to recognise the network that a checkpoint was trained with."""
import hashlib
import re

import torch

from .config import read_chronos_configs, read_llama_config, read_model_config
from .text_tokenizer import declared_token, load_backend
from .weights import LLAMA_NAMES, T5_NAMES, open_safetensors, safetensors_files

SAMPLES = 16                                                      # numbers read from each tensor
# A text that tokenizers cut differently: digits, signs, lines, a chat's header, other scripts.
PROBE = ("0.25s to 1.305s: rising\n\nMean=-9.80665, StdDev=0.0012. Which activity is this?\n"
         "<|im_start|>user <|eot_id|> Zürich 日本")
NUMBER = re.compile(r"\d+\.\d+(?:e-?\d+)?|\d+e-?\d+")             # in a config


def fingerprint(directory):
    """A hash of a network's contents: shape settings, tensors, and how its tokenizer cuts a text.
    A copy that was saved again has the same: in other shards, in a wider dtype, a matrix tied."""
    _, raw = read_model_config(directory)
    read_config = read_chronos_configs if raw.get("model_type") == "t5" else read_llama_config
    config = repr(read_config(directory))                         # 9.9999997e-06 is 1e-05
    config = NUMBER.sub(
        lambda number: f"{float(number[0]):.5g}", config)
    digest = hashlib.sha256(config.encode())
    needed = [name for name, ours in (LLAMA_NAMES | T5_NAMES).items() if ours]
    samples = set()                     # of each tensor that our modules hold: shape, some numbers
    for path in safetensors_files(directory):
        with open_safetensors(path) as file:
            for name in file.keys():
                if any(re.fullmatch(pattern, name) for pattern in needed):
                    tensor = file.get_tensor(name)
                    index = torch.linspace(
                        0, tensor.numel() - 1, SAMPLES, dtype=torch.float64)
                    numbers = tensor.flatten()[index.long()].double().numpy()
                    samples.add(repr(tuple(tensor.shape)).encode() + numbers.tobytes())
    digest.update(b"".join(sorted(samples)))
    if read_config is read_llama_config:
        ids = load_backend(directory).encode(PROBE)
        ends = [declared_token(directory, key) for key in ("bos_token", "eos_token")]
        digest.update(repr((ids, *ends)).encode())
    return digest.hexdigest()[:16]
