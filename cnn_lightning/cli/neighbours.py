"""The busy neighbour of ``scripts/benchmark.py``: how long training takes while other programs use the same cores."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from cnn_lightning.cli.hardware import ALL_THREADS
from cnn_lightning.cli.run_folders import newest_last
from cnn_lightning.data import MNIST
from cnn_lightning.errors import UsageError

# Options of scripts/fit.py: of each run, and of all.
RUNS = {
    "fast_mnist": [f"--config={Path(__file__).parents[1]}/recipes/fast_mnist.yaml"],
    "default, an epoch": ["--data=MNIST", "--trainer.max_epochs=1"],
}
OPTIONS = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--dashboard=false"]
# Variables of each way to train. 300,000 spins are libgomp's own default.
WAYS: dict[str, dict[str, str]] = {
    "fit": {},
    "one thread": {"OMP_NUM_THREADS": "1"},
    "all threads": {"OMP_NUM_THREADS": str(ALL_THREADS), "GOMP_SPINCOUNT": "300000"},
}
SPIN = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    for _ in range(100_000): pass"


def neighbours(count: int, repetitions: int) -> dict[str, Any]:
    """Train alone and next to busy processes, in ways that take turns, and print a row for each.

    Args:
        count: How many processes keep a core busy.
        repetitions: How often each is measured.

    Returns:
        Run -> "alone" or "busy" -> way -> seconds of each training, and the threads that ``fit`` chose.
    """
    MNIST().prepare_data()
    cores = f"{count} core{'s' * (count > 1)}"
    print(f"\nseconds of training, median of {repetitions}; busy: while other processes keep {cores} busy")
    print(f"run                  {'':<7}" + "".join(f"{way:<26}" for way in WAYS) + "threads of fit")
    results: dict[str, Any] = {}
    for name, options in RUNS.items():
        measured: dict[str, dict[str, list[Any]]] = {
            state: {way: [] for way in WAYS} | {"threads": []} for state in ("alone", "busy")
        }
        for _ in range(repetitions):
            for state, ways in measured.items():
                with busy_processes(count if state == "busy" else 0):
                    for way, variables in WAYS.items():
                        seconds, threads = train(options, variables)
                        ways[way].append(seconds)
                        if way == "fit":
                            ways["threads"].append(threads)
        for state, ways in measured.items():
            row = f"{name:<21}{state:<7}"
            for way in WAYS:
                row += f"{f'{median(ways[way]):.2f} ({min(ways[way]):.2f} to {max(ways[way]):.2f})':<26}"
            print(row + ", ".join(map(str, ways["threads"])), flush=True)
        results[name] = measured
    return results


def train(options: list[str], variables: Mapping[str, str]) -> tuple[float, int]:
    """Call ``scripts/fit.py`` in a new process, because OpenMP reads its variables once.

    Returns:
        The seconds of all epochs, and the number of threads.
    """
    # Imported here, because matplotlib is slow and only this needs it.
    from cnn_lightning.checkpointing.safe_loading import read_run_checkpoint
    from cnn_lightning.checkpointing.settings import RESUME_KEY
    from cnn_lightning.reporting.plots import read_scalars

    own = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "MKL_NUM"))}
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "cnn_lightning", "fit", *options, *OPTIONS]
        words.append(f"--trainer.default_root_dir={folder}")
        ended = subprocess.run(words, env={**own, **variables}, capture_output=True, text=True, check=False)
        last = newest_last(Path(folder).glob("*-*"))
        if ended.returncode or last is None:
            raise UsageError(f"scripts/fit.py failed: {' '.join(ended.stderr.split())[-300:]}")
        seconds = sum(value for _, value in read_scalars(last.parents[1])["time/seconds"])
        return seconds, read_run_checkpoint(last)[RESUME_KEY]["threads"]


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Run so many processes that each keep a core busy; they end with this one."""
    processes = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
