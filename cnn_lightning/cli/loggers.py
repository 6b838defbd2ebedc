"""The loggers that a user chooses: a resumed run continues in their folders, and no run overwrites another."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from cnn_lightning.checkpointing.settings import RESUME_KEY
from cnn_lightning.errors import UsageError

# The arguments by which loggers of different packages continue a run.
VERSIONS = ("version", "run_id", "experiment_key")


def resume_loggers(loggers: Any, specs: Any, checkpoint: Mapping[str, Any]) -> list[Logger]:
    """Build the loggers of a resumed run again, with the versions that they had when its checkpoint was saved.

    Args:
        loggers: The loggers as they are configured, one or a list.
        specs: Their configuration: classes with their arguments.
        checkpoint: What the file holds.

    Raises:
        UsageError: MLflow does not know the run.
    """
    loggers, specs = ([each] if not isinstance(each, list) else each for each in (loggers, specs))
    states = logger_states(checkpoint)
    resumed = []
    for logger, spec in zip(loggers, specs, strict=True):
        accepted: Iterable[str] = signature(type(logger)).parameters
        if isinstance(logger, CSVLogger | TensorBoardLogger):  # a subclass may pass on its arguments
            accepted = VERSIONS[:1]
        version = next((name for name in VERSIONS if name in accepted), "")
        if version and (state := take_state(logger, states)):
            arguments = dict(spec.init_args) | dict(spec.get("dict_kwargs") or {})
            if arguments.get(version) is None:
                arguments[version] = state["version"]
            if isinstance(logger, TensorBoardLogger):
                arguments["purge_step"] = first_new_step(checkpoint)
            logger = type(logger)(**arguments)
            if isinstance(logger, MLFlowLogger):
                _check_mlflow_run(logger)
        resumed.append(logger)
    return resumed


def logger_states(checkpoint: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What ``ResumeState`` has saved of each logger; nothing in checkpoints of version 0.1."""
    return list(checkpoint.get(RESUME_KEY, {}).get("loggers", []))


def take_state(logger: Logger, states: list[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Remove the first state of a logger's class from a list, and return it; None where there is none."""
    state = next((state for state in states if state["class"] == type(logger).__name__), None)
    if state is not None:
        states.remove(state)
    return state


def first_new_step(checkpoint: Mapping[str, Any]) -> int:
    """The ``purge_step`` of TensorBoard, which hides the points that an interrupted run drew after its checkpoint."""
    return checkpoint["global_step"] + 1


@rank_zero_only
def check_new(loggers: Sequence[Logger]) -> None:
    """Make sure that no logger of a new run writes to a folder that has curves already.

    Raises:
        UsageError: It would.
    """
    for logger in loggers:
        folder = getattr(logger, "log_dir", None)
        for path in [*Path(folder).glob("metrics.csv"), *Path(folder).glob("events.*")] if folder else []:
            raise UsageError(f"{path} is of another run: give --trainer.logger another folder, name or version")


def _check_mlflow_run(logger: MLFlowLogger) -> None:
    try:
        _ = logger.experiment
    except Exception as error:  # of MLflow, or of its database
        raise UsageError(f"cannot resume the run of MLflow ({error}): change --trainer.logger.tracking_uri") from error


@rank_zero_only
def keep_rows(loggers: Sequence[Logger], checkpoint: Mapping[str, Any]) -> None:
    """Keep the rows that CSVLoggers had written when the checkpoint was saved, and remove later ones.

    Custom because Lightning 2.6.6 deletes metrics.csv where its folder exists.
    """
    states = logger_states(checkpoint)
    for logger in loggers:
        state = take_state(logger, states)
        if not isinstance(logger, CSVLogger):
            continue
        path = Path(logger.log_dir) / "metrics.csv"
        saved = path.with_name("metrics_until_resume.csv")  # remains where the process is killed before all is written
        if path.exists() and not saved.exists():
            path.rename(saved)
        if not saved.exists():
            continue
        with saved.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        if state:
            rows = rows[: state["rows"]]
        else:  # of a version that did not count them
            rows = [row for row in rows if int(row["step"]) <= checkpoint["global_step"]]
        for row in rows:
            step = int(row.pop("step"))
            logger.experiment.log_metrics({name: value for name, value in row.items() if value}, step)
        logger.save()
        saved.unlink()
