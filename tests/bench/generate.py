"""Greedy decoding: ours beside transformers' `generate` on the same weights, and beside decoding without a cache.

    python tests/bench/generate.py [--repeats 5] [--new-tokens 200] [--sizes small medium]

Prompts of about 200 tokens of unequal length, padded on the left; no stop token, so that all make as many new ones. Without
a cache is transformers with use_cache=False: each token runs the whole prompt again, as the original does. In turns,
medians; the tokens of both are compared.
"""
import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from helpers import make_llama                                               # noqa: E402

from sensorllm_min.generate import generate                                   # noqa: E402
from sensorllm_min.weights import load_llama                                  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES = {               # layers, width, heads, heads of keys, feed-forward, vocabulary
    "tiny": (3, 128, 4, 2, 384, 1024),                                        # as the built-in one
    "small": (8, 512, 8, 4, 1408, 8192),
    "medium": (30, 576, 9, 3, 1536, 49152),                                   # SmolLM2-135M
}


def prompts(batch, longest, vocab):
    """ids (batch, longest) and mask, lengths from 3/4 of the longest on, padded on the left."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, vocab, (batch, longest), generator=generator)
    mask = torch.ones(batch, longest, dtype=torch.bool)
    for row in range(batch):
        mask[row, :(batch - 1 - row) * longest // (4 * batch)] = False
    return ids.to(DEVICE), mask.to(DEVICE)


def seconds(run):
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    result = run()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began, result


@torch.no_grad()
def bench(size, batch, n_new, repeats, longest=200):
    n_layers, width, n_heads, n_kv, d_ff, vocab = SIZES[size]
    with tempfile.TemporaryDirectory() as folder:
        theirs = make_llama(folder, vocab_size=vocab, hidden_size=width, intermediate_size=d_ff, num_hidden_layers=n_layers,
                            num_attention_heads=n_heads, num_key_value_heads=n_kv).to(DEVICE)
        ours = load_llama(folder).to(DEVICE)
    ids, mask = prompts(batch, longest, vocab)
    length = dict(min_new_tokens=n_new, max_new_tokens=n_new)
    theirs.generation_config.eos_token_id = None

    def their(**options):
        return theirs.generate(ids, attention_mask=mask.long(), do_sample=False, pad_token_id=0, **length, **options)[:, longest:]

    ways = {"ours": lambda: generate(ours, ours.embed_tokens(ids), mask, set(), n_new),
            "transformers": lambda: their().tolist(), "no cache": lambda: their(use_cache=False).tolist()}
    times, tokens = {way: [] for way in ways}, {}
    for turn in range(repeats + 1):                                           # the first one warms up
        for way, run in ways.items():
            if way == "no cache" and (turn > 0 or size == "medium" or (size, batch) == ("small", 8)):
                continue                                                      # minutes long, and far off: once, where small
            took, tokens[way] = seconds(run)
            if turn or way == "no cache":
                times[way].append(took)
    same = sum(a == b for row in zip(tokens["ours"], tokens["transformers"]) for a, b in zip(*row)) / (batch * n_new)
    ours_s, theirs_s = (statistics.median(times[way]) for way in ("ours", "transformers"))
    none = f"{times['no cache'][0] / ours_s:.1f}" if times["no cache"] else ""
    print(f"| {size} | {batch} | {batch * n_new / ours_s:.0f} | {theirs_s / ours_s:.2f} | {none} | {same:.1%} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=200)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    args = parser.parse_args()
    print(f"{args.new_tokens} new tokens, {DEVICE}, {torch.get_num_threads()} threads, float32")
    print("| LLM | batch | ours, tokens/s | transformers / ours | no cache / ours | same tokens |\n| --- | --- | --- | --- | --- | --- |")
    for size in args.sizes:
        for batch in (1, 8):
            bench(size, batch, args.new_tokens, args.repeats)


if __name__ == "__main__":
    main()
