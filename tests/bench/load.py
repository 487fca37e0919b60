"""Loading a sharded model: seconds and memory of our loader beside transformers' from_pretrained.

    python tests/bench/load.py [--gigabytes 2] [--repeats 5]

The model is a LLaMA of random bf16 weights in a temporary folder; each loader runs in a process of
its own. Memory is the growth of the peak resident size. It includes the pages of mapped files, so
that it reaches the size of the files with any loader that maps them; the processes of one machine
share these pages. "first use" adds reading every weight once: a mapped file is not read before.
"""
import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def make(folder, gigabytes):
    """A LLaMA of width 2048 in Hugging Face layout; as many layers as fill the size, in shards."""
    from transformers import LlamaConfig, LlamaForCausalLM
    d_model, d_ff, kv_width, vocab = 2048, 5632, 512, 32000
    per_layer = 2 * (2 * d_model ** 2 + 2 * kv_width * d_model + 3 * d_model * d_ff)
    n_layers = max(1, round((gigabytes * 1e9 - 4 * vocab * d_model) / per_layer))
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=d_model, intermediate_size=d_ff, num_hidden_layers=n_layers,
        num_attention_heads=16, num_key_value_heads=4, dtype=torch.bfloat16)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    model.save_pretrained(folder, max_shard_size="500MB")


def resident(field):
    """VmRSS (now) or VmHWM (the peak) of this process, in bytes."""
    with open("/proc/self/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields[field].split()[0]) * 1024


def load(way, folder):
    """In a process of its own: imports first, then the clock; prints seconds and bytes as JSON."""
    from transformers import LlamaForCausalLM

    from sensorllm_min.weights import load_llama
    Path("/proc/self/clear_refs").write_text("5")                 # the peak starts from here
    before = resident("VmRSS")
    start = time.perf_counter()
    if way == "ours":
        model = load_llama(folder)
    else:
        model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    loaded = time.perf_counter() - start
    with torch.no_grad():
        check = sum(parameter.view(torch.int16).max().long() for parameter in model.parameters())
    used = time.perf_counter() - start
    peak = resident("VmHWM") - before
    print(json.dumps({"loaded": loaded, "used": used, "check": int(check), "all": peak}))


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--load", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.load:
        return load(*args.load)
    runs = {"ours": [], "transformers": []}
    with tempfile.TemporaryDirectory() as folder:
        make(folder, args.gigabytes)
        size = sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))
        print(f"{size / 1e9:.2f} GB, page cache warm")
        for _ in range(args.repeats):                             # in turns: the noise is the same
            for way in runs:
                command = [sys.executable, __file__, "--load", way, folder]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                runs[way].append(json.loads(done.stdout.splitlines()[-1]))
    for way, rows in runs.items():
        row = {key: statistics.median(run[key] for run in rows) for key in rows[0]}
        print(f"{way:13} loaded {row['loaded']:6.2f} s, with first use {row['used']:6.2f} s; "
              f"memory {row['all'] / size:5.2f} x the files")
    checks = {run["check"] for run in runs["ours"] + runs["transformers"]}
    assert len(checks) == 1, "the loaders disagree"


if __name__ == "__main__":
    main()
