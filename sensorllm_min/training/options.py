"""The options that scripts share, and what both training scripts set up from them."""
import argparse
import functools
from dataclasses import dataclass, replace
from pathlib import Path

from ..chronos_tokenizer import SCALINGS
from ..cli import amount, count, option, positive, seed, some_of
from ..config import TINY_LLAMA, read_chronos_configs, read_llama_config
from ..data.examples import sample_texts
from ..data.prepare import prepare
from ..data.prepared import PreparedData
from ..files import InputError, locked
from ..fingerprint import fingerprint
from ..hub import pin_revision, resolve_source
from ..layers import use_backend
from ..recipe import DTYPES, Recipe
from ..sensorllm import PARTS
from ..text_tokenizer import new_tokens, read_chat_template, train_backend
from .checkpoint import read_checkpoint

# Defaults of options: with public weights the paper's, with the built-in LLM for minutes on a CPU.
SHARED = {"data": "data/demo", "scaling": "StanNormalizeUniformBins", "weight_decay": 0.0}
PUBLIC = SHARED | {"projector": (2048,), "epochs": 8, "batch_size": 4, "accumulate": 8, "lr": 2e-3,
                   "betas": (0.9, 0.999)}
BUILT_IN = SHARED | {"projector": (256,), "accumulate": 1, "lr": 1e-3, "betas": (0.9, 0.95)}


def widths(text):
    return tuple(count(width) for width in text.split(","))


def fold(text):
    """"2/7" -> (1, 7)"""
    part, n_folds = text.split("/")
    return count(part) - 1, count(n_folds)


@dataclass(frozen=True)
class SharedSettings:
    """The options of training and evaluation. None: the default depends on the script."""
    data: str | None = option(
        None, "prepared dataset (default: data/demo, made if it is missing; in evaluation "
        "data/DATASET of the training)")
    llm: str | None = option(
        None, "LLaMA-family directory or hub id (default: a tiny one, trained from scratch; in "
        "evaluation where it was in training)")
    encoder: str | None = option(None, "Chronos T5 directory or hub id (default: likewise)")
    seed: int = option(0, "seed of everything random", type=seed)
    batch_size: int | None = option(
        None, "examples in a forward pass of one process (default 4; built-in 8 in stage 1, 32 in "
        "stage 2; in evaluation 16)", type=count)
    max_new_tokens: int | None = option(
        None, "tokens of the longest generated answer (default: of the longest true one)",
        type=count)
    dtype: str = option(
        "float32", "precision of computation and frozen weights; what is trained stays float32, "
        "int8 is bfloat16 with the matrices of a frozen --llm in int8", choices=DTYPES)
    attention: str | None = option(
        None, "attention backend (default: triton on NVIDIA GPUs, torch elsewhere)",
        choices=("torch", "triton"))
    device: str | None = option(
        None, "cpu, cuda, cuda:N or mps (default: an NVIDIA GPU if there is one, else cpu)")


