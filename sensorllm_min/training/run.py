"""The output folder of a run: what it prints, measures, saves, and how it resumes."""
import ctypes
import json
import math
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from ..cli import Stopped
from ..data.sensors import dataset_of
from ..files import InputError, understanding, write_json, write_text
from ..plots.figures import draw_curves
from .checkpoint import fill_model, fill_optimizer, read_checkpoint, save_checkpoint
from .processes import distributed
from .provenance import provenance
from .step import Steps

# What a resumed run must share with the run that it continues.
FIXED = ("data", "epochs", "lr", "warmup", "weight_decay", "seed", "train_limit", "eval_limit",
         "dtype", "rotate", "fold", "betas")
LITTLE_MEMORY = 1e9                     # bytes; a run may grow to it, since holding it costs time


def peak_memory(device):
    """The most bytes this process has held: on the GPU, else in memory, mapped files included.

    0 on Windows, which does not say.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        from resource import RUSAGE_SELF, getrusage
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return getrusage(RUSAGE_SELF).ru_maxrss * unit


def resident_memory():
    """The bytes of memory that this process holds now; 0 where the system is not Linux."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def release_freed_memory():
    """Has glibc give back to the system what it keeps of freed tensors; elsewhere nothing happens.

    Steps have batches of ever other shapes, and what one has freed lies in pieces that do not fit
    the next: without this the memory of a run grows by half in a few hundred steps. It makes the
    next step up to a half slower, so it is for when memory might exceed that of the first step.
    """
    try:
        trim = ctypes.CDLL("libc.so.6").malloc_trim
    except (OSError, AttributeError):
        return
    trim(0)


def keep_aside(folder):
    """Renames what a run without a checkpoint has left in a folder, to NAME.1.ENDING and so on."""
    for name in ("best.safetensors", "results.json", "metrics.jsonl", "log.txt"):
        path, number = folder / name, 1
        while path.with_suffix(f".{number}{path.suffix}").exists():
            number += 1
        if path.exists() and path.stat().st_size:
            path.rename(path.with_suffix(f".{number}{path.suffix}"))


