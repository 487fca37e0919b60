"""Where an --llm or --encoder is: a directory, or a model on the Hugging Face hub.

Configs, tokenizer and safetensors are fetched, never a pickle, into huggingface_hub's own cache.
HF_TOKEN, `hf auth login` and HF_HUB_OFFLINE are respected; a directory needs no network.
"""
import functools
import re
from pathlib import Path

from .files import InputError, as_input_error, brief

FILES = ("config.json", "adapter_config.json", "tokenizer.json", "tokenizer.model",
         "added_tokens.json", "tokenizer_config.json", "chat_template.jinja", "model.safetensors",
         "model.safetensors.index.json", "model-*-of-*.safetensors")
HUB_ID = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@([\w./-]+))?")     # NAME/MODEL[@REVISION]


def resolve_source(source, files=FILES):
    """The directory of a source: itself, or the snapshot of a hub id in huggingface_hub's cache."""
    if source is None or Path(source).is_dir():
        return source
    match = HUB_ID.fullmatch(str(source))
    if not match:
        raise InputError(f"{brief(source)} is not a directory, and not a hub id such as "
                         "HuggingFaceTB/SmolLM2-135M-Instruct; give the right one with --llm or "
                         "--encoder")
    return fetch(*match.groups(), tuple(files))


@functools.cache
def fetch(name, revision, files):
    from huggingface_hub import snapshot_download                 # takes a second to import
    source = name if revision is None else f"{name}@{revision}"
    advice = ("; check the name and the network. For a gated or private model accept its licence "
              f"at https://huggingface.co/{name}, then set HF_TOKEN, or run: hf auth login")
    with as_input_error(source, "is not a directory and cannot be fetched from the hub", advice):
        return snapshot_download(name, revision=revision, allow_patterns=list(files))


def pin_revision(source):
    """A source as a checkpoint keeps it: an absolute directory, or a hub id with its commit."""
    if source is None:
        return None
    match = HUB_ID.fullmatch(str(source))
    if not match or Path(source).is_dir():
        return str(Path(source).resolve())
    commit = Path(resolve_source(source)).name                    # .../snapshots/COMMIT
    return f"{match[1]}@{commit}"
