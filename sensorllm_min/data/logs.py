"""Logs -> continuous recordings: one subject, one activity, no gap.

A log runs on through activities, and samples of it are missing: NaN, or a time stamp that jumps.
Gaps of up to GAP seconds are interpolated; at a longer one the recording ends, and another begins
after it.
"""
import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

GAP = 0.1                               # seconds; shorter than any movement that a text describes


@dataclass
class Recording:
    subject: int | str
    activity: int                       # index into the dataset's classes
    samples: np.ndarray                 # (N, C) float32, channels in the dataset's order and units
    source: str                         # the raw file that it comes from


def put_on_grid(samples, labels, seconds, rate, counts):
    """Inserts rows where time stamps (N,) skip samples -> samples, labels.

    For a skip of up to GAP, these are as many NaN rows as are missing. For a longer one, or a clock
    that is set back, it is one row without a label, which ends the recording.
    """
    if not np.isfinite(seconds).all() or len(seconds) > 1 and not (np.diff(seconds) > 0).any():
        raise ValueError("a time stamp is missing, or the clock stands still")
    steps = np.rint(np.diff(seconds) * rate)
    long = (steps < 0) | (steps > int(GAP * rate) + 1)
    within_activity = (labels[1:] == labels[:-1]) & (labels[1:] >= 0)
    counts["recordings split at a gap"] += int((long & within_activity).sum())
    skips = np.flatnonzero(long | (steps > 1))
    missing = np.where(long[skips], 1, steps[skips] - 1).astype(int)
    index = np.repeat(skips + 1, missing)
    new_labels = np.where(long[skips], -1, labels[skips])
    return (np.insert(samples, index, np.nan, axis=0),
            np.insert(labels, index, np.repeat(new_labels, missing)))


def runs(values):
    """(start, end) of the runs of equal neighbours; none in an empty array."""
    edges = np.flatnonzero(values[1:] != values[:-1]) + 1
    starts = [0] if len(values) else []
    return zip(np.concatenate([starts, edges]).astype(int), np.concatenate([edges, [len(values)]]))


def split_at_gaps(samples, rate, counts):
    """Samples (N, C) of one activity -> (start, samples) of stretches without missing samples.

    Short gaps are interpolated; what is interpolated, dropped and split is counted.
    """
    missing = ~np.isfinite(samples).all(1)                        # (N,)
    if not missing.any():
        yield 0, samples
        return
    samples, n = samples.copy(), len(samples)
    keep = np.ones(n, dtype=bool)
    for start, end in runs(missing):
        at_end = start == 0 or end == n
        if missing[start] and (at_end or end - start > int(GAP * rate)):
            keep[start:end] = False
            counts["samples lost at ends and in long gaps"] += int(end - start)
            counts["recordings split at a gap"] += int(not at_end)
    counts["samples interpolated"] += int((missing & keep).sum())
    for channel in samples.T:                                     # a view: filled in place
        bad = ~np.isfinite(channel)
        if not bad.all():
            good = np.flatnonzero(~bad)
            channel[bad] = np.interp(np.flatnonzero(bad), good, channel[good])
    for start, end in runs(keep):
        if keep[start]:
            yield int(start), samples[start:end]


def resample(samples, raw_rate, rate):
    """Resamples (N, C) through scipy's anti-aliasing filter -> float32.

    Straight lines, and so rest, stay as they are, up to both ends.
    """
    if raw_rate in (None, rate) or len(samples) < 2:              # one sample makes no line
        return samples.astype(np.float32)
    from scipy.signal import resample_poly
    samples = samples.astype(np.float64)
    ratio = Fraction(rate / raw_rate).limit_denominator(1000 * math.ceil(raw_rate / rate))
    resampled = resample_poly(samples, *ratio.as_integer_ratio(), axis=0, padtype="line")
    return resampled.astype(np.float32)


def cut_log(subject, samples, labels, dataset, source, counts):
    """A log (N, C) with a label per sample, -1 for none -> Recordings at the dataset's rate."""
    if not len(samples):
        counts["recordings without a sample"] += 1
    for start, end in runs(labels):
        if labels[start] < 0:
            continue
        rate = dataset.raw_rate or dataset.rate
        for _, stretch in split_at_gaps(samples[start:end], rate, counts):
            resampled = resample(stretch, dataset.raw_rate, dataset.rate)
            yield Recording(subject, int(labels[start]), resampled, source)
