"""The plot of compare.py: accuracy against parameters and training time."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, NullFormatter
from matplotlib.transforms import Affine2D

from cnn_lightning.reporting import plots
from cnn_lightning.reporting.palette import GREY, INK
from cnn_lightning.reporting.plots import COLOURS, MARKERS, draw_legend, tidy

FILLS = ("full", "left", "top", "right", "bottom", "full")  # tell the colours apart in grey as well
PUBLISHED: dict[str, Any] = {"color": GREY, "marker": "x", "ls": ""}
LOOKS = [{"color": INK, "mfc": "white"}]
LOOKS += [{"color": colour, "fillstyle": fill} for colour, fill in zip(COLOURS, FILLS, strict=True)]


def accuracy_by_cost(
    results: Mapping[tuple[str, str], Mapping[str, Any]], path: Path, published: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Draw test accuracy against the number of parameters and the training time.

    Variants "NETWORK" and "NETWORK + IDEA" get a marker per network and a colour per idea, others a colour each.

    Args:
        results: (dataset, variant) -> ``weights`` (number of parameters), ``seconds``, ``test_acc`` in [0, 1] and
            ``test_acc_sd``, its standard deviation over the seeds, None for one seed.
        path: PNG file to write.
        published: Results of others: ``data``, ``variant`` (a short name), ``weights`` and ``test_acc``.
    """
    datasets = list(dict.fromkeys(data for data, _ in results))
    figure = Figure(figsize=(9, 3.4 * len(datasets) + 1))
    grid = figure.subplots(len(datasets), 2, squeeze=False, sharey="row", sharex="col")
    styles = _styles(figure, list(dict.fromkeys(variant for _, variant in results)), bool(published))
    for line, data in zip(grid, datasets, strict=True):
        for axes, quantity, label in zip(line, ("weights", "seconds"), ("parameters", "training in s"), strict=True):
            for (of, variant), row in results.items():
                if of == data:
                    style, pixels = styles[variant]
                    bar = axes.errorbar(_positive(row[quantity]), row["test_acc"], row["test_acc_sd"], lw=1, **style)
                    for artist in bar.get_children() if quantity == "weights" else ():
                        artist.set_transform(artist.get_transform() + Affine2D().translate(pixels, 0))
            if quantity == "weights":
                _draw_published(axes, data, published)
            accuracy = f"test accuracy, {data}" if data else "test accuracy"
            tidy(axes, label, accuracy if quantity == "weights" else "")
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 600k: longer labels would overlap
            costs = [_positive(row[quantity]) for row in results.values()]
            costs += [point[quantity] for point in published if quantity in point]
            low, high = axes.set_xlim(0.7 * min(costs), 1.4 * max(costs))
            axes.xaxis.set_minor_formatter(EngFormatter(sep="") if high < 10 * low else NullFormatter())
    plots.save_figure(figure, path)


def last_epoch(data: str) -> str:
    """Name the results of a dataset whose last epochs were tested, not the best."""
    return f"{data}, last epoch".removeprefix(", ")


def _positive(cost: float) -> float:
    return max(cost, 0.05)  # seconds are rounded, to 0.0 for a short run, which a log axis cannot show


def _draw_published(axes: Axes, data: str, published: Sequence[Mapping[str, Any]]) -> None:
    for point in published:
        if data in (point["data"], last_epoch(point["data"])):
            place = point["weights"], point["test_acc"]
            axes.plot(*place, **PUBLISHED)
            axes.annotate(point["variant"], place, (5, -3), textcoords="offset points", fontsize=7, color=GREY)


def _styles(figure: Figure, variants: Sequence[str], published: bool) -> dict[str, tuple[dict[str, Any], float]]:
    """Style of each variant, and by how many pixels it is drawn aside; draws the legend."""
    split = any(" + " in variant for variant in variants)
    parts = {variant: variant.partition(" + ")[::2] if split else ("", variant) for variant in variants}
    ideas = sorted(dict.fromkeys(idea for _, idea in parts.values()), key=bool)  # "", the network alone, is first
    markers = dict(zip(dict.fromkeys(network for network, _ in parts.values()), cycle(MARKERS), strict=False))
    shared: dict[str, Any] = {"ls": "", "ms": 8, "mfcalt": "white"}
    styles = {}
    for number, idea in enumerate(ideas):
        label = (f"+ {idea}" if idea else "network alone") if split else idea
        styles[idea] = shared | LOOKS[(number + (not split)) % len(LOOKS)] | {"label": label}
    if split:
        handles = [Line2D([], [], label=name, marker=marker, color=GREY, **shared) for name, marker in markers.items()]
        draw_legend(figure, handles, "outside upper center", title="marker: network", ncols=len(handles))
    title = "colour: idea (side by side where the number of parameters is the same)" if split else ""
    handles = [Line2D([], [], marker="h" if split else "o", **style) for style in styles.values()]
    handles += [Line2D([], [], label="published", **PUBLISHED)] if published else []
    draw_legend(figure, handles, title=title, ncols=4 if split else 1)
    aside = {idea: 5 * split * (number - (len(ideas) - 1) / 2) for number, idea in enumerate(ideas)}
    return {name: (styles[idea] | {"marker": markers[net]}, aside[idea]) for name, (net, idea) in parts.items()}