class Run:
    """A training run and its folder: logs, curves.png, results.json, two checkpoints.

    Only the first process prints and writes. `progress` holds the steps done, the best score and
    its step, the seconds, and the settings that a resumed run must share.
    """

    def __init__(self, settings, processes, model, recipe, optimizer, train):
        self.settings, self.out, self.processes = settings, Path(settings.out), processes
        self.model, self.recipe, self.optimizer = model, recipe, optimizer
        self.plan = Steps(train, settings, processes, model.tokenizer.pad_id)
        self.eval_every = settings.eval_every or math.ceil(self.plan.count / 8)
        self.began = self.started = self.logged = self.stepped = time.monotonic()
        self.size, self.announced = 0, False                      # of the steps since `started`
        self.tokens, self.losses = 0, []                          # since the last printed line
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.trained_parameters = sum(parameter.numel() for parameter in trained)
        fixed = {name: getattr(settings, name, None) for name in FIXED}
        for name in ("fold", "betas"):                            # as JSON gives them back
            fixed[name] = fixed[name] and list(fixed[name])
        source = provenance(processes.device, processes.world) | {"trained": list(settings.train)}
        self.progress = {"step": 0, "best": None, "best_step": None, "seconds": 0.0,
                         "settings": {"batch": self.plan.size, **fixed}, "provenance": source}
        if settings.resume:
            self.resume()
        elif processes.first:
            self.out.mkdir(parents=True, exist_ok=True)
            if not (self.out / "last.safetensors").exists():
                keep_aside(self.out)
            for name in ("best.safetensors", "last.safetensors", "results.json"):
                (self.out / name).unlink(missing_ok=True)         # a demo's look like this run's
        self.first_step = self.progress["step"]                   # of this part of the run
        if processes.first:
            mode = "a" if settings.resume else "w"
            # buffering=1: each line is in the file at once
            self.metrics = open(self.out / "metrics.jsonl", mode, buffering=1, encoding="utf-8")
            self.log = open(self.out / "log.txt", mode, buffering=1, encoding="utf-8")
        self.asked_to_stop = False
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "asked_to_stop", True))
        self.wrapped = distributed(self.model, processes)
        self.say(f"LLM {recipe.llm or 'built-in'}, encoder {recipe.encoder or 'built-in'}")
        if recipe.llm and not recipe.chat_template:
            self.say(f"{recipe.llm} has no chat template (chat_template.jinja or an entry in "
                     "tokenizer_config.json): dialogues are written in a plain format")
        n = "1 process" if processes.world == 1 else f"{processes.world} processes"
        size = f"{self.plan.size} ({n} x {settings.batch_size} x {settings.accumulate})"
        self.say(f"{train.data.name}: {len(train)} training {train.called}, {self.plan.count} "
                 f"steps of {size}; trained: {', '.join(settings.train)}, "
                 f"{self.trained_parameters:,} parameters")

    def resume(self):
        """Continues from last.safetensors. Metrics beyond its step are cut off: they come again."""
        path = self.out / "last.safetensors"
        recipe, progress, tensors = read_checkpoint(path)
        for key, value in self.progress["settings"].items():
            before = progress["settings"].get(key)
            if before != value:
                raise InputError(f"{path} was trained with {key} {before}, this run has {value}; "
                                 "--resume needs the same settings")
        # The networks may have moved; their fingerprints tell whether they are the same.
        if replace(recipe, llm=self.recipe.llm, encoder=self.recipe.encoder) != self.recipe:
            raise InputError(f"{path} is of another model; --resume needs the same --llm, "
                             "--encoder, --train, --projector, --levels")
        fill_model(self.model, recipe, tensors, path)
        fill_optimizer(self.model, self.optimizer, tensors, path)
        self.progress = progress
        self.began -= progress["seconds"]
        metrics = self.out / "metrics.jsonl"
        if self.processes.first and metrics.exists():
            advice = f"; repair it, or move it away from {self.out}"
            with understanding(metrics, advice=advice):
                *lines, _ = metrics.read_text(encoding="utf-8").split("\n")  # a kill may cut one
                kept = [line for line in lines if json.loads(line)["step"] <= progress["step"]]
            write_text(metrics, "".join(line + "\n" for line in kept))

    def say(self, text):
        if self.processes.first:
            print(text, flush=True)
            self.log.write(text + "\n")

    def measure(self, record):
        if self.processes.first:
            self.metrics.write(json.dumps(record) + "\n")

    def steps(self):
        """Yields the remaining steps. On SIGTERM it finishes the current one, saves and raises."""
        self.began = self.started = self.logged = time.monotonic()    # not the samples before
        self.began -= self.progress["seconds"]
        limit, growth, last, largest = math.inf, 0.0, math.inf, 0.0
        for step in self.plan.starting_at(self.progress["step"]):
            is_like_last = 0.9 < step.size / last < 1.1           # then it fits in what that freed
            needed = 0 if is_like_last else growth * step.size
            if resident_memory() + needed > limit:
                release_freed_memory()
            held, last = resident_memory(), step.size
            yield step
            if step.size > largest:                               # the first, unless resumed
                largest = step.size
                peak = peak_memory(torch.device("cpu"))
                growth = (peak - held) / step.size
                limit = max(peak, LITTLE_MEMORY)
            if any(self.processes.sum(self.asked_to_stop)):       # one was asked: all stop
                self.progress |= {"step": step.index + 1, "seconds": time.monotonic() - self.began}
                if self.processes.first:
                    self.save("last", self.optimizer)
                raise Stopped(f"ended on request after step {step.index + 1}; --resume continues "
                              f"from {self.out}/last.safetensors")
        signal.signal(signal.SIGTERM, signal.SIG_DFL)             # all is saved by now

    def save(self, name, optimizer=None):
        path = self.out / f"{name}.safetensors"
        save_checkpoint(path, self.model, self.recipe, self.progress, optimizer)

    def log_step(self, step, loss, norm, n_tokens):
        """Records one training step; prints a line every --log-every steps."""
        done, n_steps = step.index + 1, self.plan.count
        self.tokens += n_tokens
        self.losses.append(loss)
        self.announce(step)
        self.measure({"step": done, "loss": loss, "grad_norm": norm, "lr": step.lr})
        now = time.monotonic()
        if done % self.settings.log_every == 0 or done == n_steps:
            pace = (now - self.started) / self.size
            minutes = pace * self.plan.mean_size * (n_steps - done) / 60
            rate = self.tokens / max(now - self.logged, 1e-9)
            mean_loss = sum(self.losses) / len(self.losses)       # of steps of like lengths each
            self.say(f"step {done:5}/{n_steps}  loss {mean_loss:.4f}  lr {step.lr:.2e}  "
                     f"{rate:7.0f} tokens/s  {minutes:.1f} min left  {self.memory()}")
            self.logged, self.tokens, self.losses = now, 0, []
        if self.is_evaluated(step):
            release_freed_memory()                                # a validation has other shapes
        self.stepped = now

    def announce(self, step):
        """Says once how long the run will take: after four steps, or ten seconds of slow ones.

        Where there are others, the first step is left out: it warms up.
        """
        n_seen, now = step.index + 1 - self.first_step, time.monotonic()
        if n_seen == 2:                                           # the first one warmed up
            self.started, self.size = self.stepped, 0
        self.size += step.size
        slow = now - self.started > 10
        if self.announced or (n_seen < min(4, self.plan.count - self.first_step) and not slow):
            return
        self.announced = True
        pace = (now - self.started) / self.size                   # seconds for each byte of records
        seconds = pace * self.plan.mean_size
        n_left = self.plan.count - step.index - 1
        if n_left == 0:
            return
        hours = seconds * n_left / 3600
        length = f"{hours:.1f} hours" if hours > 2 else f"{hours * 60:.1f} minutes"
        self.say(f"{seconds:.2g} s a step, {self.memory()}: about {length} for the other {n_left} "
                 "steps; validations and the scores at the end come on top")
        if hours > 24:
            self.say("more than a day: --train-limit, a smaller --epochs, data prepared at a lower "
                     "--rate, shorter prompts (data_prep.py --longest, --text smry3) or a smaller "
                     "--llm shorten it")

    def memory(self):
        return f"{peak_memory(self.processes.device) / 1e9:.2f} GB"

    def is_evaluated(self, step):
        """Whether the model is validated and saved after this step."""
        done = step.index + 1
        return done % self.eval_every == 0 or done == self.plan.count

    def log_evaluation(self, step, scores, key, higher_is_better):
        """Records validation scores and saves the checkpoints; scores[key] decides on the best."""
        done = step.index + 1
        for name, value in scores.items():
            if not math.isfinite(value):
                raise InputError(f"step {done}: {name} is {value}; stopped. last.safetensors and "
                                 f"best.safetensors in {self.out}, if written, are from before. "
                                 "Lower --lr, or look at the data")
        self.measure({"step": done, **scores})
        shown = "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
        seconds = time.monotonic() - self.stepped
        self.say(f"step {done:5}  validation: {shown}  ({seconds:.0f} s)")
        score, best = scores[key], self.progress["best"]
        improved = best is None or (score > best if higher_is_better else score < best)
        self.progress |= {"step": done, "seconds": time.monotonic() - self.began}
        if improved:
            self.progress |= {"best": score, "best_step": done}
        if self.processes.first:
            if improved:
                self.save("best")
            self.save("last", self.optimizer)
        self.logged, self.tokens = time.monotonic(), 0            # validation is not training time

    def load_best(self):
        """Puts the best checkpoint's tensors into the model."""
        self.processes.wait()                                     # the first one writes it
        path = self.out / "best.safetensors"
        recipe, _, tensors = read_checkpoint(path)
        fill_model(self.model, recipe, tensors, path)

    def finish(self, results) -> dict:
        """Writes results.json and curves.png -> the results."""
        seconds = round(time.monotonic() - self.began, 1)
        results |= {"seconds": seconds, "trained_parameters": self.trained_parameters,
                    "held_out": dataset_of(self.recipe).held_out,
                    "provenance": self.progress.get("provenance")}
        if self.processes.first:
            try:
                lines = (self.out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
                records = [json.loads(line) for line in lines]
                draw_curves(self.out / "curves.png", records)
            except ImportError:
                self.say("no curves.png: matplotlib is not installed")
            write_json(self.out / "results.json", results)        # last: with it the run is done
        self.say(f"wrote {self.out}/results.json, and beside it best.safetensors, metrics.jsonl "
                 f"and curves.png, in {seconds / 60:.1f} minutes")
        return results
