"""Pictures: windows with their trends, recordings, training curves, figures of reports."""
import io
import textwrap

import numpy as np

from ..data.texts import trend_line, trend_segments
from ..data.wording import FALLING, RISING, STEADY
from ..files import write_bytes

RED, BLUE, GREY = "#c0392b", "#2471a3", "#7f8c8d"                 # for the colour-blind, too
PALE_GREY = "#bdc3c7"
COLOURS = {RISING: RED, FALLING: BLUE, STEADY: GREY}
TREND_LEGEND = {"rising": RED, "falling": BLUE, "steady": GREY}
MOST_POINTS = 20_000                    # of a line in a picture; more cannot be seen
STYLE = {
    "figure.constrained_layout.use": True,
    "font.size": 8,
    "legend.frameon": False,
    "lines.linewidth": 1,
    "text.parse_math": False,           # a name may hold dollar signs
}


def plotting():
    """matplotlib's pyplot, without a screen; it takes a second to import."""
    from matplotlib import pyplot
    pyplot.switch_backend("agg")
    pyplot.rcParams.update(STYLE)
    return pyplot


def panels(rows, size, columns=1, **settings):
    """A figure of (width, height) inches -> (figure, its axes as a list)."""
    figure, axes = plotting().subplots(
        rows, columns, figsize=size, squeeze=False, **settings)
    return figure, list(axes.flat)


def add_legend(figure, colours):
    line = plotting().Line2D
    handles = [line([], [], color=colour, linewidth=4) for colour in colours.values()]
    figure.legend(handles, colours, loc="outside lower center", ncols=6)


