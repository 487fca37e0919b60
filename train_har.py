"""Stage 2, human activity recognition: from all channels of a window and a text to its class.

    torchrun train_har.py                                  # continues the demo of train_align.py
    torchrun --nproc_per_node 8 train_har.py --data data/usc-had --align out/align \\
        --dtype bfloat16 --out out/har
    torchrun train_har.py --compare                        # does the LLM help? compares ablations
    torchrun train_har.py --align none --folds 6           # cross-validation over training subjects
"""
import sensorllm_min    # noqa: F401: first, since it says where Python is too old
import argparse
import copy
import shlex
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from sensorllm_min.ablations import ABLATIONS
from sensorllm_min.cli import amount, count, run_script, some_of
from sensorllm_min.data.examples import HAR_ANSWERS, HarExamples, PromptFormat
from sensorllm_min.data.sensors import rotations
from sensorllm_min.data.texts import HAR_TEXTS
from sensorllm_min.evaluation.class_scores import class_report, class_scores
from sensorllm_min.evaluation.compare import ROWS, plan_runs, score_majority, write_comparison
from sensorllm_min.evaluation.predict import score_classes
from sensorllm_min.files import InputError, read_json
from sensorllm_min.sensorllm import class_weights
from sensorllm_min.recipe import build_model, move_sources
from sensorllm_min.training.checkpoint import checkpoint_file, fill_model, read_checkpoint
from sensorllm_min.training.options import (
    PUBLIC, RunSettings, add_shared_arguments, check_out, default_parts, new_recipe,
    open_or_make_data, precision, set_up)
from sensorllm_min.training.processes import start_processes
from sensorllm_min.training.provenance import command_line
from sensorllm_min.training.run import Run
from sensorllm_min.training.step import new_optimizer, train_step

# The defaults with the built-in LLM, and the windows that it trains on where --epochs is not given:
# minutes on two cores, and less for the demo, which is easy. With public weights: the paper's.
BUILT_IN = {"projector": (256,), "batch_size": 32, "accumulate": 1, "lr": 1e-3,
            "betas": (0.9, 0.95), "text": (), "rotate": 20.0}
BUILT_IN_WINDOWS, DEMO_WINDOWS = 40_000, 4_000
PAPER = PUBLIC | {"text": ("smry", "Q"), "rotate": 0.0}


@dataclass(frozen=True)
class HarSettings(RunSettings):
    align: str                          # output of stage 1, or "none"
    text: tuple | None                  # some of texts.HAR_TEXTS
    channel_names: bool
    answer: str                         # one of examples.HAR_ANSWERS
    rotate: float | None                # degrees
    ablate: str | None                  # one of ablations.ABLATIONS
    fold: tuple | None = None           # (k, K): part of a cross-validation


@dataclass(frozen=True)
class Plan:
    """Which runs are compared: rows, seeds of each, parts of a cross-validation (None: the test)"""
    rows: tuple
    n_seeds: int
    folds: int | None


