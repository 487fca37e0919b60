"""What both training scripts share: processes, the step, the schedule, logging, keeping the best. No model here."""
import json
import math
import os
import resource
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from .checkpoint import fill_model, fill_optimizer, read_checkpoint, save_checkpoint
from .config import InputError, write_json, write_whole
from .data import collate, epoch_order, share
from .picture import draw_curves


def run_script(main):
    """Calls main; what a person did wrong ends in one line and exit code 2, without a traceback.

    Of several processes the first says it. Another waits a little, until torchrun ends it, and speaks if it still
    runs then: the mistake is on its side alone.
    """
    code, message = 0, None
    try:
        main()
    except (InputError, OSError) as error:                                    # OSError: its text names the file
        code, message = 2, error
    except RuntimeError as error:                                             # gloo and nccl say in many ways that one is gone
        if not dist.is_initialized() or not any(word in str(error) for word in ("onnect", "gloo", "NCCL", "timed out", "eset")):
            raise
        code, message = 1, ("another process died or cannot be reached; this one stops, too "
                            f"({str(error).splitlines()[0][:200]})")
    except Stopped as stopped:
        code, message = 128 + signal.SIGTERM, None if int(os.environ.get("RANK", 0)) else stopped    # all stop alike
    except KeyboardInterrupt:
        code = 130
    sys.stdout.flush()
    if message is not None:
        if int(os.environ.get("RANK", 0)) > 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(3)
        print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr, flush=True)
    if dist.is_initialized():
        # All is written. Leave at once: a failed process must not wait for the others' collectives, and a DDP wrapper,
        # held by a reference cycle, outlives the process group and now and then aborts when Python takes it down.
        os._exit(code)
    sys.exit(code)


class Stopped(Exception):
    """The run was asked to end (SIGTERM), and has saved what it needs to go on."""


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
#
# What it must cost, in floating-point operations: n tokens (padding is none), a of them answers, N weights in the LLM's
# blocks, V x D in its head, P trained weights, most of them the projector's, which s sensor steps pass.
#
#     LLM, frozen     2 N n forward, 2 N n backward: the gradient of what flows through. The other 2 N n of training, the
#                     gradient of the weights, is not made: 4 N n instead of 6 N n
#     head            4 V D a, stage 1; nobody asks for the logits of the other n - a tokens
#     attention       2 T^2 D a row and layer forward (causal: half of 4), 5 T^2 D backward: small while T << N / D
#     encoder         forward alone, all channels of all rows at once
#     trained parts   6 P s, and the optimizer's dozen operations a weight: of P, never of the vocabulary
#
# Kept for the backward pass, a token and layer: the block's input, both norms' inputs, q, k, v, attention's output, gate
# and up; with --gradient-checkpointing the block's input alone. tests/bench/train.py measures all of it.

def learning_rate(step, n_steps, peak, warmup):
    """Linear from 0 over the warm-up share of the steps, then a half cosine to 0 (step counts from 0)."""
    n_warmup = math.ceil(warmup * n_steps)
    if step < n_warmup:
        return peak * (step + 1) / n_warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - n_warmup) / max(1, n_steps - n_warmup)))


