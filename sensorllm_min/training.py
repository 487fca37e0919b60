"""What both training scripts share: processes, the step, the schedule, logging, keeping the best. No model here."""
import json
import math
import os
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from .checkpoint import Recipe, fill_model, fill_optimizer, fingerprint, read_checkpoint, save_checkpoint
from .chronos_tokenizer import SCALINGS
from .config import (TINY_CHRONOS, TINY_ENCODER, TINY_LLAMA, ChronosConfig, InputError, LlamaConfig, T5Config,
                     read_json)
from .data import PreparedData, collate, epoch_order, share
from .prepare import prepare
from .sensorllm import PARTS
from .text_tokenizer import new_tokens, train_backend
from .trend_text import HAR_TEXTS, har_text, system_prompt


def run_script(main):
    """Calls main; what a person did wrong ends in one line and exit code 2, without a traceback."""
    script = Path(sys.argv[0]).name
    try:
        main()
    except InputError as error:
        print(f"{script}: {error}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(2)             # at once: a process group whose other ranks still wait must not hold this one back
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def add_shared_arguments(parser, test_limit):
    """The options that mean the same in both training scripts. None: the default depends on the model (`fill_in`)."""
    parser.add_argument("--data", default="data/demo", help="prepared dataset (default data/demo, made when missing)")
    parser.add_argument("--llm", help="LLaMA-family directory (default: a tiny one, trained from scratch)")
    parser.add_argument("--encoder", help="Chronos T5 directory (default: a tiny one, trained from scratch)")
    parser.add_argument("--projector", help="hidden widths of the projector, joined by ',' (default 2048; built-in 256)")
    parser.add_argument("--scaling", choices=SCALINGS,
                        help="how a series is scaled before it is cut into bins (default StanNormalizeUniformBins)")
    parser.add_argument("--train", help="parts to train, joined by ',': " + ", ".join(PARTS))
    parser.add_argument("--epochs", type=float, help="passes over the training windows; may be a fraction")
    parser.add_argument("--batch-size", type=int, help="examples a forward pass, on each process")
    parser.add_argument("--accumulate", type=int, help="forward passes an optimizer step")
    parser.add_argument("--lr", type=float, help="peak learning rate of AdamW")
    parser.add_argument("--warmup", type=float, default=0.03, help="share of the steps that the rate rises (default 0.03)")
    parser.add_argument("--weight-decay", type=float, default=0.0)
    parser.add_argument("--bf16", action="store_true", help="compute in bf16; what is trained stays float32")
    parser.add_argument("--gradient-checkpointing", action="store_true",
                        help="recompute each LLM block in the backward pass: less memory, a third more time")
    parser.add_argument("--train-limit", type=int, help="train on a seeded sample of so many windows")
    parser.add_argument("--eval-limit", type=int, default=512, help="validate on so many windows (default 512)")
    parser.add_argument("--test-limit", type=int, default=test_limit,
                        help=f"test on so many windows at the end (default {test_limit or 'all'})")
    parser.add_argument("--eval-every", type=int, help="steps between validations and checkpoints (default 8 a run)")
    parser.add_argument("--log-every", type=int, default=10, help="steps between printed lines (default 10)")
    parser.add_argument("--resume", action="store_true", help="go on from last.safetensors in --out")
    parser.add_argument("--seed", type=int, default=0)


def fill_in(args, defaults):
    """Puts defaults where an option was not given, and splits the lists."""
    for key, value in (defaults | {"scaling": "StanNormalizeUniformBins"}).items():
        if getattr(args, key) is None:
            setattr(args, key, value)
    try:
        args.projector = tuple(int(width) for width in str(args.projector).split(","))
    except ValueError:
        raise InputError(f"--projector {args.projector}: give widths joined by ',', such as 2048 or 2048,3072")
    args.train = tuple(args.train.split(","))
    if not set(args.train) <= set(PARTS):
        raise InputError(f"--train {','.join(args.train)}: the parts are {', '.join(PARTS)}, joined by ','")
    if min(args.batch_size, args.accumulate, args.log_every) < 1 or args.epochs <= 0:
        raise InputError("--batch-size, --accumulate, --log-every and --epochs must be positive")


def open_data(directory, processes):
    """The prepared dataset; the demo is made where it is missing."""
    if Path(directory) == Path("data/demo") and not Path(directory, "meta.json").exists() and processes.first:
        print("making the demo dataset in data/demo: simulated people, no download", flush=True)
        prepare("demo", None, directory, say=lambda text: None)
    processes.wait()
    return PreparedData(directory)


def new_recipe(args, data, processes):
    """What a new model is made of: the directories given, or the built-in sizes with a tokenizer learned from the text.

    The first process learns the tokenizer and leaves it in --out, where the others, and a resumed run, find it.
    """
    llm, encoder, chronos, tokenizer_json = TINY_LLAMA, TINY_ENCODER, TINY_CHRONOS, None
    if args.llm:
        where = f"{args.llm}/config.json"
        llm = LlamaConfig.from_hf(read_json(where), where)
    else:
        path = Path(args.out, "tokenizer.json")
        if processes.first and not args.resume:
            path.parent.mkdir(parents=True, exist_ok=True)
            train_backend(sample_texts(data), llm.vocab_size).save(str(path))
        processes.wait()
        tokenizer_json = json.dumps(read_json(path))
    if args.encoder:
        where = f"{args.encoder}/config.json"
        encoder, chronos = T5Config.from_hf(read_json(where), where), ChronosConfig.from_hf(read_json(where), where)
    args.llm, args.encoder = (directory and str(Path(directory).resolve()) for directory in (args.llm, args.encoder))
    return Recipe(
        dataset=data.name, added_tokens=tuple(new_tokens(data.dataset.channels)), scaling=args.scaling,
        projector=args.projector, trained=args.train, tokenizer_json=tokenizer_json,
        llm=args.llm, llm_fingerprint=args.llm and fingerprint(args.llm), llm_config=llm,
        encoder=args.encoder, encoder_fingerprint=args.encoder and fingerprint(args.encoder), encoder_config=encoder,
        chronos=chronos)


def sample_texts(data):
    """About 2000 prompts and answers of stage 1 and 100 texts of stage 2: what a small tokenizer is learned from."""
    pairs, windows = data.rows("align", "train"), data.rows("har", "train")
    for row in (pairs[i] for i in range(0, len(pairs), len(pairs) // 2000 + 1)):
        yield system_prompt(row["length"], data.dataset.rate) + row["question"] + row["answer"]
    for row in (windows[i] for i in range(0, len(windows), len(windows) // 100 + 1)):
        yield "\n" + har_text(data.window(row), data.dataset, tuple(HAR_TEXTS))


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
        torch.cuda.set_device(device)
    if world > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Processes(rank, world, device)


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
    of any length. A mean of means would favour the short ones. InputError where the loss is not finite.
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
    if not math.isfinite(loss):
        raise InputError(f"step {step + 1}: the loss is {loss}; stopped before the update, so {args.out}/last.safetensors "
                         "and best.safetensors, where written, are good. Lower --lr, or look at the data")
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad *= processes.world / weight_sum
    norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0).item()
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss, norm, n_tokens


# ---- what a run leaves behind ----

def write_whole(path, text):
    """Writes a text file whole or not at all."""
    unfinished = Path(f"{path}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


def write_json(path, content):
    write_whole(path, json.dumps(content, indent=2) + "\n")


class Run:
    """The output directory of a run: log.txt, metrics.jsonl, best.safetensors, last.safetensors, results.json.

    Only the first process prints and writes. Progress is step (done), best score, seconds, and the settings that a
    resumed run must share.
    """
    FIXED = ("data", "batch", "epochs", "lr", "warmup", "weight_decay", "seed", "train_limit")   # the course of a run

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
        else:
            self.spare_others()
        if processes.first:
            self.out.mkdir(parents=True, exist_ok=True)
            self.metrics = open(self.out / "metrics.jsonl", "a" if args.resume else "w", encoding="utf-8")
            self.log = open(self.out / "log.txt", "a" if args.resume else "w", encoding="utf-8")

    def resume(self):
        """Takes up last.safetensors; what the metrics hold beyond its step is cut off, since it will come again."""
        path = self.out / "last.safetensors"
        recipe, progress, tensors = read_checkpoint(path)
        for key, value in self.progress["settings"].items():
            if progress["settings"].get(key) != value:
                raise InputError(f"{path} was trained with {key} {progress['settings'].get(key)}, this run has {value}; "
                                 "--resume needs the same settings")
        if recipe != self.recipe:
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

    def spare_others(self):
        """A new run may replace a demo, or a run on the same dataset; InputError for any other."""
        path = self.out / "last.safetensors"
        if path.exists():
            old = read_checkpoint(path)[0].dataset
            if old not in ("demo", self.recipe.dataset):
                raise InputError(f"{self.out} holds a run on {old}; choose another --out, or remove it")

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
        self.measured({"step": step + 1, **scores})
        self.say(f"step {step + 1:5}  validation: " + "  ".join(f"{name} {value:.4f}" for name, value in scores.items()))
        score, best = scores[key], self.progress["best"]
        if not math.isfinite(score):
            raise InputError(f"step {step + 1}: {key} is {score}; stopped, and last.safetensors and best.safetensors in "
                             f"{self.out}, where written, are from before. Lower --lr, or look at the data")
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
