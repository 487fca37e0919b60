"""Loading a sharded model: seconds and memory of our loader beside transformers' from_pretrained.

    python tests/bench/load.py [--gigabytes 2] [--repeats 5]

The model is a LLaMA of random bf16 weights in a temporary folder; each loader runs in a process of
its own. Memory is the peak of what the process holds for itself (RssAnon), and of that with the
pages of the mapped files (RssAnon + RssFile). The second grows to the size of the files with any
loader that maps them, and is shared by the processes of one machine. "first use" adds reading every
weight once, since a mapped file is not read before that.
"""
import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

SHARD = 500e6                                                     # bytes


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
    model.save_pretrained(folder, max_shard_size=int(SHARD))


def memory():
    """[RssAnon, RssFile] of this process, in bytes."""
    with open("/proc/self/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    return [int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile")]


def load(way, folder):
    """In a process of its own: imports first, then the clock; prints seconds and memory as JSON."""
    from transformers import LlamaForCausalLM

    from sensorllm_min.weights import load_llama
    before, done = memory(), threading.Event()
    peak = {"own": 0, "all": 0}

    def watch():
        while not done.is_set():
            own, mapped = (now - then for now, then in zip(memory(), before))
            peak["own"], peak["all"] = max(peak["own"], own), max(peak["all"], own + mapped)
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    if way == "ours":
        model = load_llama(folder)
    else:
        model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    loaded = time.perf_counter() - start
    with torch.no_grad():
        check = sum(parameter.view(torch.int16).max().long() for parameter in model.parameters())
    used = time.perf_counter() - start
    done.set()
    watcher.join()
    print(json.dumps({"loaded": loaded, "used": used, "check": int(check), **peak}))


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
        make(Path(folder), args.gigabytes)
        shards = [path.stat().st_size for path in Path(folder).glob("*.safetensors")]
        size = sum(shards)
        print(f"{size / 1e9:.2f} GB in {len(shards)} shards, page cache warm")
        for _ in range(args.repeats):                             # in turns: the noise is the same
            for way in runs:
                command = [sys.executable, __file__, "--load", way, folder]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                runs[way].append(json.loads(done.stdout.splitlines()[-1]))
    medians = {}
    for way, rows in runs.items():
        row = {key: statistics.median(run[key] for run in rows) for key in rows[0]}
        print(f"{way:13} loaded {row['loaded']:6.2f} s, with first use {row['used']:6.2f} s; peak "
              f"of its own {row['own'] / size:5.2f} x the files, with mapped pages "
              f"{row['all'] / size:5.2f} x")
        medians[way] = row
    ours, theirs = medians["ours"], medians["transformers"]
    assert ours["check"] == theirs["check"], "the loaders disagree"
    print(f"transformers / ours: loading {theirs['loaded'] / ours['loaded']:.1f}, with first use "
          f"{theirs['used'] / ours['used']:.2f}, memory {theirs['all'] / ours['all']:.2f}")


if __name__ == "__main__":
    main()
