"""Pictures and a table of a study: history, importance of the parameters, parallel coordinates, all trials."""

import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot, rc_context
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from optuna import Study
from optuna.exceptions import ExperimentalWarning
from optuna.importance import get_param_importances
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from optuna.visualization.matplotlib import (
    plot_optimization_history,
    plot_parallel_coordinate,
    plot_param_importances,
)

from cnn_lightning.checkpointing.files import write_file
from cnn_lightning.reporting.palette import BLUE, INK, ORANGE, SKY
from cnn_lightning.reporting.plots import save_figure, tidy
from cnn_lightning.reporting.tables import as_csv
from cnn_lightning.studies.space import to_text

SHADES = [INK, BLUE, SKY, "#dddddd"]  # from the best value to the worst
ABSENT = "not set"  # a parameter of a choice that a trial has not made


def write_pictures(study: Study, folder: Path, value_name: str = "value") -> list[str]:
    """Write trials.csv, and the pictures that can be drawn: history.png, importance.png, parallel.png.

    The importance is that of Optuna's PED-ANOVA: how much the values of the best tenth of the trials differ from those
    of all trials.

    Args:
        study: Its trials; the pictures show those that are complete and have a finite value.
        folder: It must exist.
        value_name: What the value of a trial is, such as "val/loss".

    Returns:
        Lines for the user: the importance of each parameter, and which pictures are left out.
    """
    trials = study.get_trials(deepcopy=False)
    if trials:
        write_file(folder / "trials.csv", as_csv(_rows(trials)))
    finished = [trial for trial in trials if trial.state == TrialState.COMPLETE and math.isfinite(trial.values[0])]
    if not finished:
        return ["no history.png, parallel.png and importance.png: no trial is complete and has a finite value"]
    names = sorted({name for trial in finished for name in trial.params})
    differing = [name for name in names if len({_word(trial, name) for trial in finished}) > 1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        warnings.filterwarnings("ignore", "Some regimes for parameter")  # a choice that was made once
        _save(lambda: _history(study, value_name), folder / "history.png", 6.4, 4)
        if not differing:
            return ["no parallel.png and importance.png: they need two complete trials with different parameters"]
        _save(lambda: _parallel(study, differing, value_name), folder / "parallel.png", 2.5 + 1.4 * len(differing), 5)
        if len({trial.value for trial in finished}) == 1:
            return ["no importance.png: it needs two complete trials with different values"]
        _save(
            lambda: _importance(study, differing, len(finished)),
            folder / "importance.png",
            6.4,
            1.2 + 0.4 * len(differing),
        )
        importance = get_param_importances(study, params=differing)
    lines = [f"importance {share:4.0%}  {name}" for name, share in importance.items()]
    return [*lines, f"           among the {len(finished)} complete trials"]


def _rows(trials: Sequence[FrozenTrial]) -> list[dict[str, Any]]:
    names = sorted({name for trial in trials for name in trial.params})
    return [
        {
            "number": trial.number,
            "state": trial.state.name,
            "value": trial.value,
            "duration": trial.duration and round(trial.duration.total_seconds(), 3),  # seconds
            **{name: _word(trial, name) for name in names},
            "key": trial.user_attrs.get("key"),
        }
        for trial in trials
    ]


def _word(trial: FrozenTrial, name: str) -> str:
    return to_text(trial.params[name]) if name in trial.params else ""


def _save(draw: Callable[[], Axes], path: Path, width: float, height: float) -> None:
    """Save what Optuna draws, in inches, and restore the settings of matplotlib, which Optuna changes."""
    with rc_context({"figure.constrained_layout.use": True}), pyplot.ioff():
        axes = draw()
        axes.set_title("")
        axes.set_title("", loc="left")
        figure = axes.get_figure()
        assert isinstance(figure, Figure)
        figure.set_size_inches(width, height)
        save_figure(figure, path)
        pyplot.close(figure)


def _history(study: Study, value_name: str) -> Axes:
    axes = plot_optimization_history(study, target_name=value_name)
    _restyle(axes, "trial", value_name)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
    axes.collections[0].set(color=BLUE, label="trial")
    axes.lines[0].set(color=ORANGE, alpha=1, drawstyle="steps-post", label="best so far")
    axes.legend(frameon=False, facecolor="none")
    return axes


def _importance(study: Study, names: list[str], trials: int) -> Axes:
    axes = plot_param_importances(study, params=names)
    _restyle(axes, f"importance, among {trials} complete trials", "")
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    axes.grid(visible=False, axis="y")
    if legend := axes.get_legend():
        legend.remove()
    for bar in axes.patches:
        bar.set_color(BLUE)
    for text in axes.texts:
        text.set_text(f" {text.get_text()}")
    return axes


def _parallel(study: Study, names: list[str], value_name: str) -> Axes:
    axes = plot_parallel_coordinate(study, params=names, target_name=value_name)
    labels = [name.replace(".", ".\n") for name in (value_name, *names)]
    axes.set_xticks(range(len(labels)), labels, rotation=0, fontsize=9)
    (lines,) = (artist for artist in axes.collections if isinstance(artist, LineCollection))
    # The best trials are dark, and above the others.
    is_minimum = study.direction == StudyDirection.MINIMIZE
    values = np.asarray(lines.get_array())
    order = np.argsort(-values if is_minimum else values, kind="stable")
    segments = lines.get_segments()
    lines.set_segments([segments[index] for index in order])
    lines.set_array(values[order])
    lines.set_cmap(LinearSegmentedColormap.from_list("", SHADES if is_minimum else SHADES[::-1]))
    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    for name, own in zip(names, axes.figure.axes[2:], strict=True):  # those of the value and its colours are first
        texts = [label.get_text() for label in own.get_yticklabels()]
        if "None" in texts:
            is_partial = any(name not in trial.params for trial in finished)
            words = {"None": ABSENT, "None (value)": "null"} if is_partial else {"None": "null"}
            own.set_yticks(own.get_yticks(), [words.get(text, text) for text in texts])
        if own.get_yscale() == "log":
            ticks = np.geomspace(*own.get_ylim(), 5)
            own.set_yticks(ticks, [f"{tick:.3g}" for tick in ticks])
            own.minorticks_off()
        own.tick_params(labelsize=8)
        for label in own.get_yticklabels():
            label.set_bbox({"facecolor": "white", "alpha": 0.7, "pad": 1, "edgecolor": "none"})
    return axes


def _restyle(axes: Axes, horizontal: str, vertical: str) -> None:
    tidy(axes, horizontal, vertical)
    axes.set_facecolor("white")
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_fontsize(10)
