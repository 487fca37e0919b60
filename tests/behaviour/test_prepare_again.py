"""An interrupted preparation: what a kill leaves is never a half-written dataset, and the next run resumes from it."""
import os
import re
import shutil
import signal
import sys

import numpy as np
import pytest
from helpers import Run, digest, quiet, run
from raw_files import OWN, own_table, write_small_own

from sensorllm_min.data import prepare as module
from sensorllm_min.files import InputError
from sensorllm_min.data.prepared import PreparedData
from sensorllm_min.data.prepare import prepare

# ---- every state that a kill can leave ----

WATCHERS = []                           # at most one; an audit hook cannot be taken off again


def report_to_watcher(event, arguments):
    """Python announces every change of a file system before it happens: to the watcher, if there is one."""
    if WATCHERS and event in {"open", "os.rename", "os.mkdir", "os.link", "os.rmdir", "os.remove"}:
        watcher = WATCHERS.pop()                                              # not while it looks at files itself
        try:
            watcher()
        finally:
            WATCHERS.append(watcher)


@pytest.fixture(scope="module")
def audited():
    sys.addaudithook(report_to_watcher)


def states_of(work, folder):
    """Calls work() -> copies of `folder`, one for each state that it passed through: what a kill would have left."""
    states, seen = [], set()

    def watcher():
        files = {str(path.relative_to(folder)): path.is_file() and path.stat().st_size for path in folder.rglob("*")}
        state = hash(frozenset(files.items()))
        if state not in seen:
            seen.add(state)
            states.append(folder.with_name(f"state{len(states)}"))
            shutil.copytree(folder, states[-1])

    WATCHERS.append(watcher)
    try:
        work()
    finally:
        WATCHERS.clear()
    return states


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw") / "raw"
    write_small_own(folder, n_recordings=1)
    return folder


@pytest.fixture(scope="module")
def killed_states(audited, raw, tmp_path_factory):
    """(expected digest, what was there before, states): of a preparation that replaces an older one."""
    place = tmp_path_factory.mktemp("states") / "place"
    place.mkdir()
    prepare("own", raw, place / "out", seed=1, say=quiet)
    before = digest(place / "out")
    states = states_of(lambda: prepare("own", raw, place / "out", say=quiet), place)
    assert len(states) > 50
    return digest(place / "out"), before, states


def test_at_every_moment_the_dataset_is_the_old_one_the_new_one_or_absent(killed_states):
    expected, before, states = killed_states
    found = [digest(state / "out") if (state / "out").exists() else None for state in states]
    assert all(one in (expected, before, None) for one in found)
    order = [(before, None, expected).index(one) for one in found]
    assert order == sorted(order) and order.count(1) <= 2                     # moved away, moved there: once each


def test_at_every_moment_a_part_that_can_be_resumed_from_is_whole(killed_states):
    """From the moment at which it has its own name until settings.json, which the next run looks for, is removed."""
    _, _, states = killed_states
    whole = {}
    for state in states:
        unfinished = state / "out.unfinished"
        if (unfinished / "settings.json").exists():
            for part in (unfinished / "parts").glob("*"):
                if part.suffix != ".unfinished":
                    whole.setdefault(part.name, []).append(digest(part))
    assert whole.keys() == {"anna", "ben", "carl", "dora"}
    for person, digests in whole.items():
        assert {"counts.json", "recordings.jsonl", f"samples/{person}.npy"} <= digests[0].keys()
        assert all(one == digests[0] for one in digests)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_run_killed_while_it_removes_its_parts_is_not_resumed_from(raw, tmp_path, monkeypatch, seed):
    """At the end of a run (seed 0), and where an unfinished run had other settings (seed 1)."""
    if seed:
        interrupted(shutil.copytree(raw, tmp_path / "raw"), tmp_path / "out")

    def half(folder, **options):
        removed = folder / "parts" / "anna" / "samples"
        if removed.exists():
            rmtree(removed)
            raise KeyboardInterrupt
        rmtree(folder, **options)

    rmtree = shutil.rmtree
    monkeypatch.setattr(module.shutil, "rmtree", half)
    with pytest.raises(KeyboardInterrupt):
        prepare("own", raw, tmp_path / "out", seed=seed, say=quiet)
    monkeypatch.undo()
    prepare("own", raw, tmp_path / "out", say=quiet)
    prepare("own", raw, tmp_path / "fresh", say=quiet)
    assert digest(tmp_path / "out") == digest(tmp_path / "fresh")


