"""What a checkpoint can do, on subjects it has not seen: descriptions and their truth, or classes and their scores.

    python evaluate.py                                   # the demo's stages, whichever were trained
    python evaluate.py --checkpoint out/har --data data/usc-had
    python evaluate.py --checkpoint out/align --ask "When does it rise?" --window 17      # or --csv my.csv
"""
import argparse
import hashlib
import shlex
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from sensorllm_min.ask import answer, csv_window, prepared_window
from sensorllm_min.checkpoint import checkpoint_file, load_checkpoint
from sensorllm_min.config import InputError, write_json, write_whole
from sensorllm_min.data import AlignExamples, HarExamples, PreparedData
from sensorllm_min.evaluation import classify, describe, trend_scores, written_as_they_come
from sensorllm_min.export import export
from sensorllm_min.generate import Sampling
from sensorllm_min.layers import use_backend
from sensorllm_min.metrics import bootstrap_intervals, class_report, class_scores, confusion_of
from sensorllm_min.options import add_dtype_argument, amount, count, frozen_dtype, seed
from sensorllm_min.picture import draw_window
from sensorllm_min.report import write_report
from sensorllm_min.training import Processes, run_script
from sensorllm_min.trend_scores import Guess, in_one_line, scores_table
from sensorllm_min.trend_text import FirstWording, align_pair


def sample_size(text):
    """argparse type: a whole number of at least 1, or "all"."""
    return sys.maxsize if text == "all" else count(text)


def say(line):
    print(line, flush=True)


def evaluate_align(args, model, tokenizer, recipe, progress, data, settings, processes, out):
    """Describes windows; writes truth and answer as they come, then the scores of all, each channel, each length."""
    examples = AlignExamples(data, args.split, tokenizer, recipe.limits, args.limit or 256, args.seed)

    def described(positions):
        shown = {positions[place] for place in np.linspace(0, len(positions) - 1, args.show).astype(int) if positions}
        for i, text, ended in describe(model, tokenizer, examples, processes, args.batch_size, args.max_new_tokens,
                                       args.bf16, positions, args.sampling):
            row = examples[i].row
            if i in shown:
                say(f"--- {row['channel']}, {row['length']} samples\ntrue:\n{row['answer']}\ngenerated:\n{text}\n")
            yield {"window": int(examples.index[i]), **row, "generated": text, "ended": ended}

    rows = written_as_they_come(out / f"descriptions_{args.split}.jsonl", settings, examples, described, say)
    scores = trend_scores(rows, data, Guess(AlignExamples(data, "train", tokenizer, recipe.limits)), say)
    table = scores_table(scores)
    write_whole(out / f"scores_{args.split}.md", f"# {data.name}, stage 1\n\n`{args.command}`\n\n{table}")
    everything = scores["all"]
    say(f"{table}\n{in_one_line(everything['answers'], everything['guess'])}\nwrote {out}/scores_{args.split}.md")
    return {"windows": len(rows), **everything["answers"],
            **{f"guess_{name}": score for name, score in everything["guess"].items()}, "groups": scores}


def evaluate_har(args, model, tokenizer, recipe, progress, data, settings, processes, out):
    """Classifies windows; prints the scores and the confusion matrix, and writes the report."""
    examples = HarExamples(data, args.split, tokenizer, recipe.limits, args.limit, args.seed, recipe.text,
                           recipe.channel_names, recipe.answer)

    def classified(positions):
        return classify(model, tokenizer, examples, processes, args.batch_size, args.bf16, positions, args.sampling,
                        args.max_new_tokens)

    rows = written_as_they_come(out / f"predictions_{args.split}.jsonl", settings, examples, classified, say)
    n = len(recipe.classes)
    confusion = confusion_of(rows, n)
    if recipe.answer == "class":
        confusion = confusion[:, :-1]                                         # a class head names one always
    subjects = sorted({row["subject"] for row in rows}, key=str)
    intervals = bootstrap_intervals([confusion_of([row for row in rows if row["subject"] == subject], n)
                                     for subject in subjects])
    scores = class_scores(confusion)
    say(class_report(confusion, recipe.classes))
    say("\n95 % over subjects: macro F1 {:.3f} to {:.3f}, accuracy {:.3f} to {:.3f}"
        .format(*intervals["macro_f1"], *intervals["accuracy"]))
    try:
        write_report(out / f"report_{args.split}", rows, confusion, scores, intervals, recipe, progress, data, args.split,
                     args.command)
        say(f"wrote {out}/report_{args.split}.html and .md, with pictures and the windows it got most wrong")
    except ImportError:
        say("no report: matplotlib is not installed")
    return {"windows": len(rows), **scores, "unparsable": sum(row["predicted"] is None for row in rows),
            "intervals": intervals, "classes": recipe.classes, "confusion": confusion.tolist()}


