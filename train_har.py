"""Stage 2, human activity recognition: all channels of a window and a text about them in, one class out.

    torchrun train_har.py                                # takes up what the demo of train_align.py left in out/align
    torchrun --nproc_per_node 8 train_har.py --data data/usc-had --align out/align --dtype bfloat16 --out out/har
"""
import argparse
import math
from dataclasses import replace

import torch

from sensorllm_min.checkpoint import build_model, checkpoint_file, fill_model, moved, read_checkpoint
from sensorllm_min.config import InputError
from sensorllm_min.data import HarExamples
from sensorllm_min.evaluation import confusion_matrix
from sensorllm_min.metrics import class_report, class_scores
from sensorllm_min.sensorllm import class_weights
from sensorllm_min.options import (add_shared_arguments, check_out, default_parts, fill_in, frozen_dtype, new_recipe,
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
    parser.add_argument("--out", default="out/har", help="where checkpoints and logs go (default out/har)")
    parser.add_argument("--text", default="smry+Q",
                        help="parts of the text after the sensors, joined by '+', or none: " + ", ".join(HAR_TEXTS))
    parser.add_argument("--channel-names", action="store_true", help="put each channel's name before its start marker")
    add_shared_arguments(parser, test_limit=None)
    args = parser.parse_args()
    text = () if args.text == "none" else tuple(args.text.split("+"))
    if not set(text) <= set(HAR_TEXTS):
        raise InputError(f"--text {args.text}: the parts are {', '.join(HAR_TEXTS)}, joined by '+', or none")

    # ---- processes, data, and what stage 1 left ----
    processes = start_processes()
    align, tensors = None, {}
    if args.align != "none":
        align, _, tensors = read_checkpoint(checkpoint_file(args.align))
        if align.stage != "align":
            raise InputError(f"{args.align} is a checkpoint of stage 2; --align takes one of train_align.py, or none")
        align = moved(align, args.llm, args.encoder)
        for option in ("projector", "scaling"):
            if getattr(args, option) is not None:
                raise InputError(f"--{option} comes from {args.align}; leave it out, or start with --align none")
    # after stage 1 the projector and the head learn; without it the marker rows, and random networks, too
    parts = "projector,head" if align else default_parts(args.llm, args.encoder, "projector", "tokens", "head")
    fill_in(args, (BUILT_IN if (align or args).llm is None else PUBLIC) | {"train": parts})
    data = open_data(args.data, processes)
    if align and align.dataset != data.name:
        raise InputError(f"{args.align} was trained on {align.dataset}, {args.data} holds {data.name}; "
                         "give the --data it was trained on, or another --align")
    torch.manual_seed(args.seed)
    check_out(args, "har")

    # ---- model: stage 1's, with a class head; what --train names learns, the rest is frozen ----
    recipe = align or new_recipe(args, data, processes)
    recipe = replace(recipe, classes=data.dataset.classes, text=text, channel_names=args.channel_names,
                     trained=tuple(sorted({*recipe.trained, *args.train})))
    model, tokenizer = build_model(recipe, **frozen_dtype(args))
    if align:
        fill_model(model, align, tensors, args.align, new_parts=("head",))
    set_up(model, args)
    train, val, test = (HarExamples(data, split, tokenizer, recipe.limits, limit, args.seed, text, args.channel_names)
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
            confusion, val_loss = confusion_matrix(model, val, processes, args.batch_size, tokenizer.pad_id, args.bf16)
            scores = class_scores(confusion)
            run.evaluated(step, {"val_loss": val_loss, "macro_f1": scores["macro_f1"], "accuracy": scores["accuracy"]},
                          "macro_f1", higher_is_better=True)

    # ---- what it learned: the best checkpoint on test subjects ----
    run.load_best()
    confusion, _ = confusion_matrix(model, test, processes, args.batch_size, tokenizer.pad_id, args.bf16)
    scores = class_scores(confusion)
    run.say("\n" + class_report(confusion, recipe.classes))
    run.finish({"macro_f1": scores["macro_f1"], "accuracy": scores["accuracy"], "chance": scores["chance"]})


if __name__ == "__main__":
    run_script(main)
