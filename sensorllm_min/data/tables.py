"""Tables of samples as people and archives have them; what does not match is an InputError.

pandas is imported where it is used, since training does not need it.
"""
import csv
import gzip
import re
from itertools import islice
from pathlib import Path

import numpy as np

from ..files import InputError, as_input_error, brief


# What stands for a missing value in a person's table.
MISSING = ["", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "None", "none", "#N/A", "<NA>"]


def csv_lines(path, separator=","):
    """Yields (line number, fields) of the lines of a .csv or .csv.gz that hold anything."""
    opened = gzip.open if Path(path).suffix.lower() == ".gz" else open
    with (as_input_error(path, "cannot be read as CSV"),
          opened(path, "rt", encoding="utf-8-sig", newline="") as file):
        lines = csv.reader(file, strict=True, delimiter=separator)
        yield from ((lines.line_num, fields) for fields in lines if fields)


def csv_header(path, wanted):
    """(names, line number, separator) of the header: of the first lines that with most of the
    wanted names, whatever separates them; the very first if none has any."""
    best = -1
    for separator in ",;\t":
        try:
            lines = list(islice(csv_lines(path, separator), 50))
        except InputError:
            if separator == ",":
                raise
            continue
        for line, fields in lines:
            names = [name.strip() for name in fields]
            n_found = len(set(wanted) & set(names))
            if n_found > best:
                best = n_found
                found = names, line, separator
    if best < 0:
        raise InputError(f"{path} is empty")
    return found


def read_frame(path, headings, dataset):
    """A person's file -> DataFrame; the label column is kept as it is written.

    The header of a .csv or .csv.gz names its columns, which every line must have; what stands above
    it, and a line of units below it, is passed over. An .npy has the columns `headings`."""
    import pandas as pd
    if Path(path).suffix.lower() == ".npy":
        with as_input_error(path, f"does not hold the channels {', '.join(headings)}"):
            samples = np.load(path, mmap_mode="r", allow_pickle=False)
        return pd.DataFrame(check_samples(samples, len(headings), path), columns=headings)
    header, above, separator = csv_header(path, headings)
    if dataset.header:
        header, above = list(dataset.header), 0
    width = len(header)
    units = None
    columns = [header.index(name) for name in headings if name in header]
    for line, fields in csv_lines(path, separator):
        if line <= above:
            continue
        width = max(width, len(fields))
        extra = "".join(fields[len(header):]).strip()
        if len(fields) < len(header) or extra:
            raise InputError(f"{path}, line {line}: {len(fields)} fields, the header has "
                             f"{len(header)}; each needs a name, and numbers a decimal point")
        if units is None:                                         # the first line below the header
            shown = [fields[i] for i in columns]
            units = all(re.match(r"[^\d,.;-]+($|\^)", text) for text in shown)
            units = units and not set(shown) & {*MISSING}
            skipped = line if units else above
            has_comma = any(re.search(r"\d,\d", text) for text in shown)
            decimal = "," if separator != "," and has_comma else "."
    if units is None:
        return pd.DataFrame(columns=header, dtype=float)
    texts = [i for i, name in enumerate(header) if name == dataset.label_column]
    missing = {i: MISSING for i in range(width) if i not in texts}
    with as_input_error(path, "cannot be read as CSV"):
        frame = pd.read_csv(path, header=None, names=range(width), index_col=False, sep=separator,
                            dtype=dict.fromkeys(texts, str), na_values=missing, skiprows=skipped,
                            keep_default_na=False, skipinitialspace=True, low_memory=False,
                            encoding="utf-8-sig", decimal=decimal)
    return frame.iloc[:, :len(header)].set_axis(header, axis=1)


def pick_columns(frame, names, path):
    """The columns of a DataFrame that are called so. InputError unless each is there once."""
    header = list(frame.columns)
    for name in names:
        if header.count(name) != 1:
            how = "twice the" if name in header else "no"
            needed = ", ".join(names)
            found = brief(", ".join(map(str, header)))
            raise InputError(f"{path} has {how} column {name}; it needs {needed}, its columns are "
                             f'{found}; "header" in dataset.json names those of a file without one')
    return frame[list(names)]


def to_numbers(frame, path):
    """A DataFrame -> (N, C) float64, NaN for an empty value. InputError for one that is a text."""
    import pandas as pd
    numbers = frame.apply(pd.to_numeric, errors="coerce")
    wrong = np.argwhere((numbers.isna() & frame.notna()).to_numpy())
    if len(wrong):
        row, column = wrong[0]
        name = frame.columns[column]
        text = brief(repr(frame.iloc[row, column]))
        raise InputError(f"{path}, row {row + 1}: {name} is {text}, not a number")
    return np.array(numbers, np.float64, order="C")


def check_samples(samples, n_columns, path):
    """The samples as an array. InputError unless they are (N, n_columns) real numbers."""
    samples = np.asarray(samples)
    if samples.dtype.kind not in "biuf" or samples.shape[1:] != (n_columns,):
        raise InputError(f"{path} holds {samples.dtype} of shape {samples.shape}, expected real "
                         f"numbers of shape (samples, {n_columns})")
    return samples


UNPACK_AGAIN = "; unpack the archive again"


def read_table(path, n_columns, columns=None):
    """A text of lines of n_columns numbers -> (lines, columns) float64. columns: None reads all."""
    import pandas as pd
    with (as_input_error(path, "is missing, truncated or not a table of numbers", UNPACK_AGAIN),
          open(path, "rb") as file):
        for line, text in enumerate(file, start=1):
            found = len(text.split())
            if found not in (0, n_columns):
                raise InputError(f"{path} has {found} columns in line {line}, expected "
                                 f"{n_columns}{UNPACK_AGAIN}")
        file.seek(0)
        table = pd.read_csv(
            file, sep=r"\s+", header=None, usecols=columns, dtype=np.float64)
    return table.to_numpy()
