"""Training end to end: two processes equal one, a killed run resumes to the same bytes, guards, schedule, checkpoints."""
import argparse
import json
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from helpers import ROOT, make_chronos, make_llama, run
from safetensors.torch import load_file

from sensorllm_min.checkpoint import load_checkpoint, read_checkpoint, save_checkpoint
from sensorllm_min.config import InputError
from sensorllm_min.data import PreparedData
from sensorllm_min.layers import RMSNorm
from sensorllm_min.options import sample_texts
from sensorllm_min.sensorllm import PARTS
from sensorllm_min.text_tokenizer import train_backend
from sensorllm_min.training import Processes, learning_rate, new_optimizer, train_step

SMALL = ("--train-limit", 52, "--eval-limit", 16, "--test-limit", 4, "--log-every", 1)
BRIEF = ("--max-new-tokens", 8)             # of stage 1: what a model that learned nothing writes


def metrics(folder):
    return [json.loads(line) for line in open(folder / "metrics.jsonl")]


def losses(folder):
    return [line["loss"] for line in metrics(folder) if "loss" in line]


def same_tensors(one, other, tolerance):
    one, other = load_file(one), load_file(other)
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=tolerance, msg=lambda m: f"{name}: {m}")


def test_two_processes_equal_one_and_accumulation(demo, tmp_path):
    """Batch 8 in one process, 4 in two, 2 x 4 accumulated: answers of unequal length, an uneven last step of 52 = 6*8+4.

    Only the order of float32 sums differs. Losses agree to 1e-6, and so does every weight but a few in a hundred
    thousand: Adam divides by the gradient's own size, so where that is hardly more than rounding, the rounding is
    blown up. Those are within two hundredths of one update (the rate is 1e-3).
    """
    options = ("--data", demo, "--eval-every", 7, *SMALL, *BRIEF)
    run("train_align.py", *options, "--batch-size", 8, "--out", "one", cwd=tmp_path)
    run("train_align.py", *options, "--batch-size", 4, "--out", "two", cwd=tmp_path, processes=2)
    run("train_align.py", *options, "--batch-size", 2, "--accumulate", 4, "--out", "accumulated", cwd=tmp_path)
    assert len(losses(tmp_path / "one")) == 7
    for other in ("two", "accumulated"):
        assert losses(tmp_path / other) == pytest.approx(losses(tmp_path / "one"), rel=1e-6)
        norms = [[line["grad_norm"] for line in metrics(tmp_path / out) if "grad_norm" in line] for out in ("one", other)]
        assert norms[1] == pytest.approx(norms[0], rel=1e-5)                  # Adam would hide a wrong factor
        one, two = (load_file(tmp_path / out / "last.safetensors") for out in ("one", other))
        apart = torch.cat([(one[name] - two[name]).abs().flatten() for name in one if not name.startswith("optimizer.")])
        assert (apart > 1e-6).float().mean() < 1e-4 and apart.max() < 2e-5
        for key in ("val_loss", "direction_accuracy", "trained_parameters"):
            assert json.loads((tmp_path / other / "results.json").read_text())[key] == pytest.approx(
                json.loads((tmp_path / "one" / "results.json").read_text())[key], rel=1e-5)


def test_a_killed_run_resumes_to_the_same_bytes(demo, tmp_path):
    """SIGKILL in the middle; --resume ends with the weights and metrics of the run that was not killed, to the bit."""
    options = ["--data", str(demo), "--batch-size", "4", "--eval-every", "4", *map(str, SMALL + BRIEF)]
    run("train_align.py", *options, "--out", "whole", cwd=tmp_path)
    process = subprocess.Popen([sys.executable, str(ROOT / "train_align.py"), *options, "--out", "killed"], cwd=tmp_path,
                               env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL)
    log, deadline = tmp_path / "killed" / "log.txt", time.time() + 120
    while not (log.exists() and "step     6/" in log.read_text()) and time.time() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    killed_at = len(losses(tmp_path / "killed"))
    assert 6 <= killed_at < 13
    run("train_align.py", *options, "--out", "killed", "--resume", cwd=tmp_path)
    same_tensors(tmp_path / "whole" / "last.safetensors", tmp_path / "killed" / "last.safetensors", 0)
    same_tensors(tmp_path / "whole" / "best.safetensors", tmp_path / "killed" / "best.safetensors", 0)
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "killed")

    assert "--resume needs the same settings" in run(
        "train_align.py", *options, "--out", "killed", "--resume", "--lr", "0.5", cwd=tmp_path, expect=2)
    assert "another model" in run(
        "train_align.py", *options, "--out", "killed", "--resume", "--train", "projector", cwd=tmp_path, expect=2)