def resumed_from(state, raw, expected):
    out = state / "out"
    prepare("own", raw, out, say=quiet)
    assert digest(out) == expected, state
    assert [path.name for path in state.iterdir()] == ["out"]                 # nothing is left beside it


def test_a_run_after_a_kill_ends_with_the_same_bytes(killed_states, raw):
    """From every eighth of the states; from each of them with --all."""
    expected, _, states = killed_states
    for state in states[::8]:
        resumed_from(state, raw, expected)


@pytest.mark.slow
def test_a_run_after_a_kill_at_any_moment_ends_with_the_same_bytes(killed_states, raw):
    expected, _, states = killed_states
    for i, state in enumerate(states):
        if i % 8:
            resumed_from(state, raw, expected)


# ---- killed processes ----

def test_killed_with_sigkill_the_same_command_resumes(tmp_path):
    """The last part's file is a pipe that nobody writes to: there the first run waits, until it is killed."""
    write_small_own(tmp_path / "raw", n_recordings=1)
    last = tmp_path / "raw" / "dora" / "waving" / "0.npy"
    last.unlink()
    pipe = last.with_suffix(".csv")
    os.mkfifo(pipe)
    options = ["--dataset", "own", "--raw", tmp_path / "raw", "--out", tmp_path / "out", "--workers", 1]
    killed = Run("data_prep.py", *options, cwd=tmp_path)
    killed.wait_until(lambda: "part carl: 3/4 done" in killed.text())
    killed.kill(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert not (tmp_path / "out").exists() and (tmp_path / "out.unfinished").exists()
    pipe.unlink()
    np.save(last, own_table("dora"))
    said = run("data_prep.py", *options, cwd=tmp_path)
    assert re.search(r"3 of 4 parts are done\npart dora: 4/4 done", said)
    prepare("own", tmp_path / "raw", tmp_path / "expected", say=quiet)
    assert digest(tmp_path / "out") == digest(tmp_path / "expected")
    assert not (tmp_path / "out.unfinished").exists()


@pytest.mark.slow
def test_killed_after_every_part_the_demo_ends_with_the_same_bytes(demo, tmp_path):
    """Each run is killed when it has finished a part of its own, at whatever it does next."""
    options = ["--out", tmp_path / "demo", "--workers", 1]
    for _ in range(8):
        started = Run("data_prep.py", *options, cwd=tmp_path)
        started.wait_until(lambda: "\npart " in "\n" + started.text())
        started.kill(signal.SIGKILL)
        assert started.wait() == -signal.SIGKILL
        assert not (tmp_path / "demo").exists()
    said = run("data_prep.py", *options, cwd=tmp_path)
    assert "8 of 10 parts are done" in said and digest(tmp_path / "demo") == digest(demo)


# ---- what is taken over from an interrupted run ----

def interrupted(raw, out, seed=0):
    """A run that fails at its last part; what it had finished stays."""
    path = raw / "dora" / "waving" / "0.npy"
    good = path.read_bytes()
    times = path.stat()
    path.write_bytes(good[:50])
    with pytest.raises(InputError, match="dora/waving/0.npy does not hold"):
        prepare("own", raw, out, seed=seed, say=quiet)
    path.write_bytes(good)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert not out.exists()


def taken_over(raw, out, **settings):
    """How many parts a run takes over; what it writes must be what a fresh run writes."""
    lines = []
    prepare("own", raw, out, say=lines.append, **settings)
    fresh = out.with_name("fresh")
    prepare("own", raw, fresh, say=quiet, **settings)
    assert digest(out) == digest(fresh)
    found = re.search(r"(\d) of 4 parts are done", "\n".join(lines))
    return int(found[1]) if found else 0


@pytest.fixture
def own_raw(raw, tmp_path):
    shutil.copytree(raw, tmp_path / "raw")
    return tmp_path / "raw"


def test_finished_parts_are_taken_over(own_raw, tmp_path):
    interrupted(own_raw, tmp_path / "out")
    assert taken_over(own_raw, tmp_path / "out") == 3


def change_content(path):
    """Another content of the same size, later."""
    table = np.load(path)
    table[100:] += 1
    times = path.stat()
    np.save(path, table)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns + 1))


