"""Training end to end: two processes equal one, what each script trains and validates on, and what it leaves behind."""
import json
import re
import shutil
import signal
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import digest, losses, make_chronos, make_llama, metrics, quiet, results, run
from safetensors.torch import load_file

from sensorllm_min.batch import collate
from sensorllm_min.data.examples import AlignExamples, HarExamples, PromptFormat, sample_texts
from sensorllm_min.data.prepared import PreparedData
from sensorllm_min.evaluation.class_scores import class_scores
from sensorllm_min.evaluation.predict import mean_loss, score_classes
from sensorllm_min.files import InputError
from sensorllm_min.text_tokenizer import train_backend
from sensorllm_min.recipe import build_model
from sensorllm_min.training.checkpoint import load_checkpoint, read_checkpoint
from sensorllm_min.training.processes import Processes
from sensorllm_min.training.step import learning_rate
from sensorllm_min.training.warm_up import LONGEST, targets_of, trends_ahead

ALONE = Processes(0, 1, torch.device("cpu"))
SMALL = ("--train-limit", 52, "--eval-limit", 16, "--test-limit", 4)
ONE_STEP = ("--train-limit", 8, "--batch-size", 8, "--accumulate", 1, "--epochs", 1)
BRIEF = ("--max-new-tokens", 8)             # for stage 1: what a model that learned nothing writes