def test_schedule_equals_transformers():
    from transformers import get_cosine_schedule_with_warmup
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2e-3)
    theirs = get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=math.ceil(0.03 * 200), num_training_steps=200)
    for step in range(200):
        # theirs spends its first step at rate 0; ours starts one notch up, so that no step is wasted
        theirs_next = theirs.lr_lambdas[0](step + 1) if step < 6 else theirs.lr_lambdas[0](step)
        assert learning_rate(step, 200, 2e-3, 0.03) == pytest.approx(2e-3 * theirs_next)


@pytest.mark.parametrize("scale", [0.01, 100])
def test_an_optimizer_step_equals_the_formulas(scale):
    """Clipping to norm 1 and AdamW (arXiv 1711.05101, algorithm 2), in numpy; norms and biases do not decay."""
    model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 1, bias=False))
    args = argparse.Namespace(lr=0.01, weight_decay=0.1, train=("all",), bf16=False, out="x")
    optimizer = new_optimizer(model, args)
    decays = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    assert [name for name, p in model.named_parameters() if id(p) in decays] == ["0.weight", "2.weight"]

    class Quadratic(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, batch):
            return scale * 3 * sum(((p - 0.3) ** 2).sum() for p in model.parameters()), torch.tensor(3.0)    # 3 tokens
    weights = {name: p.detach().double().numpy().copy() for name, p in model.named_parameters()}
    m, v = ({name: np.zeros_like(w) for name, w in weights.items()} for _ in "mv")
    for step in range(1, 6):
        rate = 0.01 / step
        _, norm, _ = train_step(Quadratic(), [OneBatch()], 1.0, optimizer, rate, Processes(0, 1, torch.device("cpu")), args, step)
        gradients = {name: scale * 2 * (w - 0.3) for name, w in weights.items()}
        total = np.sqrt(sum((g ** 2).sum() for g in gradients.values()))
        assert norm == pytest.approx(total, rel=1e-5)
        for name, w in weights.items():
            g = gradients[name] * min(1, 1 / (total + 1e-6))
            m[name], v[name] = 0.9 * m[name] + 0.1 * g, 0.95 * v[name] + 0.05 * g * g
            update = m[name] / (1 - 0.9 ** step) / (np.sqrt(v[name] / (1 - 0.95 ** step)) + 1e-8)
            w -= rate * update + (rate * 0.1 * w if name in ("0.weight", "2.weight") else 0)
            np.testing.assert_allclose(model.get_parameter(name).detach().numpy(), w, atol=1e-6)


def test_decaying_parameters_are_those_of_transformers(trained, monkeypatch):
    """The trainer of the original decays what transformers' rule says: no bias, no norm."""
    from transformers.trainer_pt_utils import get_parameter_names
    monkeypatch.chdir(trained)
    model, _, _, _ = load_checkpoint("align")
    model.train_only(PARTS)
    optimizer = new_optimizer(model, argparse.Namespace(lr=1e-3, weight_decay=0.1, train=PARTS))
    ours = {id(p) for p in optimizer.param_groups[0]["params"]}
    theirs = set(get_parameter_names(model, [RMSNorm], [r"bias"]))
    for name, parameter in model.named_parameters():
        relative_bias = "relative_bias" in name                               # T5's: a table, whatever it is called
        assert (id(parameter) in ours) == (name in theirs or relative_bias), name


