"""A model over a split: loss, generated descriptions, confusion matrix. Each process takes its share; sums are added."""
import math
import time

import numpy as np
import torch

from .data import collate, share
from .generate import generate
from .metrics import direction_counts


def batches_of(examples, processes, batch_size, pad_id, order=None, for_generation=False):
    """This process's share of the examples, in batches of like size: yields (positions, Batch)."""
    order = np.argsort(examples.sizes, kind="stable") if order is None else order
    mine = share(order, processes.world)[processes.rank]
    for start in range(0, len(mine), batch_size):
        positions = mine[start:start + batch_size]
        batch = collate([examples[i] for i in positions], pad_id, for_generation)
        yield positions, batch.to(processes.device)


@torch.no_grad()
def mean_loss(model, examples, processes, batch_size, pad_id, bf16=False):
    """The loss per answer token (stage 1) or per weighted window (stage 2) over all examples."""
    loss_sum = weight_sum = 0
    for _, batch in batches_of(examples, processes, batch_size, pad_id):
        with torch.autocast(processes.device.type, torch.bfloat16, enabled=bf16):
            loss, weight = model(batch)
        loss_sum, weight_sum = loss_sum + loss, weight_sum + weight
    loss_sum, weight_sum = processes.sum(loss_sum, weight_sum)
    return loss_sum / weight_sum if weight_sum else math.nan


@torch.no_grad()
def describe(model, tokenizer, examples, processes, batch_size, max_new_tokens=None, bf16=False, only=None):
    """Generates the description of each example of this process's share: yields (position, text).

    max_new_tokens None: as long as the longest true answer; never beyond what the LLM takes.
    only: so many examples, spread over the lengths.
    """
    longest = max_new_tokens or max(len(examples[i].answer) for i in range(len(examples)))
    order = np.argsort(examples.sizes, kind="stable")
    if only is not None:
        order = order[np.linspace(0, len(order) - 1, min(only, len(order))).astype(int)]
    for positions, batch in batches_of(examples, processes, batch_size, tokenizer.pad_id, order, for_generation=True):
        room = examples.limits.max_positions - batch.ids.shape[1]
        with torch.autocast(processes.device.type, torch.bfloat16, enabled=bf16):
            answers = generate(model.llm, model.embed(batch), batch.mask, tokenizer.stop_ids, min(longest, room))
        yield from zip(positions.tolist(), map(tokenizer.decode, answers))


def series_of(example):
    return example.series[0]


def direction_accuracy(texts, examples, processes):
    """texts: {position: generated text} of this process -> share of all windows' time whose direction is right."""
    rate = examples.data.dataset.rate
    counts = [direction_counts(text, series_of(examples[i]), rate) for i, text in texts.items()]
    right, total = processes.sum(sum(c[0] for c in counts), sum(c[1] for c in counts))
    return right / max(total, 1)


def direction_chance(examples, train_examples, n_windows=2000):
    """What guessing gets: the share of time that goes in the direction most frequent in the training windows."""
    step = max(1, len(train_examples) // n_windows)
    signs = np.concatenate([np.sign(np.diff(series_of(train_examples[i]))) for i in range(0, len(train_examples), step)])
    guess = max((-1, 0, 1), key=lambda direction: (signs == direction).sum())
    truth = np.concatenate([np.sign(np.diff(series_of(examples[i]))) for i in range(len(examples))])
    return float((truth == guess).mean())


@torch.no_grad()
def confusion_matrix(model, examples, processes, batch_size, pad_id, bf16=False, say=None):
    """(n, n) counts over all examples: rows true, columns predicted; and the mean loss, in the same pass.

    say: takes a line about the progress every ten seconds or so.
    """
    n = model.head.out_features
    confusion = torch.zeros(n * n, dtype=torch.float64)
    loss_sum = weight_sum = done = 0
    began = said = time.time()
    for positions, batch in batches_of(examples, processes, batch_size, pad_id):
        with torch.autocast(processes.device.type, torch.bfloat16, enabled=bf16):
            logits = model.class_logits(batch)
        loss, weight = model.class_loss(logits, batch.labels)
        loss_sum, weight_sum = loss_sum + loss, weight_sum + weight
        cells = batch.labels * n + logits.argmax(-1)
        confusion += torch.bincount(cells.cpu(), minlength=n * n)
        done += len(positions)
        if say and time.time() - said > 10:
            said = time.time()
            rate = done / (said - began)
            say(f"{done}/{len(examples)} windows, {rate:.1f} windows/s, {(len(examples) - done) / rate / 60:.1f} min left")
    *cells, loss_sum, weight_sum = processes.sum(*confusion.tolist(), loss_sum, weight_sum)
    return np.array(cells, dtype=int).reshape(n, n), loss_sum / weight_sum if weight_sum else math.nan
