"""Stage 2, human activity recognition: all channels of a window and a text about them in, one class out.

    torchrun train_har.py                                # takes up what the demo of train_align.py left in out/align
    torchrun --nproc_per_node 8 train_har.py --data data/usc-had --align out/align --dtype bfloat16 --out out/har
    torchrun train_har.py --controls                     # does the LLM help? the same training without it, and more
"""
import argparse
import math
import shlex
import sys
from dataclasses import replace

import torch

from sensorllm_min.checkpoint import build_model, checkpoint_file, fill_model, moved, read_checkpoint
from sensorllm_min.config import InputError
from sensorllm_min.controls import finished, majority, planned, report_controls
from sensorllm_min.data import HAR_ANSWERS, HarExamples
from sensorllm_min.evaluation import score_classes
from sensorllm_min.metrics import class_report, class_scores
from sensorllm_min.sensorllm import CONTROLS, class_weights
from sensorllm_min.options import (add_shared_arguments, check_out, count, default_parts, fill_in, frozen_dtype, new_recipe,
                                   open_data, set_up)
from sensorllm_min.training import (Run, Steps, distributed, learning_rate, new_optimizer, run_script, start_processes,
                                    train_step)
from sensorllm_min.trend_text import HAR_TEXTS

# Defaults where an option is not given: the paper's for public weights, what suits two cores for the built-in sizes.
PUBLIC = {"projector": 2048, "epochs": 8, "batch_size": 4, "accumulate": 8, "lr": 2e-3}
BUILT_IN = {"projector": 256, "epochs": 3, "batch_size": 16, "accumulate": 1, "lr": 1e-3}


def main():
    # ---- arguments ----
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--align", default="out/align",
                        help="output of train_align.py to start from (default out/align), or none to start without")
    parser.add_argument("--out", help="where checkpoints and logs go (default out/har; with --controls, out/controls)")
    parser.add_argument("--text", default="smry+Q",
                        help="parts of the text after the sensors, joined by '+', or none: " + ", ".join(HAR_TEXTS))
    parser.add_argument("--channel-names", action="store_true", help="put each channel's name before its start marker")
    parser.add_argument("--answer", choices=HAR_ANSWERS, default="class",
                        help="how the class comes out: from a class head (default), as text, or as text after a reasoning")
    parser.add_argument("--control", choices=CONTROLS, help="train a model with one thing changed, to see what it is worth")
    parser.add_argument("--controls", type=count, nargs="?", const=3, metavar="SEEDS",
                        help="train the full model and every control, with so many seeds (default 3), and compare them; "
                             "an interrupted comparison goes on")
    add_shared_arguments(parser, test_limit=None)
    args = parser.parse_args()
    args.out = args.out or ("out/controls" if args.controls else "out/har")
    if args.text != "none" and not set(args.text.split("+")) <= set(HAR_TEXTS):
        raise InputError(f"--text {args.text}: the parts are {', '.join(HAR_TEXTS)}, joined by '+', or none")
    if args.control and args.answer != "class":
        raise InputError("--control needs a class head; leave --answer out")

    # ---- one run, or one after another ----
    processes = start_processes()
    read_align(args)                                                          # a mistake there is better known now
    data = open_data(args.data, processes)
    if not args.controls:
        train(args, processes, data)
        return
    results = {}
    for name, run_args in planned(args, processes):
        if processes.first:
            print(f"\n==== {name}, seed {run_args.seed} ====", flush=True)
        results.setdefault(name, []).append(finished(run_args.out) or train(run_args, processes, data))
    if processes.first:
        command = shlex.join(["train_har.py", *sys.argv[1:]])
        print("\n" + report_controls(args.out, results, len(data.dataset.test_subjects), command))
        print(f"wrote {args.out}/controls.md and controls.json")


def read_align(args):
    """What stage 1 left -> (its recipe, its tensors), or (None, {}) without it."""
    if args.align == "none":
        return None, {}
    align, _, tensors = read_checkpoint(checkpoint_file(args.align))
    if align.stage != "align":
        raise InputError(f"{args.align} is a checkpoint of stage 2; --align takes one of train_align.py, or none")
    for option in ("projector", "scaling"):
        if getattr(args, option) is not None:
            raise InputError(f"--{option} comes from {args.align}; leave it out, or start with --align none")
    return moved(align, args.llm, args.encoder), tensors


