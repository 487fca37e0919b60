"""Models from a recipe, and checkpoints: one safetensors file that holds what was trained and says what it is.

    tensors      projector, new token rows, head; encoder and LLM only where they were trained or have no source
                 in last.safetensors also the optimizer's moments, under optimizer.*
    metadata     the recipe (below), the progress of the run, its settings

A file is written beside its place and moved there when whole: a crash leaves the old one. For an 8B LLM it is about
42 MB; the frozen networks are read from where they came from, and refused if they are not the same any more.
"""
import hashlib
import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import tokenizers
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from .chronos_tokenizer import ChronosTokenizer
from .config import ChronosConfig, InputError, LlamaConfig, RopeScaling, T5Config
from .data import Limits
from .hub import HUB_ID, located, pinned
from .int8 import quantize
from .llama import Llama
from .sensorllm import SensorLLM
from .sensors import known_dataset
from .t5_encoder import T5Encoder
from .text_tokenizer import built_tokenizer, load_text_tokenizer
from .weights import load_llama, load_t5_encoder, open_safetensors, safetensors_files

FORMAT = 1                                                                    # of the file; another one is refused
KEY = "sensorllm_min"                                                         # the metadata entry that is ours


@dataclass(frozen=True)
class Recipe:
    """All that makes the model again, but for the trained tensors. Directories are None for the built-in sizes."""
    dataset: str
    added_tokens: tuple
    scaling: str                        # one of chronos_tokenizer.SCALINGS
    projector: tuple                    # hidden widths
    llm: str | None                     # directory, or hub id with its commit
    llm_fingerprint: str | None
    llm_config: LlamaConfig
    encoder: str | None                 # directory, or hub id with its commit
    encoder_fingerprint: str | None
    encoder_config: T5Config
    chronos: ChronosConfig
    tokenizer_json: str | None          # of the built-in LLM; another's is read from its directory
    classes: tuple = ()                 # none: stage 1
    text: tuple = ()                    # parts of the stage-2 text
    channel_names: bool = False         # in the stage-2 prompt
    answer: str = "class"               # of stage 2, one of data.HAR_ANSWERS
    control: str | None = None          # one of sensorllm.CONTROLS
    llm_seed: int | None = None         # of an LLM with random weights (a control)
    trained: tuple = ()                 # parts trained so far, in either stage
    chat_format: str | None = None      # one of text_tokenizer.CHAT_FORMATS; None: as the tokenizer's tokens tell
    row: dict | None = None             # of a dataset of one's own: what sensors.py says of the others

    @property
    def sensors(self):
        """The Dataset it was trained on."""
        return known_dataset(self.dataset, self.row, "the checkpoint's recipe")

    @property
    def stage(self):
        return "har" if self.classes else "align"

    @property
    def limits(self):
        return Limits(self.chronos.context_length, self.llm_config.max_positions)

    @property
    def n_classes(self):
        """Of the class head; None without one."""
        return len(self.classes) if self.classes and self.answer == "class" else None

    @property
    def saved_parts(self):
        return {"projector", "tokens", "head", *self.trained,
                *(part for part in ("llm", "encoder") if getattr(self, part) is None)}

    @classmethod
    def from_json(cls, raw):
        raw = {key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()}
        llama = raw["llm_config"]
        llama["rope_scaling"] = llama["rope_scaling"] and RopeScaling(**llama["rope_scaling"])
        return cls(**raw | {"llm_config": LlamaConfig(**llama | {"eos_ids": tuple(llama["eos_ids"])}),
                            "encoder_config": T5Config(**raw["encoder_config"]),
                            "chronos": ChronosConfig(**raw["chronos"])})