class Poisoned(torch.nn.Module):
    """A model whose loss is what it is told."""
    def __init__(self, value):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))
        self.value = value

    def forward(self, batch):
        return (self.weight * self.value).sum(), torch.tensor(1.0)


class OneBatch:
    mask = torch.ones(1, 1)
    examples = [41]

    def to(self, device):
        return self


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_the_update(value):
    model = Poisoned(value)
    optimizer = torch.optim.AdamW(model.parameters())
    args = argparse.Namespace(bf16=False, out="out/x")
    with pytest.raises(InputError, match=r"step 8: the loss is (nan|inf) \(training examples 41\).*out/x/last.safetensors"):
        train_step(model, [OneBatch()], 1.0, optimizer, 0.1, Processes(0, 1, torch.device("cpu")), args, 7)
    assert (model.weight == 1).all()


def test_a_run_whose_loss_turns_nan_keeps_its_checkpoint(demo, tmp_path, monkeypatch):
    """NaN comes into the weights after step 5: the run stops, names the step, and what step 4 saved is good and stays."""
    import train_har
    monkeypatch.chdir(tmp_path)
    real_step = train_har.train_step

    def poisoned_step(model, batches, filler, optimizer, rate, processes, args, step):
        result = real_step(model, batches, filler, optimizer, rate, processes, args, step)
        if step == poisoned_at:
            with torch.no_grad():
                model.head.weight.fill_(float("nan"))
        return result
    monkeypatch.setattr(train_har, "train_step", poisoned_step)
    options = ["--data", str(demo), "--align", "none", "--text", "none", "--batch-size", "4", "--eval-every", "4"]
    # in the next step's loss; in the validation, where the macro F1 of NaN logits is still a number
    for poisoned_at, word in ((4, "step 6: the loss is nan"), (7, "step 8: val_loss is nan")):
        out = f"nan{poisoned_at}"
        monkeypatch.setattr(sys, "argv", ["train_har.py", *options, *map(str, SMALL), "--out", out])
        with pytest.raises(InputError, match=word):
            train_har.main()
        for name in ("best", "last"):
            model, _, _, progress = load_checkpoint(f"{out}/{name}.safetensors")
            assert progress["step"] == 4 and model.head.weight.isfinite().all()


def test_a_gradient_that_is_not_finite_stops_before_the_update():
    class Cliff(Poisoned):
        def forward(self, batch):
            return (self.weight - 1).abs().sqrt().sum(), torch.tensor(1.0)    # 0, with a slope without end
    model = Cliff(0)
    with pytest.raises(InputError, match=r"step 1: the gradient's norm is (nan|inf) \(training examples 41\)"):
        train_step(model, [OneBatch()], 1.0, torch.optim.AdamW(model.parameters()), 0.1,
                   Processes(0, 1, torch.device("cpu")), argparse.Namespace(bf16=False, out="x"), 0)
    assert (model.weight == 1).all()


@pytest.fixture(scope="module")
def trained(demo, tmp_path_factory):
    """Both stages on random public-layout weights, a step or two each -> the folder of it all."""
    folder = tmp_path_factory.mktemp("trained")
    backend = train_backend(sample_texts(PreparedData(demo)), 500)
    make_llama(folder / "llm", backend, vocab_size=512)
    make_llama(folder / "other", backend, vocab_size=512, num_hidden_layers=3)
    make_chronos(folder / "encoder")
    common = ("--data", demo, "--batch-size", 4, "--accumulate", 2, "--epochs", 1, *SMALL)
    run("train_align.py", *common, *BRIEF, "--llm", "llm", "--encoder", "encoder", "--out", "align", "--gradient-checkpointing",
        cwd=folder)
    run("train_har.py", *common, "--align", "align", "--out", "har", "--dtype", "bfloat16", cwd=folder, processes=1)
    return folder


