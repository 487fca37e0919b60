"""The clock of a log: which column it is, its seconds, and the rate that it tells.

Devices give a packet's samples one time stamp, and swap rows; what is done about it is counted.
"""
import re
from itertools import pairwise

import numpy as np

from ..files import InputError, as_input_error, brief

UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}            # of a time column, in seconds
NAME = re.compile(r"time|stamp|epoch|elapsed|date|second|^(t|s|ms|us|ns)$", re.IGNORECASE)
DATES = ("", "%d/%m/%Y", "%m/%d/%Y", "%d.%m.%Y", "%d-%m-%Y", "%Y/%m/%d", "%Y-%m-%d")
TIMES = ("%H:%M:%S.%f", "%H:%M:%S", "%I:%M:%S.%f %p", "%I:%M:%S %p")
BACK = 0.5                              # seconds: rows that are late by less are out of order


def find_clock(frame, used, dataset):
    """The names of the columns that hold the time, [] if none does. used: other columns."""
    given = dataset.time_column
    if given:
        return [given] if isinstance(given, str) else list(given)
    named = [name for name in frame.columns if name not in used and NAME.search(str(name))]
    named.sort(key=lambda name: str(name).lower() != "time")
    for name in named:
        if str(name).lower() == "time" or rises(frame[name]):
            return [name]
    return []


def rises(column):
    """True for numbers that hardly ever fall, and for texts that begin like a date or a time."""
    import pandas as pd
    if not pd.api.types.is_numeric_dtype(column):
        return bool(column.astype(str).str.match(r"\d+[-/.:]\d+[-/.:]").all())
    steps = column.diff().dropna()
    return bool((steps >= 0).mean() > 0.9 and (steps > 0).any())


def read_clock(frame, dataset, path):
    """The columns of a clock -> seconds (N,) from the first row."""
    import pandas as pd
    lost = frame.isna().any(axis=1)
    if lost.any():
        raise InputError(f"{path}, row {lost.argmax() + 1}: the time is missing")
    column = frame.iloc[:, 0]
    if frame.shape[1] > 1:                                        # a date and a time; milliseconds
        parts = frame.astype(str).agg(" ".join, axis=1)
        column = parts.str.replace(r"(:\d\d) 0?\.?(\d+)$", r"\1.\2", regex=True)
    if pd.api.types.is_numeric_dtype(column):
        times = (column - column.iloc[0]).to_numpy(float)
        return times * UNITS[unit_of(times, dataset, path)]
    with as_input_error(path, "has a time column that is neither numbers nor dates that are known; "
                        'dataset.json may say "time": {"column": ..., "format": "%d/%m/%Y ..."}'):
        return read_dates(column.astype(str).str.strip(), dataset.time_format)


def unit_of(times, dataset, path):
    """The unit of times: the one in which samples come at the rate, or up to ten times as fast."""
    rate = dataset.file_rate
    if dataset.time_unit or len(times) < 2:
        return dataset.time_unit or "s"
    seconds = abs(times[-1] - times[0])
    fits = [name for name, unit in UNITS.items()
            if 0.9 * rate <= (len(times) - 1) / max(seconds * unit, 1e-12) <= 10 * rate]
    unit = fits[0] if fits else "s"
    if unit != "s" and (np.diff(times) == 1).all():
        raise InputError(f"{path}: its time column only counts the rows; rename it, or give the "
                         "unit of time in dataset.json")
    return unit


def read_dates(texts, form):
    """Dates or times of day -> seconds (N,) from the first. ValueError if they are none, or if day
    and month cannot be told apart and it matters."""
    import pandas as pd
    texts = texts.str.replace(r"(\d:\d\d:\d\d)[:,](\d+)(?=$| )", r"\1.\2", regex=True)
    fractions = texts.str.extract(r":\d\d\.(\d{1,3})(?:$| )")[0].dropna()
    longer = fractions[fractions.str.len() > 1]
    whole = longer.str.endswith("0").any() and not longer.str.startswith("0").any()
    if whole and fractions.str.len().nunique() > 1:               # milliseconds: 8, 9, 10
        texts = texts.str.replace(r"(:\d\d)\.(\d{1,3})(?=$| )",
                                  lambda found: f"{found[1]}.{found[2]:0>3}", regex=True)
    found = []
    for one in [form] if form else ["ISO8601", *(f"{d} {t}".strip() for d in DATES for t in TIMES)]:
        try:
            times = pd.to_datetime(texts, format=one, utc=True)
        except ValueError:
            continue
        found.append((times - times.iloc[0]).dt.total_seconds().to_numpy())
    if not found:
        times = pd.to_timedelta(texts)
        return (times - times.iloc[0]).dt.total_seconds().to_numpy()
    if not all(np.array_equal(found[0], other) for other in found):
        raise ValueError("day and month cannot be told apart")
    return found[0]