def png_of(figure, dpi=192):
    """The bytes of a PNG, by default at twice a screen's 96 dots per inch; closes the figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=dpi)
    plotting().close(figure)
    return buffer.getvalue()


def save(figure, path):
    with write_bytes(path) as file:
        file.write(png_of(figure, dpi=110))


def draw_window(path, window, dataset, title, texts):
    """Draws a window (S, C) to a PNG: a panel per channel, with its trend line and its text."""
    n = len(dataset.channels)
    columns = 3 if n % 3 == 0 else min(n, 2)
    rows = -(-n // columns)
    size = 5.2 * columns, 2.9 * rows
    figure, axes = panels(rows, size, columns)
    for axis in axes[n:]:
        axis.set_visible(False)
    for i, (axis, channel) in enumerate(zip(axes, dataset.channels)):
        draw_trend_line(axis, window[:, i], dataset)
        axis.set_title(channel.titled)
        axis.set_xlabel(
            textwrap.fill(texts[i], 92), fontsize=6.5, loc="left")
    add_legend(figure, TREND_LEGEND)
    figure.suptitle(f"{title}; time in seconds")
    save(figure, path)


def draw_trend_line(axis, series, dataset):
    """Draws a series (S,) in grey and its trend line, coloured by trend."""
    seconds = np.arange(len(series)) / dataset.rate
    line = trend_line(series, dataset)
    if line is not series:
        axis.plot(seconds, series, color=PALE_GREY, linewidth=0.9)
    for start, end, direction in zip(*trend_segments(line)):
        piece = slice(start, end + 1)
        axis.plot(
            seconds[piece], line[piece], color=COLOURS[direction], linewidth=1.6)


def draw_descriptions(path, windows, dataset):
    """Draws windows (title, series (S,), claimed segments in seconds) and true trends to a PNG."""
    figure, axes = panels(len(windows), (8, 2.6 * len(windows)))
    for axis, (title, series, claimed) in zip(axes, windows):
        draw_trend_line(axis, series, dataset)
        starts, ends, directions = trend_segments(trend_line(series, dataset))
        true = zip(starts / dataset.rate, ends / dataset.rate, directions)
        last = (len(series) - 1) / dataset.rate
        height = float(np.ptp(series)) or 1.0
        for name, segments, drop in (("true", true, 0.2), ("model", claimed, 0.36)):
            bottom = float(np.min(series)) - drop * height
            axis.text(
                -0.01 * last, bottom + 0.03 * height, name, ha="right")
            for start, end, direction in segments:
                start, end = np.minimum((start, end), last)       # a claim may lie behind the end
                bar = start, max(end - start, 0)
                colour = COLOURS[direction]
                axis.broken_barh(
                    [bar], (bottom, 0.12 * height), color=colour, edgecolor="white")
        axis.set_title(title)
        axis.set_xlim(-0.07 * last, last)
        axis.set_ylim(bottom - 0.05 * height)
    axes[-1].set_xlabel("seconds")
    add_legend(figure, TREND_LEGEND)
    save(figure, path)


def units_of(dataset):
    return list(dict.fromkeys(channel.unit for channel in dataset.channels))


def draw_units(axes, seconds, samples, dataset):
    """Draws samples (N, C) at `seconds` (N,): an axis for each unit, a line for each channel."""
    units = units_of(dataset)
    for channel, series in zip(dataset.channels, samples.T):
        axis = axes[units.index(channel.unit)]
        axis.plot(seconds, series, label=channel.spoken)
        axis.set_ylabel(channel.unit)
    for axis in axes:
        if len(axis.lines) <= 9:                                  # more names would hide the lines
            axis.legend(fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))
    axis.set_xlabel("seconds")


def draw_recording(path, log, dataset, bars):
    """Draws a Log to a PNG, below bars {"predicted": [(start, end, activity), ...], ...}."""
    heights = [0.35 * len(bars)] + [1.9] * len(units_of(dataset))
    size = 11, 0.6 + sum(heights)
    figure, (top, *axes) = panels(
        len(heights), size, sharex=True, height_ratios=heights)
    every = len(log.samples) // MOST_POINTS + 1
    draw_units(
        axes, log.seconds[::every], log.samples[::every], dataset)
    paint = plotting().get_cmap("tab20")
    shown = {}                                                    # activity -> colour
    for row, bar in enumerate(bars.values()):
        for start, end, activity in bar:
            colour = "black"                                      # an answer that names no class
            if activity in dataset.classes:
                colour = paint(dataset.classes.index(activity) % 20)
            shown[activity] = colour
            top.broken_barh(
                [(start, end - start)], (-row - 0.4, 0.8), color=colour)
    top.set_yticks(-np.arange(len(bars)), bars)
    top.margins(x=0)
    top.spines[:].set_visible(False)
    top.tick_params(length=0)
    add_legend(figure, shown)
    save(figure, path)


def draw_curves(path, metrics):
    """Draws the records of a metrics.jsonl to a PNG: losses (log), learning rate, scores, ..."""
    import pandas as pd
    from matplotlib.ticker import LogFormatter
    table = pd.DataFrame(metrics).set_index("step")
    others = [name for name in table if "loss" not in name]
    figure, axes = panels(
        1 + len(others), (8, 2.3 + 2.3 * len(others)), sharex=True)
    axis_of = dict(zip(others, axes[1:]))
    for name in table:
        axis = axis_of.get(name, axes[0])
        values = table[name].dropna()
        if len(values) > 100 and name != "lr":                    # single steps jump
            axis.plot(values, color=PALE_GREY, linewidth=0.6)
            values = values.rolling(len(values) // 50, min_periods=1).mean()
        marker = "o" if len(values) < 20 else None
        axis.plot(
            values, label=name.replace("_", " "), markersize=3, marker=marker)
        if "loss" in name and values.min() > 0:
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter("{x:g}")               # the usual ones need parse_math
            axis.yaxis.set_minor_formatter(LogFormatter())
        axis.legend()
    axes[-1].set_xlabel("step")
    save(figure, path)


def draw_confusion(confusion, classes):
    """Counts (n, n) or (n, n + 1) -> PNG: rows true, columns predicted, shaded by row fraction."""
    confusion = np.asarray(confusion)
    n, columns = confusion.shape
    fractions = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    size = 2.5 + 0.5 * columns, 1.8 + 0.45 * n
    figure, (axis,) = panels(1, size)
    axis.imshow(fractions, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), count in np.ndenumerate(confusion):
        if count:
            colour = "white" if fractions[row, column] > 0.5 else "black"
            axis.text(
                column, row, str(count), ha="center", va="center", color=colour)
    names = [*classes, "no class"][:columns]
    axis.set_xticks(
        range(columns), names, rotation=45, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(n), classes)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    return png_of(figure)


def draw_signals(window, dataset):
    """A window (S, C) -> PNG: a panel for each unit, a line for each of its channels."""
    rows = len(units_of(dataset))
    figure, axes = panels(rows, (6.5, 1.7 * rows), sharex=True)
    draw_units(
        axes, np.arange(len(window)) / dataset.rate, window, dataset)
    return png_of(figure)