def ask(args, model, tokenizer, recipe, device, out):
    """Answers about one window: the question given, or those that a person types until an empty line."""
    kind = recipe.stage
    if args.channel and kind == "har":
        raise InputError("--channel is for stage 1; stage 2 reads all channels")
    if args.ask and kind == "har":
        raise InputError("stage 2 answers one question, which activity it is; give --window or --csv without --ask")
    if args.csv:
        window = csv_window(args.csv, recipe.sensors, kind, args.channel)
    else:
        window = prepared_window(open_data(args, recipe), kind, args.split, args.window or 0, args.channel)
    dataset, context = window.dataset, recipe.limits.context_length
    if len(window.samples) > context:
        raise InputError(f"{window.title}: {len(window.samples)} samples, the encoder's context holds {context}")
    texts = [align_pair(series, channel, dataset.rate, ("summary",), FirstWording)[1]
             for series, channel in zip(window.samples.T, dataset.channels)]
    picture = out / f"asked_{window.name}.png"
    try:
        draw_window(picture, window.samples, dataset, model.chronos, window.title, texts)
        say(f"{window.title}: {', '.join(channel.spoken for channel in dataset.channels)}, {len(window.samples)} samples, "
            f"drawn in {picture}")
    except ImportError:
        say(f"{window.title}: {len(window.samples)} samples; no picture: matplotlib is not installed")
    question = args.ask or (None if kind == "align" else "Which activity is this?")
    interactive = question is None
    if interactive:
        say("ask about it; an empty line ends")
    while True:
        if interactive:
            try:
                question = input("\n> ")
            except EOFError:
                question = ""
            if not question.strip():
                return
        answer(model, tokenizer, recipe, window, question, device, args.max_new_tokens or 400, args.sampling, args.bf16,
               say=lambda piece: print(piece, end="", flush=True))
        print()
        if not interactive:
            break
    if window.truth:
        say(f"\n(the dataset says:\n{window.truth})")


