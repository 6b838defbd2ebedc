"""Plots for reports, drawn by matplotlib into PNG files without pyplot and its global state."""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image

from cnn_lightning.errors import UsageError
from cnn_lightning.reporting.evaluation import BINS, Evaluation
from cnn_lightning.reporting.palette import AMBER, BLUE, GREEN, GREY, ORANGE, PINK, SKY

Points = Sequence[tuple[float, float]]
Shifts = Mapping[str, Mapping[str, Points]]  # network -> "up to", "corner" -> (pixels, accuracy in [0, 1])

COLOURS = (BLUE, ORANGE, GREEN, PINK, SKY, AMBER)
MARKERS = "os^Dv"
# One row of plots per horizontal axis: quantity -> tags of training and validation.
ROWS = {
    "optimizer step": {"loss": ("train/loss", "val/loss"), "accuracy": ("train/acc", "val/acc")},
    "epoch": {"loss": ("epoch/train_loss", "epoch/val_loss"), "accuracy": ("epoch/train_acc", "epoch/val_acc")},
}
# Tags before version 0.2, which TensorBoard sorted before the accuracy.
RENAMED = {f"epoch/{name}": f"time/{name}" for name in ("images_per_second", "seconds")}


def read_scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Read the curves of a run from its event files.

    Args:
        run: Folder of the run; it may be missing or hold no event files.

    Returns:
        Tag -> (step, value) in the order of the steps, without points that a resumed run logged anew.
    """
    # Imported here because it is slow and only needed for curves.
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if not run.is_dir():
        return {}
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it warns of every point that it drops
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})  # 0: all of them
    events.Reload()
    points: dict[str, list[Any]] = defaultdict(list)
    for tag in sorted(events.Tags()["scalars"], key=lambda tag: tag not in RENAMED):  # the former names first
        points[RENAMED.get(tag, tag)] += events.Scalars(tag)
    return {tag: _latest(points[tag]) for tag in points}


def value_at(points: Points, step: int) -> float:
    """Return the value of a curve at a step, or its last one before, where not every epoch is validated.

    Raises:
        UsageError: Nothing was validated until then.
    """
    values = [value for at, value in points if at <= step]
    if not values:
        raise UsageError(f"nothing was validated until step {step}: change --trainer.check_val_every_n_epoch")
    return values[-1]


def curves(scalars: Mapping[str, Points], path: Path) -> None:
    """Draw loss and accuracy in training and validation, against the optimizer step and the epoch.

    Args:
        scalars: Tag -> (step, value), as :func:`read_scalars` returns them; any tag may be missing.
        path: PNG file to write; nothing is written without points.
    """
    rows = {step: plots for step, plots in ROWS.items() if any(map(scalars.get, sum(plots.values(), ())))}
    if not rows:
        return
    figure = Figure(figsize=(6.4, 2.6 * len(rows)))
    grid = figure.subplots(len(rows), 2, squeeze=False)
    for line, (step, plots) in zip(grid, rows.items(), strict=True):
        for axes, (quantity, tags) in zip(line, plots.items(), strict=True):
            for tag, name, colour in zip(tags, ("training", "validation"), (BLUE, ORANGE), strict=True):
                if points := scalars.get(tag):
                    marker = "o" if len(points) <= 40 else None  # a line of one point would be invisible
                    axes.plot(*zip(*points, strict=True), color=colour, label=name, marker=marker, ms=4, lw=1.3)
            tidy(axes, step, quantity)
            axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
            if quantity == "loss":
                axes.set_ylim(bottom=0)
            if axes.lines:
                axes.legend(frameon=False)
    save_figure(figure, path)


def reliability(evaluation: Evaluation, path: Path) -> None:
    """Draw a reliability diagram, accuracy against confidence, and a histogram of confidence.

    Args:
        evaluation: Its ``bins`` are drawn, and those of the calibrated probabilities where it is calibrated.
        path: PNG file to write.
    """
    count, confidence, accuracy = (evaluation.bins[name].numpy() for name in ("images", "confidence", "accuracy"))
    filled, left = count > 0, np.arange(BINS) / BINS
    figure = Figure(figsize=(5.4, 6))
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot((0, 1), (0, 1), color=GREY, ls="--", lw=1, label="as it should be")
    above.bar(left, accuracy, 1 / BINS, align="edge", color=SKY, alpha=0.45, edgecolor="white")
    above.plot(confidence[filled], accuracy[filled], "o", color=BLUE, ms=5, label="images of one bin")
    title = f"expected calibration error {100 * evaluation.calibration_error:.2f} %"
    if evaluation.calibration.risk is not None:
        bins, after = evaluation.calibrated.bins, evaluation.calibrated.calibration_error
        some = bins["images"] > 0
        above.plot(
            bins["confidence"][some], bins["accuracy"][some], "s", color=ORANGE, ms=5, mfc="none", label="calibrated"
        )
        title += f", calibrated {100 * after:.2f} %"
    above.set(xlim=(0, 1), ylim=(0, 1.02))
    above.set_title(title, fontsize=11)
    above.legend(frameon=False, loc="upper left")
    below.bar(left, count, 1 / BINS, align="edge", color=SKY, edgecolor="white")
    below.set(yscale="log", ylim=(0.5, 2 * count.max()))  # most images are in the last bin
    tidy(above, "", "accuracy")
    tidy(below, "confidence", "images")
    below.xaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    below.minorticks_off()
    save_figure(figure, path)


def accuracy_by_shift(shifts: Shifts, path: Path) -> None:
    """Draw how accuracy falls when the test images are moved.

    Args:
        shifts: Name of a network -> "up to", "corner" -> (pixels, accuracy in [0, 1]).
        path: PNG file to write.
    """
    texts = {"up to": "moved at random by up to n pixels", "corner": "moved into a corner by n pixels"}
    figure = Figure(figsize=(6.4, 4.4 + 0.2 * len(shifts)))
    axes = figure.subplots()
    handles = draw_curves(axes, shifts, texts)
    tidy(axes, "shift n in pixels", "accuracy")
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
    draw_legend(figure, handles)
    save_figure(figure, path)


def draw_curves(
    axes: Axes, curves: Mapping[str, Mapping[str, Points]], texts: Mapping[str, str], solid: int = 0
) -> list[Line2D]:
    """Draw curves of two kinds for each network, which has a colour; return what a legend shows.

    Args:
        axes: Where to draw.
        curves: Name of a network -> kind -> points.
        texts: Both kinds, with what the legend says of them.
        solid: Which of them is solid; the other one is dashed.
    """
    looks: list[dict[str, Any]] = [{"ls": "-", "marker": "o"}, {"ls": "--", "marker": "s"}]
    styles = dict(zip(texts, looks[:: -1 if solid else 1], strict=True))
    handles = [Line2D([], [], color=GREY, ms=4, label=texts[kind], **style) for kind, style in styles.items()]
    for index, (name, lines) in enumerate(curves.items()):
        colour = COLOURS[index % len(COLOURS)]
        handles.append(Line2D([], [], color=colour, lw=3, label=name))
        for kind, points in lines.items():
            axes.plot(*zip(*points, strict=True), color=colour, ms=4, lw=1.5, **styles[kind])
    return handles


def draw_legend(figure: Figure, handles: Sequence[Line2D], loc: Any = "outside lower center", **options: Any) -> None:
    """Draw a legend below the plots."""
    for text in figure.legend(handles=handles, loc=loc, frameon=False, **options).get_texts():
        text.set_parse_math(False)  # a name with dollars is no formula


def _latest(points: Sequence[Any]) -> list[tuple[int, float]]:
    """Drop points that a later point with the same or an earlier step replaces; TensorBoard does so only for steps."""
    latest: list[tuple[int, float]] = []
    for point in reversed(points):
        if not latest or point.step < latest[-1][0]:
            latest.append((point.step, point.value))
    return latest[::-1]


def tidy(axes: Axes, horizontal: str, vertical: str) -> None:
    """Label the axes, and draw them as all plots have them."""
    axes.set(xlabel=horizontal, ylabel=vertical)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e4e4e4", lw=0.7)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    if "accuracy" in vertical:
        axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    elif vertical == "images":
        axes.yaxis.set_major_formatter("{x:,.0f}")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG file with 100 pixels per inch."""
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)  # inches
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    # 64 colours look the same, and the file is a third as large; MAXCOVERAGE keeps those of small points.
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").quantize(64, Image.Quantize.MAXCOVERAGE)
    image.save(path, "png", optimize=True)