def read_arguments():
    """The settings as they were given, and the Plan of a comparison or None."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--align", default="out/align",
        help="output of train_align.py to start from (default out/align), or none")
    add("--out",
        help="where checkpoints and logs go (default out/har; with --compare out/comparison)")
    add("--text", type=some_of("--text", "parts", HAR_TEXTS, "+", words={"none": ()}),
        help="parts of the text after the sensors, joined by '+', or none: "
             f"{', '.join(HAR_TEXTS)} (default smry+Q; built-in none)")
    add("--channel-names", action="store_true", help="put its name before each channel")
    add("--answer", choices=HAR_ANSWERS, default="class",
        help="give the class by a class head (default), as text, or as text after a reasoning")
    add("--rotate", type=amount, metavar="DEGREES",
        help="in training, turn the sensors of each window by up to this angle (default 0; "
             "built-in 20)")
    add("--ablate", choices=ABLATIONS, help="train a model with one part taken away")
    add("--compare", type=some_of("--compare", "rows", ROWS, words={"all": tuple(ROWS)}),
        nargs="?", const="all", metavar="ROWS",
        help="train the full model and its ablations, or some rows joined by ',', and compare "
             f"them: {', '.join(ROWS)}; an interrupted comparison is resumed")
    add("--seeds", type=count, help="seeds of each row in a comparison (default 3; of a fold 1)")
    add("--folds", type=count, metavar="K",
        help="cross-validation: K runs, each trained without a K-th of the training subjects and "
             "scored on them; the test subjects stay unseen")
    add_shared_arguments(parser, BUILT_IN, test_limit=None)
    options = vars(parser.parse_args())
    rows, n_seeds, folds = (options.pop(name) for name in ("compare", "seeds", "folds"))
    comparing = any((rows, n_seeds, folds))
    options["out"] = options["out"] or ("out/comparison" if comparing else "out/har")
    settings = HarSettings(**options)
    if settings.ablate and settings.answer != "class":
        raise InputError("--ablate needs a class head; leave --answer out")
    plan = Plan(rows or ("full",), n_seeds or (1 if folds else 3), folds)
    return settings, plan if comparing else None


def main():
    # ---- arguments, processes, data ----
    settings, plan = read_arguments()
    processes = start_processes(settings.dtype != "float32", settings.device)
    align, _ = read_align(settings)                               # to fail early
    if settings.text is None:
        settings = replace(settings, text=defaults_of(settings, align)["text"])
    data = open_or_make_data(settings.data, processes)

    # ---- one run, or a comparison of several ----
    if plan is None:
        train_once(settings, processes, data)
        if processes.first:
            command = ["python", "evaluate.py", "--checkpoint", settings.out]
            if settings.data != "data/demo":
                command += ["--data", settings.data]
            print(f"next, scores of each person and class: {shlex.join(command)}")
        return
    results = {}
    for name, run_settings in plan_runs(settings, plan, data, processes):
        if processes.first:
            print(f"\n==== {Path(run_settings.out).name} ====", flush=True)
        finished = Path(run_settings.out, "results.json")
        if finished.exists():
            scores = read_json(finished)
        else:
            scores = train_once(run_settings, processes, data)
        results.setdefault(name, []).append(scores)
    if processes.first:
        print("\n" + write_comparison(settings.out, results, plan, data, command_line()))
        print(f"wrote {settings.out}/comparison.md and comparison.json")


def read_align(settings):
    """The checkpoint of stage 1 -> (its recipe, its tensors), or (None, {}) without it."""
    if settings.align == "none":
        return None, {}
    align, _, tensors = read_checkpoint(checkpoint_file(settings.align))
    if align.stage != "align":
        raise InputError(f"{settings.align} is a checkpoint of stage 2; --align takes one of "
                         "train_align.py, or none")
    for option in ("projector", "scaling", "levels"):
        if getattr(settings, option) is not None:
            raise InputError(f"--{option} comes from {settings.align}; leave it out, or start "
                             "with --align none")
    return move_sources(align, settings.llm, settings.encoder), tensors


def describe_align(align) -> dict:
    """Stage 1's checkpoint and the scores of its run, for results.json."""
    path = checkpoint_file(align)
    run = path.with_name("results.json")
    content = read_json(run) if run.exists() else {}
    scores = {name: value for name, value in content.items() if isinstance(value, (int, float))}
    return {"checkpoint": str(path), "scores": scores}


def defaults_of(settings, align):
    return BUILT_IN if (align or settings).llm is None else PAPER


def parts_to_train(settings, align):
    """What learns where --train is not given.

    The projector and the head, and every network without public weights; without stage 1 the
    special tokens, too. An answer in words needs no head.
    """
    head = ("head",) if settings.answer == "class" else ()
    tokens = () if align else ("tokens",)
    sources = align or settings
    return default_parts(sources.llm, sources.encoder, "projector", *tokens, *head)


