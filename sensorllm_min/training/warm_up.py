"""The built-in encoder learns to see trends before the LLM learns to tell them.

A public Chronos comes trained on many series. The built-in encoder starts at random, and an LLM
cannot learn where to look in features that hold nothing yet: it falls back on the usual lengths of
trends and stays there for hundreds of steps. So at each sample of stage 1's training windows, two
linear maps first tell from the encoder's features alone which way the trend goes and how long it
still lasts. Then they are thrown away.
"""
import time
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..batch import IGNORED
from ..data.texts import trend_line, trend_segments
from .step import Steps

LONGEST = 40                            # samples; what lasts longer counts as this
BATCH_SIZE, LR = 32, 2e-3


def trends_ahead(series, dataset):
    """At each sample of a series (S,) but the last -> (2, S-1) whole numbers.

    The direction of its trend, 0 falling, 1 steady, 2 rising; the samples until it ends.
    """
    starts, ends, directions = trend_segments(trend_line(series, dataset))
    until = np.repeat(ends, ends - starts) - np.arange(len(series) - 1)
    return np.stack([np.repeat(directions + 1, ends - starts), until.clip(max=LONGEST)])


def targets_of(batch, dataset):
    """What is told of a batch's series, (2, N, S+1): IGNORED at padding and at the last sample."""
    n_series, longest = batch.series.shape
    targets = torch.full((2, n_series, longest + 1), IGNORED)
    for row, (series, length) in enumerate(zip(batch.series, batch.series_lengths.tolist())):
        ahead = trends_ahead(series[longest - length:].cpu().numpy(), dataset)
        targets[:, row, longest - length:longest - 1] = torch.from_numpy(ahead)
    return targets


def warm_up(model, examples, settings, processes) -> float:
    """Trains model.encoder as above, on one process; the others receive the weights -> seconds.

    examples: AlignExamples; settings: RunSettings. It sees as many windows as stage 1 will.
    """
    began = said = time.monotonic()
    if processes.first:
        encoder, dataset, device = model.encoder, examples.data.dataset, processes.device
        settings = replace(settings, batch_size=BATCH_SIZE, accumulate=1, lr=LR, warmup=0.05)
        plan = Steps(examples, settings, replace(processes, world=1), pad_id=0)
        tells = nn.Linear(encoder.config.d_model, 3 + LONGEST + 1).to(device)
        weights = [*encoder.parameters(), *tells.parameters()]
        optimizer = torch.optim.AdamW(weights, betas=(0.9, 0.95), weight_decay=0.0)
        for step in plan.starting_at(0):
            batch = step.batches[0]                               # encoded where float64 is exact
            ids, observed, *_ = model.chronos.encode(batch.series)
            told = tells(encoder(ids.to(device), observed.to(device)))    # (N, S+1, 3+LONGEST+1)
            targets = targets_of(batch, dataset)                  # (2, N, S+1)
            counts = targets[0] != IGNORED
            direction, until = targets[:, counts].to(device)      # (n,) each
            told = told[counts.to(device)]                        # (n, 3 + LONGEST + 1)
            loss = (F.cross_entropy(told[:, :3], direction, reduction="sum")
                    + F.cross_entropy(told[:, 3:], until, reduction="sum"))
            loss = loss / max(len(told), 1)                       # a batch may hold no trend
            optimizer.param_groups[0]["lr"] = step.lr
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            done, now = step.index + 1, time.monotonic()
            if now - said > 10 or done == plan.count:
                said = now
                right = (told[:, :3].argmax(-1) == direction).float().mean()
                minutes = (now - began) / done * (plan.count - done) / 60
                print(f"the encoder warms up: step {done}/{plan.count}, direction right at "
                      f"{right:.0%} of samples, {minutes:.1f} min left", flush=True)
    processes.spread(model.encoder.parameters())
    return time.monotonic() - began