def change_size(path):
    """Fewer samples, under the same time of change, as an archive that is unpacked again may leave them."""
    times = path.stat()
    np.save(path, np.load(path)[:-7])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def add_file(path):
    shutil.copyfile(path, path.with_name("9.npy"))


@pytest.mark.parametrize("change", [change_content, change_size, add_file])
def test_a_part_whose_raw_files_changed_is_made_again(own_raw, tmp_path, change):
    interrupted(own_raw, tmp_path / "out")
    change(own_raw / "anna" / "typing" / "0.npy")
    assert taken_over(own_raw, tmp_path / "out") == 2


@pytest.mark.parametrize("settings", [dict(seed=1), dict(answer_kinds=("trend",)), dict(longest=9)], ids=str)
def test_parts_made_with_other_settings_are_made_again(own_raw, tmp_path, settings):
    interrupted(own_raw, tmp_path / "out")
    assert taken_over(own_raw, tmp_path / "out", **settings) == 0


def test_parts_made_with_another_description_are_made_again(own_raw, tmp_path):
    interrupted(own_raw, tmp_path / "out")
    write_small_own(own_raw, n_recordings=1, rate=OWN["rate"] * 2)            # the same samples, twice as fast
    assert taken_over(own_raw, tmp_path / "out") == 0


def test_a_failed_run_leaves_the_dataset_that_was_there(own_raw, tmp_path):
    prepare("own", own_raw, tmp_path / "out", say=quiet)
    before = digest(tmp_path / "out")
    (own_raw / "dora" / "waving" / "0.npy").write_bytes(b"")
    with pytest.raises(InputError, match="does not hold the channels"):
        prepare("own", own_raw, tmp_path / "out", seed=1, say=quiet)
    assert digest(tmp_path / "out") == before


def test_a_file_system_without_links_gets_copies(raw, tmp_path, monkeypatch):
    prepare("own", raw, tmp_path / "linked", say=quiet)

    def refuse(*paths):
        raise OSError("no links here")

    monkeypatch.setattr(module.os, "link", refuse)
    prepare("own", raw, tmp_path / "copied", say=quiet)
    assert digest(tmp_path / "copied") == digest(tmp_path / "linked")


# ---- workers ----

def test_two_workers_write_the_same_bytes(raw, tmp_path):
    said = []
    prepare("own", raw, tmp_path / "out", workers=2, say=said.append)
    prepare("own", raw, tmp_path / "expected", say=quiet)
    assert digest(tmp_path / "out") == digest(tmp_path / "expected")
    assert len(said) == 4 and "4/4 done" in said[-1]
    people = list(PreparedData(tmp_path / "out").meta["subjects"])
    assert people == ["anna", "ben", "carl", "dora"]                          # in their order, not as they came


@pytest.mark.slow
def test_three_workers_write_the_same_demo(demo, tmp_path):
    prepare("demo", None, tmp_path / "out", workers=3, say=quiet)
    assert digest(tmp_path / "out") == digest(demo)
