"""What both training scripts share: processes, the step, the schedule, logging, keeping the best. No model here."""
import json
import math
import os
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from .checkpoint import fill_model, fill_optimizer, read_checkpoint, save_checkpoint
from .config import InputError, write_json, write_whole
from .data import collate, epoch_order, share


def run_script(main):
    """Calls main; what a person did wrong ends in one line and exit code 2, without a traceback."""
    code = 0
    try:
        main()
    except (InputError, OSError) as error:                                    # OSError: its text names the file
        sys.stdout.flush()
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr, flush=True)
        code = 2
    except KeyboardInterrupt:
        code = 130
    if dist.is_initialized():
        # All is written. Leave at once: a failed process must not wait for the others' collectives, and a DDP wrapper,
        # held by a reference cycle, outlives the process group and now and then aborts when Python takes it down.
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


# ---- processes ----

@dataclass(frozen=True)
class Processes:
    rank: int
    world: int
    device: torch.device

    @property
    def first(self):
        return self.rank == 0           # the one that prints and writes

    def wait(self):
        """Until every process is here."""
        if self.world > 1:
            dist.barrier()

    def sum(self, *values):
        """Each value added up over all processes, as floats. Every process takes part."""
        total = torch.tensor([float(value) for value in values], dtype=torch.float64, device=self.device)
        if self.world > 1:
            dist.all_reduce(total)
        return total.tolist()


def start_processes():
    """One process, or those that torchrun started: nccl on GPUs, gloo on CPUs."""
    rank, world, local_rank = (int(os.environ.get(key, default)) for key, default in
                               (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise InputError(f"--nproc_per_node asks for more processes than the {torch.cuda.device_count()} GPUs here")
        torch.cuda.set_device(device)
    if world > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Processes(rank, world, device)


def distributed(model, processes):
    """The model as DDP wraps it. All processes start alike (same seed, same files): nothing to send at the start,
    and frozen weights stay views of their files, which processes on one machine share."""
    return DistributedDataParallel(model, init_sync=False) if processes.world > 1 else model


# ---- one optimizer step ----

def learning_rate(step, n_steps, peak, warmup):
    """Linear from 0 over the warm-up share of the steps, then a half cosine to 0 (step counts from 0)."""
    n_warmup = math.ceil(warmup * n_steps)
    if step < n_warmup:
        return peak * (step + 1) / n_warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - n_warmup) / max(1, n_steps - n_warmup)))


