"""The folder of a training run: what it prints and measures, its checkpoints, how it resumes."""
import json
import math
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from threading import Event

import numpy as np

from ..cli import Stopped
from ..data.sensors import dataset_of
from ..files import InputError, brief, write_json, write_text
from ..plots.figures import draw_curves
from .checkpoint import fill_model, fill_optimizer, read_checkpoint, save_checkpoint
from .processes import peak_memory
from .provenance import provenance
from .step import stop_at

FILES = ("best.safetensors", "last.safetensors", "results.json", "metrics.jsonl", "log.txt")
# A resumed run must share these settings, and the model, with the run it continues.
SAME_ON_RESUME = ("data", "train", "epochs", "lr", "betas", "warmup", "weight_decay", "seed",
                  "train_limit", "eval_limit", "dtype", "rotate", "resize")


class Run:
    """A training run and its folder, in which only the first process writes."""

    def __init__(self, settings, processes, model, recipe, optimizer, loader):
        self.out = Path(settings.out)
        self.processes = processes
        self.model = model
        self.recipe = recipe
        self.optimizer = optimizer
        self.n_steps = loader.n_steps
        self.n_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        every = settings.eval_every or math.ceil(self.n_steps / 8)
        self.validated = {*range(every - 1, self.n_steps, every), self.n_steps - 1}     # steps
        self.progress = new_progress(settings, processes, loader)
        self.clock = self.began = time.monotonic()                # clock: the last step's end
        self.recent = []                 # (loss, tokens, seconds) of steps since the printed line
        self.asked_to_stop = Event()
        signal.signal(signal.SIGTERM, lambda *_: self.asked_to_stop.set())
        if settings.resume:
            self.resume()
        elif processes.first:
            for name in FILES:                                    # a demo's, an interrupted run's
                (self.out / name).unlink(missing_ok=True)
        files = [self.out / "metrics.jsonl", self.out / "log.txt"]
        if not processes.first:
            files = [os.devnull, os.devnull]
        self.metrics, self.log_file = (
            open(path, "a", buffering=1, encoding="utf-8") for path in files)     # line by line
        self.log(introduction(recipe, settings, loader, self.n_trained))

    def resume(self):
        """Continues from last.safetensors, with the same settings and the same model."""
        path = self.out / "last.safetensors"
        recipe, progress, tensors = read_checkpoint(path)
        # Networks may have moved; their fingerprints show if they are the same.
        moved = replace(recipe, llm=self.recipe.llm, encoder=self.recipe.encoder)
        before = progress["settings"] | vars(moved)
        for name, value in (self.progress["settings"] | vars(self.recipe)).items():
            if before.get(name) != value:
                raise InputError(f"{path} was trained with {name} {brief(before.get(name))}, this "
                                 f"run has {brief(value)}; --resume needs the same settings")
        fill_model(self.model, recipe, tensors, path)
        fill_optimizer(self.model, self.optimizer, tensors, path)
        self.progress = progress
        self.began -= progress["seconds"]
        if self.processes.first:
            cut_metrics(self.out / "metrics.jsonl", progress["step"])
        if progress["best_step"] == progress["step"]:             # a kill may have come between
            self.save(progress["step"] - 1, improved=True)

    def log(self, text):
        if self.processes.first:
            print(text, flush=True)
        self.log_file.write(text + "\n")

    def log_step(self, step, loss, norm, lr, n_tokens):
        """Records a training step; prints a line after the first one, then every 10 steps."""
        done = step + 1
        now = time.monotonic()
        record = {"step": done, "loss": loss, "grad_norm": norm, "lr": lr}
        self.metrics.write(json.dumps(record) + "\n")
        self.recent.append((loss, n_tokens, now - self.clock))
        self.clock = now
        if done % 10 == 0 or done in (1, self.n_steps):
            memory = peak_memory(self.processes.device)
            self.log(step_line(done, self.n_steps, lr, self.recent, memory))
            self.recent = []

    def log_validation(self, step, scores):
        """Records validation scores and saves the checkpoints; the least "val_loss" is the best."""
        if not math.isfinite(sum(scores.values())):
            stop_at(f"validation after step {step + 1}", sum(scores.values()))
        self.metrics.write(json.dumps({"step": step + 1, **scores}) + "\n")
        shown = "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
        seconds = time.monotonic() - self.clock
        self.log(f"step {step + 1:5}  validation: {shown}  ({seconds:.0f} s)")
        loss = scores["val_loss"]
        improved = self.progress["best"] is None or loss < self.progress["best"]
        if improved:
            self.progress |= {"best": loss, "best_step": step + 1}
        self.save(step, improved)
        self.clock = time.monotonic()

    def save(self, step, improved=False):
        """Writes last.safetensors, then best.safetensors if the validation has improved."""
        self.progress |= {"step": step + 1, "seconds": time.monotonic() - self.began}
        if self.processes.first:
            contents = self.model, self.recipe, self.progress
            save_checkpoint(self.out / "last.safetensors", *contents, self.optimizer)
            if improved:
                save_checkpoint(self.out / "best.safetensors", *contents)

    def stop_if_asked(self, step):
        """After SIGTERM to any process: saves the finished step and raises Stopped in all."""
        if any(self.processes.sum(self.asked_to_stop.is_set())):
            self.save(step)
            raise Stopped(f"ended on request after step {step + 1}; --resume continues from "
                          f"{self.out}/last.safetensors")

    def load_best(self):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)             # everything is saved by now
        self.processes.wait()                                     # the first one writes it
        recipe, _, tensors = read_checkpoint(self.out / "best.safetensors")
        fill_model(self.model, recipe, tensors, self.out / "best.safetensors")

    def finish(self, results):
        """Writes curves.png and results.json, which marks the run as finished -> the results."""
        seconds = round(time.monotonic() - self.began, 1)
        results |= {"seconds": seconds, "trained_parameters": self.n_trained,
                    "held_out": dataset_of(self.recipe).held_out,
                    "provenance": self.progress["provenance"]}
        if self.processes.first:
            with open(self.out / "metrics.jsonl", encoding="utf-8") as lines:
                draw_curves(self.out / "curves.png", [json.loads(line) for line in lines])
            write_json(self.out / "results.json", results)
        self.log(f"wrote {self.out}/results.json, and beside it best.safetensors, metrics.jsonl "
                 f"and curves.png, in {seconds / 60:.1f} minutes")
        return results


