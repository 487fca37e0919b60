"""Logs -> continuous recordings: one subject, one activity, no gap.

A log runs on through activities, and samples of it may be missing: NaN, or a time that jumps. Gaps
of up to GAP seconds are interpolated; a longer one ends the recording, and another begins after it.
"""
import math
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import numpy as np

GAP = 0.1                               # seconds; shorter than any movement that a text describes


@dataclass
class Log:
    samples: np.ndarray                 # (N, C), NaN where one is missing
    labels: np.ndarray                  # (N,) index into the classes, -1 for no activity
    seconds: np.ndarray                 # (N,) from the first row
    rate: float                         # Hz, of the grid that `put_on_grid` puts the rows on


@dataclass
class Recording:
    subject: int | str
    activity: int                       # index into the dataset's classes
    samples: np.ndarray                 # (N, C) float32, channels in the dataset's order and units
    source: str                         # the raw file that it comes from


def steady_log(samples, labels, rate):
    """The Log of rows (N, C) that come at the rate, without times of their own."""
    return Log(samples, labels, np.arange(len(samples)) / rate, rate)


def longest_step(rate):
    """The most samples that GAP allows from one to the next."""
    return int(GAP * rate) + 1


def runs(values):
    """(start, end) of the runs of equal neighbours; none in an empty array."""
    if not len(values):
        return ()
    edges = np.flatnonzero(values[1:] != values[:-1]) + 1
    return pairwise([0, *edges.tolist(), len(values)])


def put_on_grid(log, counts):
    """A Log with rows at any times -> one with a row every 1 / rate seconds.

    Channels are interpolated across gaps of up to GAP, and NaN in longer ones. A row of NaN (and no
    label) marks where the clock jumps by more than GAP, or back."""
    if not len(log.samples):
        return log
    steps = np.rint(np.diff(log.seconds) * log.rate)
    jumps = (steps < 0) | (steps > longest_step(log.rate))
    is_same = log.labels[1:] == log.labels[:-1]
    is_split = jumps & is_same & (log.labels[1:] >= 0)
    counts["recordings split at a gap"] += int(is_split.sum())
    missing = np.full_like(log.samples[:1], np.nan)               # (1, C)
    gap = missing, np.array([-1]), np.array([np.nan])
    pieces = []                                                   # (samples, labels, seconds) each
    for start, end in runs(np.insert(np.cumsum(jumps), 0, 0)):    # by the jumps before each row
        pieces += [interpolate(log, slice(start, end), counts), gap]
    samples, labels, seconds = map(np.concatenate, zip(*pieces[:-1]))
    return Log(samples, labels, seconds, log.rate)


def interpolate(log, rows, counts):
    """`put_on_grid` for rows without a jump of the clock -> samples, labels, seconds."""
    rate = log.rate
    seconds = log.seconds[rows]
    raw = log.samples[rows]
    start = seconds[0]
    nearest = start + np.rint((seconds - start) * rate) / rate    # time on the grid
    is_near = abs(seconds - nearest) < 1e-3 / rate
    seconds = np.where(is_near, nearest, seconds)
    n_rows = int((seconds[-1] - start) * rate + 1e-3) + 1
    grid = start + np.arange(n_rows) / rate
    samples = np.full_like(raw, np.nan, shape=(n_rows, raw.shape[1]))
    filled = np.zeros(n_rows, bool)
    for column, channel in enumerate(raw.T):
        good = np.isfinite(channel)
        times = seconds[good]
        if not len(times):
            continue
        samples[:, column] = np.interp(
            grid, times, channel[good], left=np.nan, right=np.nan)
        before = np.searchsorted(times, grid, "right").clip(1) - 1
        after = np.searchsorted(times, grid).clip(max=len(times) - 1)
        steps = np.rint((times[after] - times[before]) * rate)    # 0 at a sample
        samples[steps > longest_step(rate), column] = np.nan
        filled |= steps > 1
    filled &= np.isfinite(samples).all(1)
    counts["samples interpolated"] += int(filled.sum())
    middles = (seconds[1:] + seconds[:-1]) / 2
    nearest_row = np.searchsorted(middles, grid)
    return samples, log.labels[rows][nearest_row], grid


def stretches(samples, counts):
    """[(start, end)] of the rows (N, C) between gaps; what is lost and split is counted."""
    complete = np.isfinite(samples).all(1)                        # (N,)
    found = [(start, end) for start, end in runs(complete) if complete[start]]
    counts["samples lost at ends and in long gaps"] += int((~complete).sum())
    counts["recordings split at a gap"] += max(len(found) - 1, 0)
    return found


def resample(samples, raw_rate, rate):
    """Resamples (N, C) through an anti-aliasing filter -> float32; straight lines stay straight."""
    if raw_rate == rate or len(samples) < 2:                      # one sample makes no line
        return samples.astype(np.float32)
    from scipy.signal import resample_poly
    samples = samples.astype(np.float64)
    finest = 1000 * math.ceil(raw_rate / rate)                    # denominator
    up, down = Fraction(rate / raw_rate).limit_denominator(finest).as_integer_ratio()
    resampled = resample_poly(samples, up, down, axis=0, padtype="line")
    return resampled.astype(np.float32)


def cut_log(subject, log, rate, source, counts):
    """A subject's Log -> yields its Recordings at the rate."""
    if not len(log.samples):
        counts["recordings without a sample"] += 1
    log = put_on_grid(log, counts)
    for first, last in runs(log.labels):
        activity = int(log.labels[first])
        if activity < 0:
            continue
        samples = log.samples[first:last]
        for start, end in stretches(samples, counts):
            resampled = resample(samples[start:end], log.rate, rate)
            yield Recording(subject, activity, resampled, source)
