"""Pictures of risk and robustness for reports: withheld answers, corrupted and attacked images."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter
from PIL import Image
from torch import Tensor

from cnn_lightning.reporting.evaluation import Evaluation
from cnn_lightning.reporting.images import WIDTH, grid, pixels
from cnn_lightning.reporting.lettering import LINE, write
from cnn_lightning.reporting.palette import BLUE, GREY, ORANGE, PAPER
from cnn_lightning.reporting.plots import COLOURS, MARKERS, Points, draw_curves, draw_legend, save_figure, tidy

BLOCKS = 2  # corruptions next to each other


def risk_coverage(evaluation: Evaluation, path: Path) -> None:
    """Draw the share of wrong answers among those given, against the share of images that get an answer.

    Args:
        evaluation: Its calibrated probabilities are drawn, and the threshold.
        path: PNG file to write.
    """
    risk, total = evaluation.calibrated.risk_coverage.numpy(), evaluation.total
    figure = Figure(figsize=(5.4, 3.8))
    axes = figure.subplots()
    axes.plot(np.arange(1, total + 1) / total, risk, color=BLUE, lw=1.5, label="test images, most certain first")
    if evaluation.calibration.risk is not None:
        axes.axhline(evaluation.calibration.risk, color=GREY, ls="--", lw=1, label="asked for")
        if evaluation.answered:
            point = evaluation.answered / total, evaluation.wrong_answers / evaluation.answered
            axes.plot(*point, "o", color=ORANGE, ms=7, label="at the threshold")
    tidy(axes, "images with an answer", "wrong answers")
    axes.set(xlim=(0, 1.01), ylim=(0, None))
    axes.xaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    axes.legend(frameon=False, loc="upper left")
    save_figure(figure, path)


def corruptions(examples: Mapping[str, Tensor]) -> Image.Image:
    """Draw an image with each corruption, in all strengths from left to right.

    Args:
        examples: Name of a corruption -> (S, C, H, W) uint8 images, one a strength.
    """
    strips = [grid(pixels(images), [""] * len(images), BLOCKS * len(images)) for images in examples.values()]
    width, height = WIDTH // BLOCKS, strips[0].height + LINE
    picture = Image.new("RGB", (WIDTH, -(-len(strips) // BLOCKS) * height), PAPER)
    for index, (name, strip) in enumerate(zip(examples, strips, strict=True)):
        left, top = index % BLOCKS * width, index // BLOCKS * height
        write(picture, (left + 2, top), name.replace("_", " "))
        picture.paste(strip.crop((0, 0, width, strip.height)), (left, top + LINE))
    return picture


def accuracy_by_corruption(accuracies: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Draw the accuracy of networks on corrupted images.

    Args:
        accuracies: Name of a network -> corruption -> accuracy in [0, 1].
        path: PNG file to write.
    """
    names = list(next(iter(accuracies.values())))
    figure = Figure(figsize=(6.4, 4.6 + 0.2 * len(accuracies)))
    axes, handles = figure.subplots(), list[Line2D]()
    for index, (network, by_name) in enumerate(accuracies.items()):
        look: dict[str, Any] = {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}
        axes.plot([by_name[name] for name in names], range(len(names)), ls="", ms=6, alpha=0.85, **look)
        handles.append(Line2D([], [], ls="", ms=6, label=network, **look))
    tidy(axes, "accuracy, mean of five strengths", "")
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes.invert_yaxis()  # the first on top
    axes.xaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    draw_legend(figure, handles)
    save_figure(figure, path)


def accuracy_by_attack(attacks: Mapping[str, Mapping[str, Points]], path: Path) -> None:
    """Draw how accuracy falls with the strength of attacks.

    Args:
        attacks: Name of a network -> attack -> (epsilon, accuracy in [0, 1]).
        path: PNG file to write.
    """
    figure = Figure(figsize=(6.4, 4.0 + 0.2 * len(attacks)))
    axes = figure.subplots()
    handles = draw_curves(axes, attacks, {kind: kind for kind in next(iter(attacks.values()))}, solid=1)
    tidy(axes, "largest change of a pixel, epsilon", "accuracy")
    axes.xaxis.set_major_formatter("{x:.2f}")
    axes.set_ylim(bottom=-0.02)
    draw_legend(figure, handles)
    save_figure(figure, path)
