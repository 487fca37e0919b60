"""Stage 1, sensor-language alignment: the LLM learns to describe the trends of one sensor channel.

    torchrun train_align.py                              # the demo: no download, no GPU, about three minutes
    torchrun --nproc_per_node 8 train_align.py --data data/usc-had --llm DIR --encoder DIR --bf16 --out out/align
"""
import argparse
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

from sensorllm_min.checkpoint import Recipe, build_model, fingerprint
from sensorllm_min.config import TINY_CHRONOS, TINY_ENCODER, TINY_LLAMA, ChronosConfig, LlamaConfig, T5Config, read_json
from sensorllm_min.data import AlignExamples, HarExamples, Limits
from sensorllm_min.evaluation import describe, direction_accuracy, direction_chance, mean_loss
from sensorllm_min.text_tokenizer import new_tokens, train_backend
from sensorllm_min.training import (Run, Steps, add_shared_arguments, fill_in, learning_rate, open_data, run_script,
                                    start_processes, train_step)
from sensorllm_min.trend_text import HAR_TEXTS, har_text, system_prompt

# Defaults where an option is not given: the paper's for public weights, what suits two cores for the built-in sizes.
PUBLIC = {"train": "projector,tokens", "projector": 2048, "epochs": 8, "batch_size": 4, "accumulate": 8, "lr": 2e-3}
BUILT_IN = {"train": "encoder,llm,projector,tokens", "projector": 256, "epochs": 1, "batch_size": 32, "accumulate": 1,
            "lr": 4e-3}


def make_recipe(args, data, processes):
    """What the model is made of: the directories given, or the built-in sizes with a tokenizer learned from the text."""
    tokenizer_json = None
    if args.llm is None:
        path = Path(args.out, "tokenizer.json")
        if processes.first and not args.resume:
            pairs, windows = data.rows("align", "train"), data.rows("har", "train")
            texts = [system_prompt(pairs[i]["length"], data.dataset.rate) + pairs[i]["question"] + pairs[i]["answer"]
                     for i in range(0, len(pairs), len(pairs) // 2000 + 1)]
            texts += ["\n" + har_text(data.window(windows[i]), data.dataset, tuple(HAR_TEXTS))
                      for i in range(0, len(windows), len(windows) // 100 + 1)]
            path.parent.mkdir(parents=True, exist_ok=True)
            train_backend(texts, TINY_LLAMA.vocab_size).save(str(path))
        processes.wait()
        tokenizer_json = path.read_text(encoding="utf-8")
    return Recipe(
        dataset=data.name, added_tokens=tuple(new_tokens(data.dataset.channels)), scaling=args.scaling,
        projector=args.projector, tokenizer_json=tokenizer_json, trained=args.train,
        llm=args.llm, llm_fingerprint=args.llm and fingerprint(args.llm),
        llm_config=LlamaConfig.from_hf(read_json(f"{args.llm}/config.json"), f"{args.llm}/config.json")
        if args.llm else TINY_LLAMA,
        encoder=args.encoder, encoder_fingerprint=args.encoder and fingerprint(args.encoder),
        encoder_config=T5Config.from_hf(read_json(f"{args.encoder}/config.json"), f"{args.encoder}/config.json")
        if args.encoder else TINY_ENCODER,
        chronos=ChronosConfig.from_hf(read_json(f"{args.encoder}/config.json"), f"{args.encoder}/config.json")
        if args.encoder else TINY_CHRONOS)


def main():
    # ---- arguments ----
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llm", help="LLaMA-family directory (default: a tiny one, trained from scratch)")
    parser.add_argument("--encoder", help="Chronos T5 directory (default: a tiny one, trained from scratch)")
    parser.add_argument("--out", default="out/align", help="where checkpoints and logs go (default out/align)")
    parser.add_argument("--samples", type=int, default=96, help="test windows to describe at the end (default 96)")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="longest generated description (default 256)")
    add_shared_arguments(parser)
    args = parser.parse_args()
    fill_in(args, BUILT_IN if args.llm is None else PUBLIC)

    # ---- processes and data ----
    processes = start_processes()
    data = open_data(args.data, processes)
    torch.manual_seed(args.seed)

    # ---- model: what --train names learns; the rest is frozen ----
    recipe = make_recipe(args, data, processes)
    model, tokenizer = build_model(recipe, torch.bfloat16 if args.bf16 else torch.float32)
    model.train_only(args.train)
    model.llm.gradient_checkpointing = args.gradient_checkpointing
    model.to(processes.device)
    limits = Limits(recipe.chronos.context_length, recipe.llm_config.max_positions)
    train = AlignExamples(data, "train", tokenizer, limits, args.train_limit, args.seed)
    val = AlignExamples(data, "val", tokenizer, limits, args.eval_limit, args.seed)
    test = AlignExamples(data, "test", tokenizer, limits, args.samples, args.seed)

    # ---- optimizer and run ----
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=args.lr,
                                  weight_decay=args.weight_decay)
    run = Run(args, processes, model, recipe, optimizer)
    steps = Steps(train, args, processes, tokenizer.pad_id)
    eval_every = args.eval_every or max(1, steps.count // 8)
    wrapped = DistributedDataParallel(model) if processes.world > 1 else model
    run.say(f"{data.name}: {len(train)} training pairs, {steps.count} steps of {steps.size}; trained: "
            f"{', '.join(args.train)}, {sum(p.numel() for p in optimizer.param_groups[0]['params']):,} parameters")
    before = dict(describe(model, tokenizer, test, processes, 32, args.max_new_tokens, args.bf16)) \
        if run.progress["step"] == 0 else {}

    # ---- loop ----
    for step, batches, filler in steps(run.progress["step"]):
        rate = learning_rate(step, steps.count, args.lr, args.warmup)
        loss, norm, n_tokens = train_step(wrapped, batches, filler, optimizer, rate, processes, args, step)
        run.stepped(step, steps.count, loss, norm, rate, n_tokens, args.log_every)
        if (step + 1) % eval_every == 0 or step + 1 == steps.count:
            val_loss = mean_loss(model, val, processes, args.batch_size, tokenizer.pad_id, args.bf16)
            run.evaluated(step, {"val_loss": val_loss}, "val_loss", higher_is_better=False)

    # ---- what it learned: the best checkpoint on test subjects ----
    run.load_best()
    after = dict(describe(model, tokenizer, test, processes, 32, args.max_new_tokens, args.bf16))
    for i in list(after)[::max(1, len(after) // 3)][:3]:
        run.say(f"\n--- test window {i}: {test[i].row['channel']}, {test[i].row['length']} samples\ntrue:\n"
                f"{test[i].row['answer']}\nbefore training:\n{before.get(i, '(resumed)')[:300]}\n"
                f"after training:\n{after[i]}")
    accuracy, chance = direction_accuracy(after, test, processes), direction_chance(test, train)
    run.say(f"\ndirection right for {accuracy:.1%} of the time, guessing gets {chance:.1%} "
            f"(before training {direction_accuracy(before, test, processes):.1%})")
    run.finish({"val_loss": run.progress["best"], "direction_accuracy": accuracy, "direction_chance": chance})


if __name__ == "__main__":
    run_script(main)
