"""What ``compare.py`` and ``sweep.py`` share: the options of a study, and its state in the terminal."""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any, Literal

from optuna import Study
from optuna.trial import TrialState

from cnn_lightning.cli.exit_codes import at_least_one
from cnn_lightning.errors import UsageError
from cnn_lightning.studies.storage import StudySource, trials_of
from cnn_lightning.studies.trials import WORKER, Tasks, counting, error_of, tasks_of


def add_study_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a study."""
    parser.add_argument(
        "--jobs", type=at_least_one, default=1, help="runs that this command trains in parallel; default: 1"
    )
    parser.add_argument(
        "--storage",
        help="URL of a database that the workers of several machines share, as postgresql://USER@HOST/NAME; "
        "default: the file journal.log in the folder",
    )
    parser.add_argument("--study", help="name of the study in the database; default: the name of the folder")
    parser.add_argument(
        "--grace", type=at_least_one, default=60, help="seconds of silence before a worker counts as dead; default: 60"
    )
    parser.add_argument("--status", action="store_true", help="print the state of the study, and train nothing")


def study_source(options: argparse.Namespace, folder: Path, direction: Literal["minimize", "maximize"]) -> StudySource:
    """Return the study that the options name."""
    storage = options.storage or str(folder / "journal.log")
    return StudySource(storage, options.study or folder.absolute().name, direction, options.grace)


def open_study(source: StudySource, program: str, logs: Path) -> Study:
    """Open a study for a command.

    Args:
        source: The study.
        program: Name of the command, as "compare.py".
        logs: Folder of the runs.

    Raises:
        UsageError: It cannot be opened, or began with another command, folder or time after which a worker counts as
            dead.
    """
    try:
        study = source.open(seconds=0)
    except ValueError as error:
        raise UsageError(f"{error}: change --storage or --study") from error
    folder = Path(source.storage).parent
    settings: dict[str, Any] = {"program": program, "grace": source.grace}
    if not source.is_database:  # the locks that tell which trials are alive lie in it
        settings["logs"] = os.path.relpath(logs, folder)  # the whole may be moved
    for name, value in settings.items():
        if (first := study.user_attrs.get(name, value)) != value:
            first = os.path.normpath(folder / first) if name == "logs" else first
            began = f"is of {first}: " if name == "program" else f"began with --{name} {first}: give the same, or "
            raise UsageError(f"the study {source.name} {began}name another --study")
        study.set_user_attr(name, value)
    return study


def check_waiting(source: StudySource, tasks: Tasks, names: Container[str]) -> None:
    """Check that no other runs wait in a database, where commands with other settings would take them.

    Raises:
        UsageError: Some do.
    """
    trials = {key: counting(trials) for key, trials in tasks.items() if key not in names}
    others = [key for key, trial in trials.items() if trial and trial.state == TrialState.WAITING]
    if others and source.is_database:  # in a journal file, they were taken out of the settings
        raise UsageError(
            f"the study {source.name} in {source} has other runs waiting, as {others[0]}: name another --study"
        )


def print_status(study: Study, names: Mapping[str, str]) -> None:
    """Print how many runs of a study are in which state, who trains what, and what failed.

    Args:
        study: The study.
        names: The keys of the runs -> what to call them.
    """
    tasks = tasks_of(trials_of(study))
    states, lines = Counter[str](), []
    for key, name in names.items():
        trials = tasks.get(key, [])
        trial, error = counting(trials), error_of(trials)
        state = trial.state.name.lower() if trial else "failed" if error else "waiting"
        states[state] += 1
        if error:
            lines.append(f"failed: {name}: {error}")
        elif state == "running" and trial:
            lines.append(f"running: {name}, on {trial.user_attrs.get(WORKER)}")
    counts = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    print(f"{study.study_name}: {len(names)} runs: {counts}", *lines, sep="\n")


def exit_if_failed(study: Study, names: Mapping[str, str], what: str) -> None:
    """Print what failed for good, with the reasons, and exit with code 1; nothing happens if all is well.

    Args:
        study: The study.
        names: The keys of its tasks -> what to call them.
        what: The words after the number of failures.
    """
    tasks = tasks_of(trials_of(study))
    errors = {name: error_of(tasks.get(key, [])) for key, name in names.items()}
    if failed := [f"{name}: {error}" for name, error in errors.items() if error]:
        print(f"{len(failed)} {what}", *failed, sep="\n", file=sys.stderr)
        sys.exit(1)


def time_left(seconds: float) -> str:
    """Return the end of a line that says how long the rest takes; "" for nothing."""
    if not seconds:
        return ""
    return f"; about {seconds / 60:.0f} min left" if seconds > 90 else f"; about {seconds:.0f} s left"
