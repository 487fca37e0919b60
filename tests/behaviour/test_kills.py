"""Killed or asked to end at any moment, and started again by the same command: the same bytes as if left alone.

Both stages and a comparison. KILLS=30 takes thirty moments of each.
"""
import json
import os
import shutil
import signal
import time

import pytest
from helpers import Run
from safetensors.torch import load_file
from untrained import save_untrained, small_dataset

KILLS = int(os.environ.get("KILLS", 3))                                       # moments of each signal
TRAIN = ("--data", "data/demo", "--train-limit", 40, "--eval-limit", 4, "--test-limit", 4, "--batch-size", 4, "--eval-every", 2,
         "--epochs", 1, "--text", "smry")
ALIGN = (*TRAIN[:-2], "--max-new-tokens", 4)
COMMANDS = {
    "stage 1": ("train_align.py", *ALIGN),
    "stage 2": ("train_har.py", *TRAIN, "--align", "out/align"),
    "comparison": ("train_har.py", *TRAIN[:10], "--eval-every", 10, "--epochs", 0.3, "--text", "smry", "--align", "out/align",
                   "--compare", "--seeds", 1),
}
TIMES = ("seconds",)                        # what no rerun can repeat


def without_times(value):
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in TIMES}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def content(folder):
    """Everything in a folder that should be the same: not logs, nor pictures and tables with times in them."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".json":
            found[name] = without_times(json.loads(path.read_text()))
        elif path.suffix == ".safetensors":
            found[name] = {key: tensor.numpy().tobytes() for key, tensor in load_file(path).items()}
        elif path.suffix in (".npy", ".jsonl"):
            found[name] = path.read_bytes()
        elif path.suffix == ".unfinished":
            found[name] = "left over"
    return found


@pytest.fixture(scope="module")
def place(demo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kills")
    save_untrained(folder / "out/align", small_dataset(demo, folder / "data/demo"), "align")
    return folder


def begin(command, folder):
    """Starts a command; a training run that left a checkpoint is resumed."""
    resume = "--compare" not in command and (folder / "made" / "last.safetensors").exists()
    return Run(*command, "--out", "made", *["--resume"] * resume, cwd=folder)


@pytest.mark.slow
@pytest.mark.parametrize("what", COMMANDS)
def test_killed_at_any_moment_a_rerun_ends_with_the_same_bytes(place, tmp_path, what):
    command = COMMANDS[what]
    for name in ("first", "whole"):                                           # the first one imports, which takes longer
        shutil.copytree(place, tmp_path / name, symlinks=True)
        began = time.monotonic()
        assert begin(command, tmp_path / name).wait() == 0
    seconds, expected = time.monotonic() - began, content(tmp_path / "whole" / "made")
    assert expected
    stopped = 0
    for number in (signal.SIGKILL, signal.SIGTERM):
        for kill in range(KILLS):
            folder = tmp_path / f"{number.name}{kill}"
            shutil.copytree(place, folder, symlinks=True)
            started = begin(command, folder)
            time.sleep(seconds * (kill + 0.5) / KILLS)
            stopped += started.running()
            started.kill(number)
            started.wait()
            again = begin(command, folder)
            assert again.wait() == 0, f"{number.name} after {seconds * (kill + 0.5) / KILLS:.2f} s:\n{again.text()}"
            assert content(folder / "made") == expected, (number, kill)
            shutil.rmtree(folder)
    assert stopped > KILLS / 2, "too many had ended before"
