"""Checkpoints: one safetensors file that describes itself.

    tensors      projector, special-token embeddings, head with the class weights of its loss;
                 encoder and LLM only if they were trained or are built in; in last.safetensors
                 also the optimizer's moments, as optimizer.*
    metadata     the recipe of the model, the progress of the run, its settings

For an 8B LLM a file takes about 42 MB: frozen networks are read from their source, and refused if
they have changed.
"""
import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save

from ..files import InputError, as_input_error, brief, write_bytes
from ..hub import HUB_ID, resolve_source
from ..recipe import Recipe, build_model, move_sources
from ..weights import open_safetensors

KEY = "sensorllm_min.2"                 # our entry of the metadata, with the number of this format
MOMENTS = ("exp_avg", "exp_avg_sq", "step")                       # AdamW's state of a parameter


def trained_tensors(model, recipe):
    """{name: tensor} of the parameters and class weights that a checkpoint holds."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor for name, tensor in tensors if model.part_of(name) in recipe.saved_parts}


def save_checkpoint(path, model, recipe, progress, optimizer=None):
    """Writes a checkpoint file, whole or not at all. progress: a JSON object, see Run."""
    tensors = trained_tensors(model, recipe)
    if optimizer is not None:
        for name, parameter in model.named_parameters():
            for moment, tensor in optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{name}.{moment}"] = tensor
    tensors = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    metadata = json.dumps({"recipe": asdict(recipe), "progress": progress})
    content = save(tensors, {KEY: metadata})
    try:
        with write_bytes(path) as file:
            file.write(content)
    except OSError as error:
        raise InputError(f"{path} could not be written ({error}); the checkpoint before it is "
                         "still there")


def checkpoint_file(path):
    """The file of a checkpoint: `path` itself, or best.safetensors in a run's folder or hub id."""
    is_hub_id = not Path(path).exists() and HUB_ID.fullmatch(str(path))
    if is_hub_id and Path(path).parts[0] != "out":                # out/...: a run to come
        path = resolve_source(path, ("best.safetensors",))
    return Path(path, "best.safetensors") if Path(path).is_dir() else Path(path)


def read_checkpoint(path):
    """A checkpoint file -> (recipe, progress, tensors). Raises an InputError if it is not ours."""
    if not Path(path).exists():
        raise InputError(f"{path} not found; train_align.py and train_har.py write it into their "
                         "--out")
    problem = "is not a checkpoint of this project, or not of its present format"
    with open_safetensors(path) as file, as_input_error(path, problem, "; train it again"):
        metadata = json.loads(file.metadata()[KEY])
        recipe = Recipe.from_json(metadata["recipe"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        return recipe, metadata["progress"], tensors


def fill_model(model, recipe, tensors, path, new_parts=()):
    """Copies a checkpoint's tensors, which must all fit, into the model, but for its new_parts."""
    skipped = {"optimizer", *new_parts}
    wanted = trained_tensors(model, recipe)
    wanted = {name: wanted[name] for name in wanted if model.part_of(name) not in skipped}
    given = {name: tensors[name] for name in tensors if model.part_of(name) not in skipped}
    shapes = [{(name, tensor.shape) for name, tensor in side.items()} for side in (wanted, given)]
    different = {name for name, _ in shapes[0] ^ shapes[1]}
    if different:
        names = ", ".join(sorted(different)[:4])
        raise InputError(f"{path} does not fit the model it describes: {brief(names)}")
    for name, tensor in wanted.items():                           # trained parts are float32
        tensor.data = given[name].to(tensor.device, torch.float32, copy=True)


def load_checkpoint(path, llm=None, encoder=None, dtype="float32"):
    """A checkpoint -> (model, recipe, progress). llm, encoder: new locations of the sources."""
    path = checkpoint_file(path)
    recipe, progress, tensors = read_checkpoint(path)
    recipe = move_sources(recipe, llm, encoder)
    model = build_model(recipe, dtype)
    fill_model(model, recipe, tensors, path)
    return model, recipe, progress


def fill_optimizer(model, optimizer, tensors, path):
    """Copies a checkpoint's moments into the optimizer. Raises an InputError if one is missing."""
    with as_input_error(path, "holds no optimizer state to resume from"):
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                optimizer.state[parameter] = {
                    moment: tensors[f"optimizer.{name}.{moment}"].to(parameter.device, copy=True)
                    for moment in MOMENTS}