def introduction(recipe, settings, loader, n_trained):
    train = loader.examples
    parts = ", ".join(settings.train)
    text = f"LLM {recipe.llm or 'built-in'}, encoder {recipe.encoder or 'built-in'}"
    if recipe.llm and not recipe.chat_template:
        text += ("\nthe LLM has no chat template: dialogues are written as for Llama 3 if its "
                 "tokenizer has those tokens, else in a plain format")
    return (f"{text}\n{recipe.dataset}: {len(train)} training {train.called}, {loader.n_steps} "
            f"steps of {loader.step_size}; trained: {parts}, {n_trained:,} parameters")


def step_line(done, n_steps, lr, recent, memory):
    """What is printed about recent steps: (loss, tokens, seconds) of each; memory in bytes."""
    loss, tokens, seconds = np.mean(recent, 0)
    rate = tokens / seconds
    minutes = seconds * (n_steps - done) / 60
    return (f"step {done:5}/{n_steps}  loss {loss:.4f}  lr {lr:.2e}  {rate:7.0f} tokens/s  "
            f"{minutes:.1f} min left  {memory / 1e9:.2f} GB")


def new_progress(settings, processes, loader):
    """The progress of a run that begins, as a JSON object; "best" is a validation score."""
    shared = {name: getattr(settings, name, None) for name in SAME_ON_RESUME}
    shared["batch"] = loader.step_size
    origin = provenance(processes.device, processes.world)
    origin["trained"] = settings.train
    progress = {"step": 0, "best": None, "best_step": None, "seconds": 0.0,
                "settings": shared, "provenance": origin}
    return json.loads(json.dumps(progress))                       # tuples -> lists, as when read


def cut_metrics(path, last_step):
    """Removes later steps, which come again, and the last line if a kill has cut it."""
    *lines, _ = path.read_text(encoding="utf-8").split("\n")
    kept = [line + "\n" for line in lines if json.loads(line)["step"] <= last_step]
    write_text(path, "".join(kept))
