"""What a model is made of (its recipe), and how the model is built from it."""
from dataclasses import dataclass, replace

import tokenizers
import torch

from .ablations import ABLATIONS
from .chronos_tokenizer import ChronosTokenizer
from .config import (
    TINY_CHRONOS, TINY_ENCODER, TINY_LLAMA, ChronosConfig, LlamaConfig, RopeScaling, T5Config)
from .files import InputError, as_tuples
from .fingerprint import fingerprint
from .hub import pin_revision, resolve_source
from .int8 import quantize
from .layers import init_from_scratch
from .llama import Llama
from .sensorllm import SensorLLM
from .statistics import Statistics
from .t5_encoder import T5Encoder
from .text_tokenizer import built_tokenizer, load_text_tokenizer
from .weights import load_llama, load_t5_encoder

DTYPES = ("float32", "bfloat16", "int8")


@dataclass(frozen=True)
class Recipe:
    """Everything needed to build the model, except the trained tensors."""
    dataset: str
    added_tokens: tuple[str, ...]       # special tokens, see text_tokenizer.new_tokens
    scaling: str                        # one of chronos_tokenizer.SCALINGS
    projector: tuple[int, ...]          # hidden widths
    dataset_info: dict                  # a data.sensors.DatasetInfo as a JSON object
    fold: tuple[int, int] | None = None     # of PreparedData, in a cross-validation
    llm: str | None = None              # directory or hub id with commit; None: built-in size
    llm_fingerprint: str | None = None
    llm_config: LlamaConfig = TINY_LLAMA
    encoder: str | None = None          # likewise
    encoder_fingerprint: str | None = None
    encoder_config: T5Config = TINY_ENCODER
    chronos: ChronosConfig = TINY_CHRONOS
    tokenizer_json: str | None = None   # of the built-in LLM; a public LLM brings its own
    chat_template: str | None = None    # Jinja source; None: chosen by the tokenizer's tokens
    usual: tuple | None = None          # of statistics.Statistics; None: the model gets none
    classes: tuple[str, ...] = ()       # empty in stage 1
    text: tuple[str, ...] = ()          # parts of the stage-2 text
    channel_names: bool = False         # the stage-2 prompt names each channel
    answer: str = "class"               # in stage 2, one of examples.HAR_ANSWERS
    ablation: str | None = None         # one of ablations.ABLATIONS
    llm_seed: int | None = None         # seeds an LLM of random weights (an ablation)
    trained: tuple[str, ...] = ()       # parts trained so far, in either stage

    @property
    def stage(self):
        return "har" if self.classes else "align"

    @property
    def saved_parts(self):
        scratch = [part for part in ("llm", "encoder") if getattr(self, part) is None]
        return {"projector", "tokens", "head", *self.trained, *scratch}

    @classmethod
    def from_json(cls, raw):
        """The recipe from what `dataclasses.asdict` and JSON made of it."""
        fields = {name: as_tuples(value) for name, value in raw.items()}
        llm = fields["llm_config"] | {"eos_ids": tuple(fields["llm_config"]["eos_ids"])}
        if llm["rope_scaling"]:
            llm["rope_scaling"] = RopeScaling(**llm["rope_scaling"])
        configs = {"llm_config": LlamaConfig(**llm),
                   "encoder_config": T5Config(**fields["encoder_config"]),
                   "chronos": ChronosConfig(**fields["chronos"])}
        return cls(**fields | configs)


def build_model(recipe, dtype="float32"):
    """Builds the model of a recipe, from its sources or at random: seed torch first.

    dtype: that of pretrained weights, one of DTYPES; "int8" keeps the matrices of a frozen LLM in
    int8, all else in bfloat16."""
    if dtype == "int8" and "llm" in recipe.saved_parts:
        raise InputError("--dtype int8 is for a pretrained --llm that stays frozen; this one is "
                         "trained")
    weights = torch.float32 if dtype == "float32" else torch.bfloat16
    llm_source = find_source("--llm", recipe.llm, recipe.llm_fingerprint)
    encoder_source = find_source("--encoder", recipe.encoder, recipe.encoder_fingerprint)
    if recipe.encoder is None:
        encoder = T5Encoder(recipe.encoder_config)
        centers = ChronosTokenizer(recipe.chronos).centers
        encoder.init_from_scratch(centers, recipe.chronos.n_special_tokens)
    else:
        encoder, _ = load_t5_encoder(encoder_source, weights)
    if recipe.llm is None:
        llm = Llama(recipe.llm_config)
        init_from_scratch(llm)
        backend = tokenizers.Tokenizer.from_str(recipe.tokenizer_json)
        tokenizer = built_tokenizer(backend, recipe.added_tokens, recipe.llm_config.vocab_size)
    else:
        llm = load_llama(llm_source, weights)
        tokenizer = load_text_tokenizer(
            llm_source, llm.config, recipe.added_tokens, recipe.chat_template)
    if recipe.llm_seed is not None:                               # the ablation random-llm
        with torch.random.fork_rng():
            torch.manual_seed(recipe.llm_seed)
            llm = Llama(recipe.llm_config).to(weights)
            init_from_scratch(llm)
    if dtype == "int8":
        quantize(llm)
    statistics = None
    if recipe.usual:
        statistics = Statistics(recipe.usual, round(recipe.dataset_info["window"]))
    chronos = ChronosTokenizer(recipe.chronos, recipe.scaling, statistics)
    model_class, _ = ABLATIONS.get(recipe.ablation, (SensorLLM, set()))
    n_classes = len(recipe.classes) if recipe.answer == "class" else 0
    return model_class(encoder, chronos, llm, tokenizer, recipe.projector, n_classes or None)


def find_source(option, source, known_fingerprint):
    """The directory of a source; raises an InputError if it is gone or holds other weights."""
    if source is None:
        return None
    directory = resolve_source(source)
    if fingerprint(directory) != known_fingerprint:
        raise InputError(f"{source} does not hold the weights that the checkpoint was trained "
                         f"with; give the right directory with {option}")
    return directory


def move_sources(recipe, llm=None, encoder=None):
    """The recipe with other sources. Raises an InputError if it has none to replace."""
    for option, new, old in (("--llm", llm, recipe.llm), ("--encoder", encoder, recipe.encoder)):
        if new is not None and old is None:
            raise InputError(f"{option} {new}: the checkpoint holds its own, trained from scratch; "
                             f"leave {option} out")
    return replace(recipe, llm=pin_revision(llm) or recipe.llm,
                   encoder=pin_revision(encoder) or recipe.encoder)
