"""Runs that are killed, asked to end, or lose a process; runs on two machines. Real processes, real signals."""
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from helpers import ROOT, Run, assert_same_tensors, losses, metrics, run
from safetensors.torch import load_file

SMALL = ("--train-limit", 52, "--eval-limit", 8, "--test-limit", 2, "--max-new-tokens", 4)


def assert_same_run(one, other):
    """Both ended with the same weights, moments and metrics, to the bit."""
    assert_same_tensors(one / "last.safetensors", other / "last.safetensors")
    assert_same_tensors(one / "best.safetensors", other / "best.safetensors")
    assert metrics(one) == metrics(other)


def steps_done(folder):
    """How many steps the metrics hold; a line may be half written."""
    path = folder / "metrics.jsonl"
    return path.read_text().count('"loss"') if path.exists() else 0


# ---- killed ----

def test_a_killed_run_resumes_to_the_same_bits(demo, tmp_path):
    """SIGKILL while a checkpoint is being written, after step 8; --resume ends as the run that was not killed."""
    options = ("--data", demo, "--batch-size", 4, "--eval-every", 2, *SMALL)
    run("train_align.py", *options, "--out", "whole", cwd=tmp_path)
    killed = tmp_path / "killed"
    started = Run("train_align.py", *options, "--out", "killed", cwd=tmp_path)
    started.wait_until(lambda: steps_done(killed) >= 6)
    started.wait_until(lambda: (killed / "last.safetensors.unfinished").exists())
    started.kill(signal.SIGKILL)
    assert started.wait() == -signal.SIGKILL
    assert 6 <= len(losses(killed)) < 13 and not (killed / "results.json").exists()
    # Two that this run does not share are refused, and leave everything as it is.
    refused = run("train_align.py", *options, "--out", "killed", "--resume", "--lr", 0.5, cwd=tmp_path, expect=2)
    assert "--resume needs the same settings" in refused
    refused = run("train_align.py", *options, "--out", "killed", "--resume", "--scaling", "MeanScaleUniformBins", cwd=tmp_path, expect=2)
    assert "was trained with scaling" in refused
    run("train_align.py", *options, "--out", "killed", "--resume", cwd=tmp_path)
    assert_same_run(tmp_path / "whole", killed)


# ---- asked to end ----

def test_one_mistake_is_said_once_by_two_processes(demo, tmp_path):
    out = run("train_align.py", "--data", demo, "--train", "head", "--out", "x", cwd=tmp_path, processes=2, expect=2)
    assert out.count("train_align.py: --train head leaves nothing to learn") == 1, out


# ---- with torchrun itself, on one machine and on two ----

def start(*options, cwd):
    """A real torchrun, as a person starts it."""
    return subprocess.Popen([sys.executable, "-m", "torch.distributed.run", *map(str, options)], cwd=cwd, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def wait_for_steps(folder, count, agents):
    """Returns when the run has done so many steps; its agents must not have ended before."""
    deadline = time.monotonic() + 240
    while steps_done(folder) < count:
        for agent in agents:
            assert agent.poll() is None, agent.communicate()[0]
        assert time.monotonic() < deadline, f"no step {count}"
        time.sleep(0.01)


@pytest.fixture
def meeting():
    """Where the agents of two machines meet: a store of this process's, at a port that is bound already."""
    return torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def two_machines(meeting, *options, cwd):
    """Two torchrun agents on this host, as on two machines: each with one process."""
    agent = ("--nnodes", 2, "--nproc_per_node", 1, "--rdzv_backend", "c10d", "--rdzv_id", "test", "--rdzv_endpoint",
             f"127.0.0.1:{meeting.port}", "--rdzv_conf", "is_host=false", "--local_addr", "127.0.0.1", ROOT / "train_align.py")
    return [start(*agent, *options, cwd=cwd) for _ in range(2)]


@pytest.mark.slow
def test_torchrun_asked_to_end_saves_and_goes_on_from_there(demo, tmp_path):
    options = ("--data", demo, "--batch-size", 2, "--eval-every", 1000, *SMALL, "--train-limit", 96)
    agent = start("--standalone", "--nproc_per_node", 2, ROOT / "train_align.py", *options, "--out", "asked", cwd=tmp_path)
    wait_for_steps(tmp_path / "asked", 5, [agent])
    agent.send_signal(signal.SIGTERM)
    out = agent.communicate(timeout=240)[0]
    assert out.count("train_align.py: ended on request after step") == 1, out
    done = len(losses(tmp_path / "asked"))
    assert 5 <= done < 24 and not (tmp_path / "asked" / "best.safetensors").exists()
    run("train_align.py", *options, "--out", "asked", "--resume", cwd=tmp_path, processes=2)
    run("train_align.py", *options, "--out", "whole", cwd=tmp_path, processes=2)
    assert_same_run(tmp_path / "whole", tmp_path / "asked")


def children(pid):
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout
    return [int(child) for child in found.split()]


@pytest.mark.slow
@pytest.mark.parametrize("machines", [1, 2])
def test_a_process_that_dies_brings_down_the_others(demo, tmp_path, machines, meeting):
    """On every machine; the checkpoint before it is whole."""
    options = ("--data", demo, "--batch-size", 2, "--eval-every", 3, *SMALL, "--train-limit", 4000, "--out", "dies")
    if machines == 1:
        agents = [start("--standalone", "--nproc_per_node", 2, ROOT / "train_align.py", *options, cwd=tmp_path)]
    else:
        agents = two_machines(meeting, *options, cwd=tmp_path)
    wait_for_steps(tmp_path / "dies", 4, agents)
    os.kill(children(agents[-1].pid)[-1], signal.SIGKILL)
    for agent in agents:
        agent.communicate(timeout=240)                                        # a run of 2000 steps would not end by then
        assert agent.returncode != 0
    assert len(losses(tmp_path / "dies")) < 2000
    load_file(tmp_path / "dies" / "last.safetensors")
