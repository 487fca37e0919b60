"""What a person would rather look at: a window with its trends and the bins that the encoder sees; curves; a report's pictures."""
import io
import textwrap

import numpy as np
import torch

from .config import write_bytes
from .trend_text import FALLING, RISING, STEADY, trend_segments

COLOURS = {RISING: "#c0392b", FALLING: "#2471a3", STEADY: "#7f8c8d"}          # told apart by the colour-blind, too


def plotting():
    """matplotlib's pyplot, without a screen. Imported when something is drawn: it takes its time."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    return pyplot


def draw_window(path, window, dataset, chronos, title, texts):
    """Draws window (S, C) to a PNG: a panel a channel, its line coloured by trend, Chronos' bins as steps behind it.

    texts: a line or two for each channel, written beneath its panel. A PNG appears whole or not at all.
    """
    pyplot = plotting()
    n = len(dataset.channels)
    columns = 1 if n <= 2 else 3 if n % 3 == 0 else 2
    rows = -(-n // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(5.2 * columns, 2.9 * rows), squeeze=False, layout="constrained")
    seconds = np.arange(len(window)) / dataset.rate
    ids, _, offset, scale = chronos.encode(torch.from_numpy(window.T.astype(np.float64, order="C")))   # (C, S+1)
    bins = chronos.decode(ids[:, :-1], offset, scale).numpy()                 # (C, S): the value each bin stands for
    for axis in axes.flat[n:]:
        axis.set_visible(False)
    for axis, channel, series, binned, text in zip(axes.flat, dataset.channels, window.T, bins, texts):
        axis.step(seconds, binned, where="mid", color="#f5b041", linewidth=2.5, alpha=0.7)
        for start, end, direction in zip(*trend_segments(series)):
            axis.plot(seconds[start:end + 1], series[start:end + 1], color=COLOURS[direction], linewidth=1.4)
        axis.set_title(f"{channel.spoken} ({channel.unit})", fontsize=9)
        axis.set_xlabel(textwrap.fill(text, 92), fontsize=6.5, loc="left")
        axis.tick_params(labelsize=7)
    handles = [pyplot.Line2D([], [], color=COLOURS[direction], label=name) for direction, name in
               ((RISING, "rising"), (FALLING, "falling"), (STEADY, "steady"))]
    handles.append(pyplot.Line2D([], [], color="#f5b041", linewidth=2.5, alpha=0.7, label="the bin the encoder sees"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.suptitle(f"{title}; time in seconds", fontsize=10)
    save(figure, path)


def save(figure, path):
    with write_bytes(path) as file:
        figure.savefig(file, format="png", dpi=110)
    plotting().close(figure)


def draw_curves(path, metrics):
    """Draws the lines of a metrics.jsonl to a PNG: losses, the other validation scores, and the learning rate by step."""
    known = ("step", "loss", "val_loss", "grad_norm", "lr")
    scores = list(dict.fromkeys(name for line in metrics for name in line if name not in known))
    panels = [["loss", "val_loss"], *([name] for name in scores), ["grad_norm"], ["lr"]]
    figure, axes = plotting().subplots(len(panels), 1, figsize=(8, 2.3 * len(panels)), sharex=True, layout="constrained")
    for axis, panel in zip(axes, panels):
        for name in panel:
            points = [(line["step"], line[name]) for line in metrics if name in line]
            if points:
                axis.plot(*zip(*points), label=name.replace("_", " "), linewidth=1.2, marker="o" if len(points) < 20 else None,
                          markersize=3)
        axis.legend(fontsize=8, frameon=False)
        axis.tick_params(labelsize=7)
    axes[-1].set_xlabel("step", fontsize=8)
    save(figure, path)


# ---- for a report: pictures as SVG text ----

def svg_of(figure):
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})             # the same picture, the same bytes
    plotting().close(figure)
    return buffer.getvalue()


def draw_confusion(confusion, classes):
    """Counts (n, n) or (n, n + 1) -> SVG: rows true, columns predicted, coloured by the share of the row."""
    confusion = np.asarray(confusion)
    n, columns = confusion.shape
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    figure, axis = plotting().subplots(figsize=(2.5 + 0.5 * columns, 1.8 + 0.45 * n), layout="constrained")
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), count in np.ndenumerate(confusion):
        if count:
            axis.text(column, row, str(count), ha="center", va="center", fontsize=8,
                      color="white" if shares[row, column] > 0.5 else "black")
    axis.set_xticks(range(columns), [*classes, "no class"][:columns], rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
    axis.set_yticks(range(n), classes, fontsize=8)
    axis.set_xlabel("predicted", fontsize=9)
    axis.set_ylabel("true", fontsize=9)
    return svg_of(figure)


def draw_class_bars(per_class, classes):
    """per_class of metrics.class_scores -> SVG: three bars a class."""
    figure, axis = plotting().subplots(figsize=(6.5, 1 + 0.42 * len(classes)), layout="constrained")
    places = np.arange(len(classes))
    for offset, name, colour in ((-0.27, "precision", "#aed6f1"), (0, "recall", "#f5b041"), (0.27, "f1", "#2471a3")):
        axis.barh(places + offset, per_class[name], 0.25, label=name, color=colour)
    axis.set_yticks(places, classes, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    axis.tick_params(axis="x", labelsize=8)
    figure.legend(loc="outside upper center", ncols=3, fontsize=8, frameon=False)
    return svg_of(figure)


def draw_signals(window, dataset):
    """A window (S, C) -> SVG: a panel for each unit, a line for each of its channels."""
    units = list(dict.fromkeys(channel.unit for channel in dataset.channels))
    figure, axes = plotting().subplots(len(units), 1, figsize=(6.5, 1.7 * len(units)), squeeze=False, sharex=True,
                                       layout="constrained")
    seconds = np.arange(len(window)) / dataset.rate
    for axis, unit in zip(axes.flat, units):
        for channel, series in zip(dataset.channels, window.T):
            if channel.unit == unit:
                axis.plot(seconds, series, linewidth=1, label=channel.spoken)
        axis.set_ylabel(unit, fontsize=8)
        axis.tick_params(labelsize=7)
        if len(axis.lines) <= 9:                                              # more names than that hide the lines
            axis.legend(fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    axes[-1, 0].set_xlabel("seconds", fontsize=8)
    return svg_of(figure)
