"""Pictures: windows with their trends, recordings, training curves, figures of reports."""
import io
import textwrap

import numpy as np
import torch

from ..data.texts import trend_line, trend_segments
from ..data.wording import FALLING, RISING, STEADY
from ..files import write_bytes

RED, BLUE, ORANGE, GREY = "#c0392b", "#2471a3", "#f5b041", "#7f8c8d"     # for the colour-blind, too
PALE_BLUE, PALE_GREY = "#aed6f1", "#bdc3c7"
COLOURS = {RISING: RED, FALLING: BLUE, STEADY: GREY}
TREND_LEGEND = {"rising": RED, "falling": BLUE, "steady": GREY}
MOST_POINTS = 20_000                    # of a line in a picture; more would not be seen
STYLE = {
    "figure.constrained_layout.use": True,
    "font.size": 8,
    "legend.frameon": False,
    "lines.linewidth": 1,
    "text.parse_math": False,           # a name may hold dollar signs
}


def plotting():
    """matplotlib's pyplot, without a screen; it takes a second to import."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    pyplot.rcParams.update(STYLE)
    return pyplot


def panels(rows, size, columns=1, **settings):
    """A figure of (width, height) inches -> (figure, its axes as a list)."""
    settings |= {"figsize": size, "squeeze": False}
    figure, axes = plotting().subplots(rows, columns, **settings)
    return figure, list(axes.flat)


def add_legend(figure, colours):
    """Adds a legend below the panels. colours: {name: colour}."""
    line = plotting().Line2D
    handles = [line([], [], color=colour, linewidth=4) for colour in colours.values()]
    figure.legend(handles, colours, loc="outside lower center", ncols=6)


def png_of(figure, dpi=192):
    """A figure as the bytes of a PNG, by default at twice a screen's 96 dots per inch; closes it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=dpi)
    plotting().close(figure)
    return buffer.getvalue()


def save(figure, path):
    """Writes a PNG whole or not at all."""
    with write_bytes(path) as file:
        file.write(png_of(figure, dpi=110))


# ---- windows and recordings ----

