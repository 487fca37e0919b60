"""Loading a sharded model: seconds and memory of our loader beside transformers' from_pretrained, each in its own process.

    python tests/bench/load.py [--gigabytes 2] [--repeats 5]      a LLaMA of random bf16 weights, made in a temporary folder

Memory is what the process holds for itself at its peak (RssAnon) and with the pages of the mapped files (RssAnon +
RssFile); the second runs up to the size of the files with any loader that maps them, and is shared by the processes of
one machine. "first use" adds reading every weight once: a mapped file is not read before that.
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


def make(folder, gigabytes):
    """A LLaMA of hidden 2048 with as many layers as fill the size, in shards of 500 MB, in Hugging Face layout."""
    from safetensors.torch import save_file
    d_model, d_ff, kv, vocab = 2048, 5632, 512, 32000
    per_layer = 2 * (2 * d_model ** 2 + 2 * kv * d_model + 3 * d_model * d_ff)
    n_layers = max(1, round((gigabytes * 1e9 - 4 * vocab * d_model) / per_layer))
    (folder / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocab, "hidden_size": d_model,
        "intermediate_size": d_ff, "num_hidden_layers": n_layers, "num_attention_heads": 16, "num_key_value_heads": 4,
        "rms_norm_eps": 1e-5, "torch_dtype": "bfloat16", "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2}))
    shapes = {"model.embed_tokens.weight": (vocab, d_model), "lm_head.weight": (vocab, d_model), "model.norm.weight": (d_model,)}
    for i in range(n_layers):
        at = f"model.layers.{i}."
        shapes |= {at + "self_attn.q_proj.weight": (d_model, d_model), at + "self_attn.o_proj.weight": (d_model, d_model),
                   at + "self_attn.k_proj.weight": (kv, d_model), at + "self_attn.v_proj.weight": (kv, d_model),
                   at + "mlp.gate_proj.weight": (d_ff, d_model), at + "mlp.up_proj.weight": (d_ff, d_model),
                   at + "mlp.down_proj.weight": (d_model, d_ff), at + "input_layernorm.weight": (d_model,),
                   at + "post_attention_layernorm.weight": (d_model,)}
    shards, size = [[]], 0
    for name, shape in shapes.items():
        if size > 500e6:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += 2 * torch.Size(shape).numel()
    where = {}
    for i, names in enumerate(shards, 1):
        file = f"model-{i:05}-of-{len(shards):05}.safetensors"
        save_file({name: torch.randn(shapes[name]).to(torch.bfloat16) for name in names}, folder / file, {"format": "pt"})
        where |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def memory():
    with open("/proc/self/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    return [int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile")]


def load(way, folder):
    """In a process of its own: imports first, then the clock; prints seconds and memory as JSON."""
    if way == "ours":
        from sensorllm_min.weights import load_llama
        loader = lambda: load_llama(folder)                                   # noqa: E731
    else:
        from transformers import LlamaForCausalLM
        loader = lambda: LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)   # noqa: E731
    begin, peak, done = memory(), [0, 0], threading.Event()

    def watch():
        while not done.is_set():
            own, mapped = (now - then for now, then in zip(memory(), begin))
            peak[0], peak[1] = max(peak[0], own), max(peak[1], own + mapped)
            time.sleep(0.002)
    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    model = loader()
    loaded = time.perf_counter() - start
    with torch.no_grad():
        total = sum(parameter.view(torch.int16).max().long() for parameter in model.parameters())
    used = time.perf_counter() - start
    done.set()
    watcher.join()
    print(json.dumps({"loaded": loaded, "used": used, "own": peak[0], "all": peak[1], "check": int(total)}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--load", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.load:
        return load(*args.load)
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), args.gigabytes)
        size = sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))
        print(f"{size / 1e9:.2f} GB in {len(list(Path(folder).glob('*.safetensors')))} shards, page cache warm")
        runs = {"ours": [], "transformers": []}
        for _ in range(args.repeats):                                         # in turns: both meet the same noise
            for way in runs:
                printed = subprocess.run([sys.executable, __file__, "--load", way, folder], capture_output=True, text=True,
                                         check=True).stdout
                runs[way].append(json.loads(printed.splitlines()[-1]))
        assert len({run["check"] for way in runs.values() for run in way}) == 1, "the loaders disagree"
        median = {way: {key: statistics.median(run[key] for run in rows) for key in rows[0]} for way, rows in runs.items()}
        for way, row in median.items():
            print(f"{way:13} loaded {row['loaded']:6.2f} s, with first use {row['used']:6.2f} s; peak of its own "
                  f"{row['own'] / size:5.2f} x the files, with mapped pages {row['all'] / size:5.2f} x")
        ours, theirs = median["ours"], median["transformers"]
        print(f"transformers / ours: loading {theirs['loaded'] / ours['loaded']:.1f}, with first use "
              f"{theirs['used'] / ours['used']:.2f}, memory {theirs['all'] / ours['all']:.2f}")


if __name__ == "__main__":
    main()
