"""The process of a trial: it takes one that waits, trains it with ``fit``, and says how that ended.

Each trial has a process of its own, so that nothing is left over from the one before, and a crash ends that trial only.
"""

import os
import re
import runpy
import signal
import sys
import threading
import traceback
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import parent_process
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from optuna import Study
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import BaseSampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from cnn_lightning.cli.run_folders import newest_last
from cnn_lightning.cli.terminal import relative_path
from cnn_lightning.errors import UsageError
from cnn_lightning.studies.storage import StudySource, patiently, trial_id, trials_of
from cnn_lightning.studies.trials import BEGAN_AT, ERROR, KEY, PRUNED, STOPPED, WORKER, claim

INTERRUPTED = tuple(128 + getattr(signal, name, 0) for name in ("SIGHUP", "SIGINT", "SIGTERM"))  # exit codes of fit


@dataclass(frozen=True)
class Work(ABC):
    """What the trials of a study are trained for; it is sent to their processes.

    Args:
        source: The study.
        logs: Folder of the runs.
    """

    source: StudySource
    logs: Path

    @property
    @abstractmethod
    def names(self) -> Mapping[str, str]:
        """The keys of all tasks -> what to call them."""

    def sampler(self) -> BaseSampler | None:
        """What chooses the parameters of a trial; None where they are fixed."""
        return None

    @abstractmethod
    def words(self, trial: Trial) -> list[str]:
        """Return the arguments of ``fit`` for a trial, after its parameters are chosen."""

    @abstractmethod
    def result(self, trial: FrozenTrial, folder: Path) -> tuple[float, Mapping[str, Any]]:
        """Return the value of a trial that was trained, and attributes to save with it."""

    def folder(self, key: str) -> Path:
        """Return the folder of a task's runs."""
        return self.logs / re.sub(r"[^\w.-]+", "_", key)

    def lock(self, key: str) -> FileLock:
        """Return the lock that the process holds which trains a task."""
        return FileLock(self.folder(key) / ".lock")

    @contextmanager
    def claiming(self) -> Iterator[None]:
        """Hold the lock under which trials are claimed: a running trial whose own lock is free is then dead."""
        with nullcontext() if self.source.is_database else FileLock(self.logs / ".claim.lock"):
            yield


def train_one(work: Work, worker: str, environment: Mapping[str, str]) -> None:
    """Train one trial in this process, if one is waiting.

    Args:
        work: What it is trained for.
        worker: Name of this process.
        environment: All environment variables; OMP_NUM_THREADS is the number of threads.
    """
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))  # PyTorch read the variable when it was imported
    if hasattr(os, "setsid"):
        os.setsid()  # so that Ctrl-C does not reach this process: it is terminated, once
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    study = work.source.open(work.sampler())
    with work.claiming():
        trial = patiently(lambda: claim(study, work.names))
        if trial is None:
            return
        key = trial.user_attrs[KEY]
        folder = work.folder(key)
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            stack.enter_context(_heartbeat(work.source, trial.number))
            # After the first heartbeat: Optuna never counts a trial without any as lost.
            patiently(lambda: trial.set_user_attr(WORKER, worker))
            try:
                # A suspended process loses its trial in a database; it stops when it notices.
                stack.enter_context(work.lock(key).acquire(timeout=work.source.grace if work.source.is_database else 0))
            except Timeout:
                error = f"another process trains in {folder}: wait for it, or name other --logs"
                end(study, trial, {STOPPED: True} if work.source.is_database else {ERROR: error})
                return
            held = stack.pop_all()
    with held:
        _train(study, trial, work, folder)


def _train(study: Study, trial: Trial, work: Work, folder: Path) -> None:
    """Train a trial that is ours, and say how that ended."""
    output = folder / "output.txt"
    patiently(lambda: trial.set_user_attr(BEGAN_AT, _newest_checkpoint(folder)))
    os.environ |= work.source.environment(trial.number)
    attributes: Mapping[str, Any] = {}
    value, state = None, TrialState.FAIL
    try:
        words = patiently(lambda: work.words(trial))
        words += [f"--trainer.default_root_dir={folder}", "--ckpt_path=last"]  # a new run where nothing is saved
        code = run_fit([*words, "--trainer.enable_progress_bar=false", "--dashboard=false"], output)
        if code in INTERRUPTED:
            attributes = {STOPPED: True}
        elif code:
            raise UsageError(f"{last_error(output)} (full output in {relative_path(output)})")
        else:
            frozen = trials_of(study)[trial.number]
            value, attributes = work.result(frozen, folder)
            state = TrialState.PRUNED if PRUNED in frozen.user_attrs else TrialState.COMPLETE
    except UsageError as error:
        attributes = {ERROR: str(error)}
    except Exception as error:
        with output.open("a") as file:
            traceback.print_exc(file=file)
        attributes = {ERROR: f"{type(error).__name__}: {error} (full output in {relative_path(output)})"}
    end(study, trial, attributes, state, value)


def end(
    study: Study,
    trial: Trial,
    attributes: Mapping[str, Any],
    state: TrialState = TrialState.FAIL,
    value: float | None = None,
) -> None:
    """Save how a trial ended, unless the trial was given to another process."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it takes a moment
    with suppress(UpdateFinishedTrialError):
        for name, attribute in attributes.items():
            patiently(partial(trial.set_user_attr, name, attribute))
        value = value if state == TrialState.COMPLETE else None
        patiently(lambda: study.tell(trial, value, state, skip_if_finished=True))


def run_fit(words: Sequence[str], output: Path) -> int:
    """Run ``python -m cnn_lightning fit`` in this process, without the seconds that its imports take.

    Args:
        words: Its arguments.
        output: File for all that it prints.

    Returns:
        The exit code.
    """
    kept = [os.dup(descriptor) for descriptor in (1, 2)]
    with output.open("w") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    sys.argv[1:] = ["fit", *words]
    try:
        runpy.run_module("cnn_lightning", run_name="__main__", alter_sys=True)  # DDP starts sys.argv again
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        for stream, descriptor, original in zip((sys.stdout, sys.stderr), (1, 2), kept, strict=True):
            stream.flush()
            os.dup2(original, descriptor)
            os.close(original)
    return 0


def last_error(output: Path) -> str:
    """Return the line that says why a command failed, or the last one."""
    lines = output.read_text(errors="replace").strip().splitlines() or ["no output"]
    return next((line for line in reversed(lines) if line.startswith("error:")), lines[-1])


def _newest_checkpoint(folder: Path) -> str:
    """Name the checkpoint that a run starts from; "" for none."""
    last = newest_last(folder.glob("*-*"))
    return f"{last.name} of {last.stat().st_mtime_ns}" if last else ""


def _end_with_parent() -> None:
    """Ask this process to stop when the command that started it is gone."""
    parent = parent_process()
    if parent:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def _heartbeat(source: StudySource, number: int) -> Iterator[None]:
    """Tell a database every few seconds that this process lives, and stop when another one has taken its trial."""
    if not source.is_database:
        yield  # the lock tells it
        return
    storage, ended = source.open_storage(), threading.Event()
    assert isinstance(storage, RDBStorage)
    identifier = patiently(lambda: trial_id(storage, source.name, number))
    patiently(lambda: storage.record_heartbeat(identifier))

    def beat() -> None:
        while not ended.wait(storage.heartbeat_interval):
            patiently(lambda: storage.record_heartbeat(identifier))
            if patiently(lambda: storage.get_trial(identifier)).state != TrialState.RUNNING and not ended.is_set():
                os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
