"""Teaches the built-in encoder to see trends before the LLM learns to describe them.

A public Chronos is pretrained on many series. The built-in encoder starts at random, and an LLM
cannot learn where to look in features that hold nothing yet: it repeats the usual lengths of trends
for hundreds of steps. So the encoder first learns with a linear probe that reads the direction of
the trend at each sample, and how long it still lasts; then the probe is discarded.
"""
from dataclasses import replace

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from ..batch import IGNORED
from ..data.texts import trend_line, trend_segments
from .step import Loader, learning_rate, new_optimizer, train_step

N_DIRECTIONS = 3                        # falling, steady, rising
LONGEST = 40                            # samples; a trend that lasts longer counts as this


def trends_ahead(series, dataset):
    """The trend at each sample of a series (S,) but the last -> (2, S-1) whole numbers.
    Directions (0 falling, 1 steady, 2 rising), and the samples left until the trend ends."""
    starts, ends, directions = trend_segments(trend_line(series, dataset))
    lengths = ends - starts
    direction = np.repeat(directions + 1, lengths)
    samples_left = np.repeat(ends, lengths) - np.arange(len(series) - 1)
    return np.stack([direction, samples_left.clip(max=LONGEST)])


def targets_of(batch, dataset):
    """`trends_ahead` of a batch, (2, N, S+1), IGNORED where a series has no trend."""
    n_series, longest = batch.series.shape
    targets = torch.full((2, n_series, longest + 1), IGNORED)
    for row, length in enumerate(batch.series_lengths.tolist()):
        start = longest - length                                  # padding is on the left
        series = batch.series[row, start:].numpy()
        ahead = torch.from_numpy(trends_ahead(series, dataset))
        targets[:, row, start:longest - 1] = ahead
    return targets


class TrendProbe(nn.Module):
    """An encoder with a linear probe that reads the trends from its features.
    forward(batch) -> (mean loss per sample, 1), as train_step takes a loss and its weight."""

    def __init__(self, model, dataset):
        super().__init__()
        self.encoder = model.encoder
        self.chronos = model.chronos
        self.dataset = dataset
        self.probe = nn.Linear(
            model.encoder.config.d_model, N_DIRECTIONS + LONGEST + 1)
        self.accuracy = 0.0                                       # of directions in the last batch

    def forward(self, batch):
        device = batch.ids.device
        ids, observed, *_ = self.chronos.encode(batch.series)
        features = self.encoder(ids.to(device), observed.to(device))      # (N, S+1, D_enc)
        logits = self.probe(features)                             # (N, S+1, 3+LONGEST+1)
        targets = targets_of(batch, self.dataset)                 # (2, N, S+1)
        is_target = targets[0] != IGNORED
        direction, samples_left = targets[:, is_target].to(device)        # (n,) each
        logits = logits[is_target.to(device)]                     # (n, 3+LONGEST+1)
        direction_logits, left_logits = logits.split([N_DIRECTIONS, LONGEST + 1], -1)
        loss = F.cross_entropy(direction_logits, direction, reduction="sum")
        loss = loss + F.cross_entropy(left_logits, samples_left, reduction="sum")
        is_right = direction_logits.argmax(-1) == direction
        self.accuracy = is_right.float().mean().item()
        n_samples = max(len(logits), 1)                           # a batch may hold no trend
        return loss / n_samples, torch.tensor(1.0)


def warm_up(model, examples, settings, processes, log):
    """Trains model.encoder on the first process, for as many windows as stage 1 will see."""
    if processes.first:
        alone = replace(processes, world=1, bf16=False)
        settings = replace(settings, batch_size=32, accumulate=1, lr=2e-3, betas=(0.9, 0.95),
                           weight_decay=0.0, warmup=0.05)
        loader = Loader(examples, settings, alone)
        probe = TrendProbe(model, examples.data.dataset).to(processes.device)
        optimizer = new_optimizer(probe, settings)
        for step, batches in loader.steps():
            lr = learning_rate(step, loader.n_steps, settings.lr, settings.warmup)
            train_step(probe, optimizer, batches, lr, alone)
            done = step + 1
            if done % 200 == 0 or done == loader.n_steps:
                log(f"the encoder warms up: step {done}/{loader.n_steps}, direction right at "
                    f"{probe.accuracy:.0%} of samples")
    if processes.world > 1:
        for parameter in model.encoder.parameters():
            dist.broadcast(parameter.data, 0)