def test_checkpoints_hold_what_was_trained_alone(trained):
    recipe, progress, tensors = read_checkpoint(trained / "align" / "best.safetensors")
    assert {name.split(".")[0] for name in tensors} == {"projector", "new_rows"}
    assert recipe.llm == str(trained / "llm") and recipe.stage == "align" and recipe.dataset == "demo" and progress["step"] > 0
    recipe, _, tensors = read_checkpoint(trained / "har" / "best.safetensors")
    assert {name.split(".")[0] for name in tensors} == {"projector", "new_rows", "head"}
    assert recipe.stage == "har" and recipe.text == ("smry", "Q") and recipe.projector == (2048,)
    results = json.loads((trained / "har" / "results.json").read_text())
    assert results["trained_parameters"] == 32 * 2048 + 2048 + 2048 * 48 + 48 + 5 * 48
    assert {"macro_f1", "accuracy", "chance", "seconds"} <= results.keys()


def test_stage_2_goes_on_where_stage_1_stopped(trained):
    """The marker rows of stage 1 are in stage 2's checkpoint, untouched; the projector moved on from stage 1's."""
    align, har = (load_file(trained / stage / "best.safetensors") for stage in ("align", "har"))
    assert torch.equal(align["new_rows"], har["new_rows"])
    assert 0 < (align["projector.0.weight"] - har["projector.0.weight"]).abs().max() < 0.1


def test_a_checkpoint_makes_the_same_model_again(trained, monkeypatch):
    monkeypatch.chdir(trained)
    model, tokenizer, recipe, _ = load_checkpoint("align")
    again, _, _, _ = load_checkpoint("align/last.safetensors")
    file = load_file("align/best.safetensors")
    assert all(torch.equal(dict(model.named_parameters())[name], tensor) for name, tensor in file.items())
    assert tuple(tokenizer.added) == recipe.added_tokens and again.head is None


def test_a_checkpoint_of_another_llm_is_refused(trained, monkeypatch):
    monkeypatch.chdir(trained)
    for moved in ("other", "encoder"):
        with pytest.raises(InputError, match=f"{moved} does not hold the weights"):
            load_checkpoint("align", llm=moved)
    with pytest.raises(InputError, match="nowhere is not there any more; say with --llm"):
        load_checkpoint("align", llm="nowhere")
    changes = {"model.safetensors": lambda good: good[:-4] + b"\0\0\0\0",    # same shapes, other numbers
               "config.json": lambda good: good.replace(b'"rms_norm_eps": 1e-06', b'"rms_norm_eps": 1e-03'),
               "tokenizer.json": lambda good: good + b" "}
    for name, change in changes.items():
        path = trained / "llm" / name
        good = path.read_bytes()
        assert change(good) != good
        try:
            path.write_bytes(change(good))
            with pytest.raises(InputError, match="does not hold the weights"):
                load_checkpoint("align")
        finally:
            path.write_bytes(good)


