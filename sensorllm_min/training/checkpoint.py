"""Checkpoints: one safetensors file that says what it is.

    tensors      what was trained: projector, special-token embeddings, head with the class
                 weights of its loss; encoder and LLM only where they were trained or are built in;
                 in last.safetensors also the optimizer's moments, under optimizer.*
    metadata     the recipe of the model, the progress of the run, its settings

For an 8B LLM a file takes about 42 MB: frozen networks are read from their source, and refused if
they have changed.
"""
import json
import os
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ..files import InputError, brief, understanding
from ..hub import HUB_ID, resolve_source
from ..recipe import Recipe, build_model, move_sources
from ..weights import open_safetensors

FORMAT = 2                                                        # any other is refused
KEY = "sensorllm_min"                                             # our entry of the metadata
NO_CHECKPOINT = "is not a checkpoint of this project"


def trained_tensors(model, recipe):
    """{name: tensor} of what a checkpoint holds: parameters, and the class weights."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor for name, tensor in tensors if model.part_of(name) in recipe.saved_parts}


def save_checkpoint(path, model, recipe, progress, optimizer=None):
    """Writes a checkpoint file, whole or not at all. progress: a JSON object, as of Run."""
    tensors = {name: tensor.detach().contiguous()
               for name, tensor in trained_tensors(model, recipe).items()}
    if optimizer is not None:
        tensors |= optimizer_tensors(model, optimizer)
    metadata = {"format": FORMAT, "stage": recipe.stage,
                "recipe": asdict(recipe), "progress": progress}
    unfinished = Path(f"{path}.unfinished")
    try:
        unfinished.touch()
        mode = unfinished.stat().st_mode                          # as the umask says
        save_file(tensors, unfinished, metadata={KEY: json.dumps(metadata)})
        unfinished.chmod(mode)                                    # save_file allows only its owner
        with open(unfinished, "rb") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} could not be written ({error}); the checkpoint before it is "
                         "still there")
    finally:
        unfinished.unlink(missing_ok=True)


def checkpoint_file(path, name="best"):
    """A checkpoint's file: `path` itself, or NAME.safetensors in a run's folder or on the hub."""
    name = f"{name}.safetensors"
    on_hub = not Path(path).exists() and HUB_ID.fullmatch(str(path))
    if on_hub and Path(path).parts[0] != "out":                   # out/...: a run to come
        path = resolve_source(path, (name,))
    return Path(path, name) if Path(path).is_dir() else Path(path)


def read_checkpoint(path):
    """A checkpoint file -> (recipe, progress, tensors). InputError where it is not one of ours."""
    if not Path(path).exists():
        raise InputError(f"{path} not found; train_align.py and train_har.py write it into their "
                         "--out")
    with open_safetensors(path) as file, understanding(path, NO_CHECKPOINT):
        metadata = json.loads((file.metadata() or {})[KEY])
        if metadata["format"] != FORMAT:
            raise InputError(f"{path}: checkpoint format {brief(metadata['format'])}, this code "
                             f"reads {FORMAT}; train it again")
        recipe, progress = Recipe.from_json(metadata["recipe"]), metadata["progress"]
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        return recipe, progress, tensors


def check_shapes(shapes, tensors, path):
    """InputError unless a checkpoint's tensors have these shapes; None: there should be none."""
    different = sorted(name for name, shape in shapes.items()
                       if name not in tensors or tensors[name].shape != shape)
    if different:
        raise InputError(f"{path} does not fit the model it describes: "
                         f"{brief(', '.join(different[:4]))}")


def fill_model(model, recipe, tensors, path, new_parts=()):
    """Copies a checkpoint's tensors into the model, not new_parts. InputError unless they fit."""
    wanted = {name: tensor for name, tensor in trained_tensors(model, recipe).items()
              if model.part_of(name) not in new_parts}
    given = {name: tensor for name, tensor in tensors.items()
             if not name.startswith("optimizer.") and model.part_of(name) not in new_parts}
    shapes = {name: tensor.shape for name, tensor in wanted.items()}
    check_shapes(shapes | dict.fromkeys(given.keys() - shapes.keys()), given, path)
    broken = [name for name in wanted
              if not given[name].is_floating_point() or not given[name].isfinite().all()]
    if broken:
        raise InputError(f"{path}: {broken[0]} is {given[broken[0]].dtype}, or not all of it is "
                         "finite")
    for name, tensor in wanted.items():                           # trained parts are float32
        tensor.data = given[name].to(tensor.device, torch.float32, copy=True)


def load_checkpoint(path, llm=None, encoder=None, dtype=torch.float32, int8=False):
    """A checkpoint -> (model, recipe, progress). llm, encoder: new locations of the sources."""
    path = checkpoint_file(path)
    recipe, progress, tensors = read_checkpoint(path)
    recipe = move_sources(recipe, llm, encoder)
    model = build_model(recipe, dtype, int8)
    fill_model(model, recipe, tensors, path)
    return model, recipe, progress


# ---- the optimizer's moments, by the name of the parameter ----

MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def optimizer_tensors(model, optimizer):
    tensors = {}
    for name, parameter in model.named_parameters():
        if parameter in optimizer.state:
            state = optimizer.state[parameter]
            tensors |= {f"optimizer.{name}.{moment}": state[moment] for moment in MOMENTS}
    return tensors


def fill_optimizer(model, optimizer, tensors, path):
    """Copies a checkpoint's moments into the optimizer; InputError unless all trained parts fit."""
    prefix = "optimizer."
    kept = {name.removeprefix(prefix).rpartition(".")[0]
            for name in tensors if name.startswith(prefix)}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if kept - trained:
        names = ", ".join(sorted(kept - trained)[:4])
        raise InputError(f"{path} holds optimizer state for {names}, not trained now; --resume "
                         "with the run's own --train")
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        try:
            state = {moment: tensors[f"optimizer.{name}.{moment}"].clone() for moment in MOMENTS}
        except KeyError as error:
            raise InputError(f"{path} holds no optimizer state for {error}; --resume with the "
                             "run's own --train")
        for moment, tensor in state.items():
            shape = torch.Size() if moment == "step" else parameter.shape
            if tensor.shape != shape or not tensor.is_floating_point():
                raise InputError(f"{path}: the optimizer's {moment} of {name} is {tensor.dtype} of "
                                 f"shape {tuple(tensor.shape)}, expected {tuple(shape)}")
        for moment in ("exp_avg", "exp_avg_sq"):                  # the step stays on the CPU
            state[moment] = state[moment].to(parameter.device)
        optimizer.state[parameter] = state
