"""Stage 2, human activity recognition: from all channels of a window and a text to its class.

    torchrun train_har.py                                  # continues the demo of train_align.py
    torchrun --nproc_per_node 8 train_har.py --data data/usc-had --align out/align \\
        --dtype bfloat16 --out out/har
    torchrun train_har.py --compare                        # does the LLM help? compares ablations
    torchrun train_har.py --align none --folds 7           # cross-validation over all people
"""
import sensorllm_min    # noqa: F401: first, since it says where Python is too old
import shlex
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from sensorllm_min.ablations import ABLATIONS
from sensorllm_min.cli import amount, count, option, positive, read_settings, run_script, some_of
from sensorllm_min.data.examples import HAR_ANSWERS, HarExamples, PromptFormat
from sensorllm_min.data.sensors import rotations
from sensorllm_min.data.texts import HAR_TEXTS
from sensorllm_min.evaluation.class_scores import class_report
from sensorllm_min.evaluation.compare import (
    ROWS, claim_comparison, comparison_table, plan_runs)
from sensorllm_min.evaluation.predict import score_classes
from sensorllm_min.files import InputError, read_json, write_json
from sensorllm_min.recipe import build_model, move_sources
from sensorllm_min.sensorllm import class_weights
from sensorllm_min.training.checkpoint import checkpoint_file, fill_model, read_checkpoint
from sensorllm_min.training.options import (
    BUILT_IN, PUBLIC, RunSettings, claim_out, default_parts, new_recipe, open_or_make_data,
    set_up)
from sensorllm_min.training.processes import start_processes
from sensorllm_min.training.provenance import command_line
from sensorllm_min.training.run import Run
from sensorllm_min.training.step import Loader, learning_rate, new_optimizer, train_step

# Windows that the built-in LLM trains on without --epochs: the demo is easy.
WINDOWS, DEMO_WINDOWS = 12_000, 4_000


@dataclass(frozen=True)
class HarSettings(RunSettings):
    align: str = option("out/align", "output of train_align.py to start from, or none")
    text: tuple | None = option(
        None, "parts of the text after the sensors, joined by '+', or none: "
        f"{', '.join(HAR_TEXTS)} (default smry+Q; built-in none)",
        type=some_of("--text", "parts", HAR_TEXTS, "+", words={"none": ()}))
    channel_names: bool = option(False, "put its name before each channel")
    answer: str = option(
        "class", "give the class by a class head, as text, or as text after a reasoning",
        choices=HAR_ANSWERS)
    rotate: float | None = option(
        None, "maximum random rotation of the sensors of a training window, redrawn every epoch "
        "(default 0; built-in 30)", type=amount, metavar="DEGREES")
    resize: float | None = option(
        None, "largest random factor of the movement in a training window, up or down "
        "(default 1; built-in 1.4)", type=positive, metavar="FACTOR")
    compare: tuple | None = option(
        None, "train the full model and its ablations, or some rows joined by ',', and compare "
        f"them (or resume that): {', '.join(ROWS)}", type=some_of("--compare", "rows", ROWS),
        nargs="?", const=tuple(ROWS), metavar="ROWS")
    seeds: int | None = option(
        None, "seeds of each row in a comparison (default 3; of a fold 1)", type=count)
    folds: int | None = option(
        None, "cross-validation: a run for each --fold K/N, with stage 1 in the folder ALIGN-K",
        type=count, metavar="N")
    ablate: str | None = None           # set by a comparison: one of ablations.ABLATIONS

    def in_fold(self, k):
        align = self.align if self.align == "none" else f"{self.align}-{k + 1}"
        return replace(self, fold=(k, self.folds), align=align)


def main():
    # ---- arguments, processes, data ----
    settings = read_settings(HarSettings, __doc__)
    comparing = settings.compare or settings.seeds or settings.folds
    align, _, _ = read_align(settings.in_fold(0) if settings.folds else settings)  # to fail early
    if align:
        settings = replace(settings, llm=align.llm, encoder=align.encoder)
    settings = settings.with_defaults(
        data="data/demo", out="out/comparison" if comparing else "out/har",
        text=("smry", "Q") if settings.llm else ())
    processes = start_processes(settings.dtype != "float32", settings.device)

    # ---- one run, or a comparison of several ----
    if comparing:
        return compare(settings, processes)
    train_once(settings, processes)
    if processes.first:
        command = ["python", "evaluate.py", "--checkpoint", settings.out]
        if settings.data != "data/demo":
            command += ["--data", settings.data]
        print(f"next, scores of each person and class: {shlex.join(command)}")


def compare(settings, processes):
    """Trains and scores every run of a comparison, prints the table, writes comparison.json."""
    runs = list(plan_runs(settings))
    data = open_or_make_data(runs[0][1], processes)
    scored = data.dataset.held_out
    if settings.folds:
        scored = f"{len(data.subjects_of(None))} people, in {settings.folds} folds"
    results = {}
    if processes.first:
        claim_comparison(settings)
    for row, run_settings in runs:
        if processes.first:
            print(f"\n==== {Path(run_settings.out).name} ====", flush=True)
        path = Path(run_settings.out, "results.json")
        scores = read_json(path) if path.exists() else train_once(run_settings, processes)
        results.setdefault(row, []).append(scores | {"seed": run_settings.seed})
    if processes.first:
        path = Path(settings.out, "comparison.json")
        write_json(path, {"command": command_line(), "dataset": data.name, "scored": scored,
                          "results": results})
        print(f"\nscored on {scored}:\n{comparison_table(results)}\nwrote {path}")


