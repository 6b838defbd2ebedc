"""A run that was stopped and resumed ends as one that was not: ways to stop × ways to save × loggers, generated."""

import csv
import errno
import itertools
import os
import random
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import timer

from cnn_lightning.checkpointing import checkpoint_io
from cnn_lightning.cli.fit import fit
from tests.conftest import REPOSITORY, scalars
from tests.faults import SPEEDS, Death, DieAt, add_callback, assert_same_checkpoints
from tests.test_resume import SETTINGS, Kill, folder

# 2 epochs of 6 batches, with augmentation and dropout.
BATCHES = range(1, 13)
SAVES = {
    "epoch": (),
    "steps": ("--save_every_n_steps=2",),
    "validations": ("--save_every_n_steps=2", "--trainer.val_check_interval=0.5"),
    "across": ("--save_every_n_steps=1", "--trainer.val_check_interval=4", "--trainer.check_val_every_n_epoch=null"),
    "validations while accumulating": (
        *("--save_every_n_steps=1", "--trainer.accumulate_grad_batches=4", "--trainer.val_check_interval=3"),
    ),
    "accumulation": ("--save_every_n_steps=1", "--trainer.accumulate_grad_batches=4"),
}
LOGGERS = {
    "tensorboard": (),
    "csv": ("--trainer.logger=CSVLogger", "--trainer.logger.save_dir=."),
    "wandb": ("--trainer.logger=WandbLogger", "--trainer.logger.offline=true"),
    "none": ("--trainer.logger=false",),
}
CONSTANT = ("--model.lr_schedule=null",)  # where the number of steps is set anew, a schedule could not span it


class StopAt(Callback):
    """Sets ``trainer.should_stop``, or raises, after a batch."""

    def __init__(self, batch: int, error: Exception | None = None) -> None:
        self.batch, self.error = batch, error

    def on_train_batch_end(self, trainer, *args):
        if trainer.fit_loop.total_batch_idx + 1 == self.batch:
            if self.error:
                raise self.error
            trainer.should_stop = True


class StopInHook(Callback):
    """Sets ``trainer.should_stop`` where the batch has not been trained yet."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_start(self, trainer, *args):
        trainer.should_stop |= trainer.fit_loop.total_batch_idx + 1 == self.batch


class StopAtValidation(Callback):
    """Sets ``trainer.should_stop`` after the first validation that follows a batch."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_validation_end(self, trainer, *args):
        trainer.should_stop |= trainer.fit_loop.total_batch_idx + 1 >= self.batch


class TimeIsUp(Callback):
    """Moves the clock of Lightning's Timer past ``max_time`` after a batch."""

    def __init__(self, batch: int, patch: pytest.MonkeyPatch) -> None:
        self.batch, self.now = batch, 0.0
        patch.setattr(timer, "time", SimpleNamespace(monotonic=lambda: self.now))

    def on_train_batch_start(self, trainer, *args):
        if trainer.fit_loop.total_batch_idx + 1 == self.batch:
            self.now = 3600.0


class DiskIsFull(Callback):
    """Lets no checkpoint be written from a batch on."""

    def __init__(self, batch: int, patch: pytest.MonkeyPatch) -> None:
        self.batch, self.full, write = batch, False, checkpoint_io.write_file

        def write_file(path, content):
            if self.full:
                raise OSError(errno.ENOSPC, "No space left on device")
            write(path, content)

        patch.setattr(checkpoint_io, "write_file", write_file)

    def on_train_batch_start(self, trainer, *args):
        self.full |= trainer.fit_loop.total_batch_idx + 1 >= self.batch


def by_callback(cls, *more):
    return lambda batch, patch: (cls(batch, *more), (), ())


