"""What a person keeps stays: folders with files of theirs, logs without a checkpoint, two runs at once, workers of a dead run."""
import json
import os
import shutil
import signal
import subprocess
import time

import pytest
from helpers import Run, digest, quiet, run
from raw_files import write_small_own

from sensorllm_min.data.prepare import prepare
from sensorllm_min.files import InputError, locked, write_bytes


@pytest.fixture
def own(tmp_path):
    write_small_own(tmp_path / "raw", n_recordings=1)
    prepare("own", tmp_path / "raw", tmp_path / "out", say=quiet)
    return tmp_path


def refused(work, *words):
    with pytest.raises(InputError) as error:
        work()
    assert all(word in str(error.value) for word in words), error.value


# ---- --out of data_prep.py ----

def test_only_what_was_prepared_here_is_replaced_and_it_is_said(own):
    (own / "out" / "window_3.png").write_bytes(b"of --show")
    for sibling in ("out.old", "out.unfinished.txt"):
        (own / sibling).mkdir()
        (own / sibling / "thesis.txt").write_text("years of work")
    said = []
    prepare("own", own / "raw", own / "out", seed=1, say=said.append)
    assert said[-1] == f"replacing {own / 'out'}, which held gloves of seed 0"
    assert (own / "out.old" / "thesis.txt").exists() and (own / "out.unfinished.txt" / "thesis.txt").exists()
    assert sorted(path.name for path in own.iterdir()) == ["out", "out.old", "out.unfinished.txt", "raw"]


@pytest.mark.parametrize("name", ["notes.txt", "samples/mine.csv", "har_test.jsonl.bak", "sub/meta.json", "recordings.jsonl/x"])
def test_a_file_of_another_hand_keeps_the_folder(own, name):
    path = own / "out" / name
    if path.parent.is_file():
        path.parent.unlink()
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    before = digest(own)
    refused(lambda: prepare("own", own / "raw", own / "out", say=quiet), "has not written")
    assert digest(own) == before


def test_another_dataset_or_another_meta_json_is_not_replaced(own):
    for meta in ({"dataset": "usc-had", "version": 2}, {"title": "of my own"}):
        (own / "out" / "meta.json").write_text(json.dumps(meta))
        before = digest(own)
        refused(lambda: prepare("own", own / "raw", own / "out", say=quiet), "holds the dataset", "gloves")
        assert digest(own) == before


def test_a_foreign_folder_of_the_unfinished_name_is_left_alone(own):
    (own / "out.unfinished").mkdir()
    (own / "out.unfinished" / "thesis.txt").write_text("years of work")
    refused(lambda: prepare("own", own / "raw", own / "out", say=quiet), "thesis.txt")
    assert (own / "out.unfinished" / "thesis.txt").exists()


def test_a_kill_between_the_two_moves_loses_nothing(own):
    """The old dataset is put back first; a failing run then leaves it there."""
    before = digest(own / "out")
    (own / "out.unfinished").mkdir()
    os.replace(own / "out", own / "out.unfinished" / "old")
    path = own / "raw" / "anna" / "waving" / "0.npy"
    path.write_bytes(b"")
    refused(lambda: prepare("own", own / "raw", own / "out", seed=1, say=quiet), str(path))
    assert digest(own / "out") == before


@pytest.mark.parametrize("file,content", [
    ("settings.json", "{}"), ("settings.json", "[" * 9999), ("parts/anna/counts.json", "{}"), ("parts/anna/counts.json", "\xff"),
    ("parts/anna/counts.json", '{"raw_files": null}')])
def test_what_an_interrupted_run_left_garbled_is_made_again(own, file, content):
    path = own / "raw" / "dora" / "waving" / "0.npy"
    good = path.read_bytes()
    path.write_bytes(b"")
    refused(lambda: prepare("own", own / "raw", own / "again", say=quiet), str(path))
    path.write_bytes(good)
    (own / "again.unfinished" / file).write_text(content, encoding="latin-1")
    prepare("own", own / "raw", own / "again", say=quiet)
    assert digest(own / "again") == digest(own / "out")


# ---- two runs at once, and what a dead one leaves ----

def test_a_locked_folder_is_refused_until_the_lock_ends(tmp_path):
    with locked(tmp_path / "x"):
        refused(lambda: locked(tmp_path / "x").__enter__(), "another run writes into")
    with locked(tmp_path / "x"):
        shutil.rmtree(tmp_path / "x")                                         # as a preparation does at its end
        with locked(tmp_path / "x"):
            pass


def waiting_preparation(folder, workers):
    """A preparation that waits for a file that is a pipe, and the pipe."""
    write_small_own(folder / "raw", n_recordings=1)
    pipes = [folder / "raw" / person / "waving" / "0.csv" for person in ("carl", "dora")]
    for pipe in pipes:
        pipe.with_suffix(".npy").unlink()
        os.mkfifo(pipe)
    options = ("--dataset", "own", "--raw", folder / "raw", "--out", folder / "out", "--workers", workers)
    started = Run("data_prep.py", *options, cwd=folder)
    started.wait_until(lambda: "part ben" in started.text())
    return started, options


def children(pid):
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()
    return [int(child) for child in found] + [grand for child in found for grand in children(child)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_the_run_that_started_them(tmp_path, number):
    started, options = waiting_preparation(tmp_path, workers=2)
    others = children(started.processes[0].pid)
    assert len(others) >= 2
    second = run("data_prep.py", *options, cwd=tmp_path, expect=2)            # meanwhile, into the same folder
    assert "another run writes into" in second and second.count("\n") == 1
    started.kill(number)
    assert started.wait() == -number
    deadline = time.monotonic() + 20
    while any(os.path.exists(f"/proc/{pid}") and "Z" not in open(f"/proc/{pid}/stat").read().split()[2] for pid in others):
        assert time.monotonic() < deadline, "a worker is still there"
        time.sleep(0.05)


def test_an_error_while_writing_leaves_no_unfinished_file(tmp_path):
    with pytest.raises(ZeroDivisionError):
        with write_bytes(tmp_path / "file") as file:
            file.write(b"half")
            1 / 0
    assert list(tmp_path.iterdir()) == []
