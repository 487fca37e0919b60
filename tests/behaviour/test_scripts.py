"""The scripts as a person starts them: the demo and recordings of one's own end to end, and one
line for each mistake.
"""

import argparse
import importlib
import re

import pytest
from helpers import DEVICE, results, run, torchrun
from untrained import small_dataset


SMALL = ("--train-limit", 48, "--eval-limit", 8, "--test-limit", 8, "--epochs", 1)


def test_the_scripts_do_what_the_readme_says_when_a_person_starts_them(tmp_path):
    """The demo is prepared, both stages train, evaluate.py reports. Stage 2 is started by a real
    torchrun, the others as forks that run the same files (helpers.Run): a start costs less.
    """
    out = run("data_prep.py", "--workers", 1, cwd=tmp_path)
    assert "har_windows: train" in out and "Walking" in out and "wrote data/demo" in out
    assert re.search(r"^10 +test +10 +3400 +280 +\d+$", out, re.MULTILINE)
    out = run("train_align.py", *SMALL, "--max-new-tokens", 16, cwd=tmp_path)
    assert "min left" in out and "after training" in out
    assert out.rstrip().endswith("next: torchrun train_har.py") and "wrote out/align/results.json" in out
    scores = {"val_loss", "scores", "guess", "seconds", "trained_parameters"}
    assert scores <= results(tmp_path / "out/align").keys()
    out = torchrun("train_har.py", *SMALL[:-2], cwd=tmp_path)
    assert "no sensor turns" not in out and "6 steps of 32" in out            # three passes over a sample
    assert "macro f1" in out and out.rstrip().endswith("python evaluate.py --checkpoint out/har")
    source = results(tmp_path / "out/har")["provenance"]
    assert source["command"].startswith("torchrun --nproc_per_node 1 train_har.py --train-limit 48")
    assert source["stage_1"] == {"checkpoint": "out/align/best.safetensors",
                                 "scores": {"val_loss": results(tmp_path / "out/align")["val_loss"]}}
    scores = {"macro_f1", "accuracy", "chance", "seconds", "trained_parameters"}
    assert scores <= results(tmp_path / "out/har").keys()
    out = run("evaluate.py", "--limit", 8, "--max-new-tokens", 16, cwd=tmp_path)
    assert "stage align" in out and "stage har" in out
    assert {path.name for path in (tmp_path / "out/har").iterdir()} >= {
        "best.safetensors", "last.safetensors", "log.txt", "metrics.jsonl", "results.json",
    }
    assert "python evaluate.py --limit 8" in (tmp_path / "out/har/report_test.html").read_text()
    assert not list(tmp_path.rglob("*.pt")) and not list(tmp_path.rglob("*.pkl"))


