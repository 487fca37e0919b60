"""Pictures: a window with its trends and the encoder's bins; training curves; report figures."""
import io
import textwrap

import numpy as np
import torch

from ..files import write_bytes
from ..data.texts import trend_line, trend_segments
from ..data.wording import FALLING, RISING, STEADY

RED, BLUE, ORANGE = "#c0392b", "#2471a3", "#f5b041"               # also for the colour-blind
COLOURS = {RISING: RED, FALLING: BLUE, STEADY: "#7f8c8d"}
DIRECTION_NAMES = {RISING: "rising", FALLING: "falling", STEADY: "steady"}


def plotting():
    """matplotlib's pyplot, without a screen. Imported here, since it takes a second."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    pyplot.rcParams["text.parse_math"] = False                    # a name may hold dollar signs
    return pyplot


def save(figure, path):
    """Writes a PNG whole or not at all."""
    with write_bytes(path) as file:
        figure.savefig(file, format="png", dpi=110)
    plotting().close(figure)


def draw_window(path, window, dataset, chronos, title, texts):
    """Draws a window (S, C) to a PNG: a panel per channel, with the line that shows its trends.

    The steps behind it are the bins of Chronos. texts: what stands below each panel.
    """
    pyplot = plotting()
    n = len(dataset.channels)
    columns = 1 if n <= 2 else 2
    if n % 3 == 0:
        columns = 3
    rows = -(-n // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(5.2 * columns, 2.9 * rows),
                                   squeeze=False, layout="constrained")
    seconds = np.arange(len(window)) / dataset.rate
    series_of = torch.from_numpy(window.T.astype(np.float64, order="C"))      # (C, S)
    ids, _, offset, scale = chronos.encode(series_of)                         # (C, S+1)
    bins = chronos.decode(ids[:, :-1], offset, scale).numpy()     # (C, S): the value of each bin
    for axis in axes.flat[n:]:
        axis.set_visible(False)
    for i, (axis, channel) in enumerate(zip(axes.flat, dataset.channels)):
        series = window[:, i]
        axis.step(seconds, bins[i], where="mid", color=ORANGE, linewidth=2.5, alpha=0.7)
        draw_trend_line(axis, series, dataset)
        axis.set_title(channel.titled, fontsize=9)
        axis.set_xlabel(textwrap.fill(texts[i], 92), fontsize=6.5, loc="left")
        axis.tick_params(labelsize=7)
    handles = [pyplot.Line2D([], [], color=COLOURS[direction], label=name)
               for direction, name in DIRECTION_NAMES.items()]
    handles.append(pyplot.Line2D([], [], color=ORANGE, linewidth=2.5, alpha=0.7,
                                 label="the bin the encoder sees"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.suptitle(f"{title}; time in seconds", fontsize=10)
    save(figure, path)


def draw_trend_line(axis, series, dataset):
    """A series (S,) in grey, where it is not its own trend line; the line coloured by trend."""
    seconds = np.arange(len(series)) / dataset.rate
    line = trend_line(series, dataset)
    if line is not series:
        axis.plot(seconds, series, color="#aab7b8", linewidth=0.9)
    for start, end, direction in zip(*trend_segments(line)):
        piece = slice(start, end + 1)
        axis.plot(seconds[piece], line[piece], color=COLOURS[direction], linewidth=1.6)


def draw_descriptions(path, windows, dataset):
    """Draws windows (title, series (S,), claimed segments in seconds) to a PNG, one below another.

    Under each window are two bars: the true trends, and those that the model claims.
    """
    pyplot = plotting()
    figure, axes = pyplot.subplots(len(windows), 1, figsize=(8, 2.6 * len(windows)),
                                   squeeze=False, layout="constrained")
    for axis, (title, series, claimed) in zip(axes.flat, windows):
        draw_trend_line(axis, series, dataset)
        low, height = float(np.min(series)), float(np.ptp(series)) or 1.0
        true = [(start / dataset.rate, end / dataset.rate, direction)
                for start, end, direction in zip(*trend_segments(trend_line(series, dataset)))]
        end_of_window = (len(series) - 1) / dataset.rate
        for name, segments, drop in (("true", true, 0.2), ("model", claimed, 0.36)):
            at = low - drop * height
            axis.text(-0.01 * end_of_window, at + 0.06 * height, name, ha="right", va="center",
                      fontsize=8)
            for start, end, direction in segments:
                start, end = min(start, end_of_window), min(end, end_of_window)
                axis.broken_barh([(start, max(end - start, 0))], (at, 0.12 * height),
                                 color=COLOURS[direction], edgecolor="white", linewidth=0.5)
        axis.set_title(title, fontsize=9)
        axis.set_xlim(-0.06 * end_of_window, end_of_window)
        axis.tick_params(labelsize=7)
    axes[-1, 0].set_xlabel("seconds", fontsize=8)
    handles = [pyplot.Line2D([], [], color=COLOURS[direction], label=name, linewidth=4)
               for direction, name in DIRECTION_NAMES.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    save(figure, path)


MOST_POINTS = 20_000                    # of a line in a picture; more would not be seen


def draw_recording(path, log, dataset, bars):
    """Draws a Log to a PNG: its signals, above them a bar of activities for each of `bars`.

    bars: {"predicted": [(start, end, activity), ...], ...}, in seconds.
    """
    pyplot = plotting()
    n = len(units_of(dataset))
    figure, axes = pyplot.subplots(
        n + 1, 1, figsize=(11, 0.6 + 0.35 * len(bars) + 1.9 * n), squeeze=False, sharex=True,
        layout="constrained", height_ratios=[0.35 * len(bars), *[1.9] * n])
    top, every = axes[0, 0], len(log.samples) // MOST_POINTS + 1
    draw_units(axes[1:, 0], log.seconds[::every], log.samples[::every], dataset)
    shown = {}                                                    # activity -> colour
    names = [*dataset.classes, *(activity for bar in bars.values() for _, _, activity in bar)]
    paint = pyplot.get_cmap("tab20")
    colours = {name: paint(i % 20) for i, name in enumerate(dict.fromkeys(names))}
    for height, bar in enumerate(bars.values()):
        for start, end, activity in bar:
            shown[activity] = colours[activity]
            top.broken_barh([(start, end - start)], (-height - 0.4, 0.8), color=colours[activity])
    top.set_yticks([-height for height in range(len(bars))], bars, fontsize=8)
    top.set_xlim(0, float(np.nanmax(log.seconds)) + 1 / log.rate)
    for side in ("top", "right", "left", "bottom"):
        top.spines[side].set_visible(False)
    top.tick_params(length=0)
    handles = [pyplot.Line2D([], [], color=colour, label=name, linewidth=6)
               for name, colour in shown.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=6, fontsize=8, frameon=False)
    save(figure, path)


def running_mean(points):
    """(x, y) points -> the same, each y the mean of about a fiftieth of all before it."""
    xs, ys = np.array(points, float).T
    width = max(1, len(ys) // 50)
    sums = np.cumsum(np.concatenate([np.zeros(width), ys]))
    n_before = np.minimum(np.arange(1, len(ys) + 1), width)
    return xs, (sums[width:] - sums[:-width]) / n_before


def draw_curves(path, metrics):
    """Draws the records of a metrics.jsonl to a PNG: losses (log), scores, gradient norm, lr."""
    from matplotlib.ticker import LogFormatter                # here, as in `plotting`
    known = ("step", "loss", "val_loss", "grad_norm", "lr")
    names = dict.fromkeys(name for record in metrics for name in record)
    scores = [[name] for name in names if name not in known]
    panels = [["loss", "val_loss"], *scores, ["grad_norm"], ["lr"]]
    figure, axes = plotting().subplots(len(panels), 1, figsize=(8, 2.3 * len(panels)), sharex=True,
                                       layout="constrained")
    for axis, panel in zip(axes, panels):
        for name in panel:
            points = [(record["step"], record[name]) for record in metrics if name in record]
            label, marker = name.replace("_", " "), "o" if len(points) < 20 else None
            if len(points) > 100 and name != "lr":                # steps of like lengths jump
                axis.plot(*zip(*points), color="#d5d8dc", linewidth=0.6)
                points = list(zip(*running_mean(points)))
            if points:
                axis.plot(*zip(*points), label=label, linewidth=1.2, markersize=3, marker=marker)
            if "loss" in name and all(value > 0 for _, value in points):
                axis.set_yscale("log")
                axis.yaxis.set_major_formatter("{x:g}")           # the usual ones need parse_math
                axis.yaxis.set_minor_formatter(LogFormatter())
        axis.legend(fontsize=8, frameon=False)
        axis.tick_params(labelsize=7, which="both")
    axes[-1].set_xlabel("step", fontsize=8)
    save(figure, path)


# ---- for a report: pictures as SVG text ----

def svg_of(figure):
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})     # no date: reproducible
    plotting().close(figure)
    return buffer.getvalue()


def draw_confusion(confusion, classes):
    """Counts (n, n) or (n, n + 1) -> SVG: rows true, columns predicted, shaded by share of row."""
    confusion = np.asarray(confusion)
    n, columns = confusion.shape
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    figure, axis = plotting().subplots(figsize=(2.5 + 0.5 * columns, 1.8 + 0.45 * n),
                                       layout="constrained")
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), count in np.ndenumerate(confusion):
        if count:
            axis.text(column, row, str(count), ha="center", va="center", fontsize=8,
                      color="white" if shares[row, column] > 0.5 else "black")
    names = [*classes, "no class"][:columns]
    axis.set_xticks(range(columns), names, rotation=45, ha="right", rotation_mode="anchor",
                    fontsize=8)
    axis.set_yticks(range(n), classes, fontsize=8)
    axis.set_xlabel("predicted", fontsize=9)
    axis.set_ylabel("true", fontsize=9)
    return svg_of(figure)


def draw_class_bars(per_class, classes):
    """per_class of class_scores.class_scores -> SVG: three bars per class."""
    figure, axis = plotting().subplots(figsize=(6.5, 1 + 0.42 * len(classes)), layout="constrained")
    heights = np.arange(len(classes))
    bars = ((-0.27, "precision", "#aed6f1"), (0, "recall", ORANGE), (0.27, "f1", BLUE))
    for offset, name, colour in bars:
        axis.barh(heights + offset, per_class[name], 0.25, label=name, color=colour)
    axis.set_yticks(heights, classes, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    axis.tick_params(axis="x", labelsize=8)
    figure.legend(loc="outside upper center", ncols=3, fontsize=8, frameon=False)
    return svg_of(figure)


def units_of(dataset):
    """The units of its channels, each once, in order."""
    return list(dict.fromkeys(channel.unit for channel in dataset.channels))


def draw_units(axes, seconds, samples, dataset):
    """Samples (N, C) at `seconds` (N,): an axis for each of units_of, a line for each channel."""
    for axis, unit in zip(axes, units_of(dataset)):
        for channel, series in zip(dataset.channels, samples.T):
            if channel.unit == unit:
                axis.plot(seconds, series, linewidth=1, label=channel.spoken)
        axis.set_ylabel(unit, fontsize=8)
        axis.tick_params(labelsize=7)
        if len(axis.lines) <= 9:                                  # more names would hide the lines
            axis.legend(fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    axes[-1].set_xlabel("seconds", fontsize=8)


def draw_signals(window, dataset):
    """A window (S, C) -> SVG: a panel for each unit, a line for each of its channels."""
    n = len(units_of(dataset))
    figure, axes = plotting().subplots(n, 1, figsize=(6.5, 1.7 * n), squeeze=False, sharex=True,
                                       layout="constrained")
    draw_units(axes[:, 0], np.arange(len(window)) / dataset.rate, window, dataset)
    return svg_of(figure)
