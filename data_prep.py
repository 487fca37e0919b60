"""Raw recordings -> a prepared dataset that both training scripts read.

    python data_prep.py --dataset usc-had --download --raw RAW_DIR --out data/usc-had
    python data_prep.py --dataset own --raw MY_DIR           # recordings of your own beside a dataset.json
    python data_prep.py --dataset usc-had --show 17          # one window as a picture, and as the model will read it
"""
import argparse
import os
from pathlib import Path

from sensorllm_min.chronos_tokenizer import ChronosTokenizer
from sensorllm_min.config import TINY_CHRONOS, TINY_LLAMA, InputError, read_llama_config
from sensorllm_min.data import AlignExamples, HarExamples, Limits, PreparedData
from sensorllm_min.download import download
from sensorllm_min.hub import located
from sensorllm_min.options import count, sample_texts, seed
from sensorllm_min.picture import draw_window
from sensorllm_min.prepare import prepare
from sensorllm_min.recordings import READERS
from sensorllm_min.sensors import DATASETS, own_dataset
from sensorllm_min.text_tokenizer import built_tokenizer, declared_format, load_text_tokenizer, train_backend
from sensorllm_min.training import run_script
from sensorllm_min.trend_text import ANSWER_KINDS, FirstWording, align_pair


def print_counts(meta):
    """What was made: windows and pairs a split, lost samples, a line a class and a line a subject."""
    for what in ("har_windows", "align_pairs", "dropped_windows_with_nan_or_inf", "lost_samples"):
        if meta[what]:
            print(f"{what}: " + ", ".join(f"{key} {count}" for key, count in meta[what].items()))
    print(f"\n{'stage-2 windows':28}" + "".join(f"{split:>8}" for split in meta["class_balance"]))
    for name in meta["classes"]:
        print(f"{name:28}" + "".join(f"{counts[name]:8}" for counts in meta["class_balance"].values()))
    print(f"\n{'subject':12}{'split':>6}{'recordings':>12}{'samples':>10}{'windows':>9}{'pairs':>9}")
    for subject, counts in meta["subjects"].items():
        print(f"{subject:12}{counts['split']:>6}{counts['recordings']:12}{counts['samples']:10}{counts['har_windows']:9}"
              f"{counts['align_pairs']:9}")


def show(data, index, llm):
    """Draws training window `index` of stage 2, and prints it and the stage-1 pair of that number as prompts."""
    channels, limits = data.dataset.channels, Limits(10**9, 10**9)            # to look at: nothing is too long
    if llm:
        directory = located(llm)
        tokenizer = load_text_tokenizer(directory, read_llama_config(directory), channels, declared_format(directory))
    else:
        tokenizer = built_tokenizer(train_backend(sample_texts(data), TINY_LLAMA.vocab_size), channels, TINY_LLAMA.vocab_size)
    windows, pairs = HarExamples(data, "train", tokenizer, limits), AlignExamples(data, "train", tokenizer, limits)
    if index >= min(len(windows), len(pairs)):
        raise InputError(f"--show {index}: {data.directory} holds training windows 0 to {len(windows) - 1} "
                         f"and pairs 0 to {len(pairs) - 1}")
    pair, example = pairs[index], windows[index]
    window, activity = data.window(example.row), data.dataset.classes[example.label]
    print(f"--- stage 1, training pair {index}: prompt\n{tokenizer.visible(pair.prompt)}\n"
          f"--- answer, what the loss is on\n{tokenizer.visible(pair.answer)}\n"
          f"--- stage 2, training window {index} ({activity}): prompt\n{tokenizer.visible(example.prompt)}")
    path = data.directory / f"window_{index}.png"
    texts = [align_pair(series, channel, data.dataset.rate, ("summary",), FirstWording)[1]
             for channel, series in zip(channels, window.T)]
    draw_window(path, window, data.dataset, ChronosTokenizer(TINY_CHRONOS), texts=texts,
                title=f"{data.name}, training window {index}: {activity}, subject {example.row['subject']}")
    print(f"--- wrote {path}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=READERS, default="demo")
    parser.add_argument("--raw", help="the unpacked archive of the dataset, or your own recordings; demo needs none")
    parser.add_argument("--download", action="store_true",
                        help="fetch the official archive first, into --raw (default raw/DATASET); goes on where it stopped")
    parser.add_argument("--out", help="where the prepared dataset goes (default data/DATASET)")
    parser.add_argument("--seed", type=seed, default=0, help="of the random windows and of the wording (default 0)")
    parser.add_argument("--answer", help="kinds of text in a stage-1 answer, joined by '+', of "
                                         f"{', '.join(ANSWER_KINDS)} (default: the dataset's own)")
    parser.add_argument("--longest", type=count, help="samples of the longest stage-1 window (default: the dataset's)")
    parser.add_argument("--workers", type=count, default=min(os.cpu_count(), 3),
                        help="processes; the bytes do not depend on it (default: the cores, at most 3)")
    parser.add_argument("--show", type=seed, metavar="N", help="instead of preparing: draw training window N of the prepared "
                                                               "dataset in --out, and print its prompts")
    parser.add_argument("--llm", help="with --show: whose tokenizer and chat format (default: the built-in one)")
    args = parser.parse_args()

    raw = args.raw or (f"raw/{args.dataset}" if args.download else None)
    if args.dataset != "demo" and not raw and args.show is None:
        source = DATASETS[args.dataset].source if args.dataset in DATASETS else "see the README"
        raise InputError(f"--dataset {args.dataset} needs --raw DIR, the unpacked archive ({source}), or --download")
    own = args.dataset == "own"
    name, dataset = own_dataset(raw) if own and raw else (args.dataset, DATASETS.get(args.dataset))
    out = args.out or f"data/{name}"
    if args.show is not None:
        return show(PreparedData(out), args.show, args.llm)

    given = args.answer.split("+") if args.answer else dataset.answer
    kinds = tuple(kind for kind in ANSWER_KINDS if kind in given)             # trends first: where a reader looks for them
    if not set(given) <= set(ANSWER_KINDS):
        raise InputError(f"--answer {args.answer}: the kinds are {', '.join(ANSWER_KINDS)}, joined by '+'")
    if args.download:
        download(name, dataset, Path(raw))
    meta = prepare(args.dataset, raw, out, args.seed, kinds, args.longest, args.workers)
    print_counts(meta)
    print(f"wrote {out}; look at a window with --show 0" + (f" --out {out}" if args.out or own else ""))


if __name__ == "__main__":
    run_script(main)
