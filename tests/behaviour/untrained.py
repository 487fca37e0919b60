"""A small part of the demo dataset, and checkpoints of untrained models, for tests of evaluate.py.

Most of what evaluate.py does is independent of what the model learned. So its checkpoints are made in a second, with
random weights of a large standard deviation, and most tests call its `main` within their own process.
"""
import json
import sys
from argparse import Namespace
from dataclasses import replace

import numpy as np
import torch
from helpers import spread

import evaluate
from sensorllm_min.data.prepared import PreparedData
from sensorllm_min.recipe import build_model
from sensorllm_min.training.checkpoint import save_checkpoint
from sensorllm_min.training.options import new_recipe
from sensorllm_min.training.processes import Processes

ALONE = Processes(0, 1, torch.device("cpu"))
LINES = {"align_train": 120, "align_val": 24, "align_test": 300, "har_train": 40, "har_val": 24, "har_test": 40}


def small_dataset(demo, folder):
    """A seeded sample of the demo's lines, in their order, in a prepared dataset of its own -> its folder."""
    folder.mkdir(parents=True)
    (folder / "samples").symlink_to(demo / "samples")
    meta = json.loads((demo / "meta.json").read_text())
    rng = np.random.default_rng(0)
    for name, n_lines in LINES.items():
        lines = (demo / f"{name}.jsonl").read_text().splitlines(keepends=True)
        chosen = np.sort(rng.permutation(len(lines))[:n_lines])
        (folder / f"{name}.jsonl").write_text("".join(lines[i] for i in chosen))
        kind, split = name.split("_")
        meta["har_windows" if kind == "har" else "align_pairs"][split] = n_lines
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


def save_untrained(out, data_folder, stage, seed=0, **changes):
    """Writes out/best.safetensors, a checkpoint of a random model. changes: of its recipe."""
    data = PreparedData(data_folder)
    settings = Namespace(
        llm=None, encoder=None, projector=(32,), scaling="StanNormalizeUniformBins",
        statistics=True, train=("projector", "tokens", "llm", "encoder"))
    recipe = new_recipe(settings, data)
    if stage == "har":
        recipe = replace(recipe, classes=data.dataset.classes, text=("smry", "Q"))
    recipe = replace(recipe, **changes)
    torch.manual_seed(seed)
    model = spread(build_model(recipe), std=0.1)
    with torch.no_grad():                                         # so that some answers end by themselves
        for index in model.tokenizer.stop_ids:
            model.llm.embed_tokens.weight[index] *= 2
    if model.head is not None:                                    # weights of losses, never of probabilities
        model.class_weights = torch.linspace(0.05, 0.35, len(recipe.classes))
    stage_1 = {"checkpoint": "out/align/best.safetensors", "scores": {"val_loss": 0.25}}
    progress = {
        "step": 3, "best": 0.5, "best_step": 2, "seconds": 1.0, "settings": {"data": str(data_folder), "seed": seed},
        "provenance": {"command": "torchrun train_har.py --epochs 3", "commit": "c0ffee", "trained": ["head"],
                       "stage_1": stage_1}}
    out.mkdir(parents=True, exist_ok=True)
    save_checkpoint(out / "best.safetensors", model, recipe, progress)


def three_models(demo, folder, words="text"):
    """A folder with a small dataset, and untrained checkpoints of stage 1, stage 2, and stage 2 with answers in words."""
    data = small_dataset(demo, folder / "data/demo")
    save_untrained(folder / "out/align", data, "align")
    save_untrained(folder / "out/har", data, "har")
    save_untrained(folder / "out/words", data, "har", answer=words)
    return folder


def evaluate_here(monkeypatch, capsys, folder, *options):
    """Runs evaluate.py in a folder, within this process -> what it printed. A mistake of the user raises."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, options)])
    capsys.readouterr()
    evaluate.main()
    return capsys.readouterr().out