def test_checkpoint_files_that_are_not_ours(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(trained)
    good = (trained / "align" / "best.safetensors").read_bytes()
    for name, content in (("cut", good[:-50]), ("empty", b""), ("text", b"hello")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match="truncated|not a safetensors"):
            load_checkpoint(tmp_path / name)
    with pytest.raises(InputError, match="not a checkpoint of this project"):
        load_checkpoint("llm/model.safetensors")
    with pytest.raises(InputError, match="not found"):
        load_checkpoint("nowhere")
    (tmp_path / "format").write_bytes(good.replace(b'format\\": 1', b'format\\": 7', 1))
    with pytest.raises(InputError, match="format 7"):
        load_checkpoint(tmp_path / "format")


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(trained, monkeypatch):
    monkeypatch.chdir(trained)
    model, _, recipe, progress = load_checkpoint("align")
    before = (trained / "align" / "best.safetensors").read_bytes()

    def full_disk(*args):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(InputError, match="No space left"):
        save_checkpoint("align/best.safetensors", model, recipe, progress)
    assert (trained / "align" / "best.safetensors").read_bytes() == before
    assert not list((trained / "align").glob("*.unfinished"))


def test_evaluate_reports_on_both(trained, demo):
    out = run("evaluate.py", "--checkpoint", "align", "har", "--data", demo, "--limit", 12, "--max-new-tokens", 20, cwd=trained)
    assert "direction right for" in out and "guessing gets" in out and "macro f1" in out and "Walking" in out
    scores = json.loads((trained / "har" / "evaluation_test.json").read_text())
    assert sum(map(sum, scores["confusion"])) == scores["windows"] == 12
    rows = [json.loads(line) for line in open(trained / "align" / "descriptions_test.jsonl")]
    assert len(rows) == 12 and all({"answer", "generated", "channel"} <= row.keys() for row in rows)


def test_stage_2_without_stage_1(trained, demo):
    run("train_har.py", "--data", demo, "--align", "none", "--llm", "llm", "--encoder", "encoder", "--out", "only",
        "--text", "none", "--batch-size", 8, *SMALL, cwd=trained)
    _, _, tensors = read_checkpoint(trained / "only" / "best.safetensors")
    start = load_file(trained / "llm" / "model.safetensors")["model.embed_tokens.weight"].mean(0)
    assert (tensors["new_rows"][2:] - start).abs().max() > 1e-4               # the markers learned
    assert torch.allclose(tensors["new_rows"][1], start, atol=1e-6)           # <ts> has no gradient


def test_no_run_writes_over_another(trained, demo):
    before = {path: path.read_bytes() for path in (trained / "align").iterdir()}
    for options in (("--out", "align"), ("--out", "align", "--lr", 1)):
        out = run("train_har.py", "--data", demo, "--align", "align", *options, *SMALL, cwd=trained, expect=2)
        assert "align holds a run of stage align" in out
    assert before == {path: path.read_bytes() for path in (trained / "align").iterdir()}


@pytest.mark.parametrize("given,learns", [("--llm", {"encoder", "projector", "new_rows"}),
                                          ("--encoder", {"llm", "projector", "new_rows"})])
def test_a_network_without_a_directory_learns(trained, demo, given, learns):
    out = given.strip("-") + "-alone"
    run("train_align.py", "--data", demo, given, given.strip("-"), "--out", out, "--batch-size", 4, "--accumulate", 2,
        *SMALL, *BRIEF, cwd=trained)
    _, _, tensors = read_checkpoint(trained / out / "best.safetensors")
    assert {name.split(".")[0] for name in tensors} == learns


def test_a_part_that_the_stage_does_not_have(trained, demo):
    out = run("train_align.py", "--data", demo, "--train", "head", "--out", "x", cwd=trained, expect=2)
    assert "--train head leaves nothing to learn in this stage" in out and "Traceback" not in out


def test_what_stage_1_decides_cannot_be_given_again(trained, demo):
    out = run("train_har.py", "--data", demo, "--align", "align", "--projector", "64", "--out", "x", cwd=trained, expect=2)
    assert "--projector comes from align" in out


def test_a_checkpoint_of_another_dataset(trained, demo, tmp_path):
    import shutil
    other = tmp_path / "other"
    shutil.copytree(demo, other)
    meta = json.loads((other / "meta.json").read_text())
    (other / "meta.json").write_text(json.dumps(meta | {"dataset": "uci-har"}))
    for script in (("train_har.py", "--align", "align", "--out", "x"), ("evaluate.py", "--checkpoint", "align")):
        out = run(*script, "--data", other, cwd=trained, expect=2)
        assert "was trained on demo" in out and "holds uci-har" in out and "Traceback" not in out
    (other / "meta.json").write_text(json.dumps(meta | {"dataset": "usc-had"}))
    run("train_har.py", "--data", other, "--align", "none", "--out", "real", "--text", "none", *SMALL, cwd=trained)
    out = run("train_har.py", "--data", demo, "--align", "align", "--out", "real", *SMALL, cwd=trained, expect=2)
    assert "real holds a run of stage har on usc-had" in out                  # a demo never writes over a real run
