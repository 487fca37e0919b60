"""What the tests share: small models made on the spot, and the scripts, run as processes."""
import hashlib
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"    # without a GPU the kernels run in Triton's interpreter
torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
sys.path.insert(0, str(ROOT))


def quiet(line):
    """A `say` that does not."""


def digest(folder):
    """{path: sha256} of the files under a folder."""
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*")) if path.is_file()}


def read_all(name, raw):
    """All recordings of a raw directory, part after part."""
    from sensorllm_min.data.recordings import READERS
    from sensorllm_min.data.sensors import DATASETS
    reader = READERS[name]
    return [recording for part, files in reader.files(raw).items()
            for recording in reader.read(part, files, DATASETS[name], 0, Counter())]


# ---- what a run leaves behind ----

def json_lines(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def metrics(folder):
    return json_lines(Path(folder) / "metrics.jsonl")


def losses(folder):
    """The training loss of each step."""
    return [line["loss"] for line in metrics(folder) if "loss" in line]


def results(folder):
    return json.loads((Path(folder) / "results.json").read_text())


def assert_same_tensors(one, other, tolerance=0.0):
    """Two safetensors files hold the same names, and tensors that are equal to the tolerance."""
    from safetensors.torch import load_file
    one, other = load_file(one), load_file(other)
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=tolerance, msg=lambda m: f"{name}: {m}")


# ---- small models in Hugging Face layout ----

def spread(reference, std=0.3):
    """Random weights with a large standard deviation, norms included: the default start hides errors in tiny outputs."""
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


# ---- the scripts as processes ----
#
# A start of Python costs four seconds of imports, a fork of a process that has imported everything 0.04. So one server
# a worker imports the scripts once and forks for each run and rank; each run is a process of its own, with its own
# exit code, environment and folder. `launch` starts them as a person does, for the few tests of just that.

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["forked"])
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])          # the server must find them


class Run:
    """A run of a script on one or more processes; its output is collected in one file."""

    def __init__(self, script, *options, cwd, processes=0, threads=1, answers="", folders=None, **environment):
        from forked import script_process
        self.output = Path(cwd, f".{time.monotonic_ns()}.output")
        self.output.touch()
        typed = self.output.with_suffix(".input")
        typed.write_text(answers)
        base = os.environ | {"OMP_NUM_THREADS": str(threads)} | environment
        self.store = None
        ranks = [{}]
        if processes:
            # The port is bound here and stays so: nothing is guessed. TORCHELASTIC_* says that the store is there.
            self.store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
            shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.store.port), "WORLD_SIZE": str(processes),
                      "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
            ranks = [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
        self.processes = [FORKS.Process(target=script_process, args=(
            script, [str(option) for option in options], str(folder), base | rank, str(self.output), str(typed), threads))
            for rank, folder in zip(ranks, folders or [cwd] * len(ranks))]
        for process in self.processes:
            process.start()

    def text(self):
        return self.output.read_text(errors="replace")

    def running(self):
        return any(process.exitcode is None for process in self.processes)

    def kill(self, number):
        """Sends a signal to every process of the run."""
        for process in self.processes:
            try:
                os.kill(process.pid, number)
            except ProcessLookupError:
                pass

    def wait_until(self, happened, seconds=120):
        """Returns as soon as happened() is true; the run must not have ended before."""
        deadline = time.monotonic() + seconds
        while not happened():
            assert self.running(), f"it ended before what was waited for:\n{self.text()}"
            assert time.monotonic() < deadline, f"not within {seconds} s:\n{self.text()}"
            time.sleep(0.002)

    def wait(self, seconds=280):
        """-> the exit code: as torchrun does, a process that fails ends the others."""
        deadline, waiting = time.monotonic() + seconds, list(self.processes)
        code = 0
        while waiting:
            multiprocessing.connection.wait([process.sentinel for process in waiting], deadline - time.monotonic())
            ended = [process for process in waiting if process.exitcode is not None]
            waiting = [process for process in waiting if process not in ended]
            code = next((process.exitcode for process in ended if process.exitcode and not code), code)
            if code or time.monotonic() > deadline:
                for process in waiting:
                    process.terminate()
            assert time.monotonic() < deadline, f"not within {seconds} s:\n{self.text()}"
        return code


def run(script, *options, expect=0, **settings):
    """Runs a script of the project to its end -> what it printed. The exit code must fit."""
    started = Run(script, *options, **settings)
    code = started.wait()
    assert code == expect, f"exit code {code}, expected {expect}:\n{started.text()}"
    return started.text()


def launch(*command, cwd, expect=0, timeout=280):
    """Runs `python` with these arguments in an interpreter of its own, as a person does -> what it printed."""
    done = subprocess.run([sys.executable, *map(str, command)], cwd=cwd, env=dict(os.environ), text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout)
    assert done.returncode == expect, done.stdout
    return done.stdout


def torchrun(script, *options, processes=1, **settings):
    """Runs a script through a real torchrun -> what it printed."""
    return launch("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes, ROOT / script, *options,
                  **settings)