def fingerprint(directory):
    """A hash that tells one network from another without reading all of it.

    Config and tokenizer whole; of each weight file its size and 16 blocks, from the header to the very end.
    """
    digest = hashlib.sha256()
    for name in ("config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json"):
        path = Path(directory) / name
        digest.update(f"{name} ".encode() + (path.read_bytes() if path.exists() else b""))
    for path in safetensors_files(directory):
        with open(path, "rb") as file:
            size = os.path.getsize(path)
            digest.update(f"{path.name} {size}".encode())
            for block in range(16):
                file.seek(max(0, size - 4096) * block // 15)
                digest.update(file.read(4096))
    return digest.hexdigest()[:16]


def random_llm(config, dtype, seed):
    """A LLaMA of this shape whose weights nobody has trained; the same for the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        llm = Llama(config).to(dtype)
        llm.init_from_scratch()
    return llm


def build_model(recipe, dtype=torch.float32, int8=False):
    """The model of a recipe -> (SensorLLM, TextTokenizer). Random where there is no source: seed torch before.

    dtype: of what is read from the directories; int8: the LLM's matrices in int8. InputError where a directory holds
    other weights than it did.
    """
    if int8 and "llm" in recipe.saved_parts:
        raise InputError("--dtype int8 is for an LLM of --llm that stays frozen; this one learns")
    for option, directory, known in (("--llm", recipe.llm, recipe.llm_fingerprint),
                                     ("--encoder", recipe.encoder, recipe.encoder_fingerprint)):
        if directory is not None and not Path(directory).is_dir() and not HUB_ID.fullmatch(directory):
            raise InputError(f"{directory} is not there any more; say with {option} where it is now")
        if directory is not None and fingerprint(located(directory)) != known:
            raise InputError(f"{directory} does not hold the weights that the checkpoint was trained with; "
                             f"give the right directory with {option}")
    if recipe.encoder is None:
        encoder = T5Encoder(recipe.encoder_config)
        encoder.init_from_scratch(ChronosTokenizer(recipe.chronos).centers, recipe.chronos.n_special_tokens)
    else:
        encoder, _ = load_t5_encoder(located(recipe.encoder), dtype)
    if recipe.llm is None:
        llm = Llama(recipe.llm_config)
        llm.init_from_scratch()
        backend = tokenizers.Tokenizer.from_str(recipe.tokenizer_json)
        tokenizer = built_tokenizer(backend, recipe.sensors.channels, recipe.llm_config.vocab_size)
    else:
        llm = load_llama(located(recipe.llm), dtype)
        tokenizer = load_text_tokenizer(located(recipe.llm), llm.config, recipe.sensors.channels, recipe.chat_format)
    if recipe.llm_seed is not None:
        llm = random_llm(recipe.llm_config, dtype, recipe.llm_seed)
    if int8:
        quantize(llm)
    if tuple(tokenizer.added) != recipe.added_tokens:
        raise InputError(f"the checkpoint's special tokens are not those of {recipe.dataset} any more; train it again")
    chronos = ChronosTokenizer(recipe.chronos, recipe.scaling)
    return SensorLLM(encoder, chronos, llm, tokenizer, recipe.projector, recipe.n_classes, recipe.control), tokenizer


def trained_tensors(model, recipe):
    return {name: parameter for name, parameter in model.named_parameters()
            if model.part_of(name) in recipe.saved_parts}


def save_checkpoint(path, model, recipe, progress, optimizer=None):
    """Writes one checkpoint file, whole or not at all. progress: a JSON object (step, best score, settings, ...)."""
    tensors = {name: tensor.detach().contiguous() for name, tensor in trained_tensors(model, recipe).items()}
    if optimizer is not None:
        tensors |= optimizer_tensors(model, optimizer)
    metadata = {"format": FORMAT, "stage": recipe.stage, "recipe": asdict(recipe), "progress": progress}
    unfinished = Path(f"{path}.unfinished")
    try:
        save_file(tensors, unfinished, metadata={KEY: json.dumps(metadata)})
        unfinished.chmod(0o644)                                               # save_file leaves it to its owner alone
        with open(unfinished, "rb") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} could not be written ({error}); the checkpoint before it is still there")
    finally:
        unfinished.unlink(missing_ok=True)


def checkpoint_file(path, name="best"):
    """A checkpoint file itself, or the one of that name in a run's output directory or in a shared model on the hub."""
    if not Path(path).exists() and HUB_ID.fullmatch(str(path)) and Path(path).parts[0] != "out":   # out: a run to come
        path = located(path, (f"{name}.safetensors",))
    path = Path(path)
    return path / f"{name}.safetensors" if path.is_dir() else path


def read_checkpoint(path):
    """A checkpoint file -> (recipe, progress, tensors). InputError where it is missing, broken or not ours."""
    if not Path(path).exists():
        raise InputError(f"{path} not found; train_align.py and train_har.py write it into their --out")
    with open_safetensors(path) as file:
        try:
            metadata = json.loads((file.metadata() or {})[KEY])
            if metadata["format"] != FORMAT:
                raise InputError(f"{path}: checkpoint format {metadata['format']}, this code reads {FORMAT}; "
                                 "train it again")
            recipe, progress = Recipe.from_json(metadata["recipe"]), metadata["progress"]
            known_dataset(recipe.dataset, recipe.row, path)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} is not a checkpoint of this project ({type(error).__name__}: {error})")
        return recipe, progress, {name: file.get_tensor(name) for name in file.keys()}


