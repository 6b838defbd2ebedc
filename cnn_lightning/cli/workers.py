"""The loop of a command that works on a study: it keeps processes busy, and notices those that died, anywhere."""

import multiprocessing
import os
import socket
import time
import warnings
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any
from uuid import uuid4

from filelock import Timeout
from optuna import Study
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import fail_stale_trials
from optuna.trial import FrozenTrial, TrialState

from cnn_lightning.cli.trial_process import Work, train_one
from cnn_lightning.cores import own_cores
from cnn_lightning.errors import UsageError
from cnn_lightning.studies.storage import BEATS, Result, patiently
from cnn_lightning.studies.trials import KEY, WORKER, Tasks, counting, follow_lost, tasks_of

FAILURES = 5  # processes in a row that may end before they have taken a trial
POLL = 2.0  # seconds between two looks at the study


def work_on(work: Work, study: Study, jobs: int, report: Callable[[list[FrozenTrial]], None]) -> None:
    """Train the waiting trials of a study, until none waits or is being trained, here or elsewhere.

    Args:
        work: What they are trained for.
        study: The study.
        jobs: How many are trained at the same time by this command.
        report: Called with the trials that processes of this command have ended, whenever some have.

    Raises:
        UsageError: The calling program would run again in each process.
    """
    if multiprocessing.parent_process():
        raise UsageError("a program that calls this command needs the line: if __name__ == '__main__':")
    environment = {"OMP_NUM_THREADS": str(max(1, own_cores() // jobs))} | os.environ
    os.environ.update(environment)  # for the server from which the processes are forked
    context: Any = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
    context.set_forkserver_preload(["cnn_lightning.cli.fit", type(work).__module__])
    watch = _Watch(work, study)
    ended: list[FrozenTrial] = []
    failures = 0
    with _processes() as processes:
        while (unfinished := watch.unfinished()) or ended:
            waiting = [trial for trial in unfinished if trial.state == TrialState.WAITING]
            taken = {trial.user_attrs.get(WORKER) for trial in unfinished}
            starting = [worker for worker in processes if worker not in taken]
            for _ in range(min(jobs - len(processes), len(waiting) - len(starting))):
                worker = f"{socket.gethostname()}:{uuid4().hex[:8]}"  # unique among all machines
                process = context.Process(target=train_one, args=(work, worker, environment))
                try:
                    process.start()
                except (EOFError, OSError):  # multiprocessing's server was killed; it will start another one
                    failures += 1
                else:
                    processes[worker] = process
            if ended:
                report(ended)  # while the next are trained
            # Without a process of its own, it waits for what others train.
            wait([process.sentinel for process in processes.values()], timeout=POLL if unfinished else 0)
            gone = {worker: process for worker, process in processes.items() if not process.is_alive()}
            for worker in gone:
                processes.pop(worker).join()
            ended = watch.ended_by(gone) if gone else []
            failures = 0 if ended else failures + sum(process.exitcode != 0 for process in gone.values())
            if failures > FAILURES:
                raise UsageError("processes end before they take a run: see what they have printed above")


@contextmanager
def _processes() -> Iterator[dict[str, BaseProcess]]:
    """Hold processes by the names of the workers; when the command is stopped, they save their state and end."""
    processes: dict[str, BaseProcess] = {}
    try:
        yield processes
    finally:
        for process in processes.values():
            process.terminate()
        for process in processes.values():
            process.join()


class _Watch:
    """Looks at a study, and fails the running trials of processes that died."""

    def __init__(self, work: Work, study: Study) -> None:
        self._work, self._study = work, study
        self._interval = max(1, work.source.grace // BEATS)
        self._trust_from = time.monotonic() + 2 * self._interval
        self._nameless: dict[int, float] = {}  # running trials of unknown workers -> when they were noticed

    def unfinished(self) -> list[FrozenTrial]:
        """Return the waiting and the running trials, after those that were lost are waiting again."""
        self._fail_dead()
        tasks = self._tasks()
        self._call(lambda: follow_lost(self._study, tasks))
        trials = [counting(trials) for trials in self._tasks().values()]
        return [trial for trial in trials if trial and not trial.state.is_finished()]

    def ended_by(self, workers: Container[str]) -> list[FrozenTrial]:
        """Return the trials that some processes have ended, or left behind."""
        if self._work.source.is_database:
            for trial in self._trials_of(workers):
                if trial.state == TrialState.RUNNING:
                    self._fail(trial)
        else:
            self._fail_dead()  # by their locks: where multiprocessing's server was killed, a trial may still save
        return [trial for trial in self._trials_of(workers) if trial.state.is_finished()]

    def _trials_of(self, workers: Container[str]) -> list[FrozenTrial]:
        return [trial for trial in self._trials() if trial.user_attrs.get(WORKER) in workers]

    def _trials(self) -> list[FrozenTrial]:
        return self._call(lambda: self._study.get_trials(deepcopy=False))

    def _tasks(self) -> Tasks:
        names = self._work.names
        return {key: trials for key, trials in tasks_of(self._trials()).items() if key in names}

    def _call(self, call: Callable[[], Result]) -> Result:
        """Read or write the study; after it was away, others first need time to send a heartbeat."""
        began = time.monotonic()
        result = patiently(call)
        if time.monotonic() - began > self._interval:
            self._trust_from = time.monotonic() + 2 * self._interval
        return result

    def _fail_dead(self) -> None:
        running = [trial for trial in self._trials() if trial.state == TrialState.RUNNING and KEY in trial.user_attrs]
        if not self._work.source.is_database:
            for trial in running:
                with (
                    self._work.claiming(),
                    suppress(Timeout),
                    self._work.lock(trial.user_attrs[KEY]).acquire(timeout=0),
                ):
                    self._fail(trial)
            return
        if time.monotonic() < self._trust_from:
            return
        # Not again where the database is away: when it is back, nobody has sent a heartbeat.
        with warnings.catch_warnings(), suppress(UsageError):
            warnings.simplefilter("ignore", ExperimentalWarning)
            patiently(lambda: fail_stale_trials(self._study), seconds=0)
        # The connection broke while a process took a trial, so that it took another one.
        now = time.monotonic()
        nameless = {trial.number: trial for trial in running if WORKER not in trial.user_attrs}
        self._nameless = {number: self._nameless.get(number, now) for number in nameless}
        for number, since in self._nameless.items():
            if now - since > self._work.source.grace:
                self._fail(nameless[number])

    def _fail(self, trial: FrozenTrial) -> None:
        with suppress(UpdateFinishedTrialError):  # another process was faster
            self._call(lambda: self._study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True))
