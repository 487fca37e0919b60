"""A checkpoint made ready to be shared: the trained tensors and a model card."""
import os
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

from ..files import InputError, markdown_table, read_json, write_text
from .checkpoint import save_checkpoint
from .hub import HUB_ID, hub_id_of

STAGES = {"align": "describes single sensor channels in words (stage 1)",
          "har": "recognises activities from all channels (stage 2)"}
BUILT_IN = "built-in size, trained from scratch, in this file"
SCORES = ("results.json", "evaluation_val.json", "evaluation_test.json")


def export(loaded, run, folder, sources, say):
    """Writes best.safetensors and README.md into a new folder; the scores are read from `run`.

    sources: hub ids of networks that are directories here, the LLM's before the encoder's; without
    them a directory's own files are asked. Paths of this machine are left out: a directory of
    which no hub id is known keeps only its name.
    """
    recipe, progress, folder = loaded.recipe, loaded.progress, Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty; give --export a new folder")
    recipe = replace(recipe, **name_sources(recipe, sources, say))
    unfinished = folder.with_name(folder.name + ".unfinished")    # again, after an interruption
    unfinished.mkdir(parents=True, exist_ok=True)
    settings = progress["settings"] | {"data": Path(progress["settings"]["data"]).name}
    progress = progress | {"settings": settings}
    progress.pop("provenance", None)                              # it names paths of this machine
    scores = {}
    for path in (Path(run, name) for name in SCORES):
        content = read_json(path) if path.exists() else {}
        for key, value in content.items():
            if isinstance(value, (int, float)):
                scores[f"{path.stem}, {key}"] = round(value, 4)
    save_checkpoint(unfinished / "best.safetensors", loaded.model, recipe, progress)
    write_text(unfinished / "README.md", card(loaded.model, recipe, progress, scores))
    if folder.exists():
        folder.rmdir()
    os.replace(unfinished, folder)


def name_sources(recipe, sources, say):
    """{part: what a shared checkpoint calls its source}, of the networks that are directories."""
    wrong = [source for source in sources if not HUB_ID.fullmatch(source)]
    if wrong:
        raise InputError(f"--source {wrong[0]}: a hub id is NAME/MODEL or NAME/MODEL@REVISION")
    local = [part for part in ("llm", "encoder")
             if getattr(recipe, part) and not HUB_ID.fullmatch(getattr(recipe, part))]
    if len(sources) > len(local):
        raise InputError(f"--source {' '.join(sources)}: the checkpoint has "
                         f"{len(local) or 'no'} network(s) from a directory")
    named = {}
    for part, given in zip_longest(local, sources):
        directory = getattr(recipe, part)
        hub_id = given or hub_id_of(directory)
        if hub_id:
            say(f"{part}: {directory} is shared as {hub_id}; whoever loads it gets these weights, "
                "or a message that they are others")
        else:
            say(f"{part}: {directory} has no hub id, so whoever loads it must give --{part}; if it "
                "is a copy of a model on the hub, say so with --source NAME/MODEL@REVISION")
        named[part] = hub_id or Path(directory).name
    return named


def card(model, recipe, progress, scores):
    """The model card: front matter that the hub reads, then what it is, its data, its scores."""
    def table(rows):
        return markdown_table(("", ""), rows.items())

    sizes = {}                                                    # part -> trained parameters
    for name, tensor in model.named_parameters():
        part = model.part_of(name)
        if part not in recipe.saved_parts:
            continue
        sizes[part] = sizes.get(part, 0) + tensor.numel()
    chat = recipe.chat_format or ("the LLM's chat template" if recipe.chat_template
                                  else "by the tokenizer's tokens")
    about = {
        "LLM": recipe.llm or BUILT_IN, "encoder": recipe.encoder or BUILT_IN,
        "chat format": chat,
        "scaling": recipe.scaling,
        "parts": ", ".join(f"{part} ({size:,})" for part, size in sorted(sizes.items()))}
    if recipe.classes:
        about |= {"classes": ", ".join(recipe.classes), "text": "+".join(recipe.text) or "none",
                  "answer": recipe.answer}
    if recipe.ablation:
        about["ablation"] = recipe.ablation
    dataset = recipe.sensors
    data = {
        "dataset": recipe.dataset, "source": dataset.source, "rate": f"{dataset.rate} Hz",
        "channels": ", ".join(channel.spoken for channel in dataset.channels),
        "test subjects, never trained on": ", ".join(map(str, dataset.test_subjects)),
        "validation subjects": ", ".join(map(str, dataset.val_subjects)),
        "the test is of": dataset.held_out}
    front = ["library_name: sensorllm-min",
             "tags: [sensorllm, time-series, human-activity-recognition]"]
    bases, arguments, options = [], "", ""
    for part, source in (("llm", recipe.llm), ("encoder", recipe.encoder)):
        if source and HUB_ID.fullmatch(source):
            bases.append(f"- {source.partition('@')[0]}")
        elif source:                                              # a directory, wherever it is then
            arguments += f', {part}="DIR"'
            options += f" --{part} DIR"
    if bases:
        front += ["base_model:", *bases]
    return "\n\n".join([
        "\n".join(["---", *front, "---"]),
        f"# SensorLLM on {recipe.dataset}: {STAGES[recipe.stage]}",
        "A sensor-language model after arXiv 2410.10624, trained with sensorllm-min. This file "
        "holds what was trained; the frozen networks come from where they are named.",
        table(about), "## Data", table(data),
        "## Scores", table(scores) if scores else "none were left by the run",
        "## Training", table(progress["settings"] | {"best step": progress["best_step"]}),
        "## Loading",
        "```python\n# in a clone of sensorllm-min, after pip install -r requirements.txt\n"
        "import sensorllm_min\n"
        f'model = sensorllm_min.load("THIS_FOLDER_OR_HUB_ID"{arguments})\n```',
        "or score it: `python evaluate.py --checkpoint THIS_FOLDER_OR_HUB_ID "
        f"--data data/{recipe.dataset}{options}`\n"])
