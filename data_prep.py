"""Raw recordings -> a prepared dataset that both training scripts read.

    python data_prep.py --dataset usc-had --download        # fetches into raw/, writes to data/
    python data_prep.py --dataset own --raw MY_DIR          # your recordings and a dataset.json
    python data_prep.py --dataset usc-had --show 17         # one window, drawn and as prompts
"""
import sensorllm_min    # noqa: F401: first, since it checks the version of Python
import argparse
import os
from pathlib import Path

from sensorllm_min.cli import amount, count, run_script, seed, some_of
from sensorllm_min.config import TINY_LLAMA
from sensorllm_min.data.download import download
from sensorllm_min.data.examples import AlignExamples, HarExamples, PromptFormat, sample_texts
from sensorllm_min.data.prepare import make_job, prepare
from sensorllm_min.data.prepared import PreparedData
from sensorllm_min.data.recordings import READERS
from sensorllm_min.data.sensors import DATASETS
from sensorllm_min.data.texts import ANSWER_KINDS, window_trends_text
from sensorllm_min.files import InputError
from sensorllm_min.plots.figures import draw_window
from sensorllm_min.text_tokenizer import built_tokenizer, new_tokens, train_backend


def print_counts(meta):
    """Prints what was made: totals, then a line for each class, then a line for each subject."""
    import pandas as pd
    for what in ("har_windows", "align_pairs", "dropped_windows_with_nan_or_inf", "lost_samples"):
        if meta[what]:
            counts = [f"{key} {count}" for key, count in meta[what].items()]
            print(f"{what}: {', '.join(counts)}")
    print(f"held out: {meta['held_out']}\n\nstage-2 windows:")
    print(pd.DataFrame(meta["class_balance"]).to_string())
    print(pd.DataFrame.from_dict(meta["subjects"], orient="index").to_string())


def show(data, index):
    """Draws training window `index`; prints it and pair `index` as the built-in LLM reads them."""
    size = TINY_LLAMA.vocab_size
    backend = train_backend(sample_texts(data), size)
    tokenizer = built_tokenizer(backend, new_tokens(data.dataset.channels), size)
    prompts = PromptFormat(tokenizer, 10**9, 10**9)               # to look at: nothing is too long
    windows = HarExamples(data, "train", prompts)
    pairs = AlignExamples(data, "train", prompts)
    if index >= min(len(windows), len(pairs)):
        raise InputError(f"--show {index}: {data.directory} holds training windows 0 to "
                         f"{len(windows) - 1} and pairs 0 to {len(pairs) - 1}")
    pair = pairs[index]
    example = windows[index]
    window = data.window(example.record)
    activity = data.dataset.classes[example.label]
    print(f"--- stage 1, training pair {index}: prompt\n{tokenizer.visible(pair.prompt)}")
    print(f"--- answer, which the loss is on\n{tokenizer.visible(pair.answer)}")
    print(f"--- stage 2, training window {index} ({activity}): prompt")
    print(tokenizer.visible(example.prompt))
    path = data.directory / f"window_{index}.png"
    subject = example.record["subject"]
    title = f"{data.name}, training window {index}: {activity}, subject {subject}"
    texts = window_trends_text(window, data.dataset).split("\n")
    draw_window(path, window, data.dataset, title, texts)
    print(f"--- wrote {path}")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--dataset", choices=READERS, default="demo",
        help="which recordings (default demo; own: yours, with a dataset.json)")
    add("--raw", help="the unpacked archive, or your own recordings (demo: none)")
    add("--download", action="store_true",
        help="first fetch the official archive into --raw (default raw/DATASET)")
    add("--out", help="the prepared dataset (default data/DATASET)")
    add("--seed", type=seed, default=0,
        help="draws the random windows and the wording (default 0)")
    add("--rate", type=amount, metavar="HZ",
        help="resample to this rate; stage-1 windows then last 1 to 4 s, with --smooth 0.25, "
             "--band 0.25 and answers of one wording (default: the dataset's own rate, and the "
             "paper's texts)")
    add("--smooth", type=amount, metavar="SECONDS",
        help="stage 1 describes the trends of a moving average this long (default 0)")
    add("--band", type=amount, metavar="FRACTION",
        help="a change below this fraction of a window's range counts as steady (default 0)")
    add("--answer", type=some_of("--answer", "kinds", ANSWER_KINDS, "+"),
        help=f"kinds of text in a stage-1 answer, joined by '+', of {', '.join(ANSWER_KINDS)} "
             "(default: the dataset's own)")
    add("--longest", type=count,
        help="samples of the longest stage-1 window (default: the dataset's own)")
    add("--workers", type=count, default=min(os.cpu_count(), 3),
        help="processes; they do not change the result (default: at most 3)")
    add("--show", type=seed, metavar="N",
        help="only draw window N of the dataset in --out, and print its prompts")
    args = parser.parse_args()
    name = args.dataset
    raw = args.raw
    if args.download and not raw:
        raw = f"raw/{name}"
    if name != "demo" and not raw and args.show is None:
        source = "your recordings and their dataset.json"
        if name in DATASETS:
            source = f"the unpacked {DATASETS[name].url}, or --download"
        raise InputError(f"--dataset {name} needs --raw DIR, {source}")
    answer = tuple(sorted(set(args.answer or ()), key=ANSWER_KINDS.index)) or None
    settings = {"seed": args.seed, "rate": args.rate, "smooth": args.smooth, "band": args.band,
                "answer": answer, "longest": args.longest}
    if name != "own" or raw:
        name = make_job(name, raw, **settings).name
    out = args.out or f"data/{name}"
    if args.show is not None:
        return show(PreparedData(out), args.show)
    if args.download:
        download(args.dataset, DATASETS[args.dataset], Path(raw))
    meta = prepare(args.dataset, raw, out, args.workers, **settings)
    print_counts(meta)
    option = "" if out == f"data/{args.dataset}" else f" --out {out}"
    print(f"wrote {out}; look at a window with --show 0{option}")


if __name__ == "__main__":
    run_script(main)
