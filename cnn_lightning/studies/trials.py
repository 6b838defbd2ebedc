"""Tasks of a study, which any number of processes share: each task is trained once, also after SIGKILL.

A task has a key. One of its trials counts, and others of the same key that wait are dropped, as where two machines add
the same tasks. A trial whose process died, or was asked to stop, fails and is followed by one with the same parameters,
which resumes its run.
"""

import warnings
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping
from typing import Any

from optuna import Study
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

# Attributes of a trial.
KEY = "key"  # of its task
WORKER = "worker"  # name of the process that trains it
ERROR = "error"  # why it failed for good; one without it is followed by another
STOPPED = "stopped"  # its process was asked to stop
BEGAN_AT = "began_at"  # the checkpoint it began with, as text
DROPPED = "dropped"  # it was one too many, and was never trained
PRUNED = "pruned"  # the epoch after which it was pruned
_OF_A_PROCESS = (WORKER, ERROR, STOPPED, BEGAN_AT)
DEATHS = 3  # in a row, without a new checkpoint between them, are an error

Tasks = dict[str, list[FrozenTrial]]


def tasks_of(trials: Iterable[FrozenTrial]) -> Tasks:
    """Return the trials of each task, in the order of their numbers; without those that were dropped."""
    tasks: Tasks = defaultdict(list)
    for trial in sorted(trials, key=lambda trial: trial.number):
        if KEY in trial.user_attrs and DROPPED not in trial.user_attrs:
            tasks[trial.user_attrs[KEY]].append(trial)
    return tasks


def counting(trials: Iterable[FrozenTrial]) -> FrozenTrial | None:
    """Return the trial of a task that counts: the first that is finished, else the first that has not failed."""
    alive = [trial for trial in trials if trial.state != TrialState.FAIL]
    return next((trial for trial in alive if trial.state.is_finished()), alive[0] if alive else None)


def error_of(trials: list[FrozenTrial]) -> str | None:
    """Return why a task failed; None where it has not failed for good."""
    return None if counting(trials) or not trials else trials[-1].user_attrs.get(ERROR)


def enqueue(study: Study, key: str, parameters: Mapping[str, Any] | None = None) -> None:
    """Add the first trial of a task, which waits for a process.

    Args:
        study: The study.
        key: Of the task.
        parameters: Those that are fixed; the sampler chooses the others.
    """
    study.enqueue_trial({**(parameters or {})}, user_attrs={KEY: key})


def follow(study: Study, last: FrozenTrial) -> None:
    """Add a trial that follows a failed one, with its parameters and reported values."""
    study.add_trial(
        create_trial(
            state=TrialState.WAITING,
            params=last.params,
            distributions=last.distributions,
            system_attrs=last.system_attrs,  # the fixed parameters that were not asked for yet
            intermediate_values=last.intermediate_values,
            user_attrs={name: value for name, value in last.user_attrs.items() if name not in _OF_A_PROCESS},
        )
    )


def follow_lost(study: Study, tasks: Tasks) -> None:
    """Add trials that follow those whose processes died, unless a task's processes die repeatedly."""
    for trials in tasks.values():
        if counting(trials) or error_of(trials):
            continue
        deaths = [trial.user_attrs.get(BEGAN_AT) for trial in trials if not trial.user_attrs.get(STOPPED)][-DEATHS:]
        if len(deaths) == DEATHS and len({*deaths}) == 1:
            error = f"its process was killed {DEATHS} times in a row, as the system does where memory runs out"
            attributes = trials[-1].user_attrs | {ERROR: error}
            study.add_trial(create_trial(state=TrialState.FAIL, user_attrs=attributes))
        else:
            follow(study, trials[-1])


def claim(study: Study, keys: Container[str]) -> Trial | None:
    """Take a waiting trial for a process; None where no trial waits.

    Args:
        study: The study.
        keys: Those of all tasks; trials of others are dropped.
    """
    while study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Heartbeat of storage")  # the process of a trial sends its own
            trial = study.ask()
        key = trial.user_attrs.get(KEY, "")  # none where another process took the last one: Optuna then made a new one
        first = counting(tasks_of(study.get_trials(deepcopy=False)).get(key, []))
        if first and first.number == trial.number and key in keys:
            return trial
        trial.set_user_attr(DROPPED, True)
        study.tell(trial, state=TrialState.FAIL)
    return None
