"""What a run keeps in its folder, without training: the best checkpoint, resuming, whole files, and what is refused."""
import dataclasses
import json
import os
import signal

import numpy as np
import pytest
import torch
from helpers import digest, json_lines
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sensorllm_min import files
from sensorllm_min.cli import Stopped
from sensorllm_min.data.prepared import PreparedData
from sensorllm_min.files import InputError
from sensorllm_min.recipe import build_model
from sensorllm_min.training import run as training
from sensorllm_min.training.checkpoint import fill_model, load_checkpoint, read_checkpoint, save_checkpoint
from sensorllm_min.training.options import new_recipe
from sensorllm_min.training.processes import Processes
from sensorllm_min.training.run import Run
from sensorllm_min.training.step import Loader, new_optimizer
from train_har import HarSettings

ALONE = Processes(0, 1, torch.device("cpu"))
SETTINGS = HarSettings(
    data="data/demo", batch_size=4, accumulate=2, epochs=3.0, lr=1e-3, betas=(0.9, 0.95), train_limit=100, eval_limit=50,
    scaling="StanNormalizeUniformBins", statistics=False, weight_decay=0.0, projector=(8,), train=("projector", "head"))


@pytest.fixture(autouse=True)
def signals_as_before():
    """A Run takes over SIGTERM."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def recipe(demo):
    """The built-in networks, as stage 2 has them; projector and head learn."""
    return dataclasses.replace(new_recipe(SETTINGS, PreparedData(demo)), classes=("still", "moving"))


class TenWindows:
    """As much of the training examples as a Run and its Loader read."""
    sizes, called = np.ones(10), "windows"

    def __len__(self):
        return 10


def begin(recipe, out, processes=ALONE, **changes):
    """A run of a fresh model, of which nothing but `train` learns."""
    settings = dataclasses.replace(SETTINGS, out=str(out), **changes)
    model = build_model(recipe)
    model.train_only(settings.train)
    loader = Loader(TenWindows(), settings, processes)
    return Run(settings, processes, model, recipe, new_optimizer(model, settings), loader)


def mark(run, value):
    """Lets a number stand in the weights, by which they are known again; and steps the optimizer once."""
    with torch.no_grad():
        run.model.head.weight.fill_(value)
    for group in run.optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.full_like(parameter, value)
        group["lr"] = 0.0
    run.optimizer.step()


def validate(run, losses, first=0):
    """Steps that end in a validation each; the weights hold the number of the step."""
    for step, loss in enumerate(losses, start=first):
        mark(run, step + 1.0)
        run.log_step(step, 1.5, 0.5, 1e-3, 10)
        run.log_validation(step, {"val_loss": loss, "macro_f1": 9.0 - step})


def marked(path):
    return load_file(path)["head.weight"].unique().tolist()


# ---- the best checkpoint ----

@pytest.mark.parametrize("scores,best_step", [([0.5, 0.25, 0.75, 0.25], 2), ([0.5, 0.25], 2), ([0.25, 0.5], 1)])
def test_the_best_validation_is_what_is_kept_and_loaded(recipe, tmp_path, scores, best_step):
    """The least loss; of equal ones the first."""
    run = begin(recipe, tmp_path)
    validate(run, scores)
    best, last = tmp_path / "best.safetensors", tmp_path / "last.safetensors"
    assert marked(best) == [best_step] and marked(last) == [len(scores)]
    for path, step in ((best, best_step), (last, len(scores))):
        _, progress, _ = read_checkpoint(path)
        assert (progress["step"], progress["best_step"], progress["best"]) == (step, best_step, scores[best_step - 1])
    assert not any(name.startswith("optimizer.") for name in load_file(best))
    mark(run, 99.0)
    run.load_best()
    assert run.model.head.weight.unique().tolist() == [best_step]


def test_a_resumed_run_keeps_the_best_of_before(recipe, tmp_path):
    validate(begin(recipe, tmp_path), [0.5, 0.75])
    run = begin(recipe, tmp_path, resume=True)
    assert run.progress["step"] == 2 and run.model.head.weight.unique().tolist() == [2.0]
    validate(run, [0.625], first=2)
    assert marked(tmp_path / "best.safetensors") == [1.0] and marked(tmp_path / "last.safetensors") == [3.0]
    assert run.progress["best_step"] == 1


def test_a_kill_between_the_two_checkpoints_loses_no_best(recipe, tmp_path):
    """The last one is written first; a resumed run writes the best one that it stands for."""
    validate(begin(recipe, tmp_path), [0.5])
    good = load_file(tmp_path / "best.safetensors")
    (tmp_path / "best.safetensors").unlink()
    begin(recipe, tmp_path, resume=True)
    again = load_file(tmp_path / "best.safetensors")
    assert again.keys() == good.keys() and all(again[name].equal(good[name]) for name in good)


# ---- asked to end ----

class OtherProcess(Processes):
    """The first of two processes, of which the other has been asked to end before a given sum."""
    sums = 0

    def sum(self, *values):
        OtherProcess.sums += 1
        return [value + (OtherProcess.sums > 1) for value in values]


@pytest.mark.parametrize("processes", [ALONE, OtherProcess(0, 1, torch.device("cpu"))], ids=["this", "the other"])
def test_a_run_that_is_asked_to_end_finishes_the_step_and_saves_it(recipe, tmp_path, processes):
    """SIGTERM to any one process of a run: all of them learn of it, and stop after the same step."""
    run = begin(recipe, tmp_path, processes)
    mark(run, 1.0)
    run.stop_if_asked(0)
    if processes is ALONE:
        os.kill(os.getpid(), signal.SIGTERM)
    mark(run, 2.0)                                                            # the rest of the step
    with pytest.raises(Stopped, match="ended on request after step 2; --resume continues from .*last.safetensors"):
        run.stop_if_asked(1)
    assert marked(tmp_path / "last.safetensors") == [2.0]
    assert not (tmp_path / "best.safetensors").exists()                       # that is for a validation to say
    (tmp_path / "metrics.jsonl").touch()
    assert begin(recipe, tmp_path, resume=True).progress["best"] is None


def test_a_new_run_begins_with_a_clean_folder(recipe, tmp_path):
    """What a demo or an interrupted run left there would pass for the new run's."""
    for name in training.FILES:
        (tmp_path / name).write_text("an earlier demo's")
    begin(recipe, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "log.txt"}
    assert (tmp_path / "metrics.jsonl").read_text() == ""


