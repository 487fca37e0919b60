"""Where an --llm or --encoder is: a directory, or a model on the Hugging Face hub, fetched once into its cache.

Only configs, the tokenizer and safetensors are fetched: never a pickle. The cache, the token for gated models
(HF_TOKEN, or `hf auth login`), the progress bars and HF_HUB_OFFLINE are huggingface_hub's own. With a directory
nothing here touches a network.
"""
import functools
import re
from pathlib import Path

from .config import InputError

FILES = ("config.json", "adapter_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
         "chat_template.jinja", "model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
HUB_ID = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@([\w./-]+))?")                     # NAME/MODEL or NAME/MODEL@REVISION


def located(source, files=FILES):
    """A directory, or a hub id as NAME/MODEL@REVISION (without: its main branch) -> the directory it is in.

    InputError that says why where it cannot be had. Several processes may ask at once: the cache locks each file.
    """
    if source is None or Path(source).is_dir():
        return source
    match = HUB_ID.fullmatch(str(source))
    if not match:
        raise InputError(f"{source} is not a directory, and no hub id such as HuggingFaceTB/SmolLM2-135M-Instruct either")
    return fetched(*match.groups(), tuple(files))


@functools.cache                                                              # a run asks several times, the hub once
def fetched(name, revision, files):
    """Some files of a model on the hub -> the directory of them in the cache. revision: a branch, tag, commit or None."""
    from huggingface_hub import errors, snapshot_download                     # here: it takes a second to import
    source = name if revision is None else f"{name}@{revision}"
    try:
        return snapshot_download(name, revision=revision, allow_patterns=list(files))
    except errors.GatedRepoError:
        raise InputError(f"{name} is gated: accept its licence at https://huggingface.co/{name}, then set HF_TOKEN, "
                         "or run: hf auth login")
    except errors.RepositoryNotFoundError:
        raise InputError(f"{name} is no directory here and no model on the hub (or a private one: set HF_TOKEN)")
    except errors.RevisionNotFoundError:
        raise InputError(f"{name} has no revision {revision}; leave @{revision} out for the newest")
    except errors.LocalEntryNotFoundError:
        raise InputError(f"{source} is no directory here, it is not in the cache, and the hub cannot be reached "
                         "(no network, or HF_HUB_OFFLINE is set); fetch it where there is one, or give a directory")
    except (errors.HfHubHTTPError, OSError) as error:
        raise InputError(f"{source} could not be fetched from the hub ({str(error).splitlines()[0]})")


def pinned(source):
    """A source as a checkpoint keeps it: a directory as it is found from anywhere, a hub id with its commit."""
    if source is None or not HUB_ID.fullmatch(str(source)) or Path(source).is_dir():
        return source and str(Path(source).resolve())
    commit = Path(located(source)).name                                       # .../snapshots/COMMIT
    return f"{HUB_ID.fullmatch(source)[1]}@{commit}"