def fill_model(model, recipe, tensors, path, new_parts=()):
    """Copies a checkpoint's tensors into the model, but for new_parts: else nothing missing, nothing left over."""
    wanted = {name: parameter for name, parameter in trained_tensors(model, recipe).items()
              if model.part_of(name) not in new_parts}
    given = {name: tensor for name, tensor in tensors.items()
             if not name.startswith("optimizer.") and model.part_of(name) not in new_parts}
    different = sorted(wanted.keys() ^ given.keys()) or sorted(
        name for name in wanted if wanted[name].shape != given[name].shape)
    if different:
        raise InputError(f"{path} does not fit the model it describes: {', '.join(different[:4])}")
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.data = given[name].to(parameter.device, torch.float32, copy=True)   # trained parts are float32


def load_checkpoint(path, llm=None, encoder=None, dtype=torch.float32, int8=False):
    """A checkpoint -> (model, tokenizer, recipe, progress). llm, encoder: where their directories are now, if moved."""
    path = checkpoint_file(path)
    recipe, progress, tensors = read_checkpoint(path)
    recipe = moved(recipe, llm, encoder)
    model, tokenizer = build_model(recipe, dtype, int8)
    fill_model(model, recipe, tensors, path)
    return model, tokenizer, recipe, progress


def moved(recipe, llm=None, encoder=None):
    """The recipe with other directories for its sources; InputError where it has none to move."""
    for option, new, old in (("--llm", llm, recipe.llm), ("--encoder", encoder, recipe.encoder)):
        if new is not None and old is None:
            raise InputError(f"{option} {new}: the checkpoint holds its own, trained from scratch; leave {option} out")
    return replace(recipe, llm=pinned(llm) or recipe.llm, encoder=pinned(encoder) or recipe.encoder)


# ---- the optimizer's moments, by the name of the parameter ----

MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def optimizer_tensors(model, optimizer):
    return {f"optimizer.{name}.{moment}": optimizer.state[parameter][moment]
            for name, parameter in model.named_parameters() if parameter in optimizer.state for moment in MOMENTS}


def fill_optimizer(model, optimizer, tensors, path):
    """Takes up the moments of all that is trained; InputError where one is missing, or belongs to what is not trained."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    kept = {name.removeprefix("optimizer.").rpartition(".")[0] for name in tensors if name.startswith("optimizer.")}
    if kept - trained:
        raise InputError(f"{path} holds optimizer state for {', '.join(sorted(kept - trained)[:4])}, not trained now; "
                         "--resume with the run's own --train")
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            try:
                state = {moment: tensors[f"optimizer.{name}.{moment}"].clone() for moment in MOMENTS}
            except KeyError as error:
                raise InputError(f"{path} holds no optimizer state for {error}; --resume with the run's own --train")
            optimizer.state[parameter] = {m: t if m == "step" else t.to(parameter.device) for m, t in state.items()}
