"""Scores a checkpoint on subjects it has not seen, or lets it answer about one window.

    python evaluate.py                                     # the demo, whichever stages were trained
    python evaluate.py --checkpoint out/har --data data/usc-had
    python evaluate.py --checkpoint out/align --ask "When does it rise?" --window 2
    python evaluate.py --checkpoint out/har --csv walk.csv # the activities of a recording
"""
import sensorllm_min    # noqa: F401: first, since it says where Python is too old
import argparse
import hashlib
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np

from sensorllm_min.cli import add_options, amount, count, run_script, seed
from sensorllm_min.data.examples import AlignExamples, HarExamples, PromptFormat
from sensorllm_min.data.prepared import PreparedData
from sensorllm_min.data.sensors import dataset_of
from sensorllm_min.evaluation.ask import converse, csv_window, draw, prepared_window
from sensorllm_min.evaluation.class_scores import (
    bootstrap_intervals, class_report, class_scores, confusion_of)
from sensorllm_min.evaluation.predict import Decoding, classify, describe, write_as_they_come
from sensorllm_min.evaluation.recording import predict_csv
from sensorllm_min.evaluation.report import write_report
from sensorllm_min.evaluation.trend_scores import (
    Guess, draw_answers, in_one_line, score_trends, scores_table)
from sensorllm_min.files import InputError, write_json, write_text
from sensorllm_min.generate import Sampling
from sensorllm_min.layers import use_backend
from sensorllm_min.training.checkpoint import checkpoint_file, load_checkpoint
from sensorllm_min.training.options import SharedSettings
from sensorllm_min.training.processes import Processes, choose_device
from sensorllm_min.training.provenance import command_line


def sample_size(text):
    """argparse type: a whole number of at least 1, or "all"."""
    return sys.maxsize if text == "all" else count(text)


def say(line):
    print(line, flush=True)


# ---- scoring ----

def evaluate_align(args, run, data, processes, settings, out):
    """Describes windows; writes the truth and the answers as they come, then the scores."""
    model, recipe, _ = run
    prompts = PromptFormat.of(model, recipe)
    examples = AlignExamples(data, args.split, prompts, args.limit or 256, args.seed)
    decoding = Decoding(args.batch_size, args.max_new_tokens, args.sampling)

    def described(positions):
        evenly = np.linspace(0, len(positions) - 1, args.show).astype(int)
        shown = {positions[i] for i in evenly if positions}
        for i, text, ended in describe(model, examples, processes, decoding, positions, say):
            record = examples[i].record
            if i in shown:
                say(f"--- window {examples.index[i]}: {record['channel']}, "
                    f"{record['length']} samples\n"
                    f"true:\n{record['answer']}\ngenerated:\n{text}\n")
            yield {"window": int(examples.index[i]), **record, "generated": text, "ended": ended}

    path = out / f"descriptions_{args.split}.jsonl"
    records = write_as_they_come(path, settings, examples, described, say, args.batch_size)
    evenly = np.linspace(0, len(records) - 1, min(6, len(records))).astype(int)
    picture = out / f"descriptions_{args.split}.png"
    draw_answers(picture, [records[i] for i in evenly], data, say)
    guess = Guess(AlignExamples(data, "train", prompts))
    scores = score_trends(records, data, guess, say)
    table = scores_table(scores)
    path = out / f"scores_{args.split}.md"
    tested = f"Scored on {data.dataset.held_out}."
    write_text(path, f"# {data.name}, stage 1\n\n`{args.command}`\n\n{tested}\n\n{table}")
    answers, guessed = scores["all"]["answers"], scores["all"]["guess"]
    say(f"{table}\n{in_one_line(answers, guessed)}\nwrote {path}")
    guessed = {f"guess_{name}": score for name, score in guessed.items()}
    return {"windows": len(records), **answers, **guessed, "groups": scores}


def evaluate_har(args, run, data, processes, settings, out):
    """Classifies windows; prints the scores and the confusion matrix, and writes the report."""
    model, recipe, progress = run
    prompts = PromptFormat.of(model, recipe)
    examples = HarExamples(data, args.split, prompts, args.limit, args.seed)
    decoding = Decoding(args.batch_size, args.max_new_tokens, args.sampling)

    def classified(positions):
        return classify(model, examples, processes, decoding, positions)

    path = out / f"predictions_{args.split}.jsonl"
    records = write_as_they_come(path, settings, examples, classified, say, args.batch_size)
    classes = recipe.classes
    confusion = confusion_of(records, len(classes))
    if recipe.answer == "class":
        confusion = confusion[:, :-1]                             # a class head names a class
    by_subject = {}
    for record in sorted(records, key=lambda record: str(record["subject"])):
        by_subject.setdefault(record["subject"], []).append(record)
    confusions = [confusion_of(part, len(classes)) for part in by_subject.values()]
    intervals = bootstrap_intervals(confusions)
    scores = class_scores(confusion)
    say(class_report(confusion, classes))
    say("\n95 % over subjects: macro F1 {:.3f} to {:.3f}, accuracy {:.3f} to {:.3f}"
        .format(*intervals["macro_f1"], *intervals["accuracy"]))
    unparsable = sum(record["predicted"] is None for record in records)
    result = {"windows": len(records), **scores, "unparsable": unparsable, "intervals": intervals,
              "classes": classes, "confusion": confusion.tolist()}
    try:
        write_report(out / f"report_{args.split}", records, result, args.split,
                     (recipe, progress, processes.device), data)
        say(f"wrote {out}/report_{args.split}.html and .md, with pictures and the windows it got "
            "most wrong")
    except ImportError:
        say("no report: matplotlib is not installed")
    return result