def test_data_prep_shows_a_window_with_its_prompts_as_the_model_reads_them(tmp_path, demo):
    small_dataset(demo, tmp_path / "data/demo")
    out = run("data_prep.py", "--show", 5, cwd=tmp_path)
    assert out.count("<|begin_of_text|>") == 2 and out.count("<|eot_id|>") == 3
    assert "<x_acc_start><ts>*25<x_acc_end>\n<y_acc_start>" in out and "Mean=" in out
    assert "<|start_header_id|>assistant<|end_header_id|>" in out
    picture = (tmp_path / "data/demo/window_5.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 30_000
    out = run("data_prep.py", "--show", 5000, cwd=tmp_path, expect=2)
    assert "holds training windows 0 to 39" in out


MISTAKES = [
    (("data_prep.py", "--show", "1"), ["data/demo/meta.json not found"]),
    (("data_prep.py", "--dataset", "own"), ["needs --raw DIR"]),
    (("data_prep.py", "--dataset", "own", "--raw", "."), ["dataset.json not found"]),
    (("data_prep.py", "--dataset", "usc-had", "--raw", "nowhere"), ["nowhere is not a directory"]),
    (("data_prep.py", "--dataset", "usc-had"), ["needs --raw DIR", "USC-HAD.zip"]),
    (("data_prep.py", "--answer", "poem"), ["poem", "simple_trend"]),
    (("train_align.py", "--data", "nowhere"), ["nowhere/meta.json not found. Run: python data_prep.py"]),
    (("train_align.py", "--data", "data/usc-had-20hz"), ["--dataset usc-had --raw DIR --rate 20 --out data/usc-had-20hz"]),
    (("train_align.py", "--train", "everything"), ["everything", "projector"]),
    (("train_align.py", "--device", "cuda:77"), ["there is no device cuda:77 here"]),
    (("data_prep.py", "--out", "."), ["is not a prepared dataset"]),
    (("train_har.py",), ["out/align", "not found", "train_align.py"]),
    (("train_har.py", "--text", "smry+poem"), ["smry+poem", "corr"]),
    (("train_har.py", "--compare", "full,poem"), ["full,poem", "no-llm"]),
    (("evaluate.py",), ["no checkpoint", "train_align.py"]),
    (("evaluate.py", "--checkpoint", "nowhere"), ["nowhere not found"]),
]


@pytest.mark.parametrize("command,words", MISTAKES, ids=[" ".join(command) for command, _ in MISTAKES])
def test_a_mistake_ends_in_one_line_and_exit_code_2(tmp_path, command, words):
    (tmp_path / "something").write_text("else")
    out = run(*command, cwd=tmp_path, expect=2)
    assert all(word in out for word in words), out
    lines = [line for line in out.strip().splitlines() if line]
    assert len(lines) == 1 and lines[0].startswith(command[0] + ": "), out


@pytest.mark.parametrize("option", [
    "--train-limit=0", "--train-limit=-5", "--lr=-1", "--epochs=nan", "--epochs=inf", "--epochs=0", "--batch-size=0", "--seed=-1",
    "--eval-every=-2", "--projector=wide", "--projector=0"])
def test_a_value_that_makes_no_sense_is_refused_before_anything_is_written(tmp_path, option):
    out = run("train_align.py", option, cwd=tmp_path, expect=2)
    assert f"argument {option.split('=')[0]}: invalid" in out
    assert all(path.name.startswith(".") for path in tmp_path.iterdir())  # the harness's own files


def test_asking_for_triton_without_a_gpu_ends_in_one_line(demo, tmp_path, monkeypatch):
    if DEVICE == "cuda":
        pytest.skip("here it runs")
    monkeypatch.delenv("TRITON_INTERPRET")
    printed = run(
        "train_align.py", "--data", demo, "--attention", "triton", cwd=tmp_path, expect=2)
    assert "--attention triton needs a GPU" in printed.splitlines()[-1]


def options_of(script, monkeypatch):
    """The options of a script's parser, without running it further."""
    class Parsed(Exception):
        pass

    def caught(parser, *args):
        raise Parsed([action for action in parser._actions if action.option_strings])

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", caught)
    with pytest.raises(Parsed) as found:
        importlib.import_module(script).main()
    return found.value.args[0]


# Options that do something else, or nothing, where they are not given: they have no default.
MODES = {"resume", "help", "gradient_checkpointing", "compile", "channel_names", "download", "compare", "folds",
         "ask", "csv", "show", "raw"}


@pytest.mark.parametrize("script", ["data_prep", "train_align", "train_har", "evaluate"])
def test_help_tells_the_default_of_every_option(script, monkeypatch):
    """Also where it depends on the model; a number is the one that holds."""
    options = options_of(script, monkeypatch)
    assert len(options) > 10
    for option in options:
        told = option.dest in MODES or "default" in option.help
        assert told, f"{script}.py {option.option_strings[0]}: {option.help}"
        if type(option.default) in (int, float) and option.dest != "workers":
            assert f"default {option.default:g}" in option.help, option.help
