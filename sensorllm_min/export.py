"""A checkpoint made ready to be shared: the trained tensors in one safetensors file, and a card that says what they are."""
from dataclasses import replace
from pathlib import Path

from .checkpoint import save_checkpoint, trained_tensors
from .config import InputError, read_json, write_whole
from .hub import HUB_ID

STAGES = {"align": "describes single sensor channels in words (stage 1)",
          "har": "recognises activities from all channels (stage 2)"}


def export(model, recipe, progress, run, folder):
    """Writes best.safetensors and README.md into a new folder. run: where the checkpoint's scores lie.

    Paths of this machine stay here: of a network read from a directory only the directory's name goes along.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty; give --export a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    recipe = replace(recipe, **{part: source if source is None or HUB_ID.fullmatch(source) else Path(source).name
                                for part, source in (("llm", recipe.llm), ("encoder", recipe.encoder))})
    settings = progress["settings"] | {"data": Path(progress["settings"]["data"]).name}
    scores = {}
    for name in ("results.json", "evaluation_val.json", "evaluation_test.json"):
        if (Path(run) / name).exists():
            scores |= {f"{name.removesuffix('.json')}, {key}": round(value, 4) for key, value in read_json(Path(run) / name).items()
                       if isinstance(value, (int, float))}
    save_checkpoint(folder / "best.safetensors", model, recipe, progress | {"settings": settings})
    write_whole(folder / "README.md", card(model, recipe, settings, progress, scores))


def table(rows):
    return "\n".join(["| | |", "| --- | --- |", *(f"| {key} | {value} |" for key, value in rows.items())])


def card(model, recipe, settings, progress, scores):
    """The model card: front matter that the hub reads, what it is, on which data, how good, how to load it."""
    dataset = recipe.sensors
    bases = [source.partition("@")[0] for source in (recipe.llm, recipe.encoder) if source and HUB_ID.fullmatch(source)]
    front = ["library_name: sensorllm-min", "tags: [sensorllm, time-series, human-activity-recognition]",
             *(["base_model:"] + [f"- {base}" for base in bases] if bases else [])]
    elsewhere = "".join(f" --{part} DIR" for part, source in (("llm", recipe.llm), ("encoder", recipe.encoder))
                        if source and not HUB_ID.fullmatch(source))
    tensors = trained_tensors(model, recipe)
    parts = {part: sum(t.numel() for name, t in tensors.items() if model.part_of(name) == part)
             for part in sorted({model.part_of(name) for name in tensors})}
    return "\n".join([
        "---", *front, "---", "",
        f"# SensorLLM on {recipe.dataset}: {STAGES[recipe.stage]}", "",
        "A sensor-language model after arXiv 2410.10624, trained with sensorllm-min. This file holds what was trained; the "
        "frozen networks come from where they are named.", "",
        table({"LLM": recipe.llm or "built-in size, trained from scratch, in this file",
               "encoder": recipe.encoder or "built-in size, trained from scratch, in this file",
               "chat format": recipe.chat_format or "llama3, of the built-in tokenizer",
               "scaling": recipe.scaling, "parts": ", ".join(f"{part} ({n:,})" for part, n in parts.items()),
               **({"classes": ", ".join(recipe.classes), "text": "+".join(recipe.text) or "none",
                  "answer": recipe.answer, **({"control": recipe.control} if recipe.control else {})} if recipe.classes else {})}),
        "", "## Data", "",
        table({"dataset": recipe.dataset, "source": dataset.source, "rate": f"{dataset.rate} Hz",
               "channels": ", ".join(channel.spoken for channel in dataset.channels),
               "test subjects, never trained on": ", ".join(map(str, dataset.test_subjects)),
               "validation subjects": ", ".join(map(str, dataset.val_subjects))}),
        "", "## Scores", "", table(scores) if scores else "none were left by the run", "",
        "## Training", "", table({**settings, "best step": progress["best_step"]}), "",
        "## Loading", "", "```python",
        "# in a clone of sensorllm-min, after pip install -r requirements.txt",
        "from sensorllm_min.checkpoint import load_checkpoint",
        'model, tokenizer, recipe, progress = load_checkpoint("THIS_FOLDER_OR_HUB_ID"'
        + "".join(f', {part[2:]}="DIR"' for part in elsewhere.split() if part.startswith("--")) + ")",
        "```", "", f"or score it: `python evaluate.py --checkpoint THIS_FOLDER_OR_HUB_ID --data data/{recipe.dataset}{elsewhere}`",
        ""])
