"""Stage 1, sensor-language alignment: the LLM learns to describe the trends of one sensor channel.

    torchrun train_align.py                              # the demo: no download, no GPU, about three minutes
    torchrun --nproc_per_node 8 train_align.py --data data/usc-had --llm DIR --encoder DIR --dtype bfloat16 --out out/align
"""
import argparse
import math

import numpy as np
import torch

from sensorllm_min.checkpoint import build_model
from sensorllm_min.data import AlignExamples
from sensorllm_min.evaluation import describe, mean_loss, trend_sums
from sensorllm_min.options import (add_shared_arguments, check_out, count, default_parts, fill_in, frozen_dtype,
                                   new_recipe, open_data, set_up)
from sensorllm_min.training import (Run, Steps, distributed, learning_rate, new_optimizer, run_script, start_processes,
                                    train_step)
from sensorllm_min.trend_scores import WIDTH, Guess, in_one_line, scores_of

# Defaults where an option is not given: the paper's for public weights, what suits two cores for the built-in sizes.
PUBLIC = {"projector": 2048, "epochs": 8, "batch_size": 4, "accumulate": 8, "lr": 2e-3}
BUILT_IN = {"projector": 256, "epochs": 1, "batch_size": 32, "accumulate": 1, "lr": 1e-3}


def main():
    # ---- arguments ----
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="out/align", help="where checkpoints and logs go (default out/align)")
    parser.add_argument("--max-new-tokens", type=count, help="longest description (default: the longest true one)")
    add_shared_arguments(parser, test_limit=200)
    args = parser.parse_args()
    parts = default_parts(args.llm, args.encoder, "projector", "tokens")
    fill_in(args, (BUILT_IN if args.llm is None else PUBLIC) | {"train": parts})

    # ---- processes and data ----
    processes = start_processes()
    data = open_data(args.data, processes)
    torch.manual_seed(args.seed)
    check_out(args, "align")

    # ---- model: what --train names learns; the rest is frozen ----
    recipe = new_recipe(args, data, processes)
    model, tokenizer = build_model(recipe, **frozen_dtype(args))
    set_up(model, args)
    model.to(processes.device)
    train = AlignExamples(data, "train", tokenizer, recipe.limits, args.train_limit, args.seed)
    val = AlignExamples(data, "val", tokenizer, recipe.limits, args.eval_limit, args.seed)
    test = AlignExamples(data, "test", tokenizer, recipe.limits, args.test_limit, args.seed)

    # ---- optimizer and run ----
    optimizer = new_optimizer(model, args)
    run = Run(args, processes, model, recipe, optimizer)
    steps = Steps(train, args, processes, tokenizer.pad_id)
    eval_every = args.eval_every or math.ceil(steps.count / 8)
    wrapped = distributed(model, processes)
    run.say(f"LLM {recipe.llm or 'built-in'} (chat format {tokenizer.chat_format}), encoder {recipe.encoder or 'built-in'}")
    run.say(f"{data.name}: {len(train)} training pairs, {steps.count} steps of {steps.size}; trained: "
            f"{', '.join(args.train)}, {run.trained_parameters:,} parameters")
    # the untrained model rambles: three windows of it are enough
    few = np.argsort(test.sizes)[np.linspace(0, len(test) - 1, min(3, len(test))).astype(int)]      # short to long
    before = {} if args.resume else {
        i: text for i, text, _ in describe(model, tokenizer, test, processes, 32, 64, args.bf16, few)}

    # ---- loop ----
    for step, batches, filler in run.steps(steps):
        rate = learning_rate(step, steps.count, args.lr, args.warmup)
        loss, norm, n_tokens = train_step(wrapped, batches, filler, optimizer, rate, processes, args, step)
        run.stepped(step, steps.count, loss, norm, rate, n_tokens, args.log_every)
        if (step + 1) % eval_every == 0 or step + 1 == steps.count:
            val_loss = mean_loss(model, val, processes, args.batch_size, tokenizer.pad_id, args.bf16)
            run.evaluated(step, {"val_loss": val_loss}, "val_loss", higher_is_better=False)

    # ---- what it learned: the best checkpoint on test subjects ----
    run.load_best()
    after = {i: {**test[i].row, "generated": text, "ended": ended} for i, text, ended in
             describe(model, tokenizer, test, processes, 32, args.max_new_tokens, args.bf16)}
    for i in [i for i in after if i in before] or list(after)[:3]:
        run.say(f"\n--- test window {i}: {after[i]['channel']}, {after[i]['length']} samples\ntrue:\n{after[i]['answer']}\n"
                f"before training:\n{before.get(i, '(resumed)')[:300]}\nafter training:\n{after[i]['generated']}")
    guess = Guess(train)
    sums = sum((trend_sums(row, test[i].series[0], guess) for i, row in after.items()), np.zeros((2, WIDTH)))
    ours, fixed = map(scores_of, np.reshape(processes.sum(*sums.ravel()), (2, WIDTH)))
    run.say("\n" + in_one_line(ours, fixed))
    run.finish({"val_loss": run.progress["best"], "direction_accuracy": ours["direction"],
                "direction_chance": fixed["direction"], "scores": ours, "guess": fixed})


if __name__ == "__main__":
    run_script(main)
