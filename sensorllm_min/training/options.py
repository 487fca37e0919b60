"""What both training scripts start from: options as settings, the data, a new model's recipe."""
import argparse
import functools
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..chronos_tokenizer import SCALINGS
from ..cli import amount, count, seed, some_of
from ..config import TINY_CHRONOS, TINY_ENCODER, TINY_LLAMA, read_chronos_configs, read_llama_config
from ..data.examples import sample_texts
from ..data.prepare import prepare
from ..data.prepared import PreparedData
from ..files import InputError, locked, write_text
from ..layers import use_backend
from ..sensorllm import PARTS
from ..fingerprint import fingerprint
from ..hub import pin_revision, resolve_source
from ..recipe import Recipe
from ..text_tokenizer import new_tokens, read_chat_template, train_backend
from .checkpoint import read_checkpoint

DTYPES = ("float32", "bfloat16", "int8")
# The paper's settings, for public weights, where an option is not given.
PUBLIC = {"projector": (2048,), "epochs": 8, "batch_size": 4, "accumulate": 8, "lr": 2e-3,
          "betas": (0.9, 0.999)}


@dataclass(frozen=True)
class RunSettings:
    """The options of both stages; None where the default depends on the stage or the model."""
    out: str | None
    data: str
    resume: bool
    seed: int
    llm: str | None                     # directory or hub id; None: tiny, trained from scratch
    encoder: str | None                 # the same
    projector: tuple | None             # hidden widths
    scaling: str | None
    levels: bool | None
    train: tuple | None                 # some of sensorllm.PARTS
    epochs: float | None
    batch_size: int | None
    accumulate: int | None
    lr: float | None
    betas: tuple | None                 # of AdamW
    warmup: float
    weight_decay: float
    dtype: str
    gradient_checkpointing: bool
    attention: str | None
    device: str | None
    compile: bool
    train_limit: int | None
    eval_limit: int
    test_limit: int | None
    eval_every: int | None
    log_every: int

    def with_defaults(self, **defaults):
        """The same settings with a default in place of every None that has one."""
        built_in = {"levels": self.encoder is None}
        defaults = {"scaling": "StanNormalizeUniformBins"} | built_in | defaults
        missing = {name: value for name, value in defaults.items() if getattr(self, name) is None}
        return replace(self, **missing)

    def with_epochs(self, n_windows, n_train, of_sample):
        """The same settings with a number of epochs, where none was given.

        n_windows in all, of the n_train there are; of a sample (--train-limit) so many passes.
        """
        if self.epochs:
            return self
        return replace(self, epochs=of_sample if self.train_limit else n_windows / n_train)


def default_parts(llm, encoder, *parts):
    """What learns where --train is not given: `parts`, and every network that starts at random."""
    scratch = [name for name, source in (("llm", llm), ("encoder", encoder)) if source is None]
    return (*parts, *scratch)


def precision(dtype) -> dict:
    """The arguments of build_model and load_checkpoint that --dtype stands for."""
    weights = torch.float32 if dtype == "float32" else torch.bfloat16
    return {"dtype": weights, "int8": dtype == "int8"}


# ---- argparse types: the values of --projector, --betas, --epochs ----

def widths(text):
    try:
        return tuple(count(width) for width in text.split(","))
    except ValueError:
        raise InputError(f"--projector {text}: give widths joined by ',', such as 2048 or "
                         "2048,3072")


def two_shares(text):
    values = tuple(map(amount, text.split(",")))
    if len(values) != 2 or max(values) >= 1:
        raise InputError(f"--betas {text}: give two numbers below 1, such as 0.9,0.999")
    return values


def passes(text):
    if amount(text) == 0:
        raise InputError("--epochs 0 trains nothing")
    return amount(text)


# ---- options ----

def add_device_arguments(parser):
    """Adds the options that say what computes, and how."""
    add = parser.add_argument
    add("--dtype", choices=DTYPES, default="float32",
        help="precision of computation and frozen weights; what is trained stays float32. int8 is "
             "bfloat16 with the matrices of a frozen --llm in int8 (default float32)")
    add("--attention", choices=("torch", "triton"),
        help="attention backend (default: triton on NVIDIA GPUs, torch elsewhere)")
    add("--device",
        help="cpu, cuda, cuda:N or mps (default: an NVIDIA GPU where there is one, else cpu)")


