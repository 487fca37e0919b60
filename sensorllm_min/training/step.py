"""The training step: which examples it has, at which learning rate, and what it does.

What a step must cost, in floating-point operations. Of n tokens, padding not counted, a are
answers; the LLM's blocks hold N weights, its head V x D, the trained parts P, most of them the
projector's, which s sensor steps pass:

    LLM, frozen     2 N n forward, 2 N n backward for the gradient of the activations. That of the
                    weights, another 2 N n, is never computed: 4 N n in all instead of 6 N n
    head            4 V D a in stage 1: only answers need logits
    attention       2 T^2 D forward (causal: half of 4), 5 T^2 D backward, a row and layer
    encoder         forward alone, all channels of all rows at once
    trained parts   6 P s, and a dozen optimizer operations for each of the P weights

The backward pass keeps, for each token and layer, the block's input, the inputs of both norms, q,
k, v, the attention's output, gate and up; with --gradient-checkpointing the block's input alone.
tests/bench/train.py measures all of it.
"""
import math
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch

from ..batch import Batch, collate
from ..files import InputError
from .processes import share


def learning_rate(step, n_steps, peak, warmup):
    """The rate of a step (from 0): a linear rise over the warm-up share, then half a cosine."""
    n_warmup = math.ceil(warmup * n_steps)
    if step < n_warmup:
        return peak * (step + 1) / n_warmup
    progress = (step - n_warmup) / max(1, n_steps - n_warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))


def new_optimizer(model, settings):
    """AdamW over what is trained; norms and biases do not decay, as with the original's trainer.

    settings: RunSettings. Where runs are short, squared gradients are averaged over few steps
    (betas of 0.9 and 0.95). InputError where nothing is trained.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise InputError(f"--train {','.join(settings.train)} leaves nothing to learn in this "
                         "stage")
    matrices = [parameter for parameter in trained if parameter.dim() > 1]
    vectors = [parameter for parameter in trained if parameter.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay},
              {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas)


def epoch_order(sizes, step_size, seed, epoch):
    """The examples of each step of an epoch: index arrays of step_size each, one of them shorter.

    The examples are shuffled, then sorted by size within pools of 32 steps, so that the rows of a
    step have like lengths and little is padding; then the steps are shuffled. The largest one comes
    first: what memory a run takes is known at once, not after hours. The order depends on (seed,
    epoch) alone, whatever the number of processes.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(sizes))
    pool_size = 32 * step_size
    pools = [order[start:start + pool_size] for start in range(0, len(order), pool_size)]
    order = np.concatenate([pool[np.argsort(sizes[pool], kind="stable")] for pool in pools])
    steps = [order[start:start + step_size] for start in range(0, len(order), step_size)]
    steps = [steps[index] for index in rng.permutation(len(steps))]
    largest = int(np.argmax([sizes[step].sum() for step in steps]))
    steps[0], steps[largest] = steps[largest], steps[0]
    return steps


@dataclass
class Step:
    index: int                          # from 0
    lr: float
    batches: list[Batch]                # this process's, one for each forward pass
    filler: float                       # 0.0 where the batch counts nothing, else 1.0
    size: float = 1.0                   # of all processes' examples: bytes, as in examples.sizes


class Steps:
    """All steps of a run; the same examples in the same steps on any number of processes.

    settings: RunSettings. An uneven last step may leave a process without an example. It still
    takes part in the backward pass, with an example that counts nothing (filler 0.0).
    """

    def __init__(self, examples, settings, processes, pad_id):
        self.examples, self.settings, self.processes = examples, settings, processes
        self.pad_id = pad_id
        self.size = settings.batch_size * settings.accumulate * processes.world   # examples a step
        self.per_epoch = math.ceil(len(examples) / self.size)
        self.count = math.ceil(self.per_epoch * settings.epochs)
        self.mean_size = float(examples.sizes.sum()) / self.per_epoch     # of a step, as Step.size
        self.epoch = self.order = None

    def make(self, index) -> Step:
        epoch, position = divmod(index, self.per_epoch)
        if epoch != self.epoch:
            self.epoch = self.examples.epoch = epoch
            self.order = epoch_order(self.examples.sizes, self.size, self.settings.seed, epoch)
        everyone = self.order[position]
        mine = share(everyone, self.processes.world)[self.processes.rank]
        parts = [part for part in share(mine, self.settings.accumulate) if len(part)]
        parts = parts or [everyone[:1]]
        batches = [collate([self.examples[i] for i in part], self.pad_id) for part in parts]
        lr = learning_rate(index, self.count, self.settings.lr, self.settings.warmup)
        size = float(self.examples.sizes[everyone].sum())
        return Step(index, lr, batches, filler=float(len(mine) > 0), size=size)

    def starting_at(self, first):
        """Yields the steps from `first` on. While one is computed, a thread prepares the next."""
        with ThreadPoolExecutor(1) as ahead:
            coming = ahead.submit(self.make, first) if first < self.count else None
            for index in range(first, self.count):
                step = coming.result()
                if index + 1 < self.count:
                    coming = ahead.submit(self.make, index + 1)
                yield step


def train_step(model, step: Step, optimizer, processes, out):
    """Forward, backward, update -> (mean loss, gradient norm, tokens), all over all processes.

    Sums of losses are differentiated, and the gradients divided by what counted on all processes:
    exact for answers of any length, where a mean of means would favour the short ones. Gradients
    are clipped to a norm of 1. InputError, which names `out`, where the loss or the norm is not
    finite, before the update.
    """
    loss_sum = weight_sum = n_tokens = 0
    for index, batch in enumerate(step.batches):
        n_tokens += step.filler * batch.mask.sum().item()
        batch = batch.to(processes.device)
        is_last = index == len(step.batches) - 1                  # DDP reduces the gradients then
        with nullcontext() if is_last or processes.world == 1 else model.no_sync():
            with processes.autocast():
                loss, weight = model(batch)
            (loss * step.filler).backward()
        loss_sum += loss.detach() * step.filler
        weight_sum += weight * step.filler
    loss_sum, weight_sum, n_tokens = processes.sum(loss_sum, weight_sum, n_tokens)
    loss = loss_sum / weight_sum
    check_finite("loss", loss, step, out)

    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad *= processes.world / weight_sum        # DDP has divided by the world
    norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0).item()
    check_finite("gradient's norm", norm, step, out)

    for group in optimizer.param_groups:
        group["lr"] = step.lr
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss, norm, n_tokens


def check_finite(what, value, step, out):
    """InputError, which names the step and this process's examples, unless the value is finite."""
    if math.isfinite(value):
        return
    examples = []
    for batch in step.batches:
        examples += map(str, batch.examples)
    shown = ", ".join(examples[:8]) + (", ..." if len(examples) > 8 else "")
    raise InputError(
        f"step {step.index + 1}: the {what} is {value} (training examples {shown}); stopped before "
        f"the update; {out}/last.safetensors and best.safetensors, if written, are good. Lower "
        "--lr, or look at the data")
