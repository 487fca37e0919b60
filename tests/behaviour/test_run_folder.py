"""What a run keeps in its folder, without training: the best checkpoint, resuming, whole files, and what is refused."""
import dataclasses
import json
import os
import platform
import signal
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import digest, json_lines
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sensorllm_min.cli import Stopped
from sensorllm_min.training import checkpoint, run as training
from sensorllm_min.training.checkpoint import (
    build_model, fill_model, load_checkpoint, read_checkpoint, save_checkpoint)
from sensorllm_min.files import InputError, write_bytes, write_text
from sensorllm_min.data.prepared import PreparedData
from sensorllm_min.training.options import new_recipe
from sensorllm_min.training.processes import Processes
from sensorllm_min.training.run import Run
from sensorllm_min.training.step import Step, new_optimizer

ALONE = Processes(0, 1, torch.device("cpu"))
SETTINGS = {"data": "data/demo", "batch_size": 4, "accumulate": 2, "epochs": 3.0, "lr": 1e-3, "betas": (0.9, 0.95), "warmup": 0.03,
            "weight_decay": 0.1, "seed": 0, "train_limit": 100, "eval_limit": 50, "dtype": "float32",
            "eval_every": None, "log_every": 1}


@pytest.fixture(autouse=True)
def signals_as_before():
    """A Run takes over SIGTERM."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def recipe(demo, tmp_path_factory):
    """The built-in networks, as stage 2 has them; projector and head learn."""
    args = SimpleNamespace(out=tmp_path_factory.mktemp("recipe"), llm=None, encoder=None, chat_format=None, resume=False,
                              scaling="StanNormalizeUniformBins", levels=False, projector=(8,), train=("projector", "head"))
    return dataclasses.replace(new_recipe(args, PreparedData(demo), ALONE), classes=("still", "moving"))


def begin(recipe, out, resume=False, train=("projector", "head"), processes=ALONE, **changes):
    """A run of a fresh model, of which nothing but `train` learns."""
    loaded = build_model(recipe)
    loaded.model.train_only(train)
    settings = SimpleNamespace(**SETTINGS | changes, out=out, resume=resume, train=train)
    return Run(settings, processes, loaded, new_optimizer(loaded.model, settings), TenWindows())


class TenWindows:
    """As much of the training examples as a Run reads."""
    sizes, data, called = np.ones(10), SimpleNamespace(name="demo"), "windows"

    def __len__(self):
        return 10


def step_of(index):
    return Step(index, lr=1e-3, batches=[], filler=1.0)


def mark(run, value):
    """Lets a number stand in the weights, by which they are known again; and steps the optimizer once."""
    with torch.no_grad():
        run.model.head.weight.fill_(value)
    for group in run.optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.full_like(parameter, value)
        group["lr"] = 0.0
    run.optimizer.step()


def marked(path):
    return load_file(path)["head.weight"].unique().tolist()


# ---- the best checkpoint ----

@pytest.mark.parametrize("higher_is_better,scores,best_step", [
    (True, [0.25, 0.75, 0.5, 0.75], 2), (False, [0.5, 0.25, 0.75, 0.25], 2),      # of equal ones the first
    (True, [0.5, 0.25], 1), (False, [0.5, 0.25], 2)])
def test_the_best_validation_is_what_is_kept_and_loaded(recipe, tmp_path, higher_is_better, scores, best_step):
    run = begin(recipe, tmp_path)
    for step, score in enumerate(scores):
        mark(run, step + 1.0)
        run.log_evaluation(step_of(step), {"other": 9.0, "score": score}, "score", higher_is_better)
    best, last = tmp_path / "best.safetensors", tmp_path / "last.safetensors"
    assert marked(best) == [best_step] and marked(last) == [len(scores)]
    _, progress, _ = read_checkpoint(best)
    assert (progress["step"], progress["best_step"], progress["best"]) == (best_step, best_step, scores[best_step - 1])
    _, progress, _ = read_checkpoint(last)
    assert (progress["step"], progress["best_step"], progress["best"]) == (len(scores), best_step, scores[best_step - 1])
    assert not any(name.startswith("optimizer.") for name in load_file(best))
    mark(run, 99.0)
    run.load_best()
    assert run.model.head.weight.unique().tolist() == [best_step]


def test_a_resumed_run_keeps_the_best_of_before(recipe, tmp_path):
    run = begin(recipe, tmp_path)
    for step, score in enumerate([0.75, 0.5]):
        mark(run, step + 1.0)
        run.log_evaluation(step_of(step), {"score": score}, "score", higher_is_better=True)
    run = begin(recipe, tmp_path, resume=True)
    assert run.progress["step"] == 2 and run.model.head.weight.unique().tolist() == [2.0]
    mark(run, 3.0)
    run.log_evaluation(step_of(2), {"score": 0.625}, "score", higher_is_better=True)
    assert marked(tmp_path / "best.safetensors") == [1.0] and marked(tmp_path / "last.safetensors") == [3.0]
    assert run.progress["best_step"] == 1


# ---- asked to end ----

class OtherProcess(Processes):
    """The first of two processes, of which the other has been asked to end before a given sum."""
    def __init__(self, asked_at):
        super().__init__(0, 1, torch.device("cpu"))                           # alone: it waits for nobody
        object.__setattr__(self, "asked_at", asked_at)
        object.__setattr__(self, "sums", [])

    def sum(self, *values):
        self.sums.append(values)
        return [value + (len(self.sums) > self.asked_at) for value in values]


@pytest.mark.parametrize("asked", ["this process", "the other process"])
def test_a_run_that_is_asked_to_end_finishes_the_step_and_saves_it(recipe, tmp_path, asked):
    """SIGTERM to any one process of a run: all of them learn of it, and stop after the same step."""
    processes = ALONE if asked == "this process" else OtherProcess(asked_at=1)
    run = begin(recipe, tmp_path, processes=processes, batch_size=1, accumulate=1)
    run.plan.make = step_of
    done = []
    with pytest.raises(Stopped, match="ended on request after step 2; --resume continues from .*last.safetensors"):
        for step in run.steps():
            done.append(step.index)
            if step.index == 1 and asked == "this process":
                os.kill(os.getpid(), signal.SIGTERM)
            mark(run, step.index + 1.0)                                       # the rest of the step
    assert done == [0, 1] and marked(tmp_path / "last.safetensors") == [2.0]
    assert not (tmp_path / "best.safetensors").exists()                       # that is for a validation to say
    resumed = begin(recipe, tmp_path, resume=True, batch_size=1, accumulate=1)
    resumed.plan.make = step_of
    assert [step.index for step in resumed.steps()] == list(range(2, 30))     # three epochs of ten
    assert resumed.progress["best"] is None


def test_a_new_run_begins_with_a_clean_folder(recipe, tmp_path):
    """What a demo left there would pass for the new run's, if that is interrupted before its first validation."""
    left = ("best.safetensors", "last.safetensors", "results.json")
    for name in left:
        (tmp_path / name).write_text("an earlier demo's")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 7.0}\n')
    begin(recipe, tmp_path)
    assert not any((tmp_path / name).exists() for name in left)
    assert (tmp_path / "metrics.jsonl").read_text() == ""


