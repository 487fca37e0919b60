"""Models from a recipe, and checkpoints: one safetensors file that says what it is.

    tensors      what was trained: projector, special-token embeddings, head with the class
                 weights of its loss; encoder and LLM only where they were trained or have no
                 source; in last.safetensors also the optimizer's moments, under optimizer.*
    metadata     the recipe (below), the progress of the run, its settings

For an 8B LLM a file takes about 42 MB: the frozen networks are read from where they came from, and
refused if they have changed.
"""
import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import tokenizers
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ..ablations import ABLATIONS
from ..chronos_tokenizer import SCALINGS, ChronosTokenizer
from ..config import ChronosConfig, LlamaConfig, RopeScaling, T5Config, checked
from ..data.examples import HAR_ANSWERS, PromptFormat
from ..data.sensors import known_dataset
from ..data.texts import HAR_TEXTS
from ..efficient import quantize
from ..files import InputError, brief, check_types, is_a, understanding
from ..llama import Llama
from ..sensorllm import PARTS, SensorLLM
from ..t5_encoder import T5Encoder
from ..text_tokenizer import CHAT_FORMATS, TextTokenizer, built_tokenizer, load_text_tokenizer
from ..weights import Unfilled, load_llama, load_t5_encoder, open_safetensors
from .fingerprint import is_same_network
from .hub import HUB_ID, pin_revision, resolve_source

FORMAT = 1                                                        # another one is refused
KEY = "sensorllm_min"                                             # the metadata entry that is ours
NO_CHECKPOINT = "is not a checkpoint of this project"
# What earlier checkpoints call differently: fields of the recipe, and a tensor.
RENAMED = {"control": "ablation", "row": "own_dataset"}
OLD_TENSOR, NEW_TENSOR = "new_rows", "special_embeddings"


@dataclass(frozen=True)
class Recipe:
    """All it takes to build the model, except the trained tensors."""
    dataset: str
    added_tokens: tuple[str, ...]
    scaling: str                        # one of chronos_tokenizer.SCALINGS
    projector: tuple[int, ...]          # hidden widths
    llm: str | None                     # directory or hub id with commit; None: built-in size
    llm_fingerprint: str | None
    llm_config: LlamaConfig
    encoder: str | None                 # the same
    encoder_fingerprint: str | None
    encoder_config: T5Config
    chronos: ChronosConfig
    tokenizer_json: str | None          # the built-in LLM's; another's is read from its directory
    classes: tuple[str, ...] = ()       # none: stage 1
    text: tuple[str, ...] = ()          # parts of the stage-2 text
    channel_names: bool = False         # in the stage-2 prompt
    answer: str = "class"               # in stage 2, one of examples.HAR_ANSWERS
    ablation: str | None = None         # one of ablations.ABLATIONS
    llm_seed: int | None = None         # for an LLM with random weights (an ablation)
    trained: tuple[str, ...] = ()       # parts trained so far, in either stage
    chat_format: str | None = None      # one of CHAT_FORMATS; None: the template's, or by tokens
    chat_template: str | None = None    # the LLM's own; None: it has none, or the checkpoint is old
    class_bos: bool = True              # whether each class prompt begins with bos; not since then
    own_dataset: dict | None = None     # the DatasetInfo, where it is not that of the table
    levels: tuple[tuple[float, ...], ...] | None = None       # mean and deviation of each channel

    @property
    def sensors(self):
        """The DatasetInfo of the training data."""
        return known_dataset(self.dataset, self.own_dataset, "the checkpoint's recipe")

    @property
    def stage(self):
        return "har" if self.classes else "align"

    @property
    def n_classes(self):
        """The width of the class head; None without one."""
        return len(self.classes) if self.classes and self.answer == "class" else None

    @property
    def saved_parts(self):
        scratch = [part for part in ("llm", "encoder") if getattr(self, part) is None]
        return {"projector", "tokens", "head", *self.trained, *scratch}

    @classmethod
    def from_json(cls, raw, where):
        """A recipe from a checkpoint. InputError where a value is of another type or unknown."""
        fields = {RENAMED.get(key, key): tuple(value) if isinstance(value, list) else value
                  for key, value in raw.items()}
        llm = fields["llm_config"]
        llm["eos_ids"] = tuple(llm["eos_ids"])
        if llm["rope_scaling"]:
            llm["rope_scaling"] = RopeScaling(**llm["rope_scaling"])
        fields["llm_config"] = checked(LlamaConfig(**llm), where)
        fields["encoder_config"] = checked(T5Config(**fields["encoder_config"]), where)
        fields["chronos"] = checked(ChronosConfig(**fields["chronos"]), where)
        if fields.get("levels") is not None:
            fields["levels"] = tuple(map(tuple, fields["levels"]))
        recipe = check_types(cls(**fields), where)
        for values, known in (
                ((recipe.scaling,), SCALINGS), (recipe.text, HAR_TEXTS), (recipe.trained, PARTS),
                ((recipe.answer,), HAR_ANSWERS), ((recipe.ablation,), (None, *ABLATIONS)),
                ((recipe.chat_format,), (None, *CHAT_FORMATS))):
            unknown = [value for value in values if value not in known]
            if unknown or min(recipe.projector, default=0) < 1:
                raise ValueError(f"the recipe holds {unknown or recipe.projector}")
        return recipe


