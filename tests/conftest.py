"""What the tests share: the reference files beside the project, and small models and datasets made on the spot."""
import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"    # without a GPU the kernels run in Triton's interpreter

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
os.environ["HF_HUB_OFFLINE"] = "1"          # the reference packages must not look for a network
sys.path.insert(0, str(ROOT))


def pytest_collection_modifyitems(items):
    for item in items:
        for mark in item.iter_markers("shared"):
            if not (SHARED / mark.args[0]).exists():
                item.add_marker(pytest.mark.skip(reason=f"{mark.args[0]} is not beside the project"))


def pytest_configure(config):
    config.addinivalue_line("markers", "shared(path): needs a file or folder of ../shared")


@pytest.fixture(scope="session")
def shared():
    return SHARED


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """The demo dataset, prepared."""
    from sensorllm_min.prepare import prepare
    out = tmp_path_factory.mktemp("data") / "demo"
    prepare("demo", None, out, say=lambda line: None)
    return out


def quiet(line):
    """A `say` that does not."""


def digest(folder):
    """{path: sha256} of the files under a folder."""
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*")) if path.is_file()}


def read_all(name, raw):
    """All recordings of a raw directory, part after part."""
    from sensorllm_min.recordings import READERS
    from sensorllm_min.sensors import DATASETS
    reader = READERS[name]
    return [recording for part, files in reader.files(raw).items()
            for recording in reader.read(part, files, DATASETS[name], 0, Counter())]


def spread(reference, std=0.3):
    """Random weights with a large spread, norms included: the default start hides errors behind tiny outputs."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std + (parameter.dim() == 1))
    return reference.eval()


def make_llama(directory, tokenizer=None, **settings):
    """Saves a small random LLaMA in Hugging Face layout -> transformers' model of it."""
    from transformers import LlamaConfig, LlamaForCausalLM
    shape = dict(vocab_size=300, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
                 num_key_value_heads=2, max_position_embeddings=4096, bos_token_id=1, eos_token_id=2)
    model = spread(LlamaForCausalLM(LlamaConfig(**shape | settings)), std=0.15)
    model.save_pretrained(directory)
    if tokenizer:
        tokenizer.save(str(Path(directory) / "tokenizer.json"))
        (Path(directory) / "tokenizer_config.json").write_text(
            json.dumps({"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}))
    return model


def make_chronos(directory, **settings):
    """Saves a small random Chronos T5 in Hugging Face layout -> transformers' model of it."""
    from transformers import T5Config, T5ForConditionalGeneration
    shape = dict(vocab_size=4096, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, feed_forward_proj="relu")
    model = spread(T5ForConditionalGeneration(T5Config(**shape | settings)))
    model.save_pretrained(directory)
    path = Path(directory) / "config.json"
    config = json.loads(path.read_text())
    config["chronos_config"] = {
        "tokenizer_class": "MeanScaleUniformBins", "tokenizer_kwargs": {"low_limit": -15.0, "high_limit": 15.0},
        "n_tokens": 4096, "n_special_tokens": 2, "pad_token_id": 0, "eos_token_id": 1, "use_eos_token": True,
        "model_type": "seq2seq", "context_length": 512, "prediction_length": 64}
    path.write_text(json.dumps(config))
    return model


def run(*command, cwd, processes=0, expect=0, timeout=280):
    """Runs a script of the project, through torchrun for processes > 0 -> what it printed. The exit code must fit."""
    script, *options = map(str, command)
    launch = [sys.executable]
    if processes:
        launch += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | ({"OMP_NUM_THREADS": "1"} if processes > 1 else {})
    done = subprocess.run([*launch, str(ROOT / script), *options], cwd=cwd, env=environment, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout)
    assert done.returncode == expect, done.stdout
    return done.stdout
