"""Where a study is saved: a journal file for the workers of one machine, a database for those of several."""

import json
import logging
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

import optuna
from filelock import FileLock
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, Trial
from sqlalchemy.engine import make_url
from sqlalchemy.exc import (
    ArgumentError,
    IntegrityError,
    InterfaceError,
    NoSuchModuleError,
    OperationalError,
    ProgrammingError,
)
from sqlalchemy.pool import NullPool

from cnn_lightning.errors import UsageError

Result = TypeVar("Result")
logger = logging.getLogger(__name__)
PATIENCE = 600.0  # seconds to wait for a database that is away
BEATS = 6  # heartbeats within the time after which a worker counts as dead
_TRIAL = "CNN_LIGHTNING_TRIAL"  # environment variable: the trial of this process


@dataclass(frozen=True)
class StudySource:
    """How a process opens a study.

    Args:
        storage: Path of a journal file, or a URL of a database, such as "postgresql://user@host/name".
        name: Name of the study, unique in its storage.
        direction: "minimize" or "maximize", what the best value is.
        grace: Seconds without a heartbeat after which a worker counts as dead; used by databases only.
    """

    storage: str = field(repr=False)  # it may have a password
    name: str
    direction: Literal["minimize", "maximize"] = "minimize"
    grace: int = 60

    @property
    def is_database(self) -> bool:
        """Whether the storage is a database, and not a journal file."""
        return "://" in self.storage

    def __str__(self) -> str:
        """The storage as it may be printed, without password and query."""
        return make_url(self.storage).set(query={}).render_as_string() if self.is_database else self.storage

    def open_storage(self) -> BaseStorage:
        """Connect to the storage.

        Raises:
            ValueError: It cannot be reached, or its driver is missing.
        """
        if not self.is_database:
            try:
                return JournalStorage(JournalFileBackend(self.storage, _JournalLock(self.storage)))
            except OSError as error:
                raise ValueError(f"the journal file cannot be opened ({error.strerror})") from error
        try:
            url = make_url(self.storage)
            if url.drivername == "postgresql":  # SQLAlchemy would take psycopg2
                url = url.set(drivername="postgresql+psycopg")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                return RDBStorage(
                    url.render_as_string(hide_password=False),
                    engine_kwargs={"poolclass": NullPool},  # a server takes 100 connections, and workers are many
                    heartbeat_interval=max(1, self.grace // BEATS),
                    grace_period=self.grace,
                )
        except ImportError as error:
            reason = str(error.__cause__ or error)
            advice = "pip install 'cnn-lightning[postgres]'" if "psycopg" in reason else "install the database's driver"
            raise ValueError(f"{reason}: {advice}") from error
        except (ArgumentError, NoSuchModuleError, ValueError) as error:  # not the URL itself: it may have a password
            raise ValueError(f"the storage is not a URL of a database ({type(error).__name__})") from error

    def open(self, sampler: BaseSampler | None = None, seconds: float = PATIENCE) -> optuna.Study:
        """Open the study, or create it.

        Args:
            sampler: Chooses the parameters of its trials.
            seconds: How long to wait for a database that is away.

        Raises:
            ValueError: The storage cannot be opened, or has a study of this name with another direction.
        """
        optuna.logging.set_verbosity(optuna.logging.ERROR)

        def open_study() -> optuna.Study:
            return optuna.create_study(
                storage=self.open_storage(),
                study_name=self.name,
                direction=self.direction,
                sampler=sampler,
                load_if_exists=True,
            )

        study = patiently(open_study, seconds)
        if study.direction.name.lower() != self.direction:
            raise ValueError(f"the study {self.name} in {self} is to {study.direction.name.lower()} another value")
        return study

    def environment(self, number: int) -> dict[str, str]:
        """The environment variable that tells a process, and those it starts, which trial is theirs."""
        return {_TRIAL: json.dumps([asdict(self), number])}


def current_trial() -> Trial | None:
    """Return the trial that this process trains; None where it trains none."""
    if _TRIAL not in os.environ:
        return None
    source, number = json.loads(os.environ[_TRIAL])
    source = StudySource(**source)
    return patiently(lambda: Trial(source.open(), trial_id(source.open_storage(), source.name, number)))


def trial_id(storage: BaseStorage, study: str, number: int) -> int:
    """Return the identifier that the storage has given to a trial of a study."""
    return storage.get_trial_id_from_study_id_trial_number(storage.get_study_id_from_name(study), number)


def trials_of(study: optuna.Study) -> list[FrozenTrial]:
    """Return all trials of a study, also if the database is away for a while."""
    return patiently(lambda: study.get_trials(deepcopy=False))


def patiently(call: Callable[[], Result], seconds: float = PATIENCE) -> Result:
    """Call, and while the database is away, try again every second.

    Args:
        call: What reads or writes the storage; calling it twice must do no harm.
        seconds: How long to try.

    Raises:
        UsageError: The database was away for so long.
    """
    began, clashes, is_away = time.monotonic(), 0, False
    while True:
        try:
            return call()
        except (OperationalError, InterfaceError, StorageInternalError) as error:
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            if time.monotonic() - began >= seconds:
                raise UsageError(f"the database cannot be reached: {reason}") from error
            if not is_away:
                logger.warning("the database cannot be reached, trying for %.0f minutes: %s", seconds / 60, reason)
            is_away = True
        except (IntegrityError, ProgrammingError):  # two processes make the same tables or the same study
            clashes += 1
            if clashes > 3:
                raise
        time.sleep(1)


class _JournalLock(JournalFileOpenLock):
    """Optuna's own lock outlives a process that is killed while it writes, and then stops everybody for 30 seconds."""

    def __init__(self, journal: str) -> None:
        super().__init__(journal)
        self._journal, self._lock = Path(journal), FileLock(f"{journal}.lock")

    def acquire(self) -> bool:
        self._lock.acquire(poll_interval=0.01)
        self._remove_torn_line()
        return True

    def _remove_torn_line(self) -> None:
        """Remove what a process that was killed has written of a line; Optuna would append to it, and never read on."""
        with self._journal.open("rb+") as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                if file.read() != b"\n":
                    file.truncate(self._journal.read_bytes().rfind(b"\n") + 1)

    def release(self) -> None:
        self._lock.release()
