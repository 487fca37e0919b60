"""Mistakes in models' directories, checkpoints and prepared data: one line each, and no other result."""
import json
import re
import shutil
import signal

import pytest
from helpers import Run, make_llama, run
from untrained import small_dataset

from sensorllm_min.files import locked
from sensorllm_min.text_tokenizer import train_backend

SMALL = ("--train-limit", 12, "--eval-limit", 4, "--test-limit", 2)
BRIEF = ("--max-new-tokens", 4)


# ---- directories of models ----

@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A small model whose tokenizer is that of `train_backend`."""
    folder = tmp_path_factory.mktemp("llama")
    make_llama(folder, train_backend(["It rises, it falls. 0.0s to 0.1s: rising"] * 9, 290))
    return folder


ODD = {                                     # valid JSON of another shape
    "no heads": ("config.json", {"num_attention_heads": 0}), "a list": ("config.json", {"bos_token_id": [1]}),
    "a text": ("config.json", {"eos_token_id": "</s>"}),
    "quantised": ("config.json", {"quantization_config": {"quant_method": "gptq"}}),
    "a token without content": ("tokenizer_config.json", {"bos_token": {"__type": "AddedToken"}}),
    "a template that is an object": ("tokenizer_config.json", {"chat_template": {"default": "x"}}),
    "a template without a name": ("tokenizer_config.json", {"chat_template": [{"template": "x"}]}),
    "a weight map of numbers": ("model.safetensors.index.json", {"weight_map": {"model.norm.weight": 7}}),
}


@pytest.mark.parametrize("kind", ODD)
def test_an_odd_file_of_a_model_is_named(llama, tmp_path, demo, kind):
    name, changes = ODD[kind]
    shutil.copytree(llama, tmp_path / "llama")
    path = tmp_path / "llama" / name
    if not path.exists():
        path.write_text("{}")
        (tmp_path / "llama" / "model.safetensors").unlink()
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    out = run("train_align.py", "--data", demo, "--llm", "llama", "--out", "x", *SMALL, *BRIEF, cwd=tmp_path, expect=2)
    assert re.search(rf"llama(/|: .*){name}", out) and out.count("\n") == 1, out


def test_a_model_without_a_chat_template_is_said_and_its_resumption_needs_it(llama, demo, tmp_path):
    options = ("--data", demo, "--out", "x", "--projector", 8, "--batch-size", 4, "--accumulate", 1, "--epochs", 1, *SMALL, *BRIEF)
    assert "has no chat template" in run("train_align.py", *options, "--llm", llama, cwd=tmp_path)
    out = run("train_align.py", *options, "--resume", cwd=tmp_path, expect=2)
    assert "--resume needs the same settings" in out and out.count("\n") == 1


# ---- training runs ----

def test_a_second_training_run_into_one_folder_is_one_line(demo, tmp_path):
    with locked(tmp_path / "x"):
        out = run("train_align.py", "--data", demo, "--out", "x", *SMALL, cwd=tmp_path, expect=2)
    assert "train_align.py: another run writes into" in out and out.count("\n") == 1


def test_processes_with_different_data_say_so(demo, tmp_path):
    """One line, where they would wait for one another."""
    shutil.copytree(demo, tmp_path / "data" / "demo")
    other = tmp_path / "other" / "data" / "demo"
    shutil.copytree(demo, other)
    meta = json.loads((demo / "meta.json").read_text())
    (other / "meta.json").write_text(json.dumps(meta | {"seed": 1}))
    started = Run("train_align.py", "--out", "x", *SMALL, cwd=tmp_path, processes=2, folders=[tmp_path, tmp_path / "other"])
    assert started.wait(60) == 2
    assert "the processes have different data" in started.text() and "Traceback" not in started.text()


def test_a_run_asked_to_end_before_its_first_validation_can_be_evaluated(demo, tmp_path):
    options = ("--data", demo, "--out", "x", "--batch-size", 1, "--eval-every", 1000, *SMALL, *BRIEF, "--train-limit", 500)
    started = Run("train_align.py", *options, cwd=tmp_path)
    started.wait_until(lambda: "step     1/" in started.text())
    started.kill(signal.SIGTERM)
    assert started.wait() == 128 + signal.SIGTERM
    out = run("evaluate.py", "--checkpoint", "x/last.safetensors", "--data", demo, "--limit", 2, *BRIEF, cwd=tmp_path)
    assert "validation none yet" in out and "wrote x/evaluation_test.json" in out


# ---- prepared data ----

def changed_split(demo, folder, split, keep):
    """The small dataset with those har records of a split alone that `keep` holds for."""
    small_dataset(demo, folder)
    path, meta = folder / f"har_{split}.jsonl", json.loads((folder / "meta.json").read_text())
    lines = [line for line in path.read_text().splitlines(keepends=True) if keep(json.loads(line))]
    path.write_text("".join(lines))
    meta["har_windows"][split] = len(lines)
    (folder / "meta.json").write_text(json.dumps(meta))


def test_an_empty_validation_split_is_one_line(demo, tmp_path):
    changed_split(demo, tmp_path / "data", "val", lambda record: False)
    out = run("train_har.py", "--data", "data", "--align", "none", "--text", "none", *SMALL, cwd=tmp_path, expect=2)
    assert "har_val.jsonl holds no window" in out and out.count("\n") == 1


def test_a_class_without_a_training_window_and_a_single_test_subject_are_scored(demo, tmp_path):
    changed_split(demo, tmp_path / "data", "train", lambda record: record["label"] != 2)
    shutil.move(tmp_path / "data", tmp_path / "first")
    changed_split(demo, tmp_path / "data", "test", lambda record: record["subject"] == 9)
    shutil.copy(tmp_path / "first" / "har_train.jsonl", tmp_path / "data")
    meta = json.loads((tmp_path / "data" / "meta.json").read_text())
    meta["har_windows"]["train"] = len((tmp_path / "data" / "har_train.jsonl").read_text().splitlines())
    (tmp_path / "data" / "meta.json").write_text(json.dumps(meta))
    run("train_har.py", "--data", "data", "--align", "none", "--text", "none", "--epochs", 1, *SMALL, cwd=tmp_path)
    out = run("evaluate.py", "--checkpoint", "out/har", "--data", "data", "--limit", 4, cwd=tmp_path)
    assert "wrote out/har/evaluation_test.json" in out