class Loaded(NamedTuple):
    """A model with what belongs to it."""
    model: SensorLLM
    tokenizer: TextTokenizer
    recipe: Recipe
    progress: dict | None = None        # its training, if it comes from a checkpoint

    @property
    def prompts(self):
        """How windows become prompts for this model."""
        recipe = self.recipe
        return PromptFormat(
            self.tokenizer, recipe.chronos.context_length, recipe.llm_config.max_positions,
            recipe.text, recipe.channel_names, recipe.answer, recipe.class_bos)


# ---- models ----

def build_model(recipe, dtype=torch.float32, int8=False) -> Loaded:
    """The model of a recipe -> Loaded. Random where there is no source: seed torch before.

    dtype: of what is read from the sources; int8: keeps the LLM's matrices in int8. InputError
    where a source is gone or holds other weights than it did.
    """
    if int8 and "llm" in recipe.saved_parts:
        raise InputError("--dtype int8 is for an LLM of --llm that stays frozen; this one learns")
    if recipe.llm is not None:
        check_source("--llm", recipe.llm, recipe.llm_fingerprint)
    if recipe.encoder is not None:
        check_source("--encoder", recipe.encoder, recipe.encoder_fingerprint)
    if recipe.encoder is None:
        encoder = T5Encoder(recipe.encoder_config)
        centers = ChronosTokenizer(recipe.chronos).centers
        encoder.init_from_scratch(centers, recipe.chronos.n_special_tokens)
    else:
        encoder, _ = load_t5_encoder(resolve_source(recipe.encoder), dtype)
    channels = recipe.sensors.channels
    if recipe.llm is None:
        llm = Llama(recipe.llm_config)
        llm.init_from_scratch()
        with understanding("the tokenizer in the checkpoint's recipe"):
            backend = tokenizers.Tokenizer.from_str(recipe.tokenizer_json)
        tokenizer = built_tokenizer(backend, channels, recipe.llm_config.vocab_size)
    else:
        directory = resolve_source(recipe.llm)
        llm = load_llama(directory, dtype)
        tokenizer = load_text_tokenizer(directory, llm.config, channels, recipe.chat_format,
                                        recipe.chat_template)
    if recipe.llm_seed is not None:                               # the ablation random-llm
        with torch.random.fork_rng():
            torch.manual_seed(recipe.llm_seed)
            llm = Llama(recipe.llm_config).to(dtype)
            llm.init_from_scratch()
    if int8:
        quantize(llm)
    if tuple(tokenizer.added) != recipe.added_tokens:
        raise InputError("the checkpoint's special tokens are not those of "
                         f"{recipe.dataset} any more; train it again")
    chronos = ChronosTokenizer(recipe.chronos, recipe.scaling, recipe.levels)
    model_class = ABLATIONS[recipe.ablation][0] if recipe.ablation else SensorLLM
    model = model_class(encoder, chronos, llm, tokenizer, recipe.projector, recipe.n_classes)
    return Loaded(model, tokenizer, recipe)