def draw_window(path, window, dataset, chronos, title, texts):
    """Draws a window (S, C) to a PNG: a panel per channel, with the line that shows its trends.

    The steps behind it are the bins of Chronos. texts: what stands below each panel.
    """
    n = len(dataset.channels)
    columns = 3 if n % 3 == 0 else min(n, 2)
    rows = -(-n // columns)
    figure, axes = panels(rows, (5.2 * columns, 2.9 * rows), columns)
    seconds = np.arange(len(window)) / dataset.rate
    series = torch.from_numpy(window.T.astype(np.float64, order="C"))         # (C, S)
    ids, _, offset, scale = chronos.encode(series)                            # (C, S+1)
    bins = chronos.decode(ids[:, :-1], offset, scale).numpy()     # (C, S): the value of each bin
    for axis in axes[n:]:
        axis.set_visible(False)
    for i, (axis, channel) in enumerate(zip(axes, dataset.channels)):
        axis.step(seconds, bins[i], where="mid", color=ORANGE, linewidth=2.5, alpha=0.7)
        draw_trend_line(axis, window[:, i], dataset)
        axis.set_title(channel.titled)
        axis.set_xlabel(textwrap.fill(texts[i], 92), fontsize=6.5, loc="left")
    add_legend(figure, TREND_LEGEND | {"the bin the encoder sees": ORANGE})
    figure.suptitle(f"{title}; time in seconds")
    save(figure, path)


def draw_trend_line(axis, series, dataset):
    """Draws the trend line of a series (S,), coloured by trend, over the series in grey.

    A series that is its own trend line is drawn once.
    """
    seconds = np.arange(len(series)) / dataset.rate
    line = trend_line(series, dataset)
    if line is not series:
        axis.plot(seconds, series, color=PALE_GREY, linewidth=0.9)
    for start, end, direction in zip(*trend_segments(line)):
        piece = slice(start, end + 1)
        axis.plot(seconds[piece], line[piece], color=COLOURS[direction], linewidth=1.6)


def draw_descriptions(path, windows, dataset):
    """Draws windows (title, series (S,), claimed segments in seconds) to a PNG, one below another.

    Under each window are two bars: the true trends, and those that the model claims.
    """
    figure, axes = panels(len(windows), (8, 2.6 * len(windows)))
    for axis, (title, series, claimed) in zip(axes, windows):
        draw_trend_line(axis, series, dataset)
        starts, ends, directions = trend_segments(trend_line(series, dataset))
        true = zip(starts / dataset.rate, ends / dataset.rate, directions)
        last = (len(series) - 1) / dataset.rate
        height = float(np.ptp(series)) or 1.0
        for name, segments, drop in (("true", true, 0.2), ("model", claimed, 0.36)):
            bottom = float(np.min(series)) - drop * height
            axis.text(-0.01 * last, bottom + 0.03 * height, name, ha="right")
            for start, end, direction in segments:
                start, end = min(start, last), min(end, last)
                bar = start, max(end - start, 0)
                axis.broken_barh([bar], (bottom, 0.12 * height), color=COLOURS[direction],
                                 edgecolor="white", linewidth=0.5)
        axis.set_title(title)
        axis.set_xlim(-0.06 * last, last)
    axes[-1].set_xlabel("seconds")
    add_legend(figure, TREND_LEGEND)
    save(figure, path)


def units_of(dataset):
    """The units of its channels, each once, in order."""
    return list(dict.fromkeys(channel.unit for channel in dataset.channels))


def draw_units(axes, seconds, samples, dataset):
    """Draws samples (N, C) at `seconds` (N,): an axis for each of units_of, a line per channel."""
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
    """Draws a Log to a PNG: its signals, above them a bar of activities for each of `bars`.

    bars: {"predicted": [(start, end, activity), ...], ...}, in seconds.
    """
    heights = [0.35 * len(bars)] + [1.9] * len(units_of(dataset))
    size = 11, 0.6 + sum(heights)
    figure, (top, *axes) = panels(len(heights), size, sharex=True, height_ratios=heights)
    every = len(log.samples) // MOST_POINTS + 1
    draw_units(axes, log.seconds[::every], log.samples[::every], dataset)
    paint = plotting().get_cmap("tab20")
    colours = {name: paint(i % 20) for i, name in enumerate(dataset.classes)}
    shown = {}                                                    # activity -> colour
    for row, bar in enumerate(bars.values()):
        for start, end, activity in bar:
            shown[activity] = colours.get(activity, "black")      # black: an answer names no class
            top.broken_barh([(start, end - start)], (-row - 0.4, 0.8), color=shown[activity])
    top.set_yticks(-np.arange(len(bars)), bars)
    top.set_xlim(0, float(np.nanmax(log.seconds)) + 1 / log.rate)
    top.spines[:].set_visible(False)
    top.tick_params(length=0)
    add_legend(figure, shown)
    save(figure, path)


# ---- training curves ----

def draw_curves(path, metrics):
    """Draws the records of a metrics.jsonl to a PNG: losses (log), learning rate, scores, ..."""
    import pandas as pd
    from matplotlib.ticker import LogFormatter
    table = pd.DataFrame(metrics).set_index("step")
    others = [name for name in table if "loss" not in name]
    figure, axes = panels(1 + len(others), (8, 2.3 + 2.3 * len(others)), sharex=True)
    axis_of = dict(zip(others, axes[1:]))
    for name in table:
        axis, values = axis_of.get(name, axes[0]), table[name].dropna()
        if len(values) > 100 and name != "lr":                    # single steps jump
            axis.plot(values, color=PALE_GREY, linewidth=0.6)
            values = running_mean(values)
        marker = "o" if len(values) < 20 else None
        axis.plot(values, label=name.replace("_", " "), markersize=3, marker=marker)
        if "loss" in name and values.min() > 0:
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter("{x:g}")               # the usual ones need parse_math
            axis.yaxis.set_minor_formatter(LogFormatter())
        axis.legend()
    axes[-1].set_xlabel("step")
    save(figure, path)


def running_mean(values):
    """A pandas Series -> each value's mean with those before it, about a fiftieth of all."""
    return values.rolling(max(1, len(values) // 50), min_periods=1).mean()


# ---- for a report: the bytes of a PNG ----

def draw_confusion(confusion, classes):
    """Counts (n, n) or (n, n + 1) -> PNG: rows true, columns predicted, shaded by row fraction."""
    confusion = np.asarray(confusion)
    n, columns = confusion.shape
    fractions = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    figure, (axis,) = panels(1, (2.5 + 0.5 * columns, 1.8 + 0.45 * n))
    axis.imshow(fractions, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), count in np.ndenumerate(confusion):
        if count:
            colour = "white" if fractions[row, column] > 0.5 else "black"
            axis.text(column, row, str(count), ha="center", va="center", color=colour)
    names = [*classes, "no class"][:columns]
    axis.set_xticks(range(columns), names, rotation=45, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(n), classes)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    return png_of(figure)


def draw_class_bars(per_class, classes):
    """per_class of class_scores.class_scores -> PNG: three bars per class."""
    import pandas as pd
    colours = {"precision": PALE_BLUE, "recall": ORANGE, "f1": BLUE}
    figure, (axis,) = panels(1, (6.5, 1 + 0.42 * len(classes)))
    table = pd.DataFrame(per_class, index=classes)[list(colours)]
    table.plot.barh(ax=axis, color=colours, width=0.8, legend=False)
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    add_legend(figure, colours)
    return png_of(figure)


def draw_signals(window, dataset):
    """A window (S, C) -> PNG: a panel for each unit, a line for each of its channels."""
    rows = len(units_of(dataset))
    figure, axes = panels(rows, (6.5, 1.7 * rows), sharex=True)
    draw_units(axes, np.arange(len(window)) / dataset.rate, window, dataset)
    return png_of(figure)
