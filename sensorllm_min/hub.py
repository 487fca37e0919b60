"""Where an --llm or --encoder is: a directory, or a model on the Hugging Face hub.

A model is fetched once, into huggingface_hub's own cache: configs, tokenizer and safetensors, never
a pickle. HF_TOKEN and `hf auth login` (for gated models) and HF_HUB_OFFLINE are respected. With a
directory nothing here touches a network.
"""
import functools
import re
from pathlib import Path

from .files import InputError, brief

FILES = ("config.json", "adapter_config.json", "tokenizer.json", "tokenizer.model",
         "added_tokens.json", "tokenizer_config.json", "chat_template.jinja", "model.safetensors",
         "model.safetensors.index.json", "model-*-of-*.safetensors")
HUB_ID = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@([\w./-]+))?")     # NAME/MODEL[@REVISION]


def resolve_source(source, files=FILES):
    """A directory, or a hub id (without a revision: its main branch) -> the directory it is in.

    Several processes may ask at once: the cache locks each file. InputError where it cannot be had.
    """
    if source is None or Path(source).is_dir():
        return source
    match = HUB_ID.fullmatch(str(source))
    if not match:
        raise InputError(f"{brief(source)} is not a directory, and no hub id such as "
                         "HuggingFaceTB/SmolLM2-135M-Instruct either")
    return fetch(*match.groups(), tuple(files))


@functools.cache                                                  # a run asks several times
def fetch(name, revision, files):
    """Files of a model on the hub -> their directory in the cache. revision: as in a hub id."""
    from huggingface_hub import errors, snapshot_download         # takes a second to import
    source = name if revision is None else f"{name}@{revision}"
    try:
        return snapshot_download(name, revision=revision, allow_patterns=list(files))
    except errors.GatedRepoError:
        raise InputError(f"{name} is gated: accept its licence at https://huggingface.co/{name}, "
                         "then set HF_TOKEN, or run: hf auth login")
    except errors.RepositoryNotFoundError:
        raise InputError(f"{name} is no directory here and no model on the hub (or a private one: "
                         "set HF_TOKEN)")
    except errors.RevisionNotFoundError:
        raise InputError(f"{name} has no revision {revision}; leave @{revision} out for the newest")
    except errors.LocalEntryNotFoundError:
        raise InputError(f"{source} is no directory here, it is not in the cache, and the hub "
                         "cannot be reached (no network, or HF_HUB_OFFLINE is set); fetch it where "
                         "there is one, or give a directory")
    except errors.HFValidationError:                              # before ValueError, its base
        raise InputError(f"{brief(source)} is no directory here, and no name that the hub takes "
                         "(NAME/MODEL or NAME/MODEL@REVISION)")
    except (errors.HfHubHTTPError, OSError, ValueError) as error:
        raise InputError(f"{brief(source)} could not be fetched from the hub ({brief(error)})")


def pin_revision(source):
    """A source as a checkpoint keeps it: an absolute directory, or a hub id with its commit."""
    if source is None:
        return None
    match = HUB_ID.fullmatch(str(source))
    if not match or Path(source).is_dir():
        return str(Path(source).resolve())
    commit = Path(resolve_source(source)).name                    # .../snapshots/COMMIT
    return f"{match[1]}@{commit}"