def check_source(option, source, known):
    """InputError unless a source is there and has the known fingerprint."""
    if not Path(source).is_dir() and not HUB_ID.fullmatch(source):
        raise InputError(f"{source} is not there any more; say with {option} where it is now")
    if not is_same_network(resolve_source(source), known):
        raise InputError(f"{source} does not hold the weights that the checkpoint was trained "
                         f"with; give the right directory with {option}")


def move_sources(recipe, llm=None, encoder=None):
    """The recipe with other sources; InputError where it has none to move."""
    for option, new, old in (("--llm", llm, recipe.llm), ("--encoder", encoder, recipe.encoder)):
        if new is not None and old is None:
            raise InputError(f"{option} {new}: the checkpoint holds its own, trained from scratch; "
                             f"leave {option} out")
    return replace(recipe, llm=pin_revision(llm) or recipe.llm,
                   encoder=pin_revision(encoder) or recipe.encoder)


# ---- checkpoint files ----

def trained_tensors(model, recipe):
    """{name: tensor} of what a checkpoint holds: parameters, and the class weights."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor for name, tensor in tensors if model.part_of(name) in recipe.saved_parts}


def save_checkpoint(path, model, recipe, progress, optimizer=None):
    """Writes a checkpoint file, whole or not at all. progress: a JSON object, as of Run."""
    tensors = {name: tensor.detach().contiguous()
               for name, tensor in trained_tensors(model, recipe).items()}
    if optimizer is not None:
        tensors |= optimizer_tensors(model, optimizer)
    metadata = {"format": FORMAT, "stage": recipe.stage,
                "recipe": asdict(recipe), "progress": progress}
    unfinished = Path(f"{path}.unfinished")
    try:
        unfinished.touch()
        mode = unfinished.stat().st_mode                          # as the umask says
        save_file(tensors, unfinished, metadata={KEY: json.dumps(metadata)})
        unfinished.chmod(mode)                                    # save_file allows only its owner
        with open(unfinished, "rb") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} could not be written ({error}); the checkpoint before it is "
                         "still there")
    finally:
        unfinished.unlink(missing_ok=True)


def checkpoint_file(path, name="best"):
    """A checkpoint's file: `path` itself, or NAME.safetensors in a run's folder or on the hub."""
    name = f"{name}.safetensors"
    on_hub = not Path(path).exists() and HUB_ID.fullmatch(str(path))
    if on_hub and Path(path).parts[0] != "out":                   # out/...: a run to come
        path = resolve_source(path, (name,))
    return Path(path, name) if Path(path).is_dir() else Path(path)


def read_checkpoint(path):
    """A checkpoint file -> (recipe, progress, tensors). InputError where it is not one of ours."""
    if not Path(path).exists():
        raise InputError(f"{path} not found; train_align.py and train_har.py write it into their "
                         "--out")
    with open_safetensors(path) as file, understanding(path, NO_CHECKPOINT):
        metadata = json.loads((file.metadata() or {})[KEY])
        if metadata["format"] != FORMAT:
            raise InputError(f"{path}: checkpoint format {brief(metadata['format'])}, this code "
                             f"reads {FORMAT}; train it again")
        recipe, progress = Recipe.from_json(metadata["recipe"], path), metadata["progress"]
        channels = known_dataset(recipe.dataset, recipe.own_dataset, path).channels
        if recipe.levels is not None and [*map(len, recipe.levels)] != [2] * len(channels):
            raise ValueError(f"the levels are {recipe.levels}")
        good = (is_a(progress["step"], int) and is_a(progress["best"], float | None)
                and is_a(progress["best_step"], int | None) and is_a(progress["seconds"], float)
                and is_a(progress["settings"], dict)
                and is_a(progress.get("provenance", {}), dict))
        if not good:
            raise ValueError(f"the progress is {progress}")
        tensors = {name.replace(OLD_TENSOR, NEW_TENSOR): file.get_tensor(name)
                   for name in file.keys()}
        return recipe, progress, tensors


def check_shapes(shapes, tensors, path):
    """InputError unless a checkpoint's tensors have these shapes; None: there should be none."""
    different = sorted(name for name, shape in shapes.items()
                       if name not in tensors or tensors[name].shape != shape)
    if different:
        raise InputError(f"{path} does not fit the model it describes: "
                         f"{brief(', '.join(different[:4]))}")


