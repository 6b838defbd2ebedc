"""Signals that ask training to stop, held back until everything is saved."""

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_only


class Stopped(Exception):  # noqa: N818, since it is no error
    """Training was asked to stop, and everything is saved.

    Attributes:
        signal: Number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.strsignal(number))
        self.signal = number


class Signals:
    """Notes SIGINT (Ctrl-C), SIGTERM, SIGHUP (the terminal is closed), and the signal to requeue a SLURM job.

    Python would stop in the middle of a step, and Lightning would save in the middle of one.
    """

    # Steps between two exchanges of the ranks; an exchange takes as long as a small step.
    EVERY = 10

    def __init__(self) -> None:
        self._noted: set[int] = set()
        self._requeue: dict[int, Callable[[int, Any], Any]] = {}

    def listen(self) -> None:
        """Take over the signals; Lightning restores the handlers when training ends, in whatever way."""
        if threading.current_thread() is not threading.main_thread():
            return  # Python delivers signals to the main thread only
        self._noted = set()
        requeue = signal.getsignal(signal.SIGUSR1) if os.name == "posix" else None
        self._requeue = {signal.SIGUSR1: requeue} if callable(requeue) else {}
        for number in (*stop_signals(), *self._requeue):
            signal.signal(number, self._note)

    def may_ask(self, trainer: Trainer) -> bool:
        """Whether to call ``asked`` after this step; the same on all ranks."""
        return bool(self._noted) if trainer.world_size == 1 else trainer.global_step % self.EVERY == 0

    def asked(self, trainer: Trainer) -> int:
        """Return a signal that any rank has noted, 0 for none; all ranks have to call this together."""
        own = max(self._noted & self._requeue.keys() or self._noted, default=0)
        if trainer.world_size == 1:
            return own
        return int(trainer.strategy.reduce(torch.tensor(own, device=trainer.strategy.root_device), reduce_op="max"))

    def obey(self, number: int) -> None:
        """Do what a signal asks for, once everything is saved.

        Raises:
            Stopped: The signal asks to stop.
        """
        if number not in self._requeue:
            raise Stopped(number)
        self._noted.discard(number)
        self._requeue[number](number, None)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._noted - self._requeue.keys():
            raise KeyboardInterrupt
        self._noted.add(number)
        if number not in (signal.SIGINT, signal.SIGTERM, *self._requeue):
            _detach_from_terminal()
        if number not in self._requeue and getattr(rank_zero_only, "rank", 0) == 0:
            with suppress(OSError):  # the terminal may be gone; not print, which may be what the signal interrupted
                os.write(2, b"\nStopping as soon as everything is saved. Press Ctrl-C again to stop at once.\n")


def _detach_from_terminal() -> None:
    """Drop what is printed to a terminal that is closed, where each write would raise."""
    for descriptor in (1, 2):
        try:
            os.write(descriptor, b"")
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


def stop_signals() -> list[int]:
    """The signals that ask to stop; without SIGHUP where ``nohup`` has switched it off, and on Windows."""
    hang_up = [signal.SIGHUP] if hasattr(signal, "SIGHUP") else []
    return [signal.SIGINT, signal.SIGTERM, *(each for each in hang_up if signal.getsignal(each) != signal.SIG_IGN)]
