"""Stage 2, human activity recognition: from all channels of a window and a text to its class.

    torchrun train_har.py                                  # continues the demo of train_align.py
    torchrun --nproc_per_node 8 train_har.py --data data/usc-had --align out/align \\
        --dtype bfloat16 --out out/har
    torchrun train_har.py --compare                        # does the LLM help? compares ablations
"""
import argparse
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from sensorllm_min.ablations import ABLATIONS
from sensorllm_min.cli import count, run_script
from sensorllm_min.data.examples import HAR_ANSWERS, HarExamples
from sensorllm_min.data.texts import HAR_TEXTS
from sensorllm_min.evaluation.class_scores import class_report, class_scores
from sensorllm_min.evaluation.compare import (
    plan_runs, read_finished, score_majority, write_comparison)
from sensorllm_min.evaluation.predict import score_classes
from sensorllm_min.files import InputError
from sensorllm_min.sensorllm import class_weights
from sensorllm_min.training.checkpoint import (
    build_model, checkpoint_file, fill_model, move_sources, read_checkpoint)
from sensorllm_min.training.options import (
    PUBLIC, RunSettings, add_shared_arguments, check_out, default_parts, new_recipe,
    open_or_make_data, precision, set_up)
from sensorllm_min.training.processes import start_processes
from sensorllm_min.training.run import Run
from sensorllm_min.training.step import new_optimizer, train_step

# The defaults with the built-in LLM; with public weights they are the paper's, PUBLIC.
BUILT_IN = {"projector": (256,), "epochs": 3, "batch_size": 16, "accumulate": 1, "lr": 1e-3}


@dataclass(frozen=True)
class HarSettings(RunSettings):
    align: str                          # output of stage 1, or "none"
    text: tuple                         # some of texts.HAR_TEXTS
    channel_names: bool
    answer: str                         # one of examples.HAR_ANSWERS
    ablate: str | None                  # one of ablations.ABLATIONS


def text_parts(text):
    parts = () if text == "none" else tuple(text.split("+"))
    if not set(parts) <= set(HAR_TEXTS):
        raise InputError(f"--text {text}: the parts are {', '.join(HAR_TEXTS)}, joined by '+', or "
                         "none")
    return parts


