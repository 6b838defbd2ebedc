"""Plots for reports, drawn by matplotlib into PNG files: no window, no display, no state between them."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter, PercentFormatter
from PIL import Image

from cnn_lightning.reporting.evaluation import BINS, Evaluation

Points = Sequence[tuple[float, float]]

# Colours that colour-blind people tell apart (Okabe and Ito 2008, https://jfly.uni-koeln.de/color/).
BLUE, ORANGE, GREEN, PINK, SKY, AMBER = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
COLOURS = (BLUE, ORANGE, GREEN, PINK, SKY, AMBER)
MARKERS = "osD^"
GREY = "#767676"
# A row of plots for each horizontal axis, with the tags of training and validation.
ROWS = {
    "optimizer step": {"loss": ("train/loss", "val/loss"), "accuracy": ("train/acc", "val/acc")},
    "epoch": {
        "loss": ("epoch/train_loss", "epoch/val_loss"),
        "accuracy": ("epoch/train_acc", "epoch/val_acc"),
    },
}


def read_scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Read the curves of a run back from its event files.

    Args:
        run: Folder of the run. Without event files, or without the folder, there are no curves.

    Returns:
        Tag -> (step, value) in the order of the steps, without what an interrupted run drew after the checkpoint from
        which it went on.
    """
    # Here, not above, so that only who reads curves waits for TensorBoard.
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if not run.is_dir():
        return {}
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it warns of every point that it leaves out
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})  # 0: all of them
    events.Reload()
    tags = events.Tags()["scalars"]
    return {tag: _latest((event.step, event.value) for event in events.Scalars(tag)) for tag in tags}


def curves(scalars: Mapping[str, Points], path: Path) -> bool:
    """Draw loss and accuracy in training and validation, against the optimizer step and against the epoch.

    Args:
        scalars: Tag -> (step, value), as :func:`read_scalars` gives them; any tag may be missing.
        path: PNG file to write.

    Returns:
        Whether there was anything to draw; if not, there is no file.
    """
    rows = {
        step: plots for step, plots in ROWS.items() if any(scalars.get(tag) for tags in plots.values() for tag in tags)
    }
    if not rows:
        return False
    figure = Figure(figsize=(9, 3.2 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), 2, squeeze=False)
    for line, (step, plots) in zip(grid, rows.items(), strict=True):
        for axes, (quantity, tags) in zip(line, plots.items(), strict=True):
            for tag, name, colour in zip(tags, ("training", "validation"), (BLUE, ORANGE), strict=True):
                if points := scalars.get(tag):
                    # The first curve of a run has many points; one of a few, or of one, would not be seen as a line.
                    marker = "o" if len(points) <= 40 else None
                    axes.plot(*zip(*points, strict=True), color=colour, label=name, marker=marker, ms=4, lw=1.3)
            _tidy(axes, step, quantity)
            axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
            axes.xaxis.set_major_formatter("{x:,.0f}")
            if quantity == "accuracy":
                axes.yaxis.set_major_formatter(_percent())
            else:
                axes.set_ylim(bottom=0)
            if axes.lines:
                axes.legend(frameon=False)
    _save(figure, path)
    return True


