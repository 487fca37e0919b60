"""What becomes of stage 2 when one part of the model is taken away: each class changes one thing.

They show what a part is worth (`train_har.py --ablate NAME`, or `--compare` for all of them).
"""
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from .sensorllm import Projector, SensorLLM


class TextOnly(SensorLLM):
    """every sample is 0: only the text tells windows apart"""

    def encode(self, batch):
        # NaN, the padding, stays NaN
        return super().encode(replace(batch, series=batch.series * 0))


class Shuffled(SensorLLM):
    """the sensor embeddings of a window stand in a random order, always the same"""

    def splice(self, batch, sensors):
        counts = (batch.ids == self.sensor_id).sum(1).tolist()    # of each row
        rows = []
        for index, row in zip(batch.examples, sensors.split(counts)):
            order = np.random.default_rng(index).permutation(len(row))
            rows.append(row[order])
        return super().splice(batch, torch.cat(rows))


class RandomLLM(SensorLLM):
    """the LLM's weights are drawn at random and stay so"""       # drawn where the model is built


class NoLLM(SensorLLM):
    """no LLM: the projector's output, averaged over each channel, goes into the head"""

    def new_head(self, n_channels, n_classes):
        return nn.Linear(n_channels * self.llm.config.d_model, n_classes, bias=False)

    def class_logits(self, batch):
        return self.head(channel_means(self.projector(self.encode(batch)), batch))


class EncoderMLP(SensorLLM):
    """the encoder's features, averaged over each channel, go into an MLP (Chronos + MLP)"""

    def new_head(self, n_channels, n_classes):
        return Projector(n_channels * self.d_features, self.projector.hidden, n_classes)

    def class_logits(self, batch):
        return self.head(channel_means(self.encode(batch), batch))


class Statistics(SensorLLM):
    """no encoder, no LLM: statistics of the window, as a random forest gets, go into the MLP"""

    def new_head(self, n_channels, n_classes):
        return Projector(n_channels * N_STATISTICS, self.projector.hidden, n_classes)

    def class_logits(self, batch):
        series = batch.series                                     # (N, S), of windows of one length
        series, _ = self.chronos.in_usual_units(series, series[:, 0], batch.channels)
        statistics = window_statistics(series).to(self.special_embeddings.dtype)
        statistics = statistics.to(batch.ids.device)
        return self.head(statistics.reshape(len(batch.labels), -1))


QUANTILES = 0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0
N_BANDS = 8                             # of frequencies, each as wide as the ones before together
N_STATISTICS = 3 + len(QUANTILES) + N_BANDS


def window_statistics(series):
    """Series (N, S) -> (N, N_STATISTICS): mean, deviation, change, quantiles, energy of bands."""
    mean, deviation = series.mean(1), series.std(1, correction=0)
    change = series.diff(dim=1).abs().mean(1)
    quantiles = series.quantile(series.new_tensor(QUANTILES), dim=1).T            # (N, 7)
    energy = torch.fft.rfft(series - mean[:, None]).abs().square() / series.shape[1]  # (N, S//2+1)
    edges = np.geomspace(1, energy.shape[1], N_BANDS + 1).round().astype(int)
    bands = [energy[:, first:max(last, first + 1)].sum(1)
             for first, last in zip(edges, edges[1:])]
    places = torch.stack([mean, *quantiles.T], -1).asinh()                        # (N, 8)
    sizes = torch.stack([deviation, change, *bands], -1)                          # (N, 10)
    return torch.cat([places, torch.log10(sizes + 1e-4)], -1)


def channel_means(vectors, batch):
    """Vectors (B*C*(S+1), width) of windows of one length -> their means, (B, C*width)."""
    means = vectors.unflatten(0, (len(batch.series), -1)).mean(1)                 # (B*C, width)
    return means.reshape(len(batch.labels), -1)


# name -> (the model, the parts that do not learn)
ABLATIONS = {
    "random-llm": (RandomLLM, {"llm"}),
    "no-llm": (NoLLM, {"llm", "tokens"}),
    "encoder-mlp": (EncoderMLP, {"llm", "tokens", "projector"}),
    "statistics": (Statistics, {"llm", "tokens", "projector", "encoder"}),
    "shuffled": (Shuffled, set()),
    "text-only": (TextOnly, set()),
}