@pytest.fixture(autouse=True)
def signals_as_before():
    """A run in this process takes over SIGTERM."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


# ---- many processes, one result ----

def test_two_processes_and_accumulation_equal_one_process(demo, tmp_path):
    """Batches of 8 in one process, 2 x 2 accumulated in two: answers of unequal length, and 33 = 4 * 8 + 1 examples.

    In the step with one example the second process has none. Only the order of float32 sums differs, which is 6e-8 a
    sum: losses agree to 1e-6, the norms of the gradients (which Adam would hide) and the losses on other windows to 1e-5.
    The optimizer's first moments, a mean of gradients, agree to 1e-4 of their norm, each tensor's by itself. The weights
    are not compared one by one: Adam divides a gradient by its own size, so that where it is hardly more than rounding,
    the rounding decides the sign of an update. Together they have moved alike to a hundredth of the way they have gone.
    """
    options = ("--data", demo, *SMALL, *BRIEF, "--train-limit", 33, "--epochs", 1, "--eval-every", 1000)
    run("train_align.py", *options, "--batch-size", 8, "--out", "one", cwd=tmp_path)
    out = run("train_align.py", *options, "--batch-size", 2, "--accumulate", 2, "--out", "two", cwd=tmp_path, processes=2)
    assert out.count("\n--- test window") == out.count("\nbefore training:\n") == 2        # the first process's two of four
    assert "(resumed)" not in out
    run("train_align.py", *options, "--train-limit", 1, "--lr", 0, "--eval-limit", 1, "--test-limit", 1, "--out", "start",
        cwd=tmp_path)
    start, one, two = (load_file(tmp_path / out / "last.safetensors") for out in ("start", "one", "two"))
    weights = [name for name in one if not name.startswith("optimizer.")]
    moments = [name for name in one if name.endswith(".exp_avg")]
    assert len(losses(tmp_path / "one")) == 5 and len(weights) == len(moments) > 20
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-6)
    norms = [[line["grad_norm"] for line in metrics(tmp_path / out) if "grad_norm" in line] for out in ("one", "two")]
    assert norms[1] == pytest.approx(norms[0], rel=1e-5)
    for name in moments:
        assert (two[name] - one[name]).norm() <= 1e-4 * one[name].norm(), name
    apart = sum((two[name] - one[name]).square().sum() for name in weights)
    gone = sum((one[name] - start[name]).square().sum() for name in weights)
    assert 0 < gone and apart < 1e-4 * gone
    found = [results(tmp_path / out) for out in ("one", "two")]
    for one in found:
        assert one["scores"].pop("facts") is None                 # which the demo does not tell
    for key in ("val_loss", "trained_parameters", "scores"):
        assert found[1][key] == pytest.approx(found[0][key], rel=1e-5)


# ---- the built-in encoder sees before the LLM speaks ----

AS_THEY_ARE = SimpleNamespace(smooth=0.0, band=0.0)          # a dataset whose trends are of the series itself


def test_what_the_encoder_is_told_of_a_series():
    """Up to 2, down to 1, level, up: the direction from each sample on, and the samples until it ends."""
    direction, until = trends_ahead(np.array([0, 1, 2, 1, 1, 1, 3.0]), AS_THEY_ARE)
    assert direction.tolist() == [2, 2, 0, 1, 1, 2] and until.tolist() == [2, 1, 1, 2, 1, 1]
    assert trends_ahead(np.array([4.0]), AS_THEY_ARE).shape == (2, 0)
    assert trends_ahead(np.arange(100.0), AS_THEY_ARE)[1].tolist() == [LONGEST] * 60 + list(range(39, 0, -1))


def test_what_the_encoder_is_told_stands_at_its_samples():
    """A batch of series padded on the left: nothing is told at padding, at a last sample, at the end of series."""
    nan = float("nan")
    series = torch.tensor([[0, 1, 2, 1], [nan, nan, 5, 3]], dtype=torch.float64)
    batch = SimpleNamespace(series=series, series_lengths=torch.tensor([4, 2]))
    direction, until = targets_of(batch, AS_THEY_ARE).tolist()
    assert direction == [[2, 2, 0, -100, -100], [-100, -100, 0, -100, -100]]
    assert until == [[2, 1, 1, -100, -100], [-100, -100, 1, -100, -100]]


def test_the_built_in_encoder_warms_up_before_stage_1_and_no_other(demo, tmp_path, monkeypatch):
    """With a learning rate of 0 the run leaves all as it was, but for what the warm-up has taught the encoder.

    12 steps: seeds 0, 1, 2 are right at 78 % of samples; at 35 % before. A public encoder stays as it came, also one that
    is trained, and a resumed run does not warm up again.
    """
    monkeypatch.chdir(tmp_path)
    options = ("--data", demo, *SMALL, *BRIEF, "--lr", 0, "--epochs", 1, "--train-limit", 384, "--batch-size", 128,
               "--test-limit", 1)
    out = run("train_align.py", *options, "--out", "warm", cwd=tmp_path)
    assert int(re.search(r"step 12/12, direction right at (\d+)%", out)[1]) > 65
    cold = ("--train", "projector,tokens,llm")
    assert "warms up" not in run("train_align.py", *options, *cold, "--out", "cold", cwd=tmp_path)
    assert "warms up" not in run("train_align.py", *options, "--resume", "--out", "warm", cwd=tmp_path)
    make_chronos(tmp_path / "chronos")
    given = ("--encoder", "chronos", "--train", "encoder,llm,projector,tokens", "--train-limit", 8)
    assert "warms up" not in run("train_align.py", *options, *given, "--out", "given", cwd=tmp_path)
    warm, cold = (load_checkpoint(tmp_path / out / "last.safetensors")[0].state_dict() for out in ("warm", "cold"))
    moved = {name.split(".")[0] for name in warm if not warm[name].equal(cold[name])}
    assert moved == {"encoder"}


# ---- what each script trains, validates and tests on ----

@pytest.fixture(scope="module")
def untouched(demo, tmp_path_factory):
    """Both scripts with a rate of 0, one step over all of a sample: the checkpoint is the model that gave each score."""
    folder = tmp_path_factory.mktemp("untouched")
    options = ("--data", demo, "--lr", 0, "--epochs", 1, "--seed", 3, "--train-limit", 21, "--eval-limit", 22,
               "--test-limit", 23, "--batch-size", 21)
    run("train_align.py", *options, *BRIEF, "--out", "align", cwd=folder)
    run("train_har.py", *options, "--align", "none", "--text", "none", "--out", "har", cwd=folder)
    return folder


@pytest.mark.parametrize("stage", ["align", "har"])
def test_the_seed_draws_the_weights_that_a_run_starts_from(untouched, stage):
    model, recipe, _ = load_checkpoint(untouched / stage / "last.safetensors")
    for seed in (3, 0):
        torch.manual_seed(seed)
        drawn = build_model(recipe)
        assert torch.equal(drawn.projector[0].weight, model.projector[0].weight) == (seed == 3)


SPLITS = (("train", 21), ("val", 22), ("test", 23))


def test_stage_1_trains_validates_and_tests_on_a_sample_of_the_split_for_it(untouched, demo):
    """Losses to 1e-5: batches of another size add in another order."""
    model, recipe, _ = load_checkpoint(untouched / "align/last.safetensors")
    data, prompts, losses_of, tests = PreparedData(demo), PromptFormat.of(model, recipe), {}, None
    for split, limit in SPLITS:
        tests = AlignExamples(data, split, prompts, limit, 3)
        losses_of[split] = mean_loss(model, tests, ALONE, 4)
    assert len({round(loss, 3) for loss in losses_of.values()}) == 3          # the splits can be told apart
    first, validation = metrics(untouched / "align")
    assert first["loss"] == pytest.approx(losses_of["train"], rel=1e-5)
    assert validation["val_loss"] == pytest.approx(losses_of["val"], rel=1e-5)
    shown = (untouched / "align/log.txt").read_text().split("--- test window ")[1:]
    assert len(shown) == 3
    for text in shown:
        index = int(text.split(":")[0])                           # of the window in its file
        row = tests[list(tests.index).index(index)].record
        assert f"{row['channel']}, {row['length']} samples\ntrue:\n{row['answer']}\nbefore" in text


def test_stage_2_trains_validates_and_tests_on_a_sample_of_the_split_for_it(untouched, demo):
    """The loss is weighted by the rarity of each class among the windows trained on, in training and validation."""
    model, recipe, _ = load_checkpoint(untouched / "har/last.safetensors")
    prompts = PromptFormat.of(model, recipe)
    examples = {split: HarExamples(PreparedData(demo), split, prompts, limit, 3) for split, limit in SPLITS}
    examples["train"].degrees, examples["train"].factor = 30.0, 1.4           # the defaults; no other split turns
    counts = np.bincount(examples["train"].labels(), minlength=5)
    assert len(set(counts)) > 2 and counts.min() > 0                          # weights of the sample, not of the whole
    weights = torch.tensor(1 / counts / (1 / counts).sum(), dtype=torch.float32)
    torch.testing.assert_close(model.class_weights, weights)      # the checkpoint has kept them
    model.class_weights = torch.ones(5)
    unweighted = mean_loss(model, examples["train"], ALONE, 4)
    model.class_weights = weights
    weighted = {split: mean_loss(model, examples[split], ALONE, 4) for split in examples}
    assert abs(weighted["train"] - unweighted) > 1e-3 * unweighted
    first, validation = metrics(untouched / "har")
    batch = collate([examples["train"][i] for i in range(counts.sum())], model.tokenizer.pad_id)
    with torch.no_grad():
        loss, weight = model.train()(batch)                       # labels are smoothed
    assert first["loss"] == pytest.approx((loss / weight).item(), rel=1e-5)
    assert validation["val_loss"] == pytest.approx(weighted["val"], rel=1e-5)
    scores = {split: score_classes(model, examples[split], ALONE, 4, quiet)[0] for split in examples}
    assert len({score["accuracy"] for score in scores.values()}) == 3
    assert validation["macro_f1"] == scores["val"]["macro_f1"] and validation["accuracy"] == scores["val"]["accuracy"]
    tested = results(untouched / "har")
    assert all(tested[name] == scores["test"][name] for name in ("accuracy", "macro_f1", "chance"))


# ---- the schedule, and which checkpoint is kept and tested ----

@pytest.mark.parametrize("stage,eval_every", [("align", 3), ("har", 2)])
def test_each_step_has_the_rate_of_the_schedule_and_each_nth_a_validation(trained, stage, eval_every):
    lines = metrics(trained / stage)
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6, 7]          # 52 examples in steps of 4 x 2
    assert [line["lr"] for line in steps] == [learning_rate(step, 7, 2e-3, 0.03) for step in range(7)]
    assert steps[0]["lr"] == steps[1]["lr"] == 2e-3 > steps[2]["lr"] > steps[6]["lr"]      # 3 % of 7 is one step
    validated = [line["step"] for line in lines if "val_loss" in line]
    assert validated == [*range(eval_every, 7, eval_every), 7]
    assert lines == sorted(lines, key=lambda line: (line["step"], "val_loss" in line))


SCORES = {"macro_f1": 0.5, "accuracy": 0.5, "confusion": np.eye(5, dtype=int).tolist()}
LOSSES = 0.5, 0.9, 0.7                                            # of three validations, the first the best


@pytest.mark.parametrize("stage", ["align", "har"])
def test_the_test_scores_come_from_the_checkpoint_that_validated_best(demo, tmp_path, monkeypatch, stage):
    """The first of three validations is told to be the best: its weights are what is tested, not the last ones."""
    import train_align
    import train_har
    monkeypatch.chdir(tmp_path)
    module, tested, validations = {"align": train_align, "har": train_har}[stage], [], iter(range(3))
    real_answers = train_align.answer_batches

    def told_loss(model, *args):
        return LOSSES[next(validations)]

    def told_classes(model, examples, *args):
        if "test" in examples.records.paths[0].name:
            tested.append(model.projector[0].weight.detach().clone())
            return SCORES, 1.0
        return SCORES, LOSSES[next(validations)]

    def noted_answers(model, *args, **settings):
        tested.append(model.projector[0].weight.detach().clone())
        return real_answers(model, *args, **settings)
    if stage == "align":
        monkeypatch.setattr(train_align, "mean_loss", told_loss)
        monkeypatch.setattr(train_align, "answer_batches", noted_answers)
    else:
        monkeypatch.setattr(train_har, "score_classes", told_classes)
    options = ["--data", demo, *SMALL, "--train-limit", 12, "--batch-size", 4, "--epochs", 1, "--eval-every", 1, "--out", "out"]
    options += BRIEF if stage == "align" else ["--align", "none", "--text", "none"]
    monkeypatch.setattr(sys, "argv", ["script", *map(str, options)])
    module.main()
    best, last = (load_file(f"out/{name}.safetensors")["projector.0.weight"] for name in ("best", "last"))
    assert torch.equal(tested[-1], best) and not torch.equal(best, last)
    _, progress, _ = read_checkpoint("out/best.safetensors")
    assert progress["step"] == progress["best_step"] == 1 and progress["best"] == 0.5
    if stage == "align":
        assert results("out")["val_loss"] == 0.5


class Begun(Exception):
    """What ends a run at its first training step."""


@pytest.mark.parametrize("stage", ["align", "har"])
def test_dtype_reaches_the_steps_of_training(demo, tmp_path, monkeypatch, stage):
    """What a step then computes in is tested with train_step itself."""
    import train_align
    import train_har
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train_align, "answer_batches", lambda *args, **settings: [])       # before training
    module, seen = {"align": train_align, "har": train_har}[stage], []

    def noted_step(model, optimizer, batches, lr, processes):
        seen.append(processes.bf16)
        raise Begun
    monkeypatch.setattr(module, "train_step", noted_step)
    options = ["--data", demo, *SMALL, "--out", "out"] + (["--align", "none"] if stage == "har" else [])
    for dtype in ("float32", "bfloat16"):
        monkeypatch.setattr(sys, "argv", ["script", *map(str, options), "--dtype", dtype])
        with pytest.raises(Begun):
            module.main()
    assert seen == [False, True]


def test_a_run_whose_loss_turns_nan_keeps_its_checkpoint(demo, tmp_path, monkeypatch):
    """NaN comes into the weights after step 5 or 8: the run stops at once, and what step 4 saved is good and stays."""
    import train_har
    monkeypatch.chdir(tmp_path)
    real_step = train_har.train_step

    def poisoned_step(poisoned_at, model, optimizer, batches, *args):
        result = real_step(model, optimizer, batches, *args)
        steps.append(result)
        if len(steps) == poisoned_at:
            with torch.no_grad():
                model.head.weight.fill_(float("nan"))
        return result
    options = ["--data", str(demo), "--align", "none", "--text", "none", "--batch-size", "4", "--eval-every", "4"]
    # in the next step's loss; in the validation, where the macro F1 of NaN logits is still a number
    for poisoned_at, word in ((5, "the loss is nan .training examples"), (8, "the validation after step 8 is nan")):
        out, steps = f"nan{poisoned_at}", []
        monkeypatch.setattr(train_har, "train_step", partial(poisoned_step, poisoned_at))
        monkeypatch.setattr(sys, "argv", ["train_har.py", *options, *map(str, SMALL), "--out", out])
        with pytest.raises(InputError, match=word):
            train_har.main()
        assert len(steps) == metrics(out)[-1]["step"] == poisoned_at
        for name in ("best", "last"):
            model, _, progress = load_checkpoint(f"{out}/{name}.safetensors")
            assert progress["step"] == 4 and model.head.weight.isfinite().all()


@pytest.fixture(scope="module")
def trained(demo, tmp_path_factory):
    """Both stages on random weights in the public layout, seven steps each -> the folder of it all."""
    folder = tmp_path_factory.mktemp("trained")
    backend = train_backend(sample_texts(PreparedData(demo)), 500)
    make_llama(folder / "llm", backend, vocab_size=512)
    make_llama(folder / "other", backend, vocab_size=512, num_hidden_layers=3)
    make_chronos(folder / "encoder")
    make_chronos(folder / "blunt", num_layers=1)
    common = ("--data", demo, "--batch-size", 4, "--accumulate", 2, "--epochs", 1, *SMALL, "--lr", 2e-3)
    run("train_align.py", *common, *BRIEF, "--llm", "llm", "--encoder", "encoder", "--out", "align", "--gradient-checkpointing",
        "--eval-every", 3, cwd=folder)
    run("train_har.py", *common, "--align", "align", "--out", "har", "--dtype", "bfloat16", "--eval-every", 2, cwd=folder,
        processes=1)
    return folder


def test_checkpoints_hold_only_what_was_trained_and_stage_2_goes_on_where_stage_1_stopped(trained):
    """The special tokens of stage 1 are in stage 2's checkpoint, untouched; the projector moved on from stage 1's."""
    recipe, progress, align = read_checkpoint(trained / "align" / "best.safetensors")
    assert {name.split(".")[0] for name in align} == {"projector", "special_embeddings"}
    assert recipe.llm == str(trained / "llm") and recipe.stage == "align" and recipe.dataset == "demo" and progress["step"] > 0
    recipe, _, har = read_checkpoint(trained / "har" / "best.safetensors")
    assert {name.split(".")[0] for name in har} == {"projector", "special_embeddings", "head", "class_weights"}
    assert recipe.stage == "har" and recipe.text == ("smry", "Q") and recipe.projector == (2048,)
    assert results(trained / "har")["trained_parameters"] == 32 * 2048 + 2048 + 2048 * 48 + 48 + 5 * 48
    assert torch.equal(align["special_embeddings"], har["special_embeddings"])
    assert 0 < (align["projector.0.weight"] - har["projector.0.weight"]).abs().max() < 0.1


@pytest.mark.parametrize("network,others", [("llm", ("other", "encoder")), ("encoder", ("llm", "blunt"))])
def test_a_checkpoint_on_another_network_is_refused(trained, monkeypatch, network, others):
    """Moved or changed in place: config, tokenizer, and one number at the very end of the weights all tell."""
    monkeypatch.chdir(trained)
    for other in others:
        with pytest.raises(InputError, match=f"{other} does not hold the weights.*--{network}"):
            load_checkpoint("align", **{network: other})
    with pytest.raises(InputError, match=f"nowhere is not a directory.*--{network}"):
        load_checkpoint("align", **{network: "nowhere"})
    changes = {"model.safetensors": lambda good: good[:-4] + b"\0\0\0\0",    # same shapes, other numbers
               "config.json": lambda good: good.replace(b"e-06", b"e-03")}    # the epsilon of the norms
    if network == "llm":
        changes["tokenizer.json"] = lambda good: good.replace(b'"0":', b'"old":').replace(b'"1":', b'"0":').replace(b'"old":', b'"1":')
    for name, change in changes.items():
        path = trained / network / name
        good = path.read_bytes()
        assert change(good) != good
        try:
            path.write_bytes(change(good))
            with pytest.raises(InputError, match="does not hold the weights"):
                load_checkpoint("align")
        finally:
            path.write_bytes(good)
    shutil.copytree(trained / network, trained / "moved")
    load_checkpoint("align", **{network: "moved"})                            # the same network at another place
    shutil.rmtree(trained / "moved")


def test_files_that_are_no_checkpoint_of_ours_are_refused(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(trained)
    good = (trained / "align" / "best.safetensors").read_bytes()
    for name, content in (("cut", good[:-50]), ("empty", b""), ("text", b"hello")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match="truncated or not a safetensors"):
            load_checkpoint(tmp_path / name)
    with pytest.raises(InputError, match="not a checkpoint of this project"):
        load_checkpoint("llm/model.safetensors")
    with pytest.raises(InputError, match="not found"):
        load_checkpoint("nowhere")
    (tmp_path / "format").write_bytes(good.replace(b"sensorllm_min.2", b"sensorllm_min.1", 1))
    with pytest.raises(InputError, match="not of its present format.*train it again"):
        load_checkpoint(tmp_path / "format")


def test_stage_2_without_stage_1_learns_its_markers(trained, demo):
    run("train_har.py", "--data", demo, "--align", "none", "--llm", "llm", "--encoder", "encoder", "--out", "only",
        "--text", "none", *SMALL, *ONE_STEP, cwd=trained)
    _, _, tensors = read_checkpoint(trained / "only" / "best.safetensors")
    start = load_file(trained / "llm" / "model.safetensors")["model.embed_tokens.weight"].mean(0)
    assert (tensors["special_embeddings"][2:] - start).abs().max() > 1e-4               # the markers learned
    assert torch.allclose(tensors["special_embeddings"][1], start, atol=1e-6)           # <ts> has no gradient


def test_what_stage_1_decides_cannot_be_given_again(trained, demo):
    out = run("train_har.py", "--data", demo, "--align", "align", "--projector", "64", "--out", "x", cwd=trained, expect=2)
    assert "--projector comes from align" in out


def test_no_run_writes_over_another_and_each_keeps_to_its_dataset(trained, demo, tmp_path):
    before = digest(trained / "align")
    out = run("train_har.py", "--data", demo, "--align", "align", "--out", "align", *SMALL, cwd=trained, expect=2)
    assert "align holds a run of stage align" in out and digest(trained / "align") == before
    other = tmp_path / "other"
    shutil.copytree(demo, other)
    meta = json.loads((other / "meta.json").read_text())
    (other / "meta.json").write_text(json.dumps(meta | {"dataset": "uci-har"}))
    for script in (("train_har.py", "--align", "align", "--out", "x"), ("evaluate.py", "--checkpoint", "align")):
        out = run(*script, "--data", other, cwd=trained, expect=2)
        assert "was trained on demo" in out and "holds uci-har" in out and "Traceback" not in out
    (other / "meta.json").write_text(json.dumps(meta | {"dataset": "usc-had"}))
    run("train_har.py", "--data", other, "--align", "none", "--out", "real", "--text", "none", *SMALL, *ONE_STEP, cwd=trained)
    out = run("train_har.py", "--data", demo, "--align", "align", "--out", "real", *SMALL, cwd=trained, expect=2)
    assert "real holds a run of stage har on usc-had" in out                  # a demo never writes over a real run
