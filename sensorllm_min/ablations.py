"""Stage 2 without one part of the model: each class changes one thing.

They show what the part is worth: `train_har.py --compare NAME`, or `--compare` for all of them.
"""
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from .sensorllm import Projector, SensorLLM


class TextOnly(SensorLLM):
    """Every sample is 0: windows differ only by their text."""

    def encode(self, batch):
        return super().encode(replace(batch, series=batch.series * 0))    # NaN, padding, stays


class Shuffled(SensorLLM):
    """The sensor embeddings of a window are in a random order, the same in every epoch."""

    def splice(self, batch, sensors):
        is_sensor = batch.ids == self.sensor_id                   # (B, T)
        rows = sensors.split(is_sensor.sum(1).tolist())
        shuffled = []
        for index, row in zip(batch.examples, rows):
            order = np.random.default_rng(index).permutation(len(row))
            shuffled.append(row[order])
        return super().splice(batch, torch.cat(shuffled))


class NoLLM(SensorLLM):
    """No LLM: the projector's output, averaged over each channel, goes into the head."""

    def new_head(self, n_channels, n_classes):
        return nn.Linear(n_channels * self.llm.config.d_model, n_classes, bias=False)

    def class_logits(self, batch):
        sensors = self.projector(self.encode(batch))              # (B*C*(S+1), D)
        return self.head(channel_means(sensors, batch))


class EncoderMLP(SensorLLM):
    """Chronos + MLP: the encoder's features, averaged over each channel, go into an MLP."""

    def new_head(self, n_channels, n_classes):
        return Projector(n_channels * self.d_features, self.projector.hidden, n_classes)

    def class_logits(self, batch):
        features = self.encode(batch)                             # (B*C*(S+1), D_enc)
        return self.head(channel_means(features, batch))


class Statistics(SensorLLM):
    """No encoder and no LLM: statistics of the window, as for a random forest, go into an MLP."""

    def new_head(self, n_channels, n_classes):
        return Projector(n_channels * N_STATISTICS, self.projector.hidden, n_classes)

    def class_logits(self, batch):
        series = batch.series                                     # (N, S): windows of one length
        series, _ = self.chronos.in_usual_units(series, series[:, 0], batch.channels)
        statistics = window_statistics(series)                    # (N, N_STATISTICS)
        statistics = statistics.to(self.special_embeddings.dtype).to(batch.ids.device)
        return self.head(statistics.reshape(len(batch.labels), -1))


QUANTILES = 0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0
N_BANDS = 8                             # bands of frequencies, wider and wider
N_STATISTICS = 3 + len(QUANTILES) + N_BANDS


def window_statistics(series):
    """Series (N, S) -> (N, N_STATISTICS): mean, quantiles, deviation, change, energy of bands."""
    mean = series.mean(1)
    deviation = series.std(1, correction=0)
    change = series.diff(dim=1).abs().mean(1)
    quantiles = series.quantile(series.new_tensor(QUANTILES), dim=1).T            # (N, 7)
    spectrum = torch.fft.rfft(series - mean[:, None])             # (N, S//2+1)
    energy = spectrum.abs().square() / series.shape[1]
    edges = np.geomspace(1, energy.shape[1], N_BANDS + 1).round().astype(int)
    bands = []
    for first, last in zip(edges, edges[1:]):
        last = max(last, first + 1)                               # short windows repeat bands
        bands.append(energy[:, first:last].sum(1))
    locations = torch.stack([mean, *quantiles.T], -1).asinh()                     # (N, 8)
    sizes = torch.stack([deviation, change, *bands], -1)                          # (N, 10)
    return torch.cat([locations, torch.log10(sizes + 1e-4)], -1)


def channel_means(vectors, batch):
    """Vectors (B*C*(S+1), width) of windows of one length -> their means, (B, C*width)."""
    means = vectors.unflatten(0, (len(batch.series), -1)).mean(1)                 # (B*C, width)
    return means.reshape(len(batch.labels), -1)


# name -> (the model, the parts that do not learn)
ABLATIONS = {
    "random-llm": (SensorLLM, {"llm"}),                           # random weights: `build_model`
    "no-llm": (NoLLM, {"llm", "tokens"}),
    "encoder-mlp": (EncoderMLP, {"llm", "tokens", "projector"}),
    "statistics": (Statistics, {"llm", "tokens", "projector", "encoder"}),
    "shuffled": (Shuffled, set()),
    "text-only": (TextOnly, set()),
}