@dataclass(frozen=True)
class RunSettings(SharedSettings):
    """The options of both training scripts. None: the default depends on the stage or model."""
    out: str | None = option(
        None, "where checkpoints and logs go (default out/align; in stage 2 out/har, of a "
        "comparison out/comparison)")
    resume: bool = option(False, "continue from last.safetensors in --out")
    fold: tuple | None = option(
        None, "part K of a cross-validation over all people: every N-th person, from the K-th on, "
        "is for the test, the next part for validation (default: the dataset's own split)",
        type=fold, metavar="K/N")
    projector: tuple | None = option(
        None, "hidden widths of the projector, such as 2048,3072 (default 2048; built-in 256)",
        type=widths)
    scaling: str | None = option(
        None, "how a series is scaled before it is cut into bins (default "
        "StanNormalizeUniformBins)", choices=SCALINGS)
    statistics: bool | None = option(
        None, "give the model statistics of each series as numbers (default: with the built-in "
        "encoder)", action=argparse.BooleanOptionalAction)
    train: tuple | None = option(
        None, f"parts to train, joined by ',': {', '.join(PARTS)} (default: projector, in stage 1 "
        "or without it tokens, in stage 2 head, and each network without public weights)",
        type=some_of("--train", "parts", PARTS))
    epochs: float | None = option(
        None, "passes over the training windows; may be a fraction (default 8; built-in: some "
        "minutes)", type=positive)
    accumulate: int | None = option(
        None, "forward passes of each process in an optimizer step, which has batch size x "
        "accumulate x processes examples (default 8; built-in 1)", type=count)
    lr: float | None = option(
        None, "peak learning rate of AdamW; under a class head, that of encoder and LLM is a "
        "20th of it (default 0.002; built-in in stage 1 0.001)", type=amount)
    warmup: float = option(
        0.03, "fraction of the steps in which the learning rate rises", type=amount)
    weight_decay: float | None = option(
        None, "weight decay of AdamW, for matrices (default 0; built-in in stage 2 0.1)",
        type=amount)
    betas: tuple | None = None          # of AdamW, see PUBLIC and BUILT_IN
    gradient_checkpointing: bool = option(
        False, "recompute each LLM block in the backward pass: less memory, a third more time")
    compile: bool = option(
        False, "compile the LLM's blocks: faster after a slow first step; needs a C++ compiler")
    train_limit: int | None = option(
        None, "train on a seeded sample of this many windows (default: all)", type=count)
    eval_limit: int = option(512, "validate on this many windows", type=count)
    test_limit: int | None = option(
        None, "test on this many windows at the end (default: 200 in stage 1, all in stage 2)",
        type=count)
    eval_every: int | None = option(
        None, "steps between validations and checkpoints (default: 8 validations in a run)",
        type=count)

    def with_defaults(self, **defaults):
        """The same settings with a default in place of every None that has one."""
        missing = {name: value for name, value in defaults.items() if getattr(self, name) is None}
        return replace(self, **missing)


def default_parts(settings, *parts):
    """The default of --train: `parts`, plus every network without public weights."""
    scratch = [name for name in ("llm", "encoder") if getattr(settings, name) is None]
    return (*parts, *scratch)


@functools.cache
def hold(folder):
    lock = locked(folder)
    lock.__enter__()
    return lock


def claim_out(settings, stage, processes):
    """Locks --out. Raises an InputError if another run is in it, except a demo of this stage."""
    if processes.first:
        hold(Path(settings.out).resolve())
    if settings.resume:
        return
    for path in Path(settings.out).glob("*.safetensors"):
        old, _, _ = read_checkpoint(path)
        if (old.dataset, old.stage) != ("demo", stage):
            raise InputError(f"{settings.out} holds a run of stage {old.stage} on {old.dataset}; "
                             "continue it with --resume, choose another --out, or remove it")


def open_or_make_data(settings, processes):
    missing = not Path(settings.data, "meta.json").exists()
    if Path(settings.data) == Path("data/demo") and missing and processes.first:
        print("making the demo dataset in data/demo: simulated people, no download", flush=True)
        prepare("demo", None, settings.data, say=lambda text: None)
    processes.wait()
    return PreparedData(settings.data, settings.fold)


def new_recipe(settings, data):
    """Describes a new model: the given networks, or tiny ones with a tokenizer of their own."""
    recipe = Recipe(
        dataset=data.name, dataset_info=data.meta["row"], fold=data.fold,
        added_tokens=tuple(new_tokens(data.dataset.channels)),
        scaling=settings.scaling, projector=settings.projector, trained=settings.train,
        usual=data.usual() if settings.statistics else None)
    if settings.llm is None:
        tokenizer = train_backend(sample_texts(data), TINY_LLAMA.vocab_size)
        recipe = replace(recipe, tokenizer_json=tokenizer.to_str())
    else:
        directory = resolve_source(settings.llm)
        recipe = replace(
            recipe, llm=pin_revision(settings.llm), llm_fingerprint=fingerprint(directory),
            llm_config=read_llama_config(directory), chat_template=read_chat_template(directory))
    if settings.encoder is not None:
        directory = resolve_source(settings.encoder)
        encoder_config, chronos = read_chronos_configs(directory)
        recipe = replace(
            recipe, encoder=pin_revision(settings.encoder),
            encoder_fingerprint=fingerprint(directory), encoder_config=encoder_config,
            chronos=chronos)
    return recipe


def set_up(model, settings):
    """Freezes all but the parts of --train, and chooses how the LLM computes."""
    model.train_only(settings.train)
    use_backend(model, settings.attention)
    model.llm.gradient_checkpointing = settings.gradient_checkpointing
    if settings.compile:
        for layer in model.llm.layers:
            layer.compile(dynamic=True)
