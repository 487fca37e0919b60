"""Runs that are killed, asked to end, or lose a process; runs on two machines. Real processes, real signals."""
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from helpers import ROOT, run
from safetensors.torch import load_file
from test_training import losses, metrics, same_tensors

SMALL = ("--train-limit", 96, "--eval-limit", 8, "--test-limit", 2, "--log-every", 1, "--max-new-tokens", 4)

# Runs train_align.py in a fork of a process that has imported everything, and kills it: every fourth time anywhere, else
# within half a second of its next step. Goes on with --resume, and at last lets it come to its end. Prints how many
# steps were done at each kill.
KILLER = """
import os, random, signal, sys, time
sys.path.insert(0, {root!r})
import train_align
from sensorllm_min.training import run_script
rng, seen = random.Random(0), []

def steps_done():
    return sum('"loss"' in line for line in open("killed/metrics.jsonl")) if os.path.exists("killed/metrics.jsonl") else 0

for kill in range({kills} + 1):
    resume = ["--resume"] if os.path.exists("killed/last.safetensors") else []
    before, child = steps_done(), os.fork()
    if child == 0:
        sys.stdout = sys.stderr = open("child.log", "w")
        sys.argv = ["train_align.py", *{options!r}, "--out", "killed", *resume]
        run_script(train_align.main)
    if kill < {kills}:
        if kill % 4 or not resume:
            while os.waitpid(child, os.WNOHANG) == (0, 0) and steps_done() <= before:
                time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.5 if kill % 4 else 2))
        try:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        except OSError:
            break                                                             # it had come to its end
        seen.append(steps_done())
    else:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, open("child.log").read()
print(seen)
"""


def test_dozens_of_kills_at_random_moments_change_nothing(demo, tmp_path):
    """A checkpoint a step, so that many a kill falls into the writing of one: the very bytes of the run left alone.

    Batches of 32 on two threads: large enough for every operation that would add in another order each time.
    """
    options = list(map(str, ["--data", demo, *SMALL, "--train-limit", 960, "--batch-size", 32, "--epochs", 1, "--eval-every", 1]))
    run("train_align.py", *options, "--out", "whole", cwd=tmp_path)
    killer = KILLER.format(root=str(ROOT), options=options, kills=24)
    out = subprocess.run([sys.executable, "-c", killer], cwd=tmp_path, text=True, stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT, timeout=600).stdout
    seen = json.loads(out)
    assert len(seen) > 12 and len(set(seen)) > 8, out
    for name in ("last", "best"):
        same_tensors(tmp_path / "whole" / f"{name}.safetensors", tmp_path / "killed" / f"{name}.safetensors", 0)
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "killed")


def start(*options, cwd, **environment):
    return subprocess.Popen([sys.executable, *map(str, options)], cwd=cwd, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment)


TORCHRUN = ("-m", "torch.distributed.run")


def wait_for(path, text, process):
    deadline = time.time() + 120
    while not (path.exists() and text in path.read_text()):
        assert time.time() < deadline and process.poll() is None, process.communicate()[0]
        time.sleep(0.02)


def test_asked_to_end_it_saves_and_goes_on_from_there(demo, tmp_path):
    """SIGTERM to torchrun: both processes stop behind the same step, saved; the end is that of the run left alone."""
    options = ("--data", demo, "--batch-size", 2, "--eval-every", 1000, *SMALL)
    run("train_align.py", *options, "--out", "whole", cwd=tmp_path, processes=2)
    process = start(*TORCHRUN, "--standalone", "--nproc_per_node", 2, ROOT / "train_align.py", *options, "--out", "asked", cwd=tmp_path)
    wait_for(tmp_path / "asked" / "log.txt", "step     7/", process)
    process.send_signal(signal.SIGTERM)
    out = process.communicate(timeout=60)[0]
    assert out.count("train_align.py: ended on request after step") == 1, out
    done = len(losses(tmp_path / "asked"))
    assert 7 <= done < 24 and not (tmp_path / "asked" / "best.safetensors").exists()
    run("train_align.py", *options, "--out", "asked", "--resume", cwd=tmp_path, processes=2)
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "asked")
    same_tensors(tmp_path / "whole" / "last.safetensors", tmp_path / "asked" / "last.safetensors", 0)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def two_machines(*options, cwd):
    """Two torchrun agents on this host, as on two machines: each with one process."""
    agent = (*TORCHRUN, "--nnodes", 2, "--nproc_per_node", 1, "--rdzv_backend", "c10d", "--rdzv_id", "test",
             "--rdzv_endpoint", f"localhost:{free_port()}", "--local_addr", "localhost", ROOT / "train_align.py")
    return [start(*agent, *options, cwd=cwd) for _ in range(2)]


def test_two_machines_equal_one(demo, tmp_path):
    options = ("--data", demo, "--train-limit", 40, *SMALL[2:])
    run("train_align.py", *options, "--batch-size", 8, "--out", "one", cwd=tmp_path)
    for agent in two_machines(*options, "--batch-size", 4, "--out", "two", cwd=tmp_path):
        out = agent.communicate(timeout=200)[0]
        assert agent.returncode == 0, out
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-6)


def children(pid):
    return [int(child) for child in subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()]


@pytest.mark.parametrize("machines", [1, 2])
def test_a_process_that_dies_brings_down_the_others(demo, tmp_path, machines):
    """Within a minute, with a message, on every machine; the checkpoint before it is whole."""
    options = ("--data", demo, "--batch-size", 2, "--eval-every", 3, "--train-limit", 4000, *SMALL[2:], "--out", "dies")
    if machines == 1:
        agents = [start(*TORCHRUN, "--standalone", "--nproc_per_node", 2, ROOT / "train_align.py", *options, cwd=tmp_path)]
    else:
        agents = two_machines(*options, cwd=tmp_path)
    wait_for(tmp_path / "dies" / "log.txt", "step     4/", agents[0])
    os.kill(children(agents[-1].pid)[-1], signal.SIGKILL)
    began, out = time.time(), ""
    for agent in agents:
        text = agent.communicate(timeout=60)[0]
        assert agent.returncode != 0
        out += text
    assert time.time() - began < 60
    assert "another process died or cannot be reached" in out or "Signal 9 (SIGKILL)" in out, out
    if machines == 2:
        assert "another process died or cannot be reached" in out, out
    load_file(tmp_path / "dies" / "last.safetensors")


def test_one_mistake_one_line_on_two_processes(demo, tmp_path):
    out = run("train_align.py", "--data", demo, "--train", "head", "--out", "x", cwd=tmp_path, processes=2, expect=1)
    assert out.count("train_align.py: --train head leaves nothing to learn") == 1, out
