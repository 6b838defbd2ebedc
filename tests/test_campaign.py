"""Many faults, in processes of their own, on real data: pytest -m campaign -n 0. Their figures are in the README."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cnn_lightning.checkpointing.safe_loading import DamagedError, read_checkpoint
from cnn_lightning.data import MNIST, FashionMNIST
from cnn_lightning.errors import UsageError
from tests.conftest import REPOSITORY, scalars
from tests.faults import (
    SPEEDS,
    assert_equal,
    assert_same_checkpoints,
    assert_same_result,
    flipped_bits,
    truncations,
)

pytestmark = [pytest.mark.campaign, pytest.mark.real_data]

# 60 steps an epoch with augmentation and dropout, validation twice an epoch, a checkpoint after every third step.
SETTINGS = (
    *("--data=MNIST", "--data.shift=2", "--model.net=WideCNN", "--model.net.width=4", "--trainer.max_epochs=3"),
    *("--trainer.limit_train_batches=60", "--trainer.limit_val_batches=20", "--trainer.limit_test_batches=20"),
    *("--trainer.val_check_interval=0.5", "--save_every_n_steps=3", "--trainer.enable_progress_bar=false"),
    *("--ckpt_path=last", "--dashboard=false"),
)


# The last is that of a process that has nothing more to do than to end.
CODES = {signal.SIGKILL: (-9,), signal.SIGTERM: (143, -15), signal.SIGINT: (130, -2), signal.SIGHUP: (129, -1)}


def start(root: Path, *options: str, **environment: str) -> subprocess.Popen:
    root.mkdir(exist_ok=True, parents=True)
    # SIGHUP as usual, also where pytest itself runs under nohup.
    command = ["env", "--default-signal=HUP", sys.executable, "-m", "tests.watched_fit", str(root / "phase")]
    command += [*SETTINGS, *options]
    command.append(f"--trainer.default_root_dir={root}")
    # One thread each, because two of them run at a time, and sums of more threads are rounded in another way.
    return subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def phase_of(root: Path) -> str:
    path = root / "phase"
    return path.read_text().strip() if path.exists() else ""


def run_of(root: Path) -> Path:
    return max(root.glob("*/version_*"))


def seconds_of_training(root: Path) -> float:
    """Train to the end; how long it took, without the imports."""
    process = start(root)
    while phase_of(root) in ("", "starting"):
        time.sleep(0.005)
    began = time.monotonic()
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return time.monotonic() - began


def kill_and_resume(folder: Path, whole: Path, number: int, moments: Iterator[float]) -> str:
    """Send a signal at a moment of training, and run the same command again; returns the phase."""
    for after in moments:
        root = folder / str(after)
        process = start(root)
        while phase_of(root) in ("", "starting"):
            time.sleep(0.005)
        time.sleep(after)
        process.send_signal(number)
        phase = phase_of(root)
        _, errors = process.communicate()
        assert "Traceback" not in errors
        if process.returncode != 0:  # it had not ended before
            break
    assert process.returncode in CODES[number]
    again = start(root)
    _, errors = again.communicate()
    assert again.returncode == 0, errors
    assert_same_result(run_of(root), run_of(whole))
    return phase


def stop_and_resume(root: Path, whole: Path, always: tuple[str, ...], options: tuple[str, ...], **stop: str) -> None:
    """Train until options or a variable stop it, and to the end without them."""
    for more, environment in ((options, stop), ((), {})):
        process = start(root, *always, *more, **environment)
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    assert_same_checkpoints(run_of(root), run_of(whole))
    resumed, uninterrupted = scalars(run_of(root)), scalars(run_of(whole))
    assert resumed.keys() == uninterrupted.keys()
    for tag in resumed.keys() - SPEEDS:
        last = slice(-1, None) if tag.startswith("test/") else slice(None)  # a run that ends early is tested, too
        assert dict(resumed[tag][last]) == dict(uninterrupted[tag][last]), tag


@pytest.mark.parametrize("what", ["max_time", "max_steps", "callback"])
def test_stopped_within_an_epoch(tmp_path, what, capsys):
    always = ("--model.lr_schedule=null",) if what == "max_steps" else ()
    whole, rng, times = tmp_path / "whole", random.Random(1), 20
    began = time.monotonic()
    start(whole, *always).communicate()
    seconds = (time.monotonic() - began) / 3  # of training; most is imports

    def stop(number: int) -> None:
        step, root = rng.randrange(1, 180), tmp_path / str(number)
        if what == "max_time":
            options = ("--trainer.max_time", f'{{"milliseconds": {rng.randrange(int(1000 * seconds))}}}')
            stop_and_resume(root, whole, always, options)
        elif what == "max_steps":
            stop_and_resume(root, whole, always, (f"--trainer.max_steps={step}",))
        else:
            stop_and_resume(root, whole, always, (), STOP_AT=str(step))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(stop, range(times)))
    with capsys.disabled():
        print(f"\n{what}: {times} of {times} bit-equal")


@pytest.mark.parametrize(
    ("number", "times"), [(signal.SIGKILL, 50), (signal.SIGTERM, 10), (signal.SIGINT, 10), (signal.SIGHUP, 10)]
)
def test_killed_at_random_moments(tmp_path, number, times, capsys):
    whole = tmp_path / "whole"
    seconds = seconds_of_training(whole)
    rng = random.Random(0)
    moments = iter(lambda: rng.uniform(0, seconds), None)
    with ThreadPoolExecutor(2) as pool:
        ends = [pool.submit(kill_and_resume, tmp_path, whole, number, moments) for _ in range(times)]
    phases = Counter(end.result() for end in ends)
    with capsys.disabled():
        print(f"\n{signal.Signals(number).name}: {times} of {times} bit-equal; killed while {dict(phases)}")


def test_damaged_checkpoint(tmp_path, capsys):
    seconds_of_training(tmp_path)
    path = run_of(tmp_path) / "checkpoints/last.ckpt"
    content, whole, refused = path.read_bytes(), read_checkpoint(path), Counter()
    for kind, damages in (("flipped", flipped_bits(content, 200)), ("cut", truncations(content, 50))):
        for damaged in damages:
            path.write_bytes(damaged)
            try:
                assert_equal(read_checkpoint(path), whole, "a damaged checkpoint was used")
            except DamagedError:
                refused[kind] += 1
    with capsys.disabled():
        print(f"\ncheckpoint of {len(content):,} bytes: refused {dict(refused)} of 200 and 50")
    assert refused == {"flipped": 200, "cut": 50}


@pytest.mark.parametrize("module", [MNIST, FashionMNIST])
def test_damaged_data(tmp_path, module, capsys):
    folder = tmp_path / module.__name__ / "raw"
    folder.mkdir(parents=True)
    data, refused = module(str(tmp_path), download=False), Counter()
    for name in module.SHA256:
        content = (module().folder / name).read_bytes()
        for damaged in (*flipped_bits(content, 200), *truncations(content, 50)):
            (folder / name).write_bytes(damaged)
            with pytest.raises(UsageError, match=f"{name} is damaged"):
                data._read_file(name)
            refused[name] += 1
        (folder / name).write_bytes(content)
    with capsys.disabled():
        print(f"\n{module.__name__}: refused {dict(refused)} of 250 each")
