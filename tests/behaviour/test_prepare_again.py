"""The folder of a prepared dataset: replaced whole or not at all, by any number of workers; what a person keeps stays."""
import json
import os
import signal
import subprocess
import time

import numpy as np
import pytest
from helpers import Run, digest, quiet, run
from raw_files import own_table, write_small_own

from sensorllm_min.data.prepare import prepare
from sensorllm_min.files import InputError, locked


@pytest.fixture
def own(tmp_path):
    """A folder with recordings in raw/, prepared in out/."""
    write_small_own(tmp_path / "raw", n_recordings=1)
    prepare("own", tmp_path / "raw", tmp_path / "out", say=quiet)
    return tmp_path


def refused(work, *words):
    with pytest.raises(InputError) as error:
        work()
    assert all(word in str(error.value) for word in words), error.value


# ---- what is there already ----

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


@pytest.mark.parametrize("name", ["out/notes.txt", "out/samples/mine.csv", "out/sub/meta.json", "out.unfinished/thesis.txt"])
def test_a_file_of_another_hand_keeps_the_folder(own, name):
    (own / name).parent.mkdir(exist_ok=True)
    (own / name).write_text("mine")
    before = digest(own)
    refused(lambda: prepare("own", own / "raw", own / "out", say=quiet), "has not written")
    assert digest(own) == before


@pytest.mark.parametrize("meta", [
    {"dataset": "usc-had", "version": 2}, {"title": "of my own"}, None], ids=str)
def test_another_dataset_is_not_replaced(own, meta):
    (own / "out" / "meta.json").unlink()
    if meta:
        (own / "out" / "meta.json").write_text(json.dumps(meta))
    before = digest(own)
    refused(lambda: prepare("own", own / "raw", own / "out", say=quiet), "is not a prepared dataset gloves")
    assert digest(own) == before


def test_a_failed_run_leaves_the_dataset_that_was_there_and_nothing_else(own):
    before = digest(own / "out")
    (own / "raw" / "dora" / "waving" / "0.npy").write_bytes(b"")
    refused(lambda: prepare("own", own / "raw", own / "out", seed=1, say=quiet), "dora/waving/0.npy")
    assert digest(own / "out") == before and not (own / "out.unfinished").exists()


# ---- interrupted runs and workers ----

def waiting_preparation(folder, workers):
    """A preparation that waits for files that are pipes, and its options."""
    write_small_own(folder / "raw", n_recordings=1)
    for person in ("carl", "dora"):
        path = folder / "raw" / person / "waving" / "0.npy"
        path.unlink()
        os.mkfifo(path.with_suffix(".csv"))
    options = ("--dataset", "own", "--raw", folder / "raw", "--out", folder / "out", "--workers", workers)
    started = Run("data_prep.py", *options, cwd=folder)
    started.wait_until(lambda: "part ben: 2/4 done" in started.text())
    return started, options


def children(pid):
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()
    return [int(child) for child in found] + [grand for child in found for grand in children(child)]


def test_a_killed_run_leaves_no_dataset_and_no_worker_and_the_next_one_starts_again(tmp_path):
    started, options = waiting_preparation(tmp_path, workers=2)
    workers = children(started.processes[0].pid)
    assert len(workers) >= 2
    second = run("data_prep.py", *options, cwd=tmp_path, expect=2)            # meanwhile, into the same folder
    assert "another run writes into" in second and second.count("\n") == 1
    started.kill(signal.SIGKILL)
    assert started.wait() == -signal.SIGKILL and not (tmp_path / "out").exists()
    deadline = time.monotonic() + 20
    while any(os.path.exists(f"/proc/{pid}") and "Z" not in open(f"/proc/{pid}/stat").read().split()[2] for pid in workers):
        assert time.monotonic() < deadline, "a worker is still there"
        time.sleep(0.05)

    (tmp_path / "out.unfinished" / "har_train.jsonl").write_text("left over")
    np.save(tmp_path / "out.unfinished" / "samples" / "gone.npy", np.zeros(3))
    for person in ("carl", "dora"):
        (tmp_path / "raw" / person / "waving" / "0.csv").unlink()
        np.save(tmp_path / "raw" / person / "waving" / "0.npy", own_table(person))
    run("data_prep.py", *options, cwd=tmp_path)
    prepare("own", tmp_path / "raw", tmp_path / "expected", say=quiet)        # on one process
    assert digest(tmp_path / "out") == digest(tmp_path / "expected")
    assert not (tmp_path / "out.unfinished").exists()


def test_a_worker_that_is_killed_ends_the_run_in_one_line(tmp_path):
    started, _ = waiting_preparation(tmp_path, workers=2)
    for pid in children(started.processes[0].pid):
        os.kill(pid, signal.SIGKILL)
    assert started.wait() == 2
    assert started.text().splitlines()[-1].startswith("data_prep.py: a worker was killed, perhaps for lack of memory")
    assert "Traceback" not in started.text() and not (tmp_path / "out").exists()


def test_the_parts_come_in_order_with_the_time_left(own):
    said = []
    meta = prepare("own", own / "raw", own / "again", workers=2, say=said.append)
    assert digest(own / "again") == digest(own / "out") and list(meta["subjects"]) == ["anna", "ben", "carl", "dora"]
    assert len(said) == 4 and said[-1] == "part dora: 4/4 done, 0 s left"


def test_a_locked_folder_is_refused_until_the_lock_ends(tmp_path):
    with locked(tmp_path / "x"):
        refused(lambda: locked(tmp_path / "x").__enter__(), "another run writes into")
    with locked(tmp_path / "x"):
        pass
