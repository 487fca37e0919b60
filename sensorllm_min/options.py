"""What a run starts from: the options both training scripts share, the data, the output folder, a new model's recipe."""
import math
from pathlib import Path

import torch

from .checkpoint import Recipe, fingerprint, read_checkpoint
from .chronos_tokenizer import SCALINGS
from .config import (TINY_CHRONOS, TINY_ENCODER, TINY_LLAMA, InputError, read_chronos_configs, read_llama_config,
                     write_whole)
from .data import PreparedData
from .hub import located, pinned
from .layers import use_backend
from .prepare import prepare
from .sensorllm import PARTS
from .text_tokenizer import CHAT_FORMATS, declared_format, new_tokens, train_backend
from .trend_text import HAR_TEXTS, har_text, system_prompt


def count(text):
    """argparse type: a whole number of at least 1."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def amount(text):
    """argparse type: a finite number of at least 0."""
    if not (math.isfinite(float(text)) and float(text) >= 0):
        raise ValueError
    return float(text)


def seed(text):
    """argparse type: a whole number of at least 0."""
    if int(text) < 0:
        raise ValueError
    return int(text)


DTYPES = ("float32", "bfloat16", "int8")


def add_dtype_argument(parser):
    parser.add_argument("--dtype", choices=DTYPES, default="float32",
                        help="of computation and frozen weights; what is trained stays float32. int8: bfloat16, with the "
                             "matrices of a frozen --llm in int8 (default float32)")


def frozen_dtype(args):
    """What build_model and load_checkpoint are told by --dtype; and args.bf16, whether to compute in bfloat16."""
    args.bf16 = args.dtype != "float32"
    return dict(dtype=torch.bfloat16 if args.bf16 else torch.float32, int8=args.dtype == "int8")


def add_shared_arguments(parser, test_limit):
    """The options that mean the same in both training scripts. None: the default depends on the model (`fill_in`)."""
    parser.add_argument("--data", default="data/demo", help="prepared dataset (default data/demo, made when missing)")
    parser.add_argument("--llm", help="LLaMA-family directory or hub id (default: a tiny one, trained from scratch)")
    parser.add_argument("--encoder", help="Chronos T5 directory or hub id (default: a tiny one, trained from scratch)")
    parser.add_argument("--chat-format", choices=CHAT_FORMATS, help="default: what the LLM's tokenizer declares")
    parser.add_argument("--projector", help="hidden widths of the projector, joined by ',' (default 2048; built-in 256)")
    parser.add_argument("--scaling", choices=SCALINGS,
                        help="how a series is scaled before it is cut into bins (default StanNormalizeUniformBins)")
    parser.add_argument("--train", help="parts to train, joined by ',': " + ", ".join(PARTS))
    parser.add_argument("--epochs", type=amount, help="passes over the training windows; may be a fraction")
    parser.add_argument("--batch-size", type=count, help="examples a forward pass, on each process")
    parser.add_argument("--accumulate", type=count, help="forward passes an optimizer step")
    parser.add_argument("--lr", type=amount, help="peak learning rate of AdamW")
    parser.add_argument("--warmup", type=amount, default=0.03, help="share of the steps that the rate rises (default 0.03)")
    parser.add_argument("--weight-decay", type=amount, default=0.0)
    add_dtype_argument(parser)
    parser.add_argument("--gradient-checkpointing", action="store_true",
                        help="recompute each LLM block in the backward pass: less memory, a third more time")
    parser.add_argument("--attention", choices=("torch", "triton"), help="default: triton on NVIDIA GPUs, torch elsewhere")
    parser.add_argument("--compile", action="store_true",
                        help="torch.compile for the LLM's blocks: faster steps after a slow first one; needs a C++ compiler")
    parser.add_argument("--train-limit", type=count, help="train on a seeded sample of so many windows")
    parser.add_argument("--eval-limit", type=count, default=512, help="validate on so many windows (default 512)")
    parser.add_argument("--test-limit", type=count, default=test_limit,
                        help=f"test on so many windows at the end (default {test_limit or 'all'})")
    parser.add_argument("--eval-every", type=count, help="steps between validations and checkpoints (default 8 a run)")
    parser.add_argument("--log-every", type=count, default=10, help="steps between printed lines (default 10)")
    parser.add_argument("--resume", action="store_true", help="go on from last.safetensors in --out")
    parser.add_argument("--seed", type=seed, default=0)


def fill_in(args, defaults):
    """Puts defaults where an option was not given, and splits the lists."""
    for key, value in (defaults | {"scaling": "StanNormalizeUniformBins"}).items():
        if getattr(args, key) is None:
            setattr(args, key, value)
    try:
        args.projector = tuple(count(width) for width in str(args.projector).split(","))
    except ValueError:
        raise InputError(f"--projector {args.projector}: give widths joined by ',', such as 2048 or 2048,3072")
    args.train = tuple(args.train.split(","))
    if not set(args.train) <= set(PARTS):
        raise InputError(f"--train {','.join(args.train)}: the parts are {', '.join(PARTS)}, joined by ','")
    if args.epochs == 0:
        raise InputError("--epochs 0 trains nothing")


def default_parts(llm, encoder, *parts):
    """What learns where --train is not given: `parts`, and a network without a directory, which starts at random."""
    return ",".join(parts + tuple(name for name, directory in (("llm", llm), ("encoder", encoder)) if directory is None))


def open_data(directory, processes):
    """The prepared dataset; the demo is made where it is missing."""
    if Path(directory) == Path("data/demo") and not Path(directory, "meta.json").exists() and processes.first:
        print("making the demo dataset in data/demo: simulated people, no download", flush=True)
        prepare("demo", None, directory, say=lambda text: None)
    processes.wait()
    return PreparedData(directory)


def check_out(args, stage):
    """A new run may take the place of a demo of the same stage; InputError where --out holds any other run."""
    last = Path(args.out, "last.safetensors")
    if last.exists() and not args.resume:
        old, _, _ = read_checkpoint(last)
        if old.dataset != "demo" or old.stage != stage:
            raise InputError(f"{args.out} holds a run of stage {old.stage} on {old.dataset}; go on with --resume, "
                             "choose another --out, or remove it")


def new_recipe(args, data, processes):
    """What a new model is made of: the directories given, or the built-in sizes with a tokenizer learned from the text.

    The first process learns the tokenizer and leaves it in --out, where the others find it.
    """
    llm, encoder, chronos, tokenizer_json = TINY_LLAMA, TINY_ENCODER, TINY_CHRONOS, None
    llm_directory, encoder_directory = located(args.llm), located(args.encoder)
    old = read_checkpoint(Path(args.out, "last.safetensors"))[0] if args.resume else None
    chat_format = args.chat_format or (old.chat_format if old else args.llm and declared_format(llm_directory))
    if args.chat_format and not args.llm:
        raise InputError(f"--chat-format {args.chat_format} is for an LLM of --llm; the built-in one knows only its own")
    if args.llm:
        llm = read_llama_config(llm_directory)
    elif args.resume:
        tokenizer_json = old.tokenizer_json
    else:
        path = Path(args.out, "tokenizer.json")
        if processes.first:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, train_backend(sample_texts(data), llm.vocab_size).to_str())
        processes.wait()
        tokenizer_json = path.read_text(encoding="utf-8")
    if args.encoder:
        encoder, chronos = read_chronos_configs(encoder_directory)
    return Recipe(
        dataset=data.name, row=data.meta.get("row"), added_tokens=tuple(new_tokens(data.dataset.channels)),
        scaling=args.scaling, projector=args.projector, trained=args.train, tokenizer_json=tokenizer_json,
        chat_format=chat_format,
        llm=pinned(args.llm), llm_fingerprint=args.llm and fingerprint(llm_directory), llm_config=llm,
        encoder=pinned(args.encoder), encoder_fingerprint=args.encoder and fingerprint(encoder_directory),
        encoder_config=encoder, chronos=chronos)


def set_up(model, args):
    """What --train names learns, the rest is frozen; and how the LLM runs."""
    model.train_only(args.train)
    use_backend(model, args.attention)
    model.llm.gradient_checkpointing = args.gradient_checkpointing
    if args.compile:
        model.llm.compile_blocks()


def sample_texts(data):
    """About 2000 prompts and answers of stage 1 and 100 texts of stage 2: what a small tokenizer is learned from."""
    pairs, windows = data.rows("align", "train"), data.rows("har", "train")
    for row in (pairs[i] for i in range(0, len(pairs), len(pairs) // 2000 + 1)):
        yield system_prompt(row["length"], data.dataset.rate) + row["question"] + row["answer"]
    for row in (windows[i] for i in range(0, len(windows), len(windows) // 100 + 1)):
        yield "\n" + har_text(data.window(row), data.dataset, tuple(HAR_TEXTS))