EARLY = ("--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/loss")
EARLY += ("--trainer.callbacks.stopping_threshold=100",)  # stops at the first validation
# Batch and monkeypatch -> a callback, options of the run that stops, options of all runs.
STOPS = {
    "death": lambda batch, patch: (DieAt(batch - 1), (), ()),
    "SIGINT": lambda batch, patch: (Kill(signal.SIGINT, batch - 1), (), ()),
    "SIGTERM": lambda batch, patch: (Kill(signal.SIGTERM, batch - 1), (), ()),
    "SIGHUP": lambda batch, patch: (Kill(signal.SIGHUP, batch - 1), (), ()),
    "callback": by_callback(StopAt),
    "callback before": by_callback(StopInHook),
    "callback after validation": by_callback(StopAtValidation),
    "exception": by_callback(StopAt, RuntimeError("a mistake in a callback")),
    "EarlyStopping": lambda batch, patch: (Callback(), EARLY, ()),
    "full disk": lambda batch, patch: (DiskIsFull(batch, patch), (), ()),
    "max_time": lambda batch, patch: (TimeIsUp(batch, patch), ("--trainer.max_time=00:00:30:00",), ()),
    "max_steps": lambda batch, patch: (Callback(), (f"--trainer.max_steps={batch}",), CONSTANT),
    "max_epochs": lambda batch, patch: (Callback(), (f"--trainer.max_epochs={1 + batch // 7}",), CONSTANT),
}
ALL = list(itertools.product(STOPS, SAVES, LOGGERS))


def quick() -> list[tuple[str, str, str, int]]:
    """Every stop once, with ways to save and loggers in turn, and a batch drawn at random."""
    rng = random.Random(16)
    turns = zip(STOPS, itertools.cycle(SAVES), itertools.cycle(LOGGERS), strict=False)
    return [(*turn, rng.choice(BATCHES)) for turn in turns]


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Weights & Biases writes files only, and says nothing."""
    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def train(tiny_root, tmp_path, monkeypatch):
    """Train in a folder of its own, where the same command resumes; returns the folder and how it ended."""

    def call(root: Path, *args: str) -> BaseException | None:
        root.mkdir(exist_ok=True, parents=True)
        monkeypatch.chdir(root)
        try:
            fit([*SETTINGS, f"--data.root={tiny_root}", "--ckpt_path=last", *args])
        except (Death, SystemExit, RuntimeError) as end:
            return end
        finally:
            if (root / "wandb").exists():
                import wandb

                wandb.finish()
                wandb.teardown()  # its service would keep the folder it was started in
        return None

    return call


WHOLE: dict[tuple[str, ...], Path] = {}  # runs that nothing stopped, by their options


@pytest.fixture
def equal_after(train, tmp_path, tmp_path_factory, monkeypatch):
    """Stop a run at a batch, resume it, and compare it with one that nothing stopped."""

    def call(stop: str, save: str, logger: str, batch: int) -> None:
        with monkeypatch.context() as patch:
            callback, stopping, all_runs = STOPS[stop](batch, patch)
            options = (*SAVES[save], *LOGGERS[logger], *all_runs)
            add_callback(patch, callback)
            root = tmp_path / "-".join((stop, save, logger, str(batch)))
            train(root, *options, *stopping)
        saved = list(root.glob("logs/*/*/checkpoints/last.ckpt"))
        assert train(root, *options) is None
        assert not saved or folders(root, logger) == 1, "the run was not resumed in its own folder"
        if options not in WHOLE:
            WHOLE[options] = tmp_path_factory.mktemp("whole")
            assert train(WHOLE[options], *options) is None
        assert_same_run(root, WHOLE[options], logger)

    return call


def folders(root: Path, logger: str) -> int:
    """How many runs there are, for us and for the logger."""
    runs = {"csv": "lightning_logs/version_*", "wandb": "wandb/offline-run-*/*.wandb"}.get(logger, "logs/*/*")
    return max(len({path.name for path in root.glob(pattern)}) for pattern in ("logs/*/*", runs))


def assert_same_run(root: Path, whole: Path, logger: str) -> None:
    assert_same_checkpoints(folder(str(root / "logs")), folder(str(whole / "logs")))
    if logger == "csv":
        assert [*map(without_speeds, csv_rows(root))] == [*map(without_speeds, csv_rows(whole))]
    ours, expected = curves(root, logger), curves(whole, logger)
    assert ours.keys() == expected.keys()
    for tag in ours.keys() - SPEEDS:
        # A run that ends early is tested, too.
        last = slice(-1, None) if tag.startswith("test/") or tag == "epoch" else slice(None)
        points, others = (dict(all_curves[tag][last]) for all_curves in (ours, expected))
        assert points == others, tag


def without_speeds(row: dict[str, str]) -> dict[str, str]:
    return {tag: value for tag, value in row.items() if tag not in SPEEDS}


def curves(root: Path, logger: str) -> dict[str, list[tuple[int, float]]]:
    """Read all points back: tag -> [(step, value), ...]."""
    if logger == "none":
        return {}
    if logger == "tensorboard":
        return scalars(folder(str(root / "logs")))
    points: dict[str, list[tuple[int, float]]] = {}
    for row in csv_rows(root) if logger == "csv" else wandb_rows(root):
        step = int(row.pop("step"))
        for tag, value in row.items():
            points.setdefault(tag, []).append((step, float(value)))
    return points


def csv_rows(root: Path) -> list[dict[str, str]]:
    path = max(root.glob("lightning_logs/*/metrics.csv"))
    with path.open(newline="") as file:
        return [{tag: value for tag, value in row.items() if value} for row in csv.DictReader(file)]


def wandb_rows(root: Path) -> list[dict[str, str]]:
    """All rows of a run, which has an offline file for each time it was resumed."""
    from wandb.proto import wandb_internal_pb2

    files = sorted(root.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime)
    rows = []
    for record in itertools.chain.from_iterable(map(log_records, files)):
        parsed = wandb_internal_pb2.Record()
        parsed.ParseFromString(record)
        row = {(item.key or ".".join(item.nested_key)): item.value_json for item in parsed.history.item}
        if row:
            step = row.pop("trainer/global_step")
            rows.append({tag: value for tag, value in row.items() if not tag.startswith("_")} | {"step": step})
    return rows


def log_records(path: Path) -> Iterator[bytes]:
    """Read LevelDB's log format: blocks of 32 KiB, in which each piece has a checksum, a length and a kind."""
    content, position, record = path.read_bytes(), 7, b""
    while position < len(content):
        if (left := -position % 32768) and left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        record += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield record
            record = b""


