"""Statistics of a window, as numbers for the model: level, energy, rhythm, common movement.

Chronos scales each series before it cuts it into bins, so that neither gravity nor energy is left,
and encodes each channel alone. With statistics, each feature of the encoder also carries numbers
about its whole series: 18 about it alone, and its correlation with each channel at five lags.
"""
import numpy as np
import torch
import torch.nn.functional as F

QUANTILES = 0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0
N_BANDS = 8                             # of frequencies
N_OWN = 3 + len(QUANTILES) + N_BANDS    # statistics of a series alone
LAGS = 0.0, 0.025, 0.05, 0.1, 0.2       # of correlations, in windows
LIMIT = 5.0                             # deviations; what is further away may be a broken sensor


def count_statistics(n_channels):
    return N_OWN + n_channels * len(LAGS)


def own_statistics(series, edges):
    """Float64 series (N, S) -> (N, N_OWN): mean and quantiles as asinh(x); deviation, mean change
    between neighbours, and energies between `edges` (cycles per sample) as log10(x + 1e-4).
    A frequency of the spectrum stands for all up to half-way to its neighbours."""
    n_samples = series.shape[1]
    spectrum = torch.fft.rfft(series).abs().square() / n_samples  # (N, S//2+1)
    spectrum[:, 0] = 0                                            # the mean
    below = F.pad(spectrum.cumsum(1), (1, 0))                     # (N, S//2+2)
    limits = torch.from_numpy(edges) * n_samples + 0.5
    whole = limits.floor().clamp(max=spectrum.shape[1] - 1).long()
    part = (limits - whole).clamp(max=1)
    energies = (below[:, whole] + part * spectrum[:, whole]).diff(dim=1)          # (N, N_BANDS)

    quantiles = series.quantile(series.new_tensor(QUANTILES), dim=1).T            # (N, 7)
    deviation = series.std(1, correction=0)
    change = series.diff(dim=1).abs().sum(1) / max(n_samples - 1, 1)
    mean = series.mean(1, keepdim=True)
    locations = torch.cat([mean, quantiles], -1)                  # (N, 8)
    spreads = torch.stack([deviation, change], -1)                # (N, 2)
    sizes = torch.cat([spreads, energies], -1)
    return torch.cat(
        [locations.asinh(), torch.log10(sizes + 1e-4)], -1)


class Statistics:
    """Statistics in usual units, at most LIMIT from what is usual.

    usual (C, 1 + n, 2): the (mean, standard deviation) of each channel's samples, then of each of
    its n statistics, in training. n_window: samples of a stage-2 window, for lags and bands."""

    def __init__(self, usual, n_window):
        usual = torch.tensor(usual, dtype=torch.float64)
        self.units = usual[:, 0]                                  # (C, 2)
        self.usual = usual[:, 1:]                                 # (C, n, 2)
        self.n = count_statistics(len(usual))
        self.edges = np.geomspace(0.5 / n_window, 0.5, N_BANDS + 1)
        self.lags = [round(lag * n_window) for lag in LAGS]

    def raw(self, windows, channels):
        """Windows (B, n_given, S), of these channels (n_given,) -> (B, n_given, n), in the units of
        the samples' channels. Correlations are with each channel that many samples later, NaN if
        it is not given; 0.001 is added to deviations, so that rest correlates with nothing."""
        mean, deviation = self.units[channels].T[:, :, None]      # (n_given, 1) each
        series = (windows - mean) / deviation
        n_rows, n_given, n_samples = series.shape
        own = own_statistics(series.flatten(0, 1), self.edges)
        own = own.unflatten(0, (n_rows, n_given))
        shape = n_rows, n_given, len(self.units), len(self.lags)
        correlations = series.new_full(shape, torch.nan)
        scaled = series - series.mean(-1, keepdim=True)
        scaled = scaled / (series.std(-1, correction=0, keepdim=True) + 1e-3)
        for i, lag in enumerate(self.lags):
            earlier = scaled[..., :max(n_samples - lag, 0)]
            later = scaled[..., lag:]
            correlations[:, :, channels, i] = earlier @ later.transpose(1, 2) / n_samples
        return torch.cat([own, correlations.flatten(2)], -1)

    def __call__(self, batch):
        """The statistics of all series of a Batch, (N, n) float64, on the CPU; 0 is usual."""
        n_rows = len(batch.examples)
        windows = batch.series.unflatten(0, (n_rows, -1))         # (B, n_given, S), NaN on the left
        channels = batch.channels.view(n_rows, -1)                # (B, n_given)
        lengths = batch.series_lengths.cpu().view(n_rows, -1)
        found = windows.new_empty(*windows.shape[:2], self.n)
        kinds = torch.cat([lengths[:, :1], channels], 1)          # rows of one kind, together
        for kind in kinds.unique(dim=0):
            rows = (kinds == kind).all(1)
            length, given = int(kind[0]), kind[1:]
            found[rows] = self.raw(windows[rows, :, -length:], given)
        mean, deviation = self.usual[channels].unbind(-1)         # (B, n_given, n) each
        found = ((found - mean) / deviation).nan_to_num(0.0).clamp(-LIMIT, LIMIT)
        return found.flatten(0, 1)
