"""Raw recordings -> a prepared dataset that both training scripts read.

    python data_prep.py --dataset usc-had --raw RAW_DIR --out data/usc-had
"""
import argparse

from sensorllm_min.config import InputError
from sensorllm_min.options import count, seed
from sensorllm_min.prepare import prepare
from sensorllm_min.sensors import DATASETS
from sensorllm_min.training import run_script
from sensorllm_min.trend_text import ANSWER_KINDS


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=DATASETS, default="demo")
    parser.add_argument("--raw", help="the unpacked archive of the dataset; demo needs none")
    parser.add_argument("--out", help="where the prepared dataset goes (default data/DATASET)")
    parser.add_argument("--seed", type=seed, default=0, help="of the random windows and of the wording (default 0)")
    parser.add_argument("--answer", help="kinds of text in a stage-1 answer, joined by '+', of "
                                         f"{', '.join(ANSWER_KINDS)} (default: the dataset's own)")
    parser.add_argument("--longest", type=count, help="samples of the longest stage-1 window (default: the dataset's)")
    args = parser.parse_args()

    given = args.answer.split("+") if args.answer else DATASETS[args.dataset].answer
    kinds = tuple(kind for kind in ANSWER_KINDS if kind in given)             # trends first: where a reader looks for them
    if not set(given) <= set(ANSWER_KINDS):
        raise InputError(f"--answer {args.answer}: the kinds are {', '.join(ANSWER_KINDS)}, joined by '+'")
    if args.dataset != "demo" and not args.raw:
        raise InputError(f"--dataset {args.dataset} needs --raw DIR, the unpacked archive "
                         f"({DATASETS[args.dataset].source})")
    out = args.out or f"data/{args.dataset}"
    meta = prepare(args.dataset, args.raw, out, args.seed, kinds, args.longest)

    for what in ("har_windows", "align_pairs", "dropped_windows_with_nan_or_inf"):
        print(f"{what}: " + ", ".join(f"{key} {count}" for key, count in meta[what].items()))
    print(f"{'stage-2 windows':24}" + "".join(f"{split:>8}" for split in meta["class_balance"]))
    for name in meta["classes"]:
        print(f"{name:24}" + "".join(f"{counts[name]:8}" for counts in meta["class_balance"].values()))
    print(f"wrote {out}")


if __name__ == "__main__":
    run_script(main)
