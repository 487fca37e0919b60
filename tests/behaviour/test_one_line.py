"""Mistakes in model directories, checkpoints and half-done evaluations: one line each, and no other result."""
import json
import re
import shutil
import socket

import numpy as np
import pytest
import torch
from helpers import Run, json_lines, make_llama, run
from safetensors import safe_open
from safetensors.torch import save_file
from untrained import evaluate_here, save_untrained, small_dataset

from sensorllm_min.config import read_llama_config
from sensorllm_min.data.plots import draw_confusion
from sensorllm_min.data.sensors import DATASETS
from sensorllm_min.evaluation import predict
from sensorllm_min.files import InputError, markdown_table
from sensorllm_min.text_tokenizer import load_text_tokenizer, train_backend
from sensorllm_min.training.checkpoint import KEY, load_checkpoint
from sensorllm_min.training.hub import resolve_source
from sensorllm_min.weights import load_llama

SMALL = ("--train-limit", 12, "--eval-limit", 4, "--test-limit", 2, "--log-every", 1, "--max-new-tokens", 4)


def refused(work, *words):
    with pytest.raises(InputError) as error:
        work()
    line = str(error.value)
    assert "\n" not in line and len(line) < 600 and all(str(word) in line for word in words), line


# ---- names and directories of models ----