def listed(value):
    """A value as an option takes it: (2048, 3072) -> "2048,3072"."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else f"{value:g}"


def add_shared_arguments(parser, built_in, test_limit):
    """Adds the options that mean the same in both training scripts.

    built_in: the script's defaults with the built-in LLM; with public weights they are PUBLIC.
    """
    add = parser.add_argument

    def default(name):
        return f"(default {listed(PUBLIC[name])}; built-in {listed(built_in[name])})"

    add("--data", default="data/demo",
        help="prepared dataset (default data/demo, which is made if it is missing)")
    add("--llm", help="LLaMA-family directory or hub id (default: tiny, trained from scratch)")
    add("--encoder", help="Chronos T5 directory or hub id (default: tiny, trained from scratch)")
    add("--projector", type=widths,
        help=f"hidden widths of the projector, joined by ',' {default('projector')}")
    add("--scaling", choices=SCALINGS,
        help="how a series is scaled before it is cut into bins (default StanNormalizeUniformBins)")
    add("--levels", action=argparse.BooleanOptionalAction,
        help="give the model each series' mean and scale as numbers (default: with the built-in "
             "encoder)")
    add("--train", type=some_of("--train", "parts", PARTS),
        help=f"parts to train, joined by ',': {', '.join(PARTS)} (default: the projector, in stage "
             "1 or without it the tokens, in stage 2 the head, and each network without a source)")
    add("--epochs", type=passes,
        help="passes over the training windows; may be a fraction (default 8; built-in: as many as "
             "fit into minutes)")
    add("--batch-size", type=count,
        help=f"examples in a forward pass of one process {default('batch_size')}")
    add("--accumulate", type=count,
        help="forward passes of each process in an optimizer step, which has batch size x "
             f"accumulate x processes examples {default('accumulate')}")
    add("--lr", type=amount, help=f"peak learning rate of AdamW {default('lr')}")
    add("--betas", type=two_shares, metavar="B1,B2",
        help="how slowly AdamW's means of gradients and of their squares change "
             f"{default('betas')}")
    add("--warmup", type=amount, default=0.03,
        help="share of the steps in which the learning rate rises (default 0.03)")
    add("--weight-decay", type=amount, default=0.0, help="weight decay of AdamW (default 0)")
    add_device_arguments(parser)
    add("--gradient-checkpointing", action="store_true",
        help="recompute each LLM block in the backward pass: less memory, a third more time")
    add("--compile", action="store_true",
        help="torch.compile the LLM's blocks: faster after a slow first step; needs a C++ compiler")
    add("--train-limit", type=count,
        help="train on a seeded sample of this many windows (default: all)")
    add("--eval-limit", type=count, default=512, help="validate on this many windows (default 512)")
    add("--test-limit", type=count, default=test_limit,
        help=f"test on this many windows at the end (default {test_limit or 'all'})")
    add("--eval-every", type=count,
        help="steps between validations and checkpoints (default: 8 in a run)")
    add("--log-every", type=count, default=10, help="steps between printed lines (default 10)")
    add("--resume", action="store_true", help="continue from last.safetensors in --out")
    add("--seed", type=seed, default=0, help="seed of everything random (default 0)")


# ---- data, output folder, model ----

def open_or_make_data(directory, processes) -> PreparedData:
    """The prepared dataset; the demo is made where it is missing."""
    missing = not Path(directory, "meta.json").exists()
    if Path(directory) == Path("data/demo") and missing and processes.first:
        print("making the demo dataset in data/demo: simulated people, no download", flush=True)
        prepare("demo", None, directory, say=lambda text: None)
    processes.wait()
    data = PreparedData(directory)
    processes.check_same((data.directory / "meta.json").read_bytes(), "--data")
    return data


@functools.cache                                                  # once in a process
def hold(folder):
    """Locks a folder for as long as this process lives. InputError where another one has it."""
    lock = locked(folder)
    lock.__enter__()
    return lock


def check_out(settings, stage, processes):
    """InputError where --out holds another run; a demo of the same stage may be replaced."""
    if processes.first:
        hold(settings.out)
    last = Path(settings.out, "last.safetensors")
    if last.exists() and not settings.resume:
        old, _, _ = read_checkpoint(last)
        if old.dataset != "demo" or old.stage != stage:
            raise InputError(f"{settings.out} holds a run of stage {old.stage} on {old.dataset}; "
                             "continue it with --resume, choose another --out, or remove it")


def new_recipe(settings, data, processes) -> Recipe:
    """What a new model is made of: the networks given, or tiny ones and a tokenizer of their own.

    The first process trains that tokenizer on the dataset's texts and leaves it in --out.
    """
    last = Path(settings.out, "last.safetensors")
    old = read_checkpoint(last)[0] if settings.resume else None
    llm, llm_fingerprint, tokenizer_json = TINY_LLAMA, None, None
    template = None
    if settings.llm:
        directory = resolve_source(settings.llm)
        llm, llm_fingerprint = read_llama_config(directory), fingerprint(directory)
        template = old.chat_template if old else read_chat_template(directory)
    elif old and old.llm:
        raise InputError(f"{last} was trained with --llm {old.llm}; --resume needs it again")
    elif old:
        tokenizer_json = old.tokenizer_json
    else:
        path = Path(settings.out, "tokenizer.json")
        if processes.first:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, train_backend(sample_texts(data), llm.vocab_size).to_str())
        processes.wait()
        tokenizer_json = path.read_text(encoding="utf-8")
    encoder, chronos, encoder_fingerprint = TINY_ENCODER, TINY_CHRONOS, None
    if settings.encoder:
        directory = resolve_source(settings.encoder)
        encoder, chronos = read_chronos_configs(directory)
        encoder_fingerprint = fingerprint(directory)
    return Recipe(
        dataset=data.name, own_dataset=data.meta.get("row"),
        added_tokens=tuple(new_tokens(data.dataset.channels)),
        scaling=settings.scaling, projector=settings.projector, trained=settings.train,
        tokenizer_json=tokenizer_json, chat_template=template,
        llm=pin_revision(settings.llm), llm_config=llm, llm_fingerprint=llm_fingerprint,
        encoder=pin_revision(settings.encoder), encoder_config=encoder,
        encoder_fingerprint=encoder_fingerprint, chronos=chronos,
        levels=data.levels() if settings.levels else None)


def set_up(model, settings):
    """Freezes all but what --train names, and chooses how the LLM runs."""
    model.train_only(settings.train)
    use_backend(model, settings.attention)
    model.llm.gradient_checkpointing = settings.gradient_checkpointing
    if settings.compile:
        for layer in model.llm.layers:
            layer.compile(dynamic=True)