def read_align(settings):
    """Stage 1's recipe, progress and tensors; none of them with --align none."""
    if settings.align == "none":
        return None, None, {}
    align, progress, tensors = read_checkpoint(checkpoint_file(settings.align))
    if align.stage != "align":
        raise InputError(f"{settings.align} is a checkpoint of stage 2; --align takes one of "
                         "train_align.py, or none")
    return move_sources(align, settings.llm, settings.encoder), progress, tensors


def complete(settings, align):
    """The settings of one run with the defaults of stage 2; align: stage 1's recipe, or None."""
    if align:
        for name in ("projector", "scaling", "statistics"):
            if getattr(settings, name) is not None:
                raise InputError(f"--{name} comes from {settings.align}; leave it out, or start "
                                 "with --align none")
    tokens = () if align else ("tokens",)
    head = ("head",) if settings.answer == "class" else ()        # words need no class head
    parts = default_parts(settings, "projector", *tokens, *head)
    defaults = BUILT_IN | {"batch_size": 32, "rotate": 30.0, "resize": 1.4, "lr": 3e-3,
                           "weight_decay": 0.1}
    if settings.llm:
        defaults = PUBLIC | {"rotate": 0.0, "resize": 1.0}
    settings = settings.with_defaults(**defaults, statistics=settings.encoder is None, train=parts)
    _, frozen = ABLATIONS.get(settings.ablate, (None, set()))
    return replace(settings, train=tuple(part for part in settings.train if part not in frozen))


def train_once(settings, processes):
    """One run, from the model to its scores on the test subjects -> the content of results.json."""
    # ---- data, stage 1's checkpoint, and what learns now ----
    data = open_or_make_data(settings, processes)
    align, align_progress, tensors = read_align(settings)
    if align and align.dataset != data.name:
        raise InputError(f"{settings.align} was trained on {align.dataset}, {settings.data} holds "
                         f"{data.name}; give the --data it was trained on, or another --align")
    if align and align.fold != settings.fold:
        raise InputError(f"{settings.align} was not trained with the same --fold: it has seen "
                         "people that this run is tested on")
    settings = complete(settings, align)
    torch.manual_seed(settings.seed)
    claim_out(settings, "har", processes)

    # ---- model: stage 1's with a class head; the parts of --train learn, the rest is frozen ----
    random_llm = settings.ablate == "random-llm"
    recipe = replace(
        align or new_recipe(settings, data), classes=data.dataset.classes, text=settings.text,
        channel_names=settings.channel_names, answer=settings.answer, ablation=settings.ablate,
        llm_seed=settings.seed if random_llm else None)
    recipe = replace(recipe, trained=tuple(sorted({*recipe.trained, *settings.train})))
    processes.check_same(recipe, data.meta)
    model = build_model(recipe, settings.dtype)
    if align:
        new_parts = ("head", "llm") if random_llm else ("head",)
        fill_model(model, align, tensors, settings.align, new_parts)
    set_up(model, settings)
    prompts = PromptFormat.of(model, recipe)
    train = HarExamples(data, "train", prompts, settings.train_limit, settings.seed)
    val = HarExamples(data, "val", prompts, settings.eval_limit, settings.seed)
    test = HarExamples(data, "test", prompts, settings.test_limit, settings.seed)
    counts = np.bincount(train.labels(), minlength=len(recipe.classes))
    absent = [name for name, count in zip(recipe.classes, counts) if not count]
    train.degrees = settings.rotate
    train.factor = settings.resize
    if model.head is not None:
        model.class_weights = class_weights(train.labels(), len(recipe.classes))
    model.to(processes.device)

    # ---- optimizer and run ----
    n_windows = DEMO_WINDOWS if data.name == "demo" else WINDOWS
    epochs = 3 if settings.train_limit else n_windows / len(train)
    settings = settings.with_defaults(epochs=epochs)
    loader = Loader(train, settings, processes)
    optimizer = new_optimizer(model, settings)
    run = Run(settings, processes, model, recipe, optimizer, loader)
    distributed = processes.distribute(model)
    if align and not settings.resume:
        run.progress["provenance"]["stage_1"] = {
            "checkpoint": str(checkpoint_file(settings.align)),
            "scores": {"val_loss": align_progress["best"]}}
    if absent:
        run.log(f"no training window of {', '.join(absent)}: the model cannot learn what it is")
    may_turn = data.dataset.rotation_groups is None and len(data.dataset.channels) >= 3
    if settings.rotate and may_turn and not rotations(data.dataset):
        run.log("no sensor turns in training, since no three channels differ only by x, y and z; "
                'if three are one sensor, "places" in dataset.json can say so')

    # ---- loop ----
    for step, batches in loader.steps(run.progress["step"]):
        lr = learning_rate(step, loader.n_steps, settings.lr, settings.warmup)
        loss, norm, n_tokens = train_step(distributed, optimizer, batches, lr, processes)
        run.log_step(step, loss, norm, lr, n_tokens)
        if step in run.validated:
            scores, val_loss = score_classes(model, val, processes, settings.batch_size, run.log)
            shown = {name: scores[name] for name in ("macro_f1", "accuracy")}
            run.log_validation(step, {"val_loss": val_loss, **shown})
        run.stop_if_asked(step)

    # ---- what it learned: the best checkpoint on test subjects ----
    run.load_best()
    scores, _ = score_classes(model, test, processes, settings.batch_size, run.log)
    run.log("\n" + class_report(scores["confusion"], recipe.classes))
    return run.finish(scores)


if __name__ == "__main__":
    run_script(main)
