"""What a checkpoint can do, on subjects it has not seen: descriptions and their truth, or classes and their scores.

    python evaluate.py                                   # the demo's stages, whichever were trained
    python evaluate.py --checkpoint out/har --data data/usc-had
"""
import argparse
import json
import os
import time
from pathlib import Path

import torch

from sensorllm_min.checkpoint import checkpoint_file, load_checkpoint
from sensorllm_min.config import InputError, write_json
from sensorllm_min.data import AlignExamples, HarExamples, PreparedData
from sensorllm_min.evaluation import confusion_matrix, describe, direction_accuracy, direction_chance
from sensorllm_min.export import export
from sensorllm_min.layers import use_backend
from sensorllm_min.metrics import class_report, class_scores
from sensorllm_min.options import add_dtype_argument, count, frozen_dtype
from sensorllm_min.training import Processes, run_script


def evaluate_align(args, model, tokenizer, recipe, data, processes, out):
    """Describes windows; writes truth and answer as they come, then the share of time whose direction is right."""
    examples = AlignExamples(data, args.split, tokenizer, recipe.limits, args.limit or 256)
    texts, began = {}, time.time()
    unfinished = out / f"descriptions_{args.split}.jsonl.unfinished"
    with open(unfinished, "w", encoding="utf-8", buffering=1) as file:        # line by line: as they come
        for i, text in describe(model, tokenizer, examples, processes, args.batch_size, args.max_new_tokens, args.bf16):
            row = examples[i].row
            file.write(json.dumps({"window": int(examples.index[i]), **row, "generated": text}, ensure_ascii=False) + "\n")
            texts[i] = text
            if len(texts) <= args.show:
                print(f"--- {row['channel']}, {row['length']} samples\ntrue:\n{row['answer']}\ngenerated:\n{text}\n")
            if len(texts) % args.batch_size == 0:
                rate = len(texts) / (time.time() - began)
                print(f"{len(texts)}/{len(examples)} windows, {rate:.1f} windows/s, "
                      f"{(len(examples) - len(texts)) / rate / 60:.1f} min left", flush=True)
    os.replace(unfinished, out / f"descriptions_{args.split}.jsonl")
    chance = direction_chance(examples, AlignExamples(data, "train", tokenizer, recipe.limits))
    scores = {"windows": len(examples), "direction_accuracy": direction_accuracy(texts, examples, processes),
              "direction_chance": chance}
    print(f"direction right for {scores['direction_accuracy']:.1%} of the time, guessing gets {chance:.1%}")
    return scores


def evaluate_har(args, model, tokenizer, recipe, data, processes, out):
    """Classifies windows; prints the scores and the confusion matrix."""
    examples = HarExamples(data, args.split, tokenizer, recipe.limits, args.limit, 0, recipe.text, recipe.channel_names)
    confusion, _ = confusion_matrix(model, examples, processes, args.batch_size, tokenizer.pad_id, args.bf16, say=print)
    print(class_report(confusion, recipe.classes))
    return {"windows": len(examples), **class_scores(confusion), "classes": recipe.classes,
            "confusion": confusion.tolist()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", nargs="+", help="output of train_align.py or train_har.py, a checkpoint file, "
                                                        "or a hub id (default: out/align and out/har, whichever exist)")
    parser.add_argument("--data", help="prepared dataset (default data/DATASET, the one it was trained on)")
    parser.add_argument("--llm", help="where the LLM's directory is now, if it was moved since training")
    parser.add_argument("--encoder", help="where the encoder's directory is now, if it was moved since training")
    parser.add_argument("--split", choices=("val", "test"), default="test")
    parser.add_argument("--limit", type=count, help="a seeded sample of so many windows (default 256 in stage 1, all in 2)")
    parser.add_argument("--batch-size", type=count, default=16)
    parser.add_argument("--max-new-tokens", type=count, help="longest description (default: the longest true one)")
    parser.add_argument("--show", type=int, default=3, help="descriptions to print (default 3)")
    add_dtype_argument(parser)
    parser.add_argument("--export", metavar="DIR", help="instead of scoring: write the model into a folder to share, with a "
                                                        "card; `hf upload NAME/MODEL DIR` puts it on the hub")
    parser.add_argument("--attention", choices=("torch", "triton"), help="default: triton on NVIDIA GPUs, torch elsewhere")
    args = parser.parse_args()

    if args.export and len(args.checkpoint or ()) != 1:
        raise InputError("--export takes one --checkpoint")
    checkpoints = args.checkpoint or [path for path in ("out/align", "out/har") if checkpoint_file(path).is_file()]
    if not checkpoints:
        raise InputError("no checkpoint in out/align or out/har; run train_align.py first, or give --checkpoint")
    processes = Processes(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    for checkpoint in checkpoints:
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
        data = PreparedData(args.data or f"data/{recipe.dataset}")
        if data.name != recipe.dataset:
            raise InputError(f"{path} was trained on {recipe.dataset}, {args.data} holds {data.name}; "
                             "give the --data it was trained on")
        print(f"{path}: stage {recipe.stage}, {recipe.dataset}, step {progress['step']}, validation {progress['best']:.4f}; "
              f"LLM {recipe.llm or 'built-in'}, encoder {recipe.encoder or 'built-in'}; {args.split} subjects")
        (out / f"evaluation_{args.split}.json").unlink(missing_ok=True)   # an interrupted one is not a result
        evaluate = evaluate_har if recipe.classes else evaluate_align
        scores = evaluate(args, model, tokenizer, recipe, data, processes, out)
        write_json(out / f"evaluation_{args.split}.json", scores)
        print(f"wrote {out}/evaluation_{args.split}.json\n")


if __name__ == "__main__":
    run_script(main)
