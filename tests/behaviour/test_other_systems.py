"""Windows and macOS, as far as they can be simulated: without what only Linux has, and without float64 on the device."""
import sys

import numpy as np
import pytest
import torch
from helpers import ROOT, launch
from untrained import small_dataset

from sensorllm_min.batch import IGNORED, Example, collate
from sensorllm_min.files import locked
from sensorllm_min.training.processes import Processes, peak_memory

CPU = torch.device("cpu")


def test_the_peak_memory_is_in_bytes_and_unknown_on_windows(monkeypatch):
    """Linux gives kibibytes, macOS bytes; this process holds more than 50 MB and less than 50 GB."""
    linux = peak_memory(CPU)
    assert 5e7 < linux < 5e10
    monkeypatch.setattr(sys, "platform", "darwin")
    assert peak_memory(CPU) == pytest.approx(linux / 1024, rel=0.1)
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_memory(CPU) == 0


def test_a_folder_without_locks_is_used_without(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with locked(tmp_path / "new"), locked(tmp_path / "new"):
        assert (tmp_path / "new").is_dir()


def test_no_float64_reaches_a_device():
    """Samples stay on the CPU in float64, all else moves; sums need no device."""
    batch = collate([Example([5, 6], [], [np.zeros(3)], IGNORED, {})], pad_id=0)
    moved = {name: tensor for name, tensor in vars(batch.to("meta")).items() if isinstance(tensor, torch.Tensor)}
    assert {name for name, tensor in moved.items() if tensor.device.type == "cpu"} == {"series", "channels"}
    assert all(tensor.dtype != torch.float64 for tensor in moved.values() if tensor.device.type == "meta")
    alone = Processes(0, 1, torch.device("meta"))
    assert alone.sum(0.5, torch.tensor(2.0)) == [0.5, 2.0] and alone.check_same("x") is None


@pytest.mark.slow
def test_prepared_trained_and_evaluated_without_fork_locks_and_resource(tmp_path, demo):
    """As on Windows: workers are spawned. sacrebleu goes first: it takes fcntl by the name of the system."""
    small_dataset(demo, tmp_path / "small")
    hidden = "import os, runpy, sacrebleu, sys; sys.modules['resource'] = sys.modules['fcntl'] = None; del os.fork; "

    def launched(script, *options):
        code = f"sys.argv = {[script, *map(str, options)]}; sys.path.insert(0, {str(ROOT)!r}); "
        return launch("-c", hidden + code + f"runpy.run_path({str(ROOT / script)!r}, run_name='__main__')", cwd=tmp_path)

    assert "wrote made" in launched("data_prep.py", "--out", "made", "--workers", 2)
    for script in ("train_align.py", "train_har.py"):
        launched(script, "--data", "small", "--train-limit", 8, "--eval-limit", 2, "--test-limit", 2, "--epochs", 1,
                 "--device", "cpu", *(("--max-new-tokens", 4) if "align" in script else ()))
    assert "macro f1" in launched("evaluate.py", "--checkpoint", "out/har", "--data", "small", "--limit", 4)