def new_optimizer(model, args):
    """AdamW over what is trained; norms and biases do not decay, as with the original's trainer.

    A short memory of squared gradients (0.95, not 0.999): runs here are short, too.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise InputError(f"--train {','.join(args.train)} leaves nothing to learn in this stage")
    groups = [{"params": [p for p in trained if p.dim() > 1], "weight_decay": args.weight_decay},
              {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.95))


class Steps:
    """The steps of a run, each a list of micro-batches for this process; the same examples on any number of them."""

    def __init__(self, examples, args, processes, pad_id):
        self.examples, self.args, self.processes, self.pad_id = examples, args, processes, pad_id
        self.size = args.batch_size * args.accumulate * processes.world       # examples a step
        self.per_epoch = math.ceil(len(examples) / self.size)
        self.count = math.ceil(self.per_epoch * args.epochs)
        self.epoch = self.order = None

    def make(self, step):
        """-> (step, micro-batches, filler).

        An uneven last step may leave a process without an example. It still takes part in the backward pass, with an
        example that counts nothing: filler is 0.0 then, else 1.0.
        """
        epoch, place = divmod(step, self.per_epoch)
        if epoch != self.epoch:
            self.epoch, self.order = epoch, epoch_order(self.examples.sizes, self.size, self.args.seed, epoch)
        mine = share(self.order[place], self.processes.world)[self.processes.rank]
        micro = [part for part in share(mine, self.args.accumulate) if len(part)] or [self.order[place][:1]]
        return step, [collate([self.examples[i] for i in part], self.pad_id) for part in micro], float(len(mine) > 0)

    def __call__(self, first):
        """The steps from `first` on. While one is computed, a thread reads and tokenizes the next."""
        with ThreadPoolExecutor(1) as ahead:
            coming = ahead.submit(self.make, first) if first < self.count else None
            for step in range(first, self.count):
                now = coming.result()
                coming = ahead.submit(self.make, step + 1) if step + 1 < self.count else None
                yield now


def train_step(model, batches, filler, optimizer, rate, processes, args, step):
    """Forward, backward, update -> (mean loss, gradient norm, tokens). The mean is over all that counts, anywhere.

    Sums of losses are differentiated, and the gradients divided by what counted on all processes: exact for answers
    of any length. A mean of means would favour the short ones. Gradients are clipped to a norm of 1. InputError where
    the loss or the norm is not finite, which names the step and this process's examples.
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
    shown = [example for batch in batches for example in batch.examples]
    stopped = (f"(training examples {', '.join(map(str, shown[:8]))}{', ...' if len(shown) > 8 else ''}); stopped before the "
               f"update; {args.out}/last.safetensors and best.safetensors, where written, are good. Lower --lr, or look at "
               "the data")
    if not math.isfinite(loss):
        raise InputError(f"step {step + 1}: the loss is {loss} {stopped}")
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad *= processes.world / weight_sum
    norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0).item()
    if not math.isfinite(norm):
        raise InputError(f"step {step + 1}: the gradient's norm is {norm} {stopped}")
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss, norm, n_tokens


# ---- what a run leaves behind ----

def peak_memory(device):
    """The most that this process held so far, in bytes: of the GPU, else of the machine, mapped files included."""
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else \
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Run:
    """The output directory of a run: log.txt, metrics.jsonl, curves.png, best and last.safetensors, results.json.

    Only the first process prints and writes. Progress is step (done), best score, seconds, and the settings that a
    resumed run must share.
    """
    FIXED = ("data", "batch", "epochs", "lr", "warmup", "weight_decay", "seed", "train_limit", "eval_limit", "dtype")

    def __init__(self, args, processes, model, recipe, optimizer):
        self.args, self.out, self.processes = args, Path(args.out), processes
        self.model, self.recipe, self.optimizer = model, recipe, optimizer
        self.began, self.logged = time.time(), time.time()
        self.tokens = 0
        self.trained_parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
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
        self.asked_to_stop = False
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "asked_to_stop", True))

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

    def steps(self, steps):
        """The steps that are still to do. Asked to end, it ends behind the step in hand and its validation, saved."""
        for step in steps(self.progress["step"]):
            yield step
            if any(self.processes.sum(self.asked_to_stop)):                   # one was asked: all stop behind the same step
                self.progress |= {"step": step[0] + 1, "seconds": time.time() - self.began}
                if self.processes.first:
                    save_checkpoint(self.out / "last.safetensors", self.model, self.recipe, self.progress, self.optimizer)
                raise Stopped(f"ended on request after step {step[0] + 1}; --resume goes on from {self.out}/last.safetensors")
        signal.signal(signal.SIGTERM, signal.SIG_DFL)                         # all is saved: what follows may be ended at once

    def stepped(self, step, n_steps, loss, norm, rate, n_tokens, every):
        """Notes one training step; a line on every `every`-th."""
        self.tokens += n_tokens
        self.measured({"step": step + 1, "loss": loss, "grad_norm": norm, "lr": rate})
        if (step + 1) % every == 0 or step + 1 == n_steps:
            now = time.time()
            left = (now - self.began) / (step + 1) * (n_steps - step - 1)
            self.say(f"step {step + 1:5}/{n_steps}  loss {loss:.4f}  lr {rate:.2e}  "
                     f"{self.tokens / (now - self.logged):7.0f} tokens/s  {left / 60:.1f} min left  "
                     f"{peak_memory(self.processes.device) / 1e9:.2f} GB")
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
        """Writes results.json and curves.png -> the results."""
        results |= {"seconds": round(time.time() - self.began, 1), "trained_parameters": self.trained_parameters}
        if self.processes.first:
            write_json(self.out / "results.json", results)
            try:
                draw_curves(self.out / "curves.png", [json.loads(line) for line in open(self.out / "metrics.jsonl")])
            except ImportError:
                self.say("no curves.png: matplotlib is not installed")
        shown = {key: value for key, value in results.items() if not isinstance(value, dict)}
        self.say(f"wrote {self.out}/results.json: " + json.dumps(shown))
        return results
