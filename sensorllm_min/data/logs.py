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
    """Rows of samples with their times."""
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
    """The samples from one to the next, at the rate, that GAP allows."""
    return int(GAP * rate) + 1


def put_on_grid(log, counts) -> Log:
    """A Log with rows at any times -> one with a row every 1 / rate seconds.

    Channels are interpolated across gaps of up to GAP and are NaN in longer ones. Where the clock
    jumps by more than GAP, or back, stands one row of NaN (its time, too) without a label.
    """
    if not len(log.samples):
        return log
    steps = np.rint(np.diff(log.seconds) * log.rate)
    jumps = (steps < 0) | (steps > longest_step(log.rate))
    within_activity = (log.labels[1:] == log.labels[:-1]) & (log.labels[1:] >= 0)
    counts["recordings split at a gap"] += int((jumps & within_activity).sum())
    gap = np.full_like(log.samples[:1], np.nan), np.array([-1]), np.array([np.nan])
    pieces = []                                                   # (samples, labels, seconds) each
    for start, end in pairwise([0, *(np.flatnonzero(jumps) + 1), len(log.seconds)]):
        rows = slice(start, end)
        piece = interpolate(log.samples[rows], log.labels[rows], log.seconds[rows], log.rate,
                            counts)
        pieces += [piece, gap]
    samples, labels, seconds = map(np.concatenate, zip(*pieces[:-1]))
    return Log(samples, labels, seconds, log.rate)


def interpolate(samples, labels, seconds, rate, counts):
    """`put_on_grid` for rows without a jump of the clock -> samples, labels, seconds."""
    nearest = seconds[0] + np.rint((seconds - seconds[0]) * rate) / rate  # of the grid's times
    seconds = np.where(abs(seconds - nearest) < 1e-3 / rate, nearest, seconds)
    n_rows = int((seconds[-1] - seconds[0]) * rate + 1e-3) + 1
    grid = seconds[0] + np.arange(n_rows) / rate
    placed = np.full_like(samples, np.nan, shape=(n_rows, samples.shape[1]))
    filled = np.zeros(n_rows, bool)
    rises = np.diff(np.maximum.accumulate(seconds), prepend=-np.inf) > 0  # of equal times the first
    for column, channel in enumerate(samples.T):
        good = rises & np.isfinite(channel)
        times = seconds[good]
        if not len(times):
            continue
        placed[:, column] = np.interp(grid, times, channel[good], left=np.nan, right=np.nan)
        before = np.searchsorted(times, grid, "right").clip(1) - 1
        after = np.searchsorted(times, grid).clip(max=len(times) - 1)
        steps = np.rint((times[after] - times[before]) * rate)    # 0 at a sample
        placed[steps > longest_step(rate), column] = np.nan
        filled |= steps > 1
    counts["samples interpolated"] += int((filled & np.isfinite(placed).all(1)).sum())
    nearest_row = np.searchsorted((seconds[1:] + seconds[:-1]) / 2, grid - 1e-9)
    return placed, labels[nearest_row], grid


def runs(values):
    """(start, end) of the runs of equal neighbours; none in an empty array."""
    edges = np.flatnonzero(values[1:] != values[:-1]) + 1
    starts = [0] if len(values) else []
    return zip(np.concatenate([starts, edges]).astype(int), np.concatenate([edges, [len(values)]]))


def stretches(samples, counts):
    """[(start, end)] of the rows (N, C) between gaps; what is lost and split is counted."""
    complete = np.isfinite(samples).all(1)                        # (N,)
    found = [(start, end) for start, end in runs(complete) if complete[start]]
    counts["samples lost at ends and in long gaps"] += int((~complete).sum())
    counts["recordings split at a gap"] += max(len(found) - 1, 0)
    return found


def resample(samples, raw_rate, rate):
    """Resamples (N, C) through scipy's anti-aliasing filter -> float32.

    Straight lines, and so rest, stay as they are, up to both ends.
    """
    if raw_rate == rate or len(samples) < 2:                      # one sample makes no line
        return samples.astype(np.float32)
    from scipy.signal import resample_poly
    samples = samples.astype(np.float64)
    ratio = Fraction(rate / raw_rate).limit_denominator(1000 * math.ceil(raw_rate / rate))
    resampled = resample_poly(samples, *ratio.as_integer_ratio(), axis=0, padtype="line")
    return resampled.astype(np.float32)


def cut_log(subject, log, rate, source, counts):
    """A subject's Log -> yields its Recordings at the rate."""
    if not len(log.samples):
        counts["recordings without a sample"] += 1
    log = put_on_grid(log, counts)
    for first, last in runs(log.labels):
        if log.labels[first] < 0:
            continue
        for start, end in stretches(log.samples[first:last], counts):
            samples = resample(log.samples[first + start:first + end], log.rate, rate)
            yield Recording(subject, int(log.labels[first]), samples, source)
