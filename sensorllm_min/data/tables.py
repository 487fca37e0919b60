"""Tables of samples as people and archives have them, read so that no column passes for another.

Each reader raises an InputError, which names the file, for whatever it cannot match with certainty.
"""
import csv
import gzip
from array import array
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..files import InputError, brief, understanding

MISSING = {"", "na", "n/a", "nan", "null", "none", "#n/a", "<na>"}     # a sample that is not there


def number(text) -> float:
    """The number that a field holds; NaN for a missing one. ValueError for anything else."""
    if text.strip().lower() in MISSING:
        return np.nan
    if "_" in text:                                               # Python would read 1_000
        raise ValueError
    return float(text)


def csv_rows(path):
    """Yields (line, fields) of each line of a CSV that holds anything, the header first."""
    opened = gzip.open if Path(path).suffix.lower() == ".gz" else open
    with (understanding(path, "cannot be read as CSV"),
          opened(path, "rt", encoding="utf-8-sig", newline="") as file):
        rows = csv.reader(file, strict=True)
        for fields in rows:
            if fields:
                yield rows.line_num, fields
        if not rows.line_num:
            raise ValueError("it is empty")


def csv_header(path) -> list[str]:
    """The names of a CSV's columns."""
    _, header = next(csv_rows(path))
    return [name.strip() for name in header]


class Table(NamedTuple):
    """The columns of a CSV."""
    samples: np.ndarray                 # (N, C) float64, NaN where one is missing
    lines: np.ndarray                   # (N,) the line of each in the file
    texts: dict                         # {name: N texts} of the columns that hold no samples


def read_csv(path, tokens, others=()) -> Table:
    """The columns `tokens`, as numbers, and `others`, as texts.

    InputError where a name is not there or there twice, where a line has more or fewer fields than
    the header (an empty last one, from a trailing comma, is harmless), or for what is no number.
    """
    header = csv_header(path)
    for name in (*tokens, *others):
        if header.count(name) != 1:
            how = "twice the" if name in header else "no"
            raise InputError(f"{path} has {how} column {name}; it needs "
                             f"{', '.join((*tokens, *others))}, its columns are "
                             f"{brief(', '.join(header))}")
    columns = [header.index(token) for token in tokens]
    texts = {header.index(name): [] for name in others}
    rows = csv_rows(path)
    next(rows)
    samples, lines = array("d"), array("q")
    for line, fields in rows:
        if len(fields) == len(header) + 1 and not fields[-1].strip():
            fields.pop()
        if len(fields) != len(header):
            raise InputError(f"{path}, line {line}: {len(fields)} fields, the header has "
                             f"{len(header)}; each needs a name, and numbers a decimal point")
        try:
            samples.extend([number(fields[column]) for column in columns])
        except ValueError:
            shown = brief(", ".join(fields[column] for column in columns))
            raise InputError(f"{path}, line {line}: a sample is not a finite number: {shown}")
        lines.append(line)
        for column, values in texts.items():
            values.append(fields[column].strip())
    return Table(np.array(samples).reshape(-1, len(tokens)), np.array(lines),
                 dict(zip(others, texts.values())))


def check_samples(samples, n_columns, path):
    """An array from a file. InputError unless it is (N, n_columns) of real numbers."""
    if not isinstance(samples, np.ndarray) or samples.dtype.kind not in "biuf":
        kind = getattr(samples, "dtype", type(samples).__name__)
        raise InputError(f"{path} holds {brief(kind)}, not an array of real numbers")
    if samples.ndim != 2 or samples.shape[1] != n_columns:
        raise InputError(f"{path} has shape {samples.shape}, expected (samples, {n_columns})")
    return samples


def read_npy(path, tokens):
    """An .npy file with a column for each token, memory-mapped: no larger than the file is."""
    with understanding(path, f"does not hold the channels {', '.join(tokens)}"):
        samples = np.load(path, mmap_mode="r", allow_pickle=False)
    return check_samples(samples, len(tokens), path)


def broken(path, problem):
    """The InputError for a file of an archive that is not as it was shipped."""
    return InputError(f"{path} {problem}; unpack the archive again")


def read_table(path, n_columns, columns=None, counts=None):
    """A text file of numbers separated by white space -> (lines, columns) float64.

    Each line must have n_columns; columns: which of them to read, in the file's order. A last line
    with fewer, which an interrupted copy leaves, is dropped and counted.
    """
    import pandas as pd                                           # here, since it takes a second
    try:
        cut = is_cut(path, n_columns)
        table = pd.read_csv(path, sep=r"\s+", header=None, usecols=columns, dtype=np.float64)
        table = table.to_numpy()
    except OSError:
        raise broken(path, "not found or not readable")
    except ValueError as error:
        raise broken(path, f"is truncated or not a table of numbers ({brief(error)})")
    if cut and counts is not None:
        counts["cut last lines"] += 1
    return table[:-1] if cut else table


def is_cut(path, n_columns) -> bool:
    """Whether the last line has too few columns. InputError where another has more or fewer."""
    with open(path, "rb") as file:
        for line, text in enumerate(file, start=1):
            found = len(text.split())
            if found not in (0, n_columns):
                if found < n_columns and line > 1 and not file.read(1):
                    return True
                raise broken(path, f"has {found} columns in line {line}, expected {n_columns}")
    return False


def check_whole(numbers, known, path, what):
    """Numbers of a file as int. InputError unless all are whole numbers of `known`."""
    wrong = np.flatnonzero(~np.isin(numbers, list(known)))        # NaN is in nothing
    if len(wrong):
        raise broken(path, f"holds {what} other than {min(known)} to {max(known)}: "
                           f"{numbers[wrong[0]]:g} in line {wrong[0] + 1}")
    return numbers.astype(int)