@pytest.mark.slow
@pytest.mark.parametrize(("stop", "save", "logger", "batch"), quick())
def test_resumed_runs_are_equal(equal_after, stop, save, logger, batch):
    equal_after(stop, save, logger, batch)


@pytest.mark.campaign
@pytest.mark.parametrize(("stop", "save", "logger"), ALL)
def test_every_combination(equal_after, stop, save, logger):
    """Each at two batches."""
    for batch in random.Random(f"{stop} {save} {logger}").sample(BATCHES, 2):
        equal_after(stop, save, logger, batch)


TWO = ("--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.accelerator=cpu", "--data=Digits", "--data.shift=1")
TWO += ("--data.batch_size=108", "--model.net=WideCNN", "--model.net.width=4", "--trainer.max_epochs=2")  # 6 batches
TWO += ("--dashboard=false", "--trainer.log_every_n_steps=2", "--trainer.enable_progress_bar=false", "--ckpt_path=last")


def train_with_two(root: Path, stop: str, batch: int, *options: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "tests.stopped_fit", stop, str(batch), *TWO, *options]
    process = subprocess.run(
        [*command, f"--trainer.default_root_dir={root / 'logs'}"],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return process.returncode, process.stderr


@pytest.mark.campaign
@pytest.mark.parametrize(("stop", "save"), list(zip(STOPS, itertools.cycle(["epoch", "steps"]), strict=False)))
def test_two_processes(tmp_path, tmp_path_factory, stop, save):
    options = (*SAVES[save], *(CONSTANT if stop in ("max_steps", "max_epochs") else ()))
    train_with_two(tmp_path, stop, 8, *options)
    code, errors = train_with_two(tmp_path, "none", 0, *options)
    assert code == 0, errors
    key = ("two", *options)
    if key not in WHOLE:
        WHOLE[key] = tmp_path_factory.mktemp("whole")
        assert train_with_two(WHOLE[key], "none", 0, *options)[0] == 0
    assert folders(tmp_path, "tensorboard") == 1
    assert_same_run(tmp_path, WHOLE[key], "tensorboard")
