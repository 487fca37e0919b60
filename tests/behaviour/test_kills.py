"""Killed or asked to end at any moment, and started again by the same command: the same bytes as if left alone.

Preparation, both stages, evaluation of both, comparison. KILLS=30 takes thirty moments of each.
"""
import json
import os
import shutil
import signal
import time

import pytest
from helpers import Run, run
from raw_files import write_small_own
from safetensors.torch import load_file
from untrained import save_untrained, small_dataset

KILLS = int(os.environ.get("KILLS", 3))                                       # moments of each signal
TRAIN = ("--data", "data/demo", "--train-limit", 40, "--eval-limit", 4, "--test-limit", 4, "--batch-size", 4, "--eval-every", 2,
         "--epochs", 1, "--text", "smry")
ALIGN = (*TRAIN[:-2], "--max-new-tokens", 4)
COMMANDS = {                                # script, options, the folder whose content counts
    "preparation": (("data_prep.py", "--dataset", "own", "--raw", "raw", "--out", "made", "--workers", 2), "made"),
    "stage 1": (("train_align.py", *ALIGN, "--out", "made"), "made"),
    "stage 2": (("train_har.py", *TRAIN, "--align", "out/align", "--out", "made"), "made"),
    "evaluation of stage 1": (("evaluate.py", "--checkpoint", "out/align", "--data", "data/demo", "--limit", 30, "--batch-size", 2,
                               "--max-new-tokens", 8, "--show", 0), "out/align"),
    "evaluation of stage 2": (("evaluate.py", "--checkpoint", "out/har", "--data", "data/demo", "--batch-size", 2), "out/har"),
    "comparison": (("train_har.py", *TRAIN[:10], "--eval-every", 10, "--epochs", 0.3, "--text", "smry", "--align", "out/align",
                    "--compare", "--seeds", 1, "--out", "made"), "made"),
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
        elif path.suffix in (".partial", ".unfinished"):
            found[name] = "left over"
    return found


@pytest.fixture(scope="module")
def place(demo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kills")
    small_dataset(demo, folder / "data" / "demo")
    write_small_own(folder / "raw", n_recordings=3)
    for stage in ("align", "har"):
        save_untrained(folder / "out" / stage, folder / "data" / "demo", stage)
    return folder


def begin(command, folder):
    """Starts a command; a training run that left a checkpoint is resumed."""
    resume = ["--resume"] if command[0].startswith("train") and "--compare" not in command else []
    if not (folder / "made" / "last.safetensors").exists():
        resume = []
    return Run(*command, *resume, cwd=folder)


@pytest.mark.slow
@pytest.mark.parametrize("what", COMMANDS)
def test_killed_at_any_moment_a_rerun_ends_with_the_same_bytes(place, tmp_path, what):
    command, made = COMMANDS[what]
    shutil.copytree(place, tmp_path / "whole", symlinks=True)
    shutil.copytree(place, tmp_path / "first", symlinks=True)
    run(*command, cwd=tmp_path / "first")                                     # the first one imports, which takes longer
    began = time.monotonic()
    run(*command, cwd=tmp_path / "whole")
    seconds, expected = time.monotonic() - began, content(tmp_path / "whole" / made)
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
            assert content(folder / made) == expected, (number, kill)
            assert not list(folder.glob("*.unfinished"))
            shutil.rmtree(folder)
    assert stopped > KILLS / 2, "too many had ended before"