def open_data(args, recipe):
    data = PreparedData(args.data or f"data/{recipe.dataset}")
    if data.name != recipe.dataset:
        raise InputError(f"the checkpoint was trained on {recipe.dataset}, {args.data} holds {data.name}; "
                         "give the --data it was trained on")
    return data


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", nargs="+", help="output of train_align.py or train_har.py, a checkpoint file, "
                                                        "or a hub id (default: out/align and out/har, whichever exist)")
    parser.add_argument("--data", help="prepared dataset (default data/DATASET, the one it was trained on)")
    parser.add_argument("--llm", help="where the LLM's directory is now, if it was moved since training")
    parser.add_argument("--encoder", help="where the encoder's directory is now, if it was moved since training")
    parser.add_argument("--split", choices=("val", "test"), default="test")
    parser.add_argument("--limit", type=sample_size,
                        help="a seeded sample of so many windows, or all (default 256 in stage 1, all in stage 2)")
    parser.add_argument("--batch-size", type=count, default=16)
    parser.add_argument("--max-new-tokens", type=count, help="longest answer (default: the longest true one)")
    parser.add_argument("--show", type=seed, default=3, help="descriptions to print (default 3)")
    parser.add_argument("--temperature", type=amount, default=0.0, help="of sampling; 0 takes the likeliest token (default 0)")
    parser.add_argument("--top-k", type=seed, default=0, help="sample from so many of the likeliest tokens (default 0: all)")
    parser.add_argument("--top-p", type=amount, default=1.0,
                        help="sample from the fewest likeliest tokens that reach this probability together (default 1)")
    parser.add_argument("--seed", type=seed, default=0, help="of the sample of windows and of sampled tokens (default 0)")
    parser.add_argument("--ask", nargs="?", const="", metavar="QUESTION",
                        help="instead of scoring: answer about one window; without a question, those that you type")
    parser.add_argument("--window", type=seed, help="the window of the split to ask about (default 0)")
    parser.add_argument("--csv", help="ask about a file: a column for each channel, named as the dataset's are")
    parser.add_argument("--channel", help="the channel to ask about (default: the window's own)")
    add_dtype_argument(parser)
    parser.add_argument("--export", metavar="DIR", help="instead of scoring: write the model into a folder to share, with a "
                                                        "card; `hf upload NAME/MODEL DIR` puts it on the hub")
    parser.add_argument("--attention", choices=("torch", "triton"), help="default: triton on NVIDIA GPUs, torch elsewhere")
    args = parser.parse_args()
    args.command = shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]])
    args.sampling = Sampling(args.temperature, args.top_k, args.top_p, args.seed)

    asking = any(option is not None for option in (args.ask, args.window, args.csv, args.channel))
    checkpoints = args.checkpoint or [path for path in ("out/align", "out/har") if checkpoint_file(path).is_file()]
    if args.export and len(args.checkpoint or ()) != 1:
        raise InputError("--export takes one --checkpoint")
    if not checkpoints:
        raise InputError("no checkpoint in out/align or out/har; run train_align.py first, or give --checkpoint")
    if args.csv and args.window is not None:
        raise InputError("--csv and --window are two windows; give one of them")
    if not 0 < args.top_p <= 1:
        raise InputError(f"--top-p {args.top_p}: a probability above 0, at most 1")
    processes = Processes(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    for checkpoint in checkpoints[:1] if asking else checkpoints:
        path = checkpoint_file(checkpoint)
        model, tokenizer, recipe, progress = load_checkpoint(path, args.llm, args.encoder, **frozen_dtype(args))
        out = path.parent if Path(checkpoint).exists() else Path("out", Path(checkpoint).name)     # of a hub id: not its cache
        if args.export:
            export(model, recipe, progress, out, args.export)
            print(f"wrote {args.export}: best.safetensors and README.md, the card")
            continue
        out.mkdir(parents=True, exist_ok=True)
        model.to(processes.device).requires_grad_(False)
        use_backend(model, args.attention)
        if asking:
            ask(args, model, tokenizer, recipe, processes.device, out)
            continue
        data = open_data(args, recipe)
        print(f"{path}: stage {recipe.stage}, {recipe.dataset}, step {progress['step']}, validation {progress['best']:.4f}; "
              f"LLM {recipe.llm or 'built-in'}, encoder {recipe.encoder or 'built-in'}; {args.split} subjects")
        with open(path, "rb") as file, open(data.directory / "meta.json", "rb") as meta:
            settings = {"checkpoint": hashlib.file_digest(file, "sha256").hexdigest(),
                        "data": hashlib.file_digest(meta, "sha256").hexdigest(), "limit": args.limit, "seed": args.seed,
                        "max_new_tokens": args.max_new_tokens, "dtype": args.dtype, "sampling": asdict(args.sampling)}
        (out / f"evaluation_{args.split}.json").unlink(missing_ok=True)   # an interrupted one is not a result
        evaluate = evaluate_har if recipe.classes else evaluate_align
        scores = evaluate(args, model, tokenizer, recipe, progress, data, settings, processes, out)
        write_json(out / f"evaluation_{args.split}.json", scores)
        print(f"wrote {out}/evaluation_{args.split}.json\n")


if __name__ == "__main__":
    run_script(main)
