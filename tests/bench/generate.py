"""Greedy decoding: ours beside transformers' `generate` on the same weights, and without a cache.

    python tests/bench/generate.py [--repeats 5] [--new-tokens 200] [--sizes small medium]

Prompts have about 200 tokens, of unequal length, padded on the left. There is no stop token, so all
rows get the same number of new ones. "No cache" is transformers with use_cache=False: each token
runs the whole prompt again, as in the original. Both take turns, times are medians, and the tokens
of both are compared.
"""
import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
N_THREADS = torch.get_num_threads()

from helpers import DEVICE, make_llama                            # noqa: E402

from sensorllm_min.generate import generate                       # noqa: E402
from sensorllm_min.weights import load_llama                      # noqa: E402

torch.set_num_threads(N_THREADS)                                  # helpers set one, for the tests

SIZES = {               # layers, width, heads, KV heads, feed-forward, vocabulary
    "tiny": (3, 128, 4, 2, 384, 1024),                            # the built-in LLM
    "small": (8, 512, 8, 4, 1408, 8192),
    "medium": (30, 576, 9, 3, 1536, 49152),                       # SmolLM2-135M
}
LONGEST = 200                                                     # tokens of a prompt
SLOW = [("small", 8), ("medium", 1), ("medium", 8)]               # minutes without a cache: skipped


def prompts(batch, vocab):
    """ids (batch, LONGEST) and mask, lengths from 3/4 of LONGEST on, padded on the left."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, vocab, (batch, LONGEST), generator=generator)
    mask = torch.ones(batch, LONGEST, dtype=torch.bool)
    for row in range(batch):
        mask[row, :(batch - 1 - row) * LONGEST // (4 * batch)] = False
    return ids.to(DEVICE), mask.to(DEVICE)


def measure(run):
    """-> (seconds, result) of run()."""
    began = time.perf_counter()
    result = run()                                                # ids on the CPU: all is computed
    return time.perf_counter() - began, result


@torch.no_grad()
def bench(size, batch, n_new, repeats):
    n_layers, width, n_heads, n_kv_heads, d_ff, vocab = SIZES[size]
    with tempfile.TemporaryDirectory() as folder:
        theirs = make_llama(
            folder, vocab_size=vocab, hidden_size=width, intermediate_size=d_ff,
            num_hidden_layers=n_layers, num_attention_heads=n_heads,
            num_key_value_heads=n_kv_heads).to(DEVICE)
        ours = load_llama(folder).to(DEVICE)
    ids, mask = prompts(batch, vocab)
    theirs.generation_config.eos_token_id = None

    def run_ours():
        return generate(ours, ours.embed_tokens(ids), mask, set(), n_new)

    def run_theirs(use_cache=True):
        tokens = theirs.generate(
            ids, attention_mask=mask.long(), do_sample=False, pad_token_id=0, use_cache=use_cache,
            min_new_tokens=n_new, max_new_tokens=n_new)
        return tokens[:, LONGEST:].tolist()

    times = {run_ours: [], run_theirs: []}
    tokens = {}
    for _ in range(repeats + 1):                                  # the first call warms up
        for run in times:
            seconds, tokens[run] = measure(run)
            times[run].append(seconds)
    ours_s, theirs_s = (statistics.median(times[run][1:]) for run in times)
    no_cache = ""
    if (size, batch) not in SLOW:
        seconds, _ = measure(lambda: run_theirs(use_cache=False))         # once: it is far slower
        no_cache = f"{seconds / ours_s:.1f}"
    same = (torch.tensor(tokens[run_ours]) == torch.tensor(tokens[run_theirs])).float().mean()
    print(f"| {size} | {batch} | {batch * n_new / ours_s:.0f} | {theirs_s / ours_s:.2f} | "
          f"{no_cache} | {same:.1%} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=200)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    args = parser.parse_args()
    print(f"{args.new_tokens} new tokens, {DEVICE}, {torch.get_num_threads()} threads, float32\n"
          "| LLM | batch | ours, tokens/s | transformers / ours | no cache / ours | same tokens |\n"
          "| --- | --- | --- | --- | --- | --- |")
    for size in args.sizes:
        for batch in (1, 8):
            bench(size, batch, args.new_tokens, args.repeats)


if __name__ == "__main__":
    main()