def new_optimizer(model, args):
    """AdamW over what is trained. A short memory of squared gradients (0.95, not 0.999): runs here are short, too."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise InputError(f"--train {','.join(args.train)} leaves nothing to learn in this stage")
    return torch.optim.AdamW(trained, lr=args.lr, betas=(0.9, 0.95), weight_decay=args.weight_decay)


class Steps:
    """The steps of a run, each a list of micro-batches for this process; the same examples on any number of them."""

    def __init__(self, examples, args, processes, pad_id):
        self.examples, self.args, self.processes, self.pad_id = examples, args, processes, pad_id
        self.size = args.batch_size * args.accumulate * processes.world       # examples a step
        self.per_epoch = math.ceil(len(examples) / self.size)
        self.count = math.ceil(self.per_epoch * args.epochs)

    def __call__(self, first):
        """Yields (step, micro-batches, filler) from step `first` on.

        An uneven last step may leave a process without an example. It still takes part in the backward pass, with an
        example that counts nothing: filler is 0.0 then, else 1.0.
        """
        for step in range(first, self.count):
            epoch, place = divmod(step, self.per_epoch)
            if place == 0 or step == first:
                order = epoch_order(self.examples.sizes, self.size, self.args.seed, epoch)
            mine = share(order[place], self.processes.world)[self.processes.rank]
            micro = [part for part in share(mine, self.args.accumulate) if len(part)] or [order[place][:1]]
            yield step, [collate([self.examples[i] for i in part], self.pad_id) for part in micro], float(len(mine) > 0)


def train_step(model, batches, filler, optimizer, rate, processes, args, step):
    """Forward, backward, update -> (mean loss, gradient norm, tokens). The mean is over all that counts, anywhere.

    Sums of losses are differentiated, and the gradients divided by what counted on all processes: exact for answers
    of any length. A mean of means would favour the short ones. Gradients are clipped to a norm of 1. InputError where
    the loss or the norm is not finite.
    """
    loss_sum = weight_sum = n_tokens = 0
    for index, batch in enumerate(batches):
        n_tokens += filler * batch.mask.sum().item()
        batch = batch.to(processes.device)
        last = index == len(batches) - 1
        with model.no_sync() if processes.world > 1 and not last else nullcontext():
            with torch.autocast(processes.device.type, torch.bfloat16, enabled=args.bf16):
                loss, weight = model(batch)
            (loss * filler).backward()                                        # DDP averages gradients on the last one
        loss_sum, weight_sum = loss_sum + loss.detach() * filler, weight_sum + weight * filler
    loss_sum, weight_sum, n_tokens = processes.sum(loss_sum, weight_sum, n_tokens)
    loss = loss_sum / weight_sum
    stopped = (f"stopped before the update; {args.out}/last.safetensors and best.safetensors, where written, are good. "
               "Lower --lr, or look at the data")
    if not math.isfinite(loss):
        raise InputError(f"step {step + 1}: the loss is {loss}; {stopped}")
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad *= processes.world / weight_sum
    norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0).item()
    if not math.isfinite(norm):
        raise InputError(f"step {step + 1}: the gradient's norm is {norm}; {stopped}")
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss, norm, n_tokens


# ---- what a run leaves behind ----

class Run:
    """The output directory of a run: log.txt, metrics.jsonl, best.safetensors, last.safetensors, results.json.

    Only the first process prints and writes. Progress is step (done), best score, seconds, and the settings that a
    resumed run must share.
    """
    FIXED = ("data", "batch", "epochs", "lr", "warmup", "weight_decay", "seed", "train_limit", "eval_limit", "dtype")

    def __init__(self, args, processes, model, recipe, optimizer):
        self.args, self.out, self.processes = args, Path(args.out), processes
        self.model, self.recipe, self.optimizer = model, recipe, optimizer
        self.began, self.logged = time.time(), time.time()
        self.tokens = 0
        settings = vars(args) | {"batch": args.batch_size * args.accumulate * processes.world}
        self.progress = {"step": 0, "best": None, "best_step": None, "seconds": 0.0,
                         "settings": {key: settings[key] for key in self.FIXED}}
        if args.resume:
            self.resume()
        elif processes.first:
            self.out.mkdir(parents=True, exist_ok=True)
            for name in ("best.safetensors", "last.safetensors", "results.json"):
                (self.out / name).unlink(missing_ok=True)                     # of a demo: or they would pass for this run's
        if processes.first:
            self.metrics = open(self.out / "metrics.jsonl", "a" if args.resume else "w", encoding="utf-8")
            self.log = open(self.out / "log.txt", "a" if args.resume else "w", encoding="utf-8")

    def resume(self):
        """Takes up last.safetensors; what the metrics hold beyond its step is cut off, since it will come again."""
        path = self.out / "last.safetensors"
        recipe, progress, tensors = read_checkpoint(path)
        if "bf16" in progress["settings"]:                                    # what --dtype was called at first
            progress["settings"]["dtype"] = "bfloat16" if progress["settings"].pop("bf16") else "float32"
        for key, value in self.progress["settings"].items():
            if progress["settings"].get(key) != value:
                raise InputError(f"{path} was trained with {key} {progress['settings'].get(key)}, this run has {value}; "
                                 "--resume needs the same settings")
        if replace(recipe, llm=self.recipe.llm, encoder=self.recipe.encoder) != self.recipe:    # fingerprints tell
            raise InputError(f"{path} is of another model; --resume needs the same --llm, --encoder, --train, --projector")
        fill_model(self.model, recipe, tensors, path)
        fill_optimizer(self.model, self.optimizer, tensors, path)
        self.progress = progress
        self.began -= progress["seconds"]
        metrics = self.out / "metrics.jsonl"
        if self.processes.first and metrics.exists():
            lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True)
            write_whole(metrics, "".join(line for line in lines if line.endswith("\n")     # a kill may cut the last one
                                         and json.loads(line)["step"] <= progress["step"]))

    def say(self, text):
        if self.processes.first:
            print(text, flush=True)
            self.log.write(text + "\n")
            self.log.flush()

    def measured(self, line):
        if self.processes.first:
            self.metrics.write(json.dumps(line) + "\n")
            self.metrics.flush()

    def stepped(self, step, n_steps, loss, norm, rate, n_tokens, every):
        """Notes one training step; a line on every `every`-th."""
        self.tokens += n_tokens
        self.measured({"step": step + 1, "loss": loss, "grad_norm": norm, "lr": rate})
        if (step + 1) % every == 0 or step + 1 == n_steps:
            now = time.time()
            left = (now - self.began) / (step + 1) * (n_steps - step - 1)
            self.say(f"step {step + 1:5}/{n_steps}  loss {loss:.4f}  lr {rate:.2e}  "
                     f"{self.tokens / (now - self.logged):7.0f} tokens/s  {left / 60:.1f} min left")
            self.logged, self.tokens = now, 0

    def evaluated(self, step, scores, key, higher_is_better):
        """Notes scores on the validation subjects; saves last.safetensors, and best.safetensors if they are."""
        for name, value in scores.items():
            if not math.isfinite(value):
                raise InputError(f"step {step + 1}: {name} is {value}; stopped, and last.safetensors and best.safetensors "
                                 f"in {self.out}, where written, are from before. Lower --lr, or look at the data")
        self.measured({"step": step + 1, **scores})
        self.say(f"step {step + 1:5}  validation: " + "  ".join(f"{name} {value:.4f}" for name, value in scores.items()))
        score, best = scores[key], self.progress["best"]
        improved = best is None or (score > best if higher_is_better else score < best)
        self.progress |= {"step": step + 1, "seconds": time.time() - self.began}
        if improved:
            self.progress |= {"best": score, "best_step": step + 1}
        if self.processes.first:
            if improved:
                save_checkpoint(self.out / "best.safetensors", self.model, self.recipe, self.progress)
            save_checkpoint(self.out / "last.safetensors", self.model, self.recipe, self.progress, self.optimizer)
        self.logged, self.tokens = time.time(), 0                             # validation is not training time

    def load_best(self):
        """Puts the best checkpoint's tensors into the model."""
        self.processes.wait()                                                 # until the first one has written it
        path = self.out / "best.safetensors"
        recipe, _, tensors = read_checkpoint(path)
        fill_model(self.model, recipe, tensors, path)

    def finish(self, results):
        results |= {"seconds": round(time.time() - self.began, 1),
                    "trained_parameters": sum(p.numel() for p in self.model.parameters() if p.requires_grad)}
        if self.processes.first:
            write_json(self.out / "results.json", results)
        self.say(f"wrote {self.out}/results.json: " + json.dumps(results))
