"""The training step: which examples it has, at which learning rate, and what it does.

Of n real tokens, a of them answers, a frozen LLM of N weights costs 4 N n FLOPs (forward, and the
gradient of the activations), its head of V x D weights 4 V D a, attention 7 T^2 D a row and layer.
For each token and layer the backward pass keeps the block's input, the inputs of both norms, q, k,
v, the attention's output, gate and up; with --gradient-checkpointing only the block's input.
"""
import math
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import torch

from ..batch import collate
from ..files import InputError, brief


SLOW = 0.05                             # of the learning rate: networks under a class head


def learning_rate(step, n_steps, peak, warmup):
    """The rate of a step (from 0): a linear rise over this fraction of the steps, then a cosine."""
    n_warmup = math.ceil(warmup * n_steps)
    if step < n_warmup:
        return peak * (step + 1) / n_warmup
    progress = (step - n_warmup) / max(1, n_steps - n_warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))


def new_optimizer(model, settings):
    """AdamW over the trained parameters (an InputError if there are none); only matrices decay.
    Under a class head, encoder and LLM learn slowly: a few windows would soon be known by heart."""
    has_head = getattr(model, "head", None) is not None
    groups = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            slow = has_head and name.startswith(("encoder.", "llm."))
            decay = settings.weight_decay if parameter.dim() > 1 else 0.0
            groups.setdefault((decay, SLOW if slow else 1.0), []).append(parameter)
    if not groups:
        parts = ",".join(settings.train)
        raise InputError(f"--train {parts} leaves nothing to learn in this stage")
    groups = [{"params": parameters, "weight_decay": decay, "scale": scale}
              for (decay, scale), parameters in groups.items()]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas)


def epoch_order(sizes, step_size, seed, epoch):
    """The examples of each step of an epoch: index arrays of step_size each, one of them shorter.

    They are shuffled, then sorted by size within pools of 32 steps, so that a step needs little
    padding; then the steps are shuffled. The largest comes first: it shows the memory needed."""
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(sizes))
    pool_size = 32 * step_size
    for start in range(0, len(order), pool_size):
        pool = order[start:start + pool_size]
        by_size = np.argsort(sizes[pool], kind="stable")
        order[start:start + pool_size] = pool[by_size]
    steps = [order[start:start + step_size] for start in range(0, len(order), step_size)]
    steps = [steps[index] for index in rng.permutation(len(steps))]
    largest = int(np.argmax([sizes[step].sum() for step in steps]))
    steps[0], steps[largest] = steps[largest], steps[0]
    return steps


class Loader:
    """The batches of each step (step_size examples, the same on any number of processes)."""

    def __init__(self, examples, settings, processes):
        self.examples = examples
        self.settings = settings
        self.processes = processes
        self.step_size = settings.batch_size * settings.accumulate * processes.world
        self.steps_per_epoch = math.ceil(len(examples) / self.step_size)
        self.n_steps = math.ceil(self.steps_per_epoch * settings.epochs)
        self.epoch = self.order = None

    def steps(self, first=0):
        """Yields (step, batches) from step `first` on; a thread prepares the next one meanwhile."""
        with ThreadPoolExecutor(1) as thread:
            coming = thread.submit(self.batches, first)
            for step in range(first, self.n_steps):
                batches = coming.result()
                if step + 1 < self.n_steps:
                    coming = thread.submit(self.batches, step + 1)
                yield step, batches

    def batches(self, step):
        """This process's batches of a step, one for each forward pass."""
        epoch, index = divmod(step, self.steps_per_epoch)
        if epoch != self.epoch:
            self.epoch = self.examples.epoch = epoch
            self.order = epoch_order(
                self.examples.sizes, self.step_size, self.settings.seed, epoch)
        everyone = self.order[index]
        accumulate = self.settings.accumulate
        mine = everyone[self.processes.rank::self.processes.world]
        parts = [mine[i::accumulate] for i in range(min(accumulate, len(mine)))]
        pad_id = self.examples.prompts.tokenizer.pad_id
        batches = [collate([self.examples[i] for i in part], pad_id)
                   for part in parts or [everyone[:1]]]
        # without an example of its own it has one that counts nothing: DDP needs every process
        return [replace(batch, counts=float(len(parts) > 0)) for batch in batches]


def train_step(model, optimizer, batches, lr, processes):
    """Forward, backward, update -> (mean loss, gradient norm, tokens), each over all processes.

    Sums of losses are differentiated, and the gradients divided once by what counted on all
    processes: a mean of means would favour short answers. Gradients are clipped to a norm of 1.
    Raises an InputError before the update if the loss or the norm is not finite."""
    model.train()
    loss_sum = weight_sum = n_tokens = 0
    for index, batch in enumerate(batches):
        n_tokens += batch.counts * batch.mask.sum().item()
        is_last = index == len(batches) - 1                       # DDP adds up gradients then
        with nullcontext() if is_last or processes.world == 1 else model.no_sync():
            with processes.autocast():
                loss, weight = model(batch.to(processes.device))
            (batch.counts * loss).backward()
        loss_sum += batch.counts * loss.detach()
        weight_sum += batch.counts * weight
    loss_sum, weight_sum, n_tokens = processes.sum(loss_sum, weight_sum, n_tokens)
    loss = loss_sum / weight_sum
    if not math.isfinite(loss):
        stop_at("loss", loss, batches)

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        if parameter.grad is not None:
            parameter.grad *= processes.world / weight_sum        # DDP has divided by the world
    norm = torch.nn.utils.clip_grad_norm_(trained, 1.0).item()
    if not math.isfinite(norm):
        stop_at("gradient's norm", norm, batches)

    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("scale", 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss, norm, n_tokens


def stop_at(what, value, batches=()):
    examples = [str(index) for batch in batches for index in batch.examples]
    seen = f" (training examples {brief(', '.join(examples))})" if examples else ""
    raise InputError(f"the {what} is {value}{seen}; stopped, and the checkpoints saved until now "
                     "are good. Lower --lr, or look at the data")