def train_once(settings, processes, data) -> dict:
    """One run, from the model to its scores on the test subjects -> the content of results.json."""
    data = copy.copy(data)
    data.fold = settings.fold
    # ---- stage 1's checkpoint, and what learns now ----
    align, tensors = read_align(settings)
    if align and align.dataset != data.name:
        raise InputError(f"{settings.align} was trained on {align.dataset}, {settings.data} holds "
                         f"{data.name}; give the --data it was trained on, or another --align")
    defaults = defaults_of(settings, align)
    settings = settings.with_defaults(train=parts_to_train(settings, align), **defaults)
    if settings.ablate:
        frozen = ABLATIONS[settings.ablate][1]
        learning = tuple(part for part in settings.train if part not in frozen)
        settings = replace(settings, train=learning)
    torch.manual_seed(settings.seed)
    check_out(settings, "har", processes)

    # ---- model: stage 1's with a class head; the parts of --train learn, the rest is frozen ----
    recipe = align or new_recipe(settings, data, processes)
    random_llm = settings.ablate == "random-llm"
    recipe = replace(
        recipe, classes=data.dataset.classes, text=settings.text,
        channel_names=settings.channel_names, answer=settings.answer, ablation=settings.ablate,
        llm_seed=settings.seed if random_llm else None,
        trained=tuple(sorted({*recipe.trained, *settings.train})))
    model = build_model(recipe, **precision(settings.dtype))
    if align:
        new_parts = ("head", "llm") if random_llm else ("head",)
        fill_model(model, align, tensors, settings.align, new_parts)
    set_up(model, settings)
    prompts = PromptFormat.of(model, recipe)
    train = HarExamples(data, "train", prompts, settings.train_limit, settings.seed)
    val = HarExamples(data, "val", prompts, settings.eval_limit, settings.seed)
    scored = "val" if settings.fold else "test"
    test = HarExamples(data, scored, prompts, settings.test_limit, settings.seed)
    train.degrees = settings.rotate
    n_windows = DEMO_WINDOWS if data.name == "demo" else BUILT_IN_WINDOWS
    settings = settings.with_epochs(n_windows, len(train), of_sample=3)
    if model.head is not None:
        model.class_weights = class_weights(train.labels(), len(recipe.classes))
    model.to(processes.device)

    # ---- optimizer and run ----
    optimizer = new_optimizer(model, settings)
    run = Run(settings, processes, model, recipe, optimizer, train)
    if align and not settings.resume:
        run.progress["provenance"]["stage_1"] = describe_align(settings.align)
    dataset = data.dataset
    may_turn = settings.rotate and dataset.rotation_groups is None and len(dataset.channels) >= 3
    if may_turn and not rotations(dataset):
        run.say("no sensor turns in training: no three channels differ by x, y and z alone; where "
                'three are one sensor, say so by "places" in dataset.json')

    # ---- loop ----
    for step in run.steps():
        loss, norm, n_tokens = train_step(run.wrapped, step, optimizer, processes, settings.out)
        run.log_step(step, loss, norm, n_tokens)
        if run.is_evaluated(step):
            confusion, val_loss = score_classes(
                model, val, processes, settings.batch_size, run.say)
            scores = class_scores(confusion)
            shown = {name: scores[name] for name in ("macro_f1", "accuracy")}
            run.log_evaluation(step, {"val_loss": val_loss, **shown}, "macro_f1",
                               higher_is_better=True)

    # ---- what it learned: the best checkpoint on test subjects ----
    run.load_best()
    confusion, _ = score_classes(model, test, processes, settings.batch_size, run.say)
    run.say("\n" + class_report(confusion, recipe.classes))
    scores = class_scores(confusion)
    del scores["per_class"]
    return run.finish({**scores, "majority": score_majority(train, test, len(recipe.classes))})


if __name__ == "__main__":
    run_script(main)