# ---- resuming ----

@pytest.fixture(scope="module")
def saved(recipe, tmp_path_factory):
    """The folder of a run that has validated after steps 1 and 2."""
    before = signal.getsignal(signal.SIGTERM)
    out = tmp_path_factory.mktemp("saved")
    validate(begin(recipe, out), [0.5, 0.5])
    signal.signal(signal.SIGTERM, before)
    return out


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of it, to be changed."""
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def rewrite(path, change):
    """Changes the tensors and the progress of a checkpoint file."""
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
    (key, text), = metadata.items()
    described = json.loads(text)
    change(tensors, described["progress"])
    save_file(tensors, path, metadata={key: json.dumps(described)})


@pytest.mark.parametrize("setting,other", [
    ("data", "data/else"), ("batch_size", 8), ("accumulate", 1), ("epochs", 4.0), ("lr", 2e-3), ("seed", 1), ("train_limit", None),
    ("eval_limit", 49), ("dtype", "bfloat16"), ("rotate", 20.0), ("resize", 1.2), ("fold", (0, 3)), ("train", ("head",)),
    ("train", ("projector", "head", "tokens")), ("ablation", "no-llm"), ("channel_names", True), ("llm_fingerprint", "x")])
def test_resuming_needs_the_same_settings_and_the_same_model(recipe, folder, setting, other):
    before, changes = digest(folder), {setting: other}
    if setting in ("ablation", "channel_names", "llm_fingerprint", "fold"):
        recipe, changes = dataclasses.replace(recipe, **changes), {}
    named = "batch" if setting in ("batch_size", "accumulate") else setting
    with pytest.raises(InputError, match=f"was trained with {named} .*; --resume needs the same settings"):
        begin(recipe, folder, resume=True, **changes)
    assert digest(folder) == before


def test_resuming_takes_up_weights_moments_seconds_and_the_batch_in_other_parts(recipe, folder):
    rewrite(folder / "last.safetensors", lambda tensors, progress: progress.update(seconds=1e6))
    run = begin(recipe, folder, resume=True, batch_size=8, accumulate=1)
    tensors = load_file(folder / "last.safetensors")
    assert run.progress["step"] == 2 and run.progress["best"] == 0.5 and run.progress["best_step"] == 1
    for name, parameter in run.model.named_parameters():
        assert torch.equal(parameter, tensors[name])                          # the built-in networks are saved as well
        if parameter.requires_grad:
            state = run.optimizer.state[parameter]
            assert all(torch.equal(state[moment], tensors[f"optimizer.{name}.{moment}"])
                       for moment in ("exp_avg", "exp_avg_sq", "step"))
            assert state["step"] == 2 and state["exp_avg"].abs().min() > 0
    validate(run, [0.25], first=2)
    assert read_checkpoint(folder / "last.safetensors")[1]["seconds"] >= 1e6


def test_resuming_forgets_what_the_metrics_hold_beyond_the_checkpoint(recipe, folder):
    path = folder / "metrics.jsonl"
    kept = path.read_text()
    assert len(kept.splitlines()) == 4
    path.write_text(kept + '{"step": 3, "loss": 1.0}\n{"step": 4, "lo')       # the last line is cut by a kill
    begin(recipe, folder, resume=True)
    assert path.read_text() == kept


# ---- what is printed and measured ----

def test_the_first_each_tenth_and_the_last_step_are_printed_and_all_are_measured(recipe, tmp_path, monkeypatch):
    """A printed loss is the mean since the last line. 2 s a step: 19 steps are left after the first, 10 after the tenth."""
    now = 1000.0
    monkeypatch.setattr(training.time, "monotonic", lambda: now)
    run = begin(recipe, tmp_path, batch_size=1, accumulate=1, epochs=2.0, eval_every=8)      # twenty steps
    for step in range(20):
        now += 2.0
        run.log_step(step, 1.0 + step, 0.5, 1e-3, 10)
    lines = [line.split() for line in (tmp_path / "log.txt").read_text().splitlines() if line.startswith("step")]
    assert [line[1] for line in lines] == ["1/20", "10/20", "20/20"]
    assert [line[3] for line in lines] == ["1.0000", "6.0000", "15.5000"]
    assert [line[6:8] for line in lines] == [["5", "tokens/s"]] * 3
    assert [line[8] for line in lines] == ["0.6", "0.3", "0.0"] and all(line[-1] == "GB" for line in lines)
    assert json_lines(tmp_path / "metrics.jsonl") == [
        {"step": step + 1, "loss": 1.0 + step, "grad_norm": 0.5, "lr": 1e-3} for step in range(20)]
    assert [step + 1 for step in range(20) if step in run.validated] == [8, 16, 20]
    run = begin(recipe, tmp_path, batch_size=1, accumulate=1)                 # thirty steps, eight validations
    assert [step + 1 for step in range(30) if step in run.validated] == [4, 8, 12, 16, 20, 24, 28, 30]


# ---- tensors that do not fit, files that cannot be written ----

CHANGES = {
    "missing": ("head.weight", lambda tensors, _: tensors.pop("head.weight")),
    "left over": ("projector.9.weight", lambda tensors, _: tensors.update({"projector.9.weight": torch.zeros(2)})),
    "of no part": ("teeth.weight", lambda tensors, _: tensors.update({"teeth.weight": torch.zeros(2)})),
    "of a shape that would broadcast": ("head.weight", lambda tensors, _: tensors.update({"head.weight": torch.zeros(1, 128)})),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_checkpoint_whose_tensors_do_not_fit_is_refused(recipe, folder, change):
    name, change = CHANGES[change]
    rewrite(folder / "last.safetensors", change)
    for load in (lambda: begin(recipe, folder, resume=True), lambda: load_checkpoint(folder / "last.safetensors")):
        with pytest.raises(InputError, match=f"does not fit the model it describes: {name}"):
            load()


def test_resuming_needs_the_moments_of_the_optimizer(recipe, folder):
    rewrite(folder / "last.safetensors", lambda tensors, _: tensors.pop("optimizer.projector.0.weight.exp_avg"))
    with pytest.raises(InputError, match="holds no optimizer state.*projector.0.weight.exp_avg"):
        begin(recipe, folder, resume=True)


def test_only_the_named_parts_may_be_new(recipe, folder):
    """Stage 2 takes up a checkpoint without a head, and nothing else may be missing from it."""
    _, _, tensors = read_checkpoint(folder / "best.safetensors")
    del tensors["head.weight"]
    model = build_model(recipe)
    fill_model(model, recipe, tensors, folder, new_parts=("head",))
    assert torch.equal(model.projector[0].weight, tensors["projector.0.weight"])
    del tensors["special_embeddings"]
    with pytest.raises(InputError, match="does not fit .*: special_embeddings"):
        fill_model(model, recipe, tensors, folder, new_parts=("head",))


def test_a_checkpoint_holds_what_has_learned_and_what_has_no_source(recipe):
    """A network read from a directory is in it only if it was trained, in this stage or before."""
    def parts(**changes):
        return dataclasses.replace(recipe, **changes).saved_parts
    always = {"projector", "tokens", "head"}
    assert parts() == always | {"llm", "encoder"}
    assert parts(llm="DIR", encoder="DIR") == always
    assert parts(llm="DIR", encoder="DIR", trained=("llm", "head")) == always | {"llm"}
    assert parts(llm="DIR", trained=("projector",)) == always | {"encoder"}


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(folder, monkeypatch, failing):
    """The disk is full when the tensors should reach it, or when the file is moved."""
    path = folder / "best.safetensors"
    model, recipe, progress = load_checkpoint(path)
    before = path.read_bytes()
    model.head.weight.data.fill_(7.0)                                         # the new file would be another one

    def full_disk(*args):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(files.os, failing, full_disk)
    with pytest.raises(InputError, match="No space left.*the checkpoint before it is still there"):
        save_checkpoint(path, model, recipe, progress)
    assert path.read_bytes() == before
    monkeypatch.undo()
    assert not list(folder.glob("*.unfinished"))
    save_checkpoint(path, model, recipe, progress)
    assert marked(path) == [7.0]