def reliability(evaluation: Evaluation, path: Path) -> None:
    """Draw accuracy against confidence, and how many images have which confidence.

    Args:
        evaluation: Its ``bins`` are drawn.
        path: PNG file to write.
    """
    count, confidence, accuracy = (column.numpy() for column in evaluation.bins)
    filled = count > 0
    left = [k / BINS for k in range(BINS)]
    figure = Figure(figsize=(5.4, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot((0, 1), (0, 1), color=GREY, ls="--", lw=1, label="as it should be")
    above.bar(left, accuracy, 1 / BINS, align="edge", color=SKY, alpha=0.45, edgecolor="white")
    above.plot(confidence[filled], accuracy[filled], "o", color=BLUE, ms=5, label="images of one bin")
    above.set(xlim=(0, 1), ylim=(0, 1.02))
    above.set_title(f"expected calibration error {100 * evaluation.calibration_error:.2f} %", fontsize=11)
    above.legend(frameon=False, loc="upper left")
    below.bar(left, count, 1 / BINS, align="edge", color=SKY, edgecolor="white")
    below.set_yscale("log")  # most images are in the last bin
    below.set_ylim(0.5, 2 * count.max())
    _tidy(above, "", "accuracy")
    _tidy(below, "confidence", "images")
    for axis in (above.xaxis, above.yaxis):
        axis.set_major_formatter(_percent())
    below.yaxis.set_major_formatter("{x:,.0f}")
    below.minorticks_off()
    _save(figure, path)


def accuracy_by_shift(lines: Mapping[str, Mapping[str, Points]], path: Path) -> None:
    """Draw how accuracy falls when the test images are moved.

    Args:
        lines: Name of a network -> "up to", "corner" -> (pixels, accuracy in [0, 1]).
        path: PNG file to write.
    """
    styles = {
        "up to": ("-", "o", "moved at random by up to n pixels"),
        "corner": ("--", "s", "moved into a corner by n pixels"),
    }
    figure = Figure(figsize=(7.5, 4.4 + 0.2 * len(lines)), layout="constrained")
    axes = figure.subplots()
    legend = [Line2D([], [], color=GREY, ls=ls, marker=m, ms=4, label=text) for ls, m, text in styles.values()]
    for index, (name, both) in enumerate(lines.items()):
        colour = COLOURS[index % len(COLOURS)]
        legend.append(Line2D([], [], color=colour, lw=3, label=name))
        for kind, points in both.items():
            style, marker, _ = styles[kind]
            axes.plot(*zip(*points, strict=True), color=colour, ls=style, marker=marker, ms=4, lw=1.5)
    _tidy(axes, "shift n in pixels", "accuracy")
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
    axes.yaxis.set_major_formatter(_percent())
    for text in figure.legend(handles=legend, loc="outside lower center", frameon=False).get_texts():
        text.set_parse_math(False)  # a name with dollars is no formula
    _save(figure, path)


def accuracy_by_cost(results: Mapping[tuple[str, str], Mapping[str, Any]], path: Path) -> None:
    """Draw what accuracy costs, in weights and in time of training.

    Args:
        results: (dataset, variant) -> ``weights``, ``seconds``, ``test_acc`` in [0, 1] and ``test_acc_sd``, its
            standard deviation over the seeds, None for one seed.
        path: PNG file to write.
    """
    datasets = list(dict.fromkeys(data for data, _ in results))
    variants = list(dict.fromkeys(variant for _, variant in results))
    styles = {
        variant: {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number // len(COLOURS) % len(MARKERS)]}
        for number, variant in enumerate(variants)
    }
    figure = Figure(figsize=(9, 3.4 * len(datasets) + 0.2 * len(variants)), layout="constrained")
    grid = figure.subplots(len(datasets), 2, squeeze=False, sharey="row", sharex="col")
    for line, data in zip(grid, datasets, strict=True):
        for axes, (quantity, label) in zip(line, (("weights", "weights"), ("seconds", "training in s")), strict=True):
            for (of, variant), row in results.items():
                if of == data:
                    spread = row["test_acc_sd"]
                    axes.errorbar(row[quantity], row["test_acc"], spread, ls="", ms=6, lw=1, **styles[variant])
            accuracy = f"test accuracy, {data}" if data else "test accuracy"
            _tidy(axes, label, accuracy if quantity == "weights" else "")
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:,.0f}")
            low, high = axes.get_xlim()
            axes.xaxis.set_minor_formatter("{x:,.0f}" if high < 10 * low else NullFormatter())
            axes.yaxis.set_major_formatter(_percent())
    legend = [Line2D([], [], ls="", ms=6, label=variant, **style) for variant, style in styles.items()]
    columns = 2 if len(legend) > 4 else 1
    for text in figure.legend(handles=legend, loc="outside lower center", ncols=columns, frameon=False).get_texts():
        text.set_parse_math(False)
    _save(figure, path)


def _latest(points: Iterable[tuple[int, float]]) -> list[tuple[int, float]]:
    """Drop points that a later one with the same step, or an earlier step, replaces.

    TensorBoard's page does so too, but its reader in Python knows only the optimizer step from which a run went on, and
    leaves the points of curves whose horizontal axis counts epochs.
    """
    latest = []
    for point in points:
        while latest and latest[-1][0] >= point[0]:
            latest.pop()
        latest.append(point)
    return latest


def _tidy(axes: Axes, horizontal: str, vertical: str) -> None:
    axes.set(xlabel=horizontal, ylabel=vertical)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e4e4e4", lw=0.7)
    axes.set_axisbelow(True)


def _percent() -> PercentFormatter:
    return PercentFormatter(1, symbol=" %")


def _save(figure: Figure, path: Path) -> None:
    """Write a PNG file with 100 pixels per inch."""
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)  # inches
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    # With 64 colours, nobody sees the difference, and the file is a third as large.
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").quantize(64)
    image.save(path, "png", optimize=True)