def train(args, processes, data):
    """One run, from the model to its scores on the test subjects -> results.json's content."""
    # ---- what stage 1 left, and what learns now ----
    align, tensors = read_align(args)
    if align and align.dataset != data.name:
        raise InputError(f"{args.align} was trained on {align.dataset}, {args.data} holds {data.name}; "
                         "give the --data it was trained on, or another --align")
    text = () if args.text == "none" else tuple(args.text.split("+"))
    # after stage 1 the projector and the head learn; without it the marker rows, and random networks, too
    llm = (align or args).llm
    parts = ["projector", "head"] if align else default_parts(args.llm, args.encoder, "projector", "tokens", "head").split(",")
    if args.answer != "class":                                                # a tiny LLM has yet to hear of activities
        parts = ["projector"] + ["llm"] * (llm is None) if align else [part for part in parts if part != "head"]
    fill_in(args, (BUILT_IN if llm is None else PUBLIC) | {"train": ",".join(parts)})
    args.train = tuple(part for part in args.train if not args.control or part not in CONTROLS[args.control][1])
    torch.manual_seed(args.seed)
    check_out(args, "har")

    # ---- model: stage 1's, with a class head; what --train names learns, the rest is frozen ----
    recipe = align or new_recipe(args, data, processes)
    recipe = replace(recipe, classes=data.dataset.classes, text=text, channel_names=args.channel_names, answer=args.answer,
                     control=args.control, llm_seed=args.seed if args.control == "random-llm" else None,
                     trained=tuple(sorted({*recipe.trained, *args.train})))
    model, tokenizer = build_model(recipe, **frozen_dtype(args))
    if align:
        fill_model(model, align, tensors, args.align, new_parts=("head", "llm") if args.control == "random-llm" else ("head",))
    set_up(model, args)
    train, val, test = (HarExamples(data, split, tokenizer, recipe.limits, limit, args.seed, text, args.channel_names,
                                    args.answer)
                        for split, limit in (("train", args.train_limit), ("val", args.eval_limit),
                                             ("test", args.test_limit)))
    model.class_weights = class_weights(train.labels(), len(recipe.classes))
    model.to(processes.device)

    # ---- optimizer and run ----
    optimizer = new_optimizer(model, args)
    run = Run(args, processes, model, recipe, optimizer)
    steps = Steps(train, args, processes, tokenizer.pad_id)
    eval_every = args.eval_every or math.ceil(steps.count / 8)
    wrapped = distributed(model, processes)
    run.say(f"LLM {recipe.llm or 'built-in'} (chat format {tokenizer.chat_format}), encoder {recipe.encoder or 'built-in'}")
    run.say(f"{data.name}: {len(train)} training windows, {steps.count} steps of {steps.size}; trained: "
            f"{', '.join(args.train)}, {run.trained_parameters:,} parameters")

    # ---- loop ----
    for step, batches, filler in run.steps(steps):
        rate = learning_rate(step, steps.count, args.lr, args.warmup)
        loss, norm, n_tokens = train_step(wrapped, batches, filler, optimizer, rate, processes, args, step)
        run.stepped(step, steps.count, loss, norm, rate, n_tokens, args.log_every)
        if (step + 1) % eval_every == 0 or step + 1 == steps.count:
            confusion, val_loss = score_classes(model, tokenizer, val, processes, args.batch_size, args.bf16)
            scores = class_scores(confusion)
            run.evaluated(step, {"val_loss": val_loss, "macro_f1": scores["macro_f1"], "accuracy": scores["accuracy"]},
                          "macro_f1", higher_is_better=True)

    # ---- what it learned: the best checkpoint on test subjects ----
    run.load_best()
    confusion, _ = score_classes(model, tokenizer, test, processes, args.batch_size, args.bf16)
    run.say("\n" + class_report(confusion, recipe.classes))
    scores = {name: score for name, score in class_scores(confusion).items() if name != "per_class"}
    return run.finish({**scores, "majority": majority(train, test, len(recipe.classes))})


if __name__ == "__main__":
    run_script(main)