@pytest.mark.parametrize("name", ["models/llama--3", "hub/models--a--b", "weights./llama", "my/llama.git", "a/" + "l" * 100, "a/b@", "\n"])
def test_names_that_are_no_hub_id_are_one_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(lambda: resolve_source(name), "director")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A small model whose tokenizer is that of `train_backend`."""
    folder = tmp_path_factory.mktemp("llama")
    make_llama(folder, train_backend(["It rises, it falls. 0.0s to 0.1s: rising"] * 9, 290))
    return folder


CONFIGS = {
    "vocab_size": ["300", None, 0, -5, 1e300, [300], True], "hidden_size": [48.5, {}], "num_hidden_layers": [10**9, "2", 0],
    "num_attention_heads": [0, None, 5], "num_key_value_heads": [3, "2"], "rms_norm_eps": ["1e-6", None, -1],
    "bos_token_id": [[1], "1"], "eos_token_id": ["2", [None], {"a": 1}, 10**9], "rope_parameters": ["x", [1], {"rope_theta": "x"}],
    "tie_word_embeddings": ["no"], "max_position_embeddings": [0, "4096"], "quantization_config": ["int4", [1]], "model_type": [["llama"], 7]}


@pytest.mark.parametrize("key", CONFIGS)
def test_values_of_config_json_of_another_type_or_out_of_range_are_refused(llama, tmp_path, demo, key):
    shutil.copytree(llama, tmp_path / "llama")
    path = tmp_path / "llama" / "config.json"
    config = json.loads(path.read_text())
    for value in CONFIGS[key]:
        path.write_text(json.dumps(config | {key: value}))

        def load():
            load_text_tokenizer(tmp_path / "llama", read_llama_config(tmp_path / "llama"), DATASETS["demo"].channels)
            load_llama(tmp_path / "llama")

        refused(load, tmp_path / "llama")


TOKENIZER_CONFIGS = [{"bos_token": {"__type": "AddedToken"}}, {"eos_token": 7}, {"chat_template": {"default": "x"}},
                     {"chat_template": [{"template": "x"}]}, {"chat_template": [7]}, {"chat_template": 7}]


@pytest.mark.parametrize("changes", TOKENIZER_CONFIGS, ids=str)
def test_values_of_tokenizer_config_json_of_another_type_are_refused(llama, tmp_path, demo, changes):
    shutil.copytree(llama, tmp_path / "llama")
    path = tmp_path / "llama" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    out = run("data_prep.py", "--show", 0, "--out", demo, "--llm", "llama", cwd=tmp_path, expect=2)
    assert "tokenizer_config.json does not hold" in out and out.count("\n") == 1


def test_a_model_without_a_chat_template_is_said_and_its_resumption_needs_it(llama, demo, tmp_path):
    options = ("--data", demo, "--out", "x", "--projector", 8, "--batch-size", 4, "--accumulate", 1, "--epochs", 1, *SMALL)
    out = run("train_align.py", *options, "--llm", llama, cwd=tmp_path)
    assert "has no chat template" in out and "--chat-format" in out
    out = run("train_align.py", *options, "--resume", cwd=tmp_path, expect=2)
    assert f"was trained with --llm {llama}; --resume needs it again" in out and out.count("\n") == 1


# ---- checkpoints ----

@pytest.fixture(scope="module")
def folder(demo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one_line")
    small_dataset(demo, folder / "data" / "demo")
    for stage in ("align", "har"):
        save_untrained(folder / "out" / stage, folder / "data" / "demo", stage)
    return folder


def rewrite(path, new, tensors=lambda tensors: None, metadata=lambda metadata: None):
    with safe_open(path, "pt") as file:
        described, content = json.loads(file.metadata()[KEY]), {name: file.get_tensor(name) for name in file.keys()}
    tensors(content)
    metadata(described)
    save_file(content, new, metadata={KEY: json.dumps(described)})
    return new


@pytest.mark.parametrize("change", [lambda t: t.int(), lambda t: t.bool(), lambda t: t * float("nan"), lambda t: t[:-1]],
                         ids=["int32", "bool", "NaN", "shape"])
def test_tensors_of_another_kind_are_refused(folder, tmp_path, change):
    def of_the_head(tensors):
        tensors["head.weight"] = change(tensors["head.weight"]).contiguous()

    path = rewrite(folder / "out" / "har" / "best.safetensors", tmp_path / "x.safetensors", of_the_head)
    refused(lambda: load_checkpoint(path), path, "head.weight")


RECIPES = [
    {"dataset": 7}, {"dataset": "x\n# y"}, {"scaling": "none"}, {"scaling": None}, {"projector": [0]}, {"projector": ["32"]},
    {"projector": 32}, {"classes": "Walking"}, {"classes": [1, 2]}, {"text": ["poem"]}, {"answer": "song"}, {"ablation": "x"},
    {"trained": ["teeth"]}, {"chat_format": "x"}, {"llm": 7}, {"channel_names": "no"}, {"tokenizer_json": "{}"}, {"tokenizer_json": None},
    {"llm_config": {}}, {"encoder_config": None}, {"chronos": {"n_tokens": "many"}}, {"own_dataset": {"rate": 1}, "dataset": "x"},
    {"unheard_of": 1}, {"added_tokens": ["a"]}, {"levels": 5}, {"levels": [[0.0, 1.0]]}, {"levels": [[0.0]] * 6},
    {"levels": [["a", "b"]] * 6}]
LARGE = {"d_model": 10**6, "d_ff": 10**7, "n_layers": 900, "vocab_size": 10**9}


@pytest.mark.parametrize("changes", RECIPES, ids=str)
def test_a_recipe_edited_by_hand_is_refused(folder, tmp_path, changes):
    path = rewrite(folder / "out" / "har" / "best.safetensors", tmp_path / "x.safetensors",
                   metadata=lambda metadata: metadata["recipe"].update(changes))
    refused(lambda: load_checkpoint(path))


@pytest.mark.parametrize("key", LARGE)
@pytest.mark.parametrize("network", ["llm_config", "encoder_config"])
def test_a_recipe_of_a_huge_network_takes_no_memory(folder, tmp_path, network, key):
    path = rewrite(folder / "out" / "har" / "best.safetensors", tmp_path / "x.safetensors",
                   metadata=lambda metadata: metadata["recipe"][network].update({key: LARGE[key]}))
    refused(lambda: load_checkpoint(path), path, "does not fit")


@pytest.mark.parametrize("changes", [{"step": "3"}, {"best": "good"}, {"settings": None}, {"seconds": None}, {"best_step": 1.5}], ids=str)
def test_a_progress_edited_by_hand_is_refused(folder, tmp_path, changes):
    path = rewrite(folder / "out" / "har" / "best.safetensors", tmp_path / "x.safetensors",
                   metadata=lambda metadata: metadata["progress"].update(changes))
    refused(lambda: load_checkpoint(path), path)


@pytest.mark.parametrize("change", [lambda t: t.int(), lambda t: t[None], lambda t: torch.zeros(2)], ids=["int32", "a dimension more", "two"])
@pytest.mark.parametrize("moment", ["exp_avg", "step"])
def test_a_moment_of_another_kind_is_refused(demo, tmp_path, trained, moment, change):
    def of_one(tensors):
        name = f"optimizer.projector.0.weight.{moment}"
        tensors[name] = change(tensors[name]).contiguous()

    shutil.copytree(trained, tmp_path / "x")
    rewrite(trained / "last.safetensors", tmp_path / "x" / "last.safetensors", of_one)
    out = run("train_align.py", "--data", demo, "--out", "x", "--resume", *SMALL, cwd=tmp_path, expect=2)
    assert f"the optimizer's {moment} of projector.0.weight is" in out and out.count("\n") == 1


@pytest.fixture(scope="module")
def trained(demo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    run("train_align.py", "--data", demo, "--out", "x", *SMALL, cwd=folder)
    return folder / "x"


# ---- half-done evaluations ----

FILES = {"align": "descriptions_test.jsonl", "har": "predictions_test.jsonl"}


@pytest.mark.parametrize("stage", FILES)
def test_rows_of_a_partial_file_that_do_not_fit_are_answered_again(folder, tmp_path, monkeypatch, capsys, stage):
    """Foreign, doubled, of another subject or label, without an answer, garbage: the same bytes as without them."""
    shutil.copytree(folder, tmp_path / "here", symlinks=True)
    options = ("--checkpoint", f"out/{stage}", "--data", "data/demo", "--limit", 12, "--max-new-tokens", 6)
    here, file = tmp_path / "here", tmp_path / "here" / "out" / stage / FILES[stage]
    settings = []

    def kept(path, content):
        if str(path).endswith(".partial"):
            settings.append(content.split("\n")[0])
        write(path, content)

    write = predict.write_text
    monkeypatch.setattr(predict, "write_text", kept)
    evaluate_here(monkeypatch, capsys, here, *options)
    expected, records = file.read_bytes(), json_lines(file)
    good = records[:4]
    bad = [records[0] | {"window": 10**6}, records[5] | {"subject": 77}, {"window": records[6]["window"]}, {"window": "7"}, [], 7, None,
           records[1] | {"generated": "something else", "predicted": 0}]
    if stage == "har":
        bad += [records[7] | {"predicted": 99}, records[7] | {"probabilities": [1]}, records[7] | {"label": 9}, records[7] | {"loss": "x"}]
    else:
        bad += [records[7] | {"answer": "It sings."}, records[7] | {"ended": 1}]
    lines = [settings[0], *map(json.dumps, good), *map(json.dumps, bad), "[" * 9999, "\x00\xff"]
    file.with_name(file.name + ".partial").write_text("\n".join(lines) + "\n" + "{", encoding="latin-1")
    out = evaluate_here(monkeypatch, capsys, here, *options)
    assert "4 of 12 windows are done" in out and file.read_bytes() == expected


# ---- markup, and names in pictures ----

def test_what_a_dataset_says_is_no_markup_of_a_report():
    hostile = "<img src=x onerror=alert(1)> [here](javascript:1) ![](http://x) `code` | a | *b* \\ \n# heading"
    table = markdown_table(("name",), [(hostile,)])
    assert table.count("\n") == 2                                             # head, rule and one row
    row = table.splitlines()[2]
    assert "<" not in row and all("\\" + sign in row for sign in "[]`|*\\")
    assert not re.search(r"(?<!\\)[\[\]`*]", row) and len(re.findall(r"(?<!\\)\|", row)) == 2


def test_a_class_name_with_dollar_signs_is_drawn_as_it_is():
    draw_confusion(np.eye(2, dtype=int), ["$x", r"a $\frac{ b"])


# ---- processes, splits ----

def test_a_port_in_use_is_one_line(demo, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        started = Run("train_align.py", "--data", demo, cwd=tmp_path, MASTER_ADDR="127.0.0.1", WORLD_SIZE="2", RANK="0",
                      MASTER_PORT=str(taken.getsockname()[1]))
        assert started.wait(60) == 2
    assert "the processes cannot meet at 127.0.0.1:" in started.text() and started.text().strip().count("\n") <= 1


def test_more_processes_than_examples_train(demo, tmp_path):
    run("train_align.py", "--data", demo, "--out", "x", "--train-limit", 1, "--eval-limit", 1, "--test-limit", 1, "--max-new-tokens", 2,
        cwd=tmp_path, processes=3)


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
    out = run("train_har.py", "--data", "data", "--align", "none", "--text", "none", *SMALL[:6], cwd=tmp_path, expect=2)
    assert "har_val.jsonl holds no window" in out and out.count("\n") == 1


def test_a_class_without_a_training_window_and_a_single_test_subject_are_scored(demo, tmp_path):
    changed_split(demo, tmp_path / "data", "train", lambda record: record["label"] != 2)
    shutil.move(tmp_path / "data", tmp_path / "first")
    changed_split(demo, tmp_path / "data", "test", lambda record: record["subject"] == 9)
    shutil.copy(tmp_path / "first" / "har_train.jsonl", tmp_path / "data")
    meta = json.loads((tmp_path / "data" / "meta.json").read_text())
    meta["har_windows"]["train"] = len((tmp_path / "data" / "har_train.jsonl").read_text().splitlines())
    (tmp_path / "data" / "meta.json").write_text(json.dumps(meta))
    run("train_har.py", "--data", "data", "--align", "none", "--text", "none", "--epochs", 1, *SMALL[:6], cwd=tmp_path)
    out = run("evaluate.py", "--checkpoint", "out/har", "--data", "data", "--limit", 4, cwd=tmp_path)
    assert "95 % over subjects" in out and "wrote out/har/evaluation_test.json" in out