# ---- resuming ----

@pytest.fixture(scope="module")
def saved(recipe, tmp_path_factory):
    """The folder of a run that has validated after steps 1 and 2."""
    before = signal.getsignal(signal.SIGTERM)
    out = tmp_path_factory.mktemp("saved")
    run = begin(recipe, out)
    for step in range(2):
        mark(run, step + 1.0)
        run.log_step(step_of(step), 1.5, 0.5, 10)
        run.log_evaluation(step_of(step), {"score": 0.5}, "score", higher_is_better=True)
    run.metrics.close()
    run.log.close()
    signal.signal(signal.SIGTERM, before)
    return out


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of it, to be changed."""
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.mark.parametrize("setting,other", [
    ("data", "data/else"), ("batch_size", 8), ("accumulate", 1), ("epochs", 4.0), ("lr", 2e-3), ("warmup", 0.1),
    ("weight_decay", 0.0), ("seed", 1), ("train_limit", 99), ("train_limit", None), ("eval_limit", 49),
    ("dtype", "bfloat16"), ("rotate", 20.0), ("fold", (0, 3)), ("betas", (0.9, 0.999))])
def test_resuming_needs_the_same_settings(recipe, folder, setting, other):
    before = digest(folder)
    named = "batch" if setting in ("batch_size", "accumulate") else setting
    with pytest.raises(InputError, match=f"was trained with {named} .*; --resume needs the same settings"):
        begin(recipe, folder, resume=True, **{setting: other})
    assert digest(folder) == before


def test_a_run_from_before_rotations_and_folds_resumes_without_them(recipe, folder):
    path = folder / "last.safetensors"
    with safe_open(path, "pt") as file:
        metadata = json.loads(file.metadata()[checkpoint.KEY])
    settings = metadata["progress"]["settings"]
    assert (settings.pop("rotate"), settings.pop("fold")) == (0, None)
    save_file(load_file(path), path, metadata={checkpoint.KEY: json.dumps(metadata)})
    assert begin(recipe, folder, resume=True, rotate=0.0).progress["step"] == 2
    with pytest.raises(InputError, match="was trained with rotate 0.0, this run has 20.0"):
        begin(recipe, folder, resume=True, rotate=20.0)


def test_a_batch_may_be_cut_otherwise_when_resuming(recipe, folder):
    assert begin(recipe, folder, resume=True, batch_size=8, accumulate=1).progress["step"] == 2


def test_resuming_takes_up_weights_moments_and_progress(recipe, folder):
    run, tensors = begin(recipe, folder, resume=True), load_file(folder / "last.safetensors")
    assert run.progress["step"] == 2 and run.progress["best"] == 0.5 and run.progress["best_step"] == 1
    for name, parameter in run.model.named_parameters():
        assert torch.equal(parameter, tensors[name])                          # the built-in networks are saved as well
        if parameter.requires_grad:
            state = run.optimizer.state[parameter]
            assert all(torch.equal(state[moment], tensors[f"optimizer.{name}.{moment}"])
                       for moment in ("exp_avg", "exp_avg_sq", "step"))
            assert state["step"] == 2 and state["exp_avg"].abs().min() > 0


def test_the_seconds_of_a_resumed_run_count_those_before_it(recipe, folder, monkeypatch):
    monkeypatch.setattr(training, "draw_curves", lambda path, lines: None)
    path = folder / "last.safetensors"
    with safe_open(path, "pt") as file:
        metadata = json.loads(file.metadata()[checkpoint.KEY])
    metadata["progress"]["seconds"] = 1e6
    save_file(load_file(path), path, metadata={checkpoint.KEY: json.dumps(metadata)})
    run = begin(recipe, folder, resume=True)
    monkeypatch.setattr(run.plan, "starting_at", lambda first: iter([step_of(first)]))
    next(run.steps())                                             # the clock starts with the first step
    assert run.finish({})["seconds"] >= 1e6
    run.log_evaluation(step_of(2), {"score": 0.25}, "score", higher_is_better=True)
    assert read_checkpoint(path)[1]["seconds"] >= 1e6


def test_each_nth_step_and_the_last_one_are_said_and_all_are_noted(recipe, tmp_path):
    run = begin(recipe, tmp_path, log_every=3)
    run.plan.count = 8
    for step in range(8):
        run.log_step(step_of(step), 1.0 + step, 0.5, 10)
    said = [line for line in (tmp_path / "log.txt").read_text().splitlines() if line.startswith("step")]
    assert [line.split("/8")[0].split() for line in said] == [["step", "3"], ["step", "6"], ["step", "8"]]
    assert [line.split("loss ")[1].split()[0] for line in said] == ["2.0000", "5.0000", "7.5000"]    # means since the last line
    assert json_lines(tmp_path / "metrics.jsonl") == [
        {"step": step + 1, "loss": 1.0 + step, "grad_norm": 0.5, "lr": 1e-3} for step in range(8)]


@pytest.mark.parametrize("seconds,after,words", [
    (1.0, 4, "1 s a step"), (20.0, 1, "20 s a step"), (4000.0, 1, "4e+03 s a step")])
def test_what_a_run_costs_is_said_once_and_soon(recipe, tmp_path, monkeypatch, seconds, after, words):
    """By the size of its steps: the first is three times as large as the mean, and takes three times as long. Of fast
    steps, the first is left out, which warms up for 0.5 s. A run of more than a day is told what shortens it."""
    now = 1000.0
    monkeypatch.setattr(training.time, "monotonic", lambda: now)
    run = begin(recipe, tmp_path, log_every=1000)
    run.plan.count, run.plan.mean_size = 40, 10.0
    for index in range(8):
        size = 30.0 if index == 0 else 10.0
        now += seconds * size / 10 + (0.5 if index == 0 and seconds < 10 else 0)
        run.log_step(dataclasses.replace(step_of(index), size=size), 1.0, 0.5, 10)
        said = [line for line in (tmp_path / "log.txt").read_text().splitlines() if "s a step" in line or "shorten" in line]
        assert len(said) == (index + 1 >= after) * (2 if seconds > 2160 else 1)
    assert words in said[0] and "GB" in said[0] and f"other {40 - after} steps" in said[0]
    hours = seconds * (40 - after) / 3600
    assert (f"{hours:.1f} hours" if hours > 2 else f"{hours * 60:.1f} minutes") in said[0]
    assert "--train-limit" in said[-1] or hours < 24


def released_before(run, monkeypatch, sizes, held, peaks, little=0):
    """How often memory has been given back when each step of these sizes begins."""
    released, held, peaks = [], iter(np.repeat(held, 2)), iter(peaks)         # held is asked for twice a step
    steps = [replace(step_of(i), size=size) for i, size in enumerate(sizes)]
    run.plan = SimpleNamespace(starting_at=lambda first: iter(steps))
    monkeypatch.setattr(training, "resident_memory", lambda: next(held))
    monkeypatch.setattr(training, "peak_memory", lambda device: next(peaks))
    monkeypatch.setattr(training, "release_freed_memory", lambda: released.append(1))
    monkeypatch.setattr(training, "LITTLE_MEMORY", little)
    return [len(released) for step in run.steps()]


@pytest.mark.parametrize("little,expected", [(0, [0, 0, 1, 1, 1, 2, 2, 2, 3]), (2000, [0] * 9)])
def test_freed_memory_is_given_back_before_a_step_that_might_exceed_the_first(
        recipe, tmp_path, monkeypatch, little, expected):
    """The first step is the largest, and took 500 bytes: as many are reckoned for another of its size.

    A step like the one before fits into what that has left, until more is held than the first took. A run with little
    memory may grow.
    """
    sizes = [20.0, 20.0, 2.0, 20.0, 2.0, 20.0, 20.0, 2.0, 2.0]
    held = [500, 990, 960, 490, 940, 510, 990, 940, 1010]
    assert released_before(begin(recipe, tmp_path), monkeypatch, sizes, held, [1000], little) == expected


def test_a_resumed_run_learns_from_larger_steps_what_memory_it_takes(recipe, tmp_path, monkeypatch):
    """It begins anywhere: the second step is larger, and 990 bytes are no more than that one took."""
    sizes, held = [2.0, 20.0, 20.0, 2.0], [500, 500, 990, 940]
    assert released_before(begin(recipe, tmp_path), monkeypatch, sizes, held, [550, 1000]) == [0, 1, 1, 1]


def test_freed_memory_is_given_back_before_a_validation(recipe, tmp_path, monkeypatch):
    released = []
    run = begin(recipe, tmp_path, eval_every=3)
    run.plan.count = 8
    monkeypatch.setattr(training, "release_freed_memory", lambda: released.append(1))
    for index in range(8):
        run.log_step(step_of(index), 1.0, 0.5, 10)
        assert len(released) == (index + 1) // 3 + (index == 7)


@pytest.mark.skipif("glibc" not in platform.libc_ver(), reason="gives memory back with a function of glibc")
def test_freed_memory_goes_back_to_the_system():
    """100 MB in pieces, of which every fiftieth stays."""
    pieces = [torch.ones(25_000) for _ in range(1000)]
    before = training.resident_memory()
    pieces[:] = pieces[::50]
    training.release_freed_memory()
    assert before - training.resident_memory() > 80e6


def test_each_nth_step_and_the_last_one_are_validated(recipe, tmp_path):
    def validated(count, **changes):
        run = begin(recipe, tmp_path, **changes)
        run.plan.count = count
        return [step + 1 for step in range(count) if run.is_evaluated(step_of(step))]
    assert validated(8, eval_every=3) == [3, 6, 8]
    assert validated(6, eval_every=3) == [3, 6]
    whole = {"batch_size": 1, "accumulate": 1}                                # three epochs of ten steps
    assert validated(30, **whole) == [4, 8, 12, 16, 20, 24, 28, 30]           # eight times in a run


def test_resuming_forgets_what_the_metrics_hold_beyond_the_checkpoint(recipe, folder):
    path = folder / "metrics.jsonl"
    kept = path.read_text()
    assert len(kept.splitlines()) == 4
    path.write_text(kept + '{"step": 3, "loss": 1.0}\n{"step": 4, "lo')       # the last line is cut by a kill
    begin(recipe, folder, resume=True)
    assert path.read_text() == kept


def test_resuming_with_other_parts_to_train_is_refused(recipe, folder):
    """Fewer parts than before have moments left over, more parts lack some: neither goes on as the run began."""
    for train in (("head",), ("projector", "head", "tokens")):
        with pytest.raises(InputError, match="optimizer state"):
            begin(recipe, folder, resume=True, train=train)


def test_resuming_another_model_is_refused(recipe, folder):
    for changes in ({"ablation": "shuffled"}, {"channel_names": True}, {"trained": ("head",)}, {"llm_fingerprint": "x"}):
        with pytest.raises(InputError, match="is of another model"):
            begin(dataclasses.replace(recipe, **changes), folder, resume=True)


# ---- tensors that do not fit ----

def rewrite(path, change):
    """Changes the tensors of a checkpoint file, and leaves its metadata."""
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
    change(tensors)
    save_file(tensors, path, metadata=metadata)


CHANGES = {
    "missing": ("head.weight", lambda tensors: tensors.pop("head.weight")),
    "missing in a part": ("projector.2.bias", lambda tensors: tensors.pop("projector.2.bias")),
    "left over": ("projector.9.weight", lambda tensors: tensors.update({"projector.9.weight": torch.zeros(2)})),
    "of no part": ("teeth.weight", lambda tensors: tensors.update({"teeth.weight": torch.zeros(2)})),
    "of another shape": ("head.weight", lambda tensors: tensors.update({"head.weight": torch.zeros(3, 128)})),
    "of a shape that would broadcast": ("head.weight", lambda tensors: tensors.update({"head.weight": torch.zeros(1, 128)})),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("resumes", [False, True])
def test_a_checkpoint_whose_tensors_do_not_fit_is_refused(recipe, folder, change, resumes):
    name, change = CHANGES[change]
    rewrite(folder / "last.safetensors", change)
    with pytest.raises(InputError, match=f"does not fit the model it describes: {name}"):
        if resumes:
            begin(recipe, folder, resume=True)
        else:
            load_checkpoint(folder / "last.safetensors")


def test_a_checkpoint_holds_what_has_learned_and_what_has_no_source(recipe):
    """A network read from a directory is in it only if it was trained, in this stage or before."""
    def parts(**changes):
        return dataclasses.replace(recipe, **changes).saved_parts
    always = {"projector", "tokens", "head"}
    assert parts() == always | {"llm", "encoder"}
    assert parts(llm="DIR", encoder="DIR") == always
    assert parts(llm="DIR", encoder="DIR", trained=("llm", "head")) == always | {"llm"}
    assert parts(llm="DIR", encoder="DIR", trained=("encoder",)) == always | {"encoder"}
    assert parts(llm="DIR", trained=("projector",)) == always | {"encoder"}


def test_only_the_named_parts_may_be_new(recipe, folder):
    """Stage 2 takes up a checkpoint without a head, and nothing else may be missing from it."""
    path = folder / "best.safetensors"
    rewrite(path, lambda tensors: tensors.pop("head.weight"))
    _, _, tensors = read_checkpoint(path)
    model = build_model(recipe).model
    with pytest.raises(InputError, match="does not fit .*: head.weight"):
        fill_model(model, recipe, tensors, path)
    fill_model(model, recipe, tensors, path, new_parts=("head",))
    assert torch.equal(model.projector[0].weight, tensors["projector.0.weight"])
    del tensors["special_embeddings"]
    with pytest.raises(InputError, match="does not fit .*: special_embeddings"):
        fill_model(model, recipe, tensors, path, new_parts=("head",))


@pytest.mark.parametrize("moment", ["exp_avg", "exp_avg_sq", "step"])
def test_a_checkpoint_without_a_moment_of_the_optimizer_is_refused(recipe, folder, moment):
    rewrite(folder / "last.safetensors", lambda tensors: tensors.pop(f"optimizer.projector.0.weight.{moment}"))
    with pytest.raises(InputError, match=f"holds no optimizer state for .*projector.0.weight.{moment}"):
        begin(recipe, folder, resume=True)


# ---- whole or not at all ----

def test_a_file_has_its_old_content_until_all_of_the_new_is_written(tmp_path):
    path = tmp_path / "file"
    write_text(path, "old")
    with pytest.raises(ZeroDivisionError):
        with write_bytes(path) as file:
            file.write(b"half of the n")
            file.flush()
            assert path.read_text() == "old"
            1 / 0
    assert path.read_text() == "old"
    with write_bytes(path) as file:
        file.write(b"new")
    assert path.read_text() == "new" and [found.name for found in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("failing", ["save_file", "fsync", "replace"])
def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(recipe, folder, monkeypatch, failing):
    """The disk is full half-way through the tensors, when they should reach it, or when the file is moved."""
    path = folder / "best.safetensors"
    model, _, recipe, progress = load_checkpoint(path)
    before = path.read_bytes()
    model.head.weight.data.fill_(7.0)                                         # the new file would be another one

    def full_disk(*args, **settings):
        if failing == "save_file":
            args[1].write_bytes(b"half of the tens")
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(checkpoint if failing == "save_file" else checkpoint.os, failing, full_disk)
    with pytest.raises(InputError, match="No space left.*the checkpoint before it is still there"):
        save_checkpoint(path, model, recipe, progress)
    assert path.read_bytes() == before
    monkeypatch.undo()
    assert not list(folder.glob("*.unfinished"))
    save_checkpoint(path, model, recipe, progress)
    assert marked(path) == [7.0]


def test_a_loss_that_is_not_finite_in_the_validation_saves_nothing(recipe, folder):
    run = begin(recipe, folder, resume=True)
    before = {name: (folder / name).read_bytes() for name in ("best.safetensors", "last.safetensors")}
    with pytest.raises(InputError, match="step 3: score is nan"):
        run.log_evaluation(step_of(2), {"other": 1.0, "score": float("nan")}, "score", higher_is_better=True)
    assert before == {name: (folder / name).read_bytes() for name in before}


def test_results_name_seconds_and_trained_parameters(recipe, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(training, "draw_curves", lambda path, lines: drawn.append((path, lines)))
    run = begin(recipe, tmp_path, train=("head",))
    run.measure({"step": 1, "loss": 2.0})
    run.finish({"score": 0.5})
    assert drawn == [(tmp_path / "curves.png", [{"step": 1, "loss": 2.0}])]
    results = json.loads((tmp_path / "results.json").read_text())
    assert results.keys() == {"score", "seconds", "trained_parameters", "held_out", "provenance"}
    assert results["trained_parameters"] == 2 * 128
    source = results["provenance"]
    assert source["trained"] == ["head"] and source["device"].startswith("cpu (") and source["processes"] == 1
    assert f"torch {torch.__version__}" in source["versions"] and source["command"]
    again = begin(recipe, tmp_path, train=("head",), resume=True) if (tmp_path / "last.safetensors").exists() else run
    assert again.progress["provenance"] == source                 # a resumed run names the command that began it
