"""Stage 1, sensor-language alignment: the LLM learns to describe the trends of one sensor channel.

    torchrun train_align.py                                # the demo: no download, a few minutes
    torchrun --nproc_per_node 8 train_align.py --data data/usc-had --llm DIR --encoder DIR \\
        --dtype bfloat16 --out out/align
"""
import sensorllm_min    # noqa: F401: first, since it says where Python is too old
import argparse
import shlex
from dataclasses import dataclass

import numpy as np
import torch

from sensorllm_min.cli import count, run_script
from sensorllm_min.data.examples import AlignExamples, PromptFormat
from sensorllm_min.evaluation.predict import (
    answer_batches, batches_of, longest_answer, mean_loss, own_order)
from sensorllm_min.evaluation.trend_scores import Guess, draw_answers, in_one_line, score_trends
from sensorllm_min.recipe import build_model
from sensorllm_min.training.options import (
    PUBLIC, RunSettings, add_shared_arguments, check_out, default_parts, new_recipe,
    open_or_make_data, precision, set_up)
from sensorllm_min.training.processes import start_processes
from sensorllm_min.training.run import Run
from sensorllm_min.training.step import new_optimizer, train_step
from sensorllm_min.training.warm_up import warm_up

# The defaults with the built-in LLM, and the pairs that it trains on where --epochs is not given:
# minutes on two cores, and less for the demo, which is easy. With public weights: the paper's.
BUILT_IN = {"projector": (256,), "batch_size": 8, "accumulate": 1, "lr": 1e-3,
            "betas": (0.9, 0.95)}
BUILT_IN_PAIRS, DEMO_PAIRS = 40_000, 12_000


@dataclass(frozen=True)
class AlignSettings(RunSettings):
    max_new_tokens: int | None


def read_arguments() -> AlignSettings:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="out/align",
                        help="where checkpoints and logs go (default out/align)")
    parser.add_argument("--max-new-tokens", type=count,
                        help="longest description (default: the longest true one)")
    add_shared_arguments(parser, BUILT_IN, test_limit=200)
    settings = AlignSettings(**vars(parser.parse_args()))
    parts = default_parts(settings.llm, settings.encoder, "projector", "tokens")
    defaults = BUILT_IN if settings.llm is None else PUBLIC
    return settings.with_defaults(train=parts, **defaults)


def main():
    # ---- arguments, processes, data ----
    settings = read_arguments()
    processes = start_processes(settings.dtype != "float32", settings.device)
    data = open_or_make_data(settings.data, processes)
    torch.manual_seed(settings.seed)
    check_out(settings, "align", processes)

    # ---- model: the parts of --train learn; the rest is frozen ----
    recipe = new_recipe(settings, data, processes)
    model = build_model(recipe, **precision(settings.dtype))
    set_up(model, settings)
    model.to(processes.device)
    prompts = PromptFormat.of(model, recipe)
    train = AlignExamples(data, "train", prompts, settings.train_limit, settings.seed)
    val = AlignExamples(data, "val", prompts, settings.eval_limit, settings.seed)
    test = AlignExamples(data, "test", prompts, settings.test_limit, settings.seed)

    n_pairs = DEMO_PAIRS if data.name == "demo" else BUILT_IN_PAIRS
    settings = settings.with_epochs(n_pairs, len(train), of_sample=1)

    # ---- the built-in encoder first, then optimizer and run ----
    seconds = 0.0
    if settings.encoder is None and "encoder" in settings.train and not settings.resume:
        seconds = warm_up(model, train, settings, processes)
    optimizer = new_optimizer(model, settings)
    run = Run(settings, processes, model, recipe, optimizer, train)
    run.progress["seconds"] += seconds                            # of the training, all in all
    mine = own_order(test, processes)
    evenly = np.linspace(0, len(mine) - 1, min(3, len(mine))).astype(int)
    shown = [test[i] for i in mine[evenly]]
    before = {}
    if processes.first and not settings.resume:                   # it shows examples of its share
        untrained = answer_batches(model, [shown], processes, max_new_tokens=64)      # it rambles
        before = {record["window"]: record["generated"] for record in untrained}

    # ---- loop ----
    for step in run.steps():
        loss, norm, n_tokens = train_step(run.wrapped, step, optimizer, processes, settings.out)
        run.log_step(step, loss, norm, n_tokens)
        if run.is_evaluated(step):
            val_loss = mean_loss(model, val, processes, settings.batch_size, run.say)
            run.log_evaluation(step, {"val_loss": val_loss}, "val_loss", higher_is_better=False)

    # ---- what it learned: the best checkpoint on test subjects ----
    run.load_best()
    longest = settings.max_new_tokens or longest_answer(test)
    batches = batches_of(test, processes, batch_size=32, say=run.say)
    after = {record["window"]: record
             for record in answer_batches(model, batches, processes, longest)}
    shown = [after[example.index] for example in shown]
    for record in shown:
        run.say(f"\n--- test window {record['window']}: {record['channel']}, "
                f"{record['length']} samples\n"
                f"true:\n{record['answer']}\n"
                f"before training:\n{before.get(record['window'], '(resumed)')[:300]}\n"
                f"after training:\n{record['generated']}")
    scores = score_trends(after.values(), data, Guess(train), processes)
    run.say("\n" + in_one_line(scores))
    if processes.first:
        draw_answers(run.out / "descriptions.png", shown, data, run.say)
    ours, fixed = scores["all"]["answers"], scores["all"]["guess"]
    run.finish({"val_loss": run.progress["best"], "direction_accuracy": ours["direction"],
                "direction_chance": fixed["direction"], "scores": ours, "guess": fixed})

    # ---- the command that continues with stage 2; defaults are left out ----
    command = ["torchrun", "train_har.py"]
    if settings.data != "data/demo":
        command += ["--data", settings.data]
    if settings.out != "out/align":
        command += ["--align", settings.out]
    run.say(f"next: {shlex.join(command)}")


if __name__ == "__main__":
    run_script(main)
