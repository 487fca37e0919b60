"""What a person keeps stays: two runs at once, runs that end early, writes that fail."""
import json
import shutil
import signal

import pytest
from helpers import Run, run

from sensorllm_min.files import locked, write_bytes

SMALL = ("--train-limit", 52, "--eval-limit", 8, "--test-limit", 2, "--log-every", 1, "--max-new-tokens", 4)


def test_a_second_training_run_into_one_folder_is_one_line(demo, tmp_path):
    with locked(tmp_path / "x"):
        out = run("train_align.py", "--data", demo, "--out", "x", *SMALL, cwd=tmp_path, expect=2)
    assert "train_align.py: another run writes into x now" in out and out.count("\n") == 1


def test_processes_with_different_data_say_so(demo, tmp_path):
    """One line, where they used to wait for one another."""
    shutil.copytree(demo, tmp_path / "data" / "demo")
    other = tmp_path / "other" / "data" / "demo"
    shutil.copytree(demo, other)
    meta = json.loads((demo / "meta.json").read_text())
    (other / "meta.json").write_text(json.dumps(meta | {"seed": 1}))
    started = Run("train_align.py", "--out", "x", *SMALL, cwd=tmp_path, processes=2, folders=[tmp_path, tmp_path / "other"])
    assert started.wait(60) == 2
    assert "the processes have different --data" in started.text() and "Traceback" not in started.text()


def test_a_run_asked_to_end_before_its_first_validation_can_be_evaluated(demo, tmp_path):
    started = Run("train_align.py", "--data", demo, "--out", "x", "--batch-size", 2, "--eval-every", 1000, *SMALL, cwd=tmp_path)
    started.wait_until(lambda: "step     2/" in started.text())
    started.kill(signal.SIGTERM)
    assert started.wait() == 128 + signal.SIGTERM
    out = run("evaluate.py", "--checkpoint", "x/last.safetensors", "--data", demo, "--limit", 2, "--max-new-tokens", 4, cwd=tmp_path)
    assert "validation none yet" in out and "wrote x/evaluation_test.json" in out


def test_an_error_while_writing_leaves_no_unfinished_file(tmp_path):
    with pytest.raises(ZeroDivisionError):
        with write_bytes(tmp_path / "file") as file:
            file.write(b"half")
            1 / 0
    assert list(tmp_path.iterdir()) == []