def read_arguments():
    """The settings as they were given, and the number of seeds to compare or None."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--align", default="out/align",
        help="output of train_align.py to start from (default out/align), or none")
    add("--out",
        help="where checkpoints and logs go (default out/har; with --compare out/comparison)")
    add("--text", type=text_parts, default="smry+Q",
        help="parts of the text after the sensors, joined by '+', or none: "
             f"{', '.join(HAR_TEXTS)} (default smry+Q)")
    add("--channel-names", action="store_true", help="put its name before each channel")
    add("--answer", choices=HAR_ANSWERS, default="class",
        help="give the class by a class head (default), as text, or as text after a reasoning")
    add("--ablate", choices=ABLATIONS, help="train a model with one part taken away")
    add("--compare", type=count, nargs="?", const=3, metavar="SEEDS",
        help="train the full model and every ablation with this many seeds (default 3) and compare "
             "them; an interrupted comparison is resumed")
    add_shared_arguments(parser, test_limit=None)
    options = vars(parser.parse_args())
    n_seeds = options.pop("compare")
    options["out"] = options["out"] or ("out/comparison" if n_seeds else "out/har")
    settings = HarSettings(**options)
    if settings.ablate and settings.answer != "class":
        raise InputError("--ablate needs a class head; leave --answer out")
    return settings, n_seeds


def main():
    # ---- arguments, processes, data ----
    settings, n_seeds = read_arguments()
    processes = start_processes(bf16=settings.dtype != "float32")
    read_align(settings)                                          # to fail early
    data = open_or_make_data(settings.data, processes)

    # ---- one run, or a comparison of several ----
    if n_seeds is None:
        train(settings, processes, data)
        return
    results = {}
    for name, run_settings in plan_runs(settings, n_seeds, processes):
        if processes.first:
            print(f"\n==== {name}, seed {run_settings.seed} ====", flush=True)
        scores = read_finished(run_settings.out) or train(run_settings, processes, data)
        results.setdefault(name, []).append(scores)
    if processes.first:
        command = shlex.join(["train_har.py", *sys.argv[1:]])
        n_subjects = len(data.dataset.test_subjects)
        print("\n" + write_comparison(settings.out, results, n_subjects, command))
        print(f"wrote {settings.out}/comparison.md and comparison.json")


def read_align(settings):
    """The checkpoint of stage 1 -> (its recipe, its tensors), or (None, {}) without it."""
    if settings.align == "none":
        return None, {}
    align, _, tensors = read_checkpoint(checkpoint_file(settings.align))
    if align.stage != "align":
        raise InputError(f"{settings.align} is a checkpoint of stage 2; --align takes one of "
                         "train_align.py, or none")
    for option in ("projector", "scaling"):
        if getattr(settings, option) is not None:
            raise InputError(f"--{option} comes from {settings.align}; leave it out, or start "
                             "with --align none")
    return move_sources(align, settings.llm, settings.encoder), tensors


def parts_to_train(settings, align):
    """What learns where --train is not given.

    After stage 1 the projector and the head learn; without it the special tokens and every network
    that starts at random, too. An answer in words needs no head, but the built-in LLM must learn
    the names of the activities.
    """
    head = ("head",) if settings.answer == "class" else ()
    if align is None:
        return default_parts(settings.llm, settings.encoder, "projector", "tokens", *head)
    new_words = not head and align.llm is None
    return ("projector", *head, "llm") if new_words else ("projector", *head)


def train(settings, processes, data) -> dict:
    """One run, from the model to its scores on the test subjects -> the content of results.json."""
    # ---- stage 1's checkpoint, and what learns now ----
    align, tensors = read_align(settings)
    if align and align.dataset != data.name:
        raise InputError(f"{settings.align} was trained on {align.dataset}, {settings.data} holds "
                         f"{data.name}; give the --data it was trained on, or another --align")
    defaults = BUILT_IN if (align or settings).llm is None else PUBLIC
    settings = settings.with_defaults(train=parts_to_train(settings, align), **defaults)
    if settings.ablate:
        frozen = ABLATIONS[settings.ablate][1]
        learning = tuple(part for part in settings.train if part not in frozen)
        settings = replace(settings, train=learning)
    torch.manual_seed(settings.seed)
    check_out(settings, "har", processes)

    # ---- model: stage 1's with a class head; the parts of --train learn, the rest is frozen ----
    recipe = align or new_recipe(settings, data, processes)
    last = Path(settings.out, "last.safetensors")
    resumed = read_checkpoint(last)[0] if settings.resume else None
    random_llm = settings.ablate == "random-llm"
    recipe = replace(
        recipe, classes=data.dataset.classes, text=settings.text,
        channel_names=settings.channel_names, answer=settings.answer, ablation=settings.ablate,
        llm_seed=settings.seed if random_llm else None,
        class_bos=resumed is not None and resumed.class_bos,      # a run goes on as it began
        trained=tuple(sorted({*recipe.trained, *settings.train})))
    loaded = build_model(recipe, **precision(settings.dtype))
    model = loaded.model
    if align:
        new_parts = ("head", "llm") if random_llm else ("head",)
        fill_model(model, align, tensors, settings.align, new_parts)
    set_up(model, settings)
    train = HarExamples(data, "train", loaded.prompts, settings.train_limit, settings.seed)
    val = HarExamples(data, "val", loaded.prompts, settings.eval_limit, settings.seed)
    test = HarExamples(data, "test", loaded.prompts, settings.test_limit, settings.seed)
    model.class_weights = class_weights(train.labels(), len(recipe.classes))
    model.to(processes.device)

    # ---- optimizer and run ----
    optimizer = new_optimizer(model, settings)
    run = Run(settings, processes, loaded, optimizer, train)

    # ---- loop ----
    for step in run.steps():
        loss, norm, n_tokens = train_step(run.wrapped, step, optimizer, processes, settings.out)
        run.log_step(step, loss, norm, n_tokens)
        if run.is_evaluated(step):
            confusion, val_loss = score_classes(loaded, val, processes, settings.batch_size)
            scores = class_scores(confusion)
            shown = {name: scores[name] for name in ("macro_f1", "accuracy")}
            run.log_evaluation(step, {"val_loss": val_loss, **shown}, "macro_f1",
                               higher_is_better=True)

    # ---- what it learned: the best checkpoint on test subjects ----
    run.load_best()
    confusion, _ = score_classes(loaded, test, processes, settings.batch_size)
    run.say("\n" + class_report(confusion, recipe.classes))
    scores = class_scores(confusion)
    del scores["per_class"]
    return run.finish({**scores, "majority": score_majority(train, test, len(recipe.classes))})


if __name__ == "__main__":
    run_script(main)