def open_data(args, recipe):
    """The dataset of --data. InputError unless it is the one that the checkpoint was trained on."""
    data = PreparedData(args.data or f"data/{recipe.dataset}")
    if data.name != recipe.dataset:
        raise InputError(f"the checkpoint was trained on {recipe.dataset}, {args.data} holds "
                         f"{data.name}; give the --data it was trained on")
    return data


def score(args, run, path, processes, out):
    """Scores the checkpoint at `path` on a split and writes evaluation_SPLIT.json."""
    _, recipe, progress = run
    data = open_data(args, recipe)
    best = progress["best"]                                       # None: not validated yet
    best = "none yet" if best is None else f"{best:.4f}"
    say(f"{path}: stage {recipe.stage}, {recipe.dataset}, step {progress['step']}, validation "
        f"{best}; LLM {recipe.llm or 'built-in'}, encoder {recipe.encoder or 'built-in'}; "
        f"{args.split} subjects")
    with open(path, "rb") as checkpoint, open(data.directory / "meta.json", "rb") as meta:
        settings = {
            "checkpoint": hashlib.file_digest(checkpoint, "sha256").hexdigest(),
            "data": hashlib.file_digest(meta, "sha256").hexdigest(),
            "limit": args.limit, "seed": args.seed, "max_new_tokens": args.max_new_tokens,
            "dtype": args.dtype, "sampling": asdict(args.sampling)}
    result = out / f"evaluation_{args.split}.json"
    result.unlink(missing_ok=True)                                # if interrupted, there is none
    evaluate = evaluate_har if recipe.classes else evaluate_align
    write_json(result, evaluate(args, run, data, processes, settings, out))
    say(f"wrote {result}\n")


# ---- asking ----

def ask(args, run, processes, out):
    """Answers about one window: the question given, or those that a person types."""
    model, recipe, _ = run
    if args.channel and recipe.stage == "har":
        raise InputError("--channel is for stage 1; stage 2 reads all channels")
    if args.ask and recipe.stage == "har":
        raise InputError("stage 2 answers one question, which activity it is; give --window or "
                         "--csv without --ask")
    if args.csv:
        window = csv_window(args.csv, dataset_of(recipe), args.channel)
    else:
        data = open_data(args, recipe)
        window = prepared_window(data, recipe.stage, args.split, args.window or 0, args.channel)
    PromptFormat.of(model, recipe).check_length(window.samples, window.title)     # before a person types questions
    draw(window, model.chronos, out, say)
    question = args.ask or (None if recipe.stage == "align" else "Which activity is this?")
    decoding = Decoding(1, args.max_new_tokens or 400, args.sampling)
    converse(model, recipe, window, question, processes, decoding, out)


def read_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--checkpoint", nargs="+",
        help="outputs of train_align.py or train_har.py, checkpoint files, or hub ids (default: "
             "out/align and out/har, whichever exist)")
    add("--split", choices=("val", "test"), default="test",
        help="whose windows are scored (default test)")
    add("--limit", type=sample_size,
        help="score a seeded sample of this many windows, or all (default 256 in stage 1, all in "
             "stage 2)")
    add("--show", type=seed, default=3, help="descriptions to print (default 3)")
    add("--temperature", type=amount, default=0.0,
        help="sampling temperature; 0 takes the likeliest token (default 0)")
    add("--top-k", type=seed, default=0,
        help="sample from this many of the likeliest tokens (default 0: all)")
    add("--top-p", type=amount, default=1.0,
        help="sample from the fewest tokens that reach this probability together (default 1)")
    add("--ask", nargs="?", const="", metavar="QUESTION",
        help="answer about one window, instead of scoring; without QUESTION, type your questions")
    add("--window", type=seed, help="the window of the split to ask about (default 0)")
    add("--csv", metavar="FILE",
        help="a file with a column for each channel, named by its token: in stage 1 a window to "
             "ask about, in stage 2 a recording of any length, whose activities are written to "
             "FILE.predictions.csv and drawn in FILE.predictions.png")
    add("--channel", help="the channel to ask about (default: the window's own)")
    add_options(parser, SharedSettings)
    args = parser.parse_args()
    args.batch_size = args.batch_size or 16
    if args.csv and args.window is not None:
        raise InputError("--csv and --window are two windows; give one of them")
    if not 0 < args.top_p <= 1:
        raise InputError(f"--top-p {args.top_p}: a probability above 0, at most 1")
    args.command = command_line()
    args.sampling = Sampling(args.temperature, args.top_k, args.top_p, args.seed)
    return args


def main():
    args = read_arguments()
    trained = [path for path in ("out/align", "out/har") if checkpoint_file(path).is_file()]
    checkpoints = args.checkpoint or trained
    if not checkpoints:
        raise InputError("no checkpoint in out/align or out/har; run train_align.py first, or "
                         "give --checkpoint")
    asking = any(option is not None for option in (args.ask, args.window, args.csv, args.channel))
    device = choose_device(args.device)
    processes = Processes(0, 1, device, bf16=args.dtype != "float32")
    for checkpoint in checkpoints[:1] if asking else checkpoints:
        path = checkpoint_file(checkpoint)
        run = load_checkpoint(path, args.llm, args.encoder, args.dtype)
        on_hub = not Path(checkpoint).exists()                    # then its folder is the cache
        out = Path("out", Path(checkpoint).name) if on_hub else path.parent
        out.mkdir(parents=True, exist_ok=True)
        model, recipe, _ = run
        model.to(device).requires_grad_(False)
        use_backend(model, args.attention)
        if args.csv and recipe.classes and not (args.ask or args.channel):
            predict_csv(args.csv, model, recipe, processes, args.batch_size, say)
        elif asking:
            ask(args, run, processes, out)
        else:
            score(args, run, path, processes, out)


if __name__ == "__main__":
    run_script(main)
