"""Stage 1, sensor-language alignment: the LLM learns to describe the trends of one sensor channel.

    torchrun train_align.py                                # the demo: no download, a few minutes
    torchrun --nproc_per_node 8 train_align.py --data data/usc-had --llm DIR --encoder DIR \\
        --dtype bfloat16 --out out/align
"""
import sensorllm_min    # noqa: F401: first, since it says where Python is too old
import shlex
import time

import numpy as np
import torch

from sensorllm_min.cli import read_settings, run_script
from sensorllm_min.data.examples import AlignExamples, PromptFormat
from sensorllm_min.evaluation.predict import (
    answer_batches, batches_of, longest_answer, mean_loss, own_order)
from sensorllm_min.evaluation.trend_scores import Guess, draw_answers, in_one_line, score_trends
from sensorllm_min.recipe import build_model
from sensorllm_min.training.options import (
    BUILT_IN, PUBLIC, RunSettings, claim_out, default_parts, new_recipe, open_or_make_data,
    set_up)
from sensorllm_min.training.processes import start_processes
from sensorllm_min.training.run import Run
from sensorllm_min.training.step import Loader, learning_rate, new_optimizer, train_step
from sensorllm_min.training.warm_up import warm_up

# Pairs that the built-in LLM trains on without --epochs: the demo is easy.
PAIRS, DEMO_PAIRS = 40_000, 12_000


def read_arguments():
    settings = read_settings(RunSettings, __doc__)
    defaults = PUBLIC if settings.llm else BUILT_IN | {"batch_size": 8}
    return settings.with_defaults(
        **defaults, out="out/align", statistics=settings.encoder is None, test_limit=200,
        train=default_parts(settings, "projector", "tokens"))


def main():
    # ---- arguments, processes, data ----
    settings = read_arguments()
    processes = start_processes(settings.dtype != "float32", settings.device)
    data = open_or_make_data(settings, processes)
    torch.manual_seed(settings.seed)
    claim_out(settings, "align", processes)

    # ---- model: the parts of --train learn; the rest is frozen ----
    recipe = new_recipe(settings, data)
    processes.check_same(recipe, data.meta)
    model = build_model(recipe, settings.dtype)
    set_up(model, settings)
    model.to(processes.device)
    prompts = PromptFormat.of(model, recipe)
    train = AlignExamples(data, "train", prompts, settings.train_limit, settings.seed)
    val = AlignExamples(data, "val", prompts, settings.eval_limit, settings.seed)
    test = AlignExamples(data, "test", prompts, settings.test_limit, settings.seed)

    # ---- optimizer and run; the built-in encoder learns to see before the LLM learns to speak ----
    n_pairs = DEMO_PAIRS if data.name == "demo" else PAIRS
    epochs = 1 if settings.train_limit else n_pairs / len(train)
    settings = settings.with_defaults(epochs=epochs)
    loader = Loader(train, settings, processes)
    optimizer = new_optimizer(model, settings)
    run = Run(settings, processes, model, recipe, optimizer, loader)
    distributed = processes.distribute(model)
    if settings.encoder is None and "encoder" in settings.train and not settings.resume:
        warm_up(model, train, settings, processes, run.log)
    mine = own_order(test, processes)
    evenly = np.linspace(0, len(mine) - 1, min(3, len(mine))).astype(int)
    shown = [test[i] for i in mine[evenly]]
    before = {}
    if processes.first and not settings.resume:                   # it shows examples of its share
        untrained = answer_batches(model, [shown], processes, max_new_tokens=64)      # it rambles
        before = {record["window"]: record["generated"] for record in untrained}

    # ---- loop ----
    run.clock = time.monotonic()                                  # times the steps only
    for step, batches in loader.steps(run.progress["step"]):
        lr = learning_rate(step, loader.n_steps, settings.lr, settings.warmup)
        loss, norm, n_tokens = train_step(distributed, optimizer, batches, lr, processes)
        run.log_step(step, loss, norm, lr, n_tokens)
        if step in run.validated:
            val_loss = mean_loss(model, val, processes, settings.batch_size, run.log)
            run.log_validation(step, {"val_loss": val_loss})
        run.stop_if_asked(step)

    # ---- what it learned: the best checkpoint on test subjects ----
    run.load_best()
    longest = settings.max_new_tokens or longest_answer(test)
    batches = batches_of(test, processes, batch_size=32, say=run.log)
    after = {record["window"]: record
             for record in answer_batches(model, batches, processes, longest)}
    shown = [after[example.index] for example in shown]
    for record in shown:
        run.log(f"\n--- test window {record['window']}: {record['channel']}, "
                f"{record['length']} samples\n"
                f"true:\n{record['answer']}\n"
                f"before training:\n{before.get(record['window'], '(resumed)')[:300]}\n"
                f"after training:\n{record['generated']}")
    scores = score_trends(after.values(), data, Guess(train), processes)
    run.log("\n" + in_one_line(scores))
    if processes.first:
        draw_answers(run.out / "descriptions.png", shown, data, run.log)
    run.finish({"val_loss": run.progress["best"], "scores": scores["all"]["answers"],
                "guess": scores["all"]["guess"]})

    # ---- the command that continues with stage 2; defaults are left out ----
    command = ["torchrun", "train_har.py"]
    if settings.data != "data/demo":
        command += ["--data", settings.data]
    if settings.out != "out/align":
        command += ["--align", settings.out]
    run.log(f"next: {shlex.join(command)}")


if __name__ == "__main__":
    run_script(main)