def fill_model(model, recipe, tensors, path, new_parts=()):
    """Copies a checkpoint's tensors into the model, not new_parts. InputError unless they fit."""
    wanted = {name: tensor for name, tensor in trained_tensors(model, recipe).items()
              if model.part_of(name) not in new_parts}
    if "class_weights" not in tensors:                            # as in earlier checkpoints
        wanted.pop("class_weights", None)
    given = {name: tensor for name, tensor in tensors.items()
             if not name.startswith("optimizer.") and model.part_of(name) not in new_parts}
    shapes = {name: tensor.shape for name, tensor in wanted.items()}
    check_shapes(shapes | dict.fromkeys(given.keys() - shapes.keys()), given, path)
    broken = [name for name in wanted
              if not given[name].is_floating_point() or not given[name].isfinite().all()]
    if broken:
        raise InputError(f"{path}: {broken[0]} is {given[broken[0]].dtype}, or not all of it is "
                         "finite")
    for name, tensor in wanted.items():                           # trained parts are float32
        tensor.data = given[name].to(tensor.device, torch.float32, copy=True)


def load_checkpoint(path, llm=None, encoder=None, dtype=torch.float32, int8=False) -> Loaded:
    """A checkpoint -> Loaded. llm, encoder: where the sources are now, if they were moved."""
    path = checkpoint_file(path)
    recipe, progress, tensors = read_checkpoint(path)
    for part, network, config in (("llm", Llama, recipe.llm_config),
                                  ("encoder", T5Encoder, recipe.encoder_config)):
        if getattr(recipe, part) is None:                         # before memory is taken for it
            with torch.device("meta"), Unfilled():
                shapes = {f"{part}.{name}": parameter.shape
                          for name, parameter in network(config).named_parameters()}
            check_shapes(shapes, tensors, path)
    loaded = build_model(move_sources(recipe, llm, encoder), dtype, int8)
    fill_model(loaded.model, loaded.recipe, tensors, path)
    return loaded._replace(progress=progress)


# ---- the optimizer's moments, by the name of the parameter ----

MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def optimizer_tensors(model, optimizer):
    tensors = {}
    for name, parameter in model.named_parameters():
        if parameter in optimizer.state:
            state = optimizer.state[parameter]
            tensors |= {f"optimizer.{name}.{moment}": state[moment] for moment in MOMENTS}
    return tensors


def fill_optimizer(model, optimizer, tensors, path):
    """Copies a checkpoint's moments into the optimizer; InputError unless all trained parts fit."""
    prefix = "optimizer."
    kept = {name.removeprefix(prefix).rpartition(".")[0]
            for name in tensors if name.startswith(prefix)}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if kept - trained:
        names = ", ".join(sorted(kept - trained)[:4])
        raise InputError(f"{path} holds optimizer state for {names}, not trained now; --resume "
                         "with the run's own --train")
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        try:
            state = {moment: tensors[f"optimizer.{name}.{moment}"].clone() for moment in MOMENTS}
        except KeyError as error:
            raise InputError(f"{path} holds no optimizer state for {error}; --resume with the "
                             "run's own --train")
        for moment, tensor in state.items():
            shape = torch.Size() if moment == "step" else parameter.shape
            if tensor.shape != shape or not tensor.is_floating_point():
                raise InputError(f"{path}: the optimizer's {moment} of {name} is {tensor.dtype} of "
                                 f"shape {tuple(tensor.shape)}, expected {tuple(shape)}")
        for moment in ("exp_avg", "exp_avg_sq"):                  # the step stays on the CPU
            state[moment] = state[moment].to(parameter.device)
        optimizer.state[parameter] = state