def order_rows(seconds, counts):
    """Seconds (N,) of rows -> the order in which to read them.
    A clock that is set back by BACK or more begins anew; it does not make rows out of order."""
    steps = np.diff(seconds)
    if len(steps) and (steps <= 0).mean() > 0.9 and steps.min() < 0:
        counts["files turned around, newest row first"] += 1
        return len(seconds) - 1 - order_rows(seconds[::-1], counts)
    pieces = np.insert(np.cumsum(steps <= -BACK), 0, 0)
    order = np.lexsort((seconds, pieces))
    counts["rows out of order"] += int((order != np.arange(len(order))).sum())
    return order


def spread_packets(seconds, rate, counts):
    """Seconds (N,) in order -> evenly spaced ones between gaps, if rows share time stamps; at the
    given rate, if by the last stamp that makes no difference."""
    is_new = np.insert(np.diff(seconds) != 0, 0, True)
    firsts = np.flatnonzero(is_new)                               # of the rows of each stamp
    n_shared = len(seconds) - len(firsts)
    if len(firsts) < 2 or n_shared == 0:
        return seconds
    counts["rows with the time of the row before"] += n_shared
    stamps = seconds[firsts]
    steps = np.diff(stamps)
    usual = np.median(steps[steps > 0])
    breaks = np.flatnonzero((steps > 3 * usual) | (steps < 0)) + 1
    limits = [0, *breaks.tolist(), len(firsts)]
    rows = np.append(firsts, len(seconds))
    spread = []
    for first, last in pairwise(limits):
        n_before = rows[last - 1] - rows[first]                   # rows before the last stamp
        span = stamps[last - 1] - stamps[first]
        step = span / n_before if n_before else usual * len(firsts) / len(seconds)
        if abs(n_before / rate - span) < 2 * usual:
            step = 1 / rate
        spread.append(stamps[first] + step * np.arange(rows[last] - rows[first]))
    return np.concatenate(spread)


def rows_a_second(seconds, rate):
    """The rate of rows at these times, without gaps: steps over three times the usual, or, where
    rows come in bursts, over a second. rate: that they should have at least."""
    steps = np.diff(seconds)
    steps = steps[steps >= 0]
    if not len(steps) or steps.max() == 0:
        return 0.0
    usual = np.median(steps)
    found = len(steps) / steps.sum()
    for longest in (3 * usual, 1.0 + 10 / rate):
        some = steps[steps <= longest]
        if some.sum():
            found = len(some) / some.sum()
        if 0.9 * rate <= found <= 100 * rate:
            break
    return found


def choose_rate(samples, seconds, rate, path, counts):
    """The rate that a file is read at: `rate`, or that of its slowest channel if it is higher."""
    rates = []
    for channel in samples.T:
        times = seconds[np.isfinite(channel)]
        if len(times) > 1:
            rates.append(rows_a_second(times, rate))
    if not rates:
        return rate
    fastest = max(rates)
    if fastest == 0:
        raise InputError(f"{path}: the time column stands still; give finer times")
    if not 0.9 * rate <= fastest <= 100 * rate:
        raise InputError(f"{path}: by its time column the samples come at {fastest:.4g} Hz, the "
                         f"rate should be {rate:g} Hz; give the right one, or the unit of time")
    counts["files read by their time column"] += 1
    slowest = float(f"{min(rates):.2g}")
    if slowest > rate / 0.9:
        counts[f"files resampled from {slowest:g} Hz"] += 1
        return slowest
    return rate
