import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before PyTorch is imported: the processes of pytest share the cores

import gc
import hashlib
import json
import socket
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from cnn_lightning.data import MNIST, FashionMNIST

REPOSITORY = Path(__file__).parents[1]
gc.set_threshold(100_000)  # each collection visits all of PyTorch
# TensorBoard reads event files by alphabet, and numbers those of a process; all runs of the tests are in one process.
event_file_writer._global_uid = event_file_writer.AtomicCounter(10_000)


def pytest_collection_modifyitems(items):
    """Real data is measured only where CNN_LIGHTNING_DATA says it is."""
    if not os.environ.get("CNN_LIGHTNING_DATA"):
        skip = pytest.mark.skip(reason="needs MNIST and Fashion-MNIST in CNN_LIGHTNING_DATA")
        for item in items:
            if "real_data" in item.keywords:
                item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def clean_repository():
    """A test that leaves files in the repository has written to a place it did not choose."""
    before = _sources()
    yield
    assert _sources() == before


def _sources() -> set[str]:
    """The paths in the repository, without those of tools; .venv, which is large, is not entered."""
    sources = set()
    for folder, folders, files in os.walk(REPOSITORY):
        folders[:] = [name for name in folders if not name.startswith((".", "__pycache__"))]
        sources |= {str(Path(folder, name)) for name in (*folders, *files) if not name.startswith(".")}
    return sources


@pytest.fixture(autouse=True)
def sandbox(tmp_path, monkeypatch, request, tiny_root):
    """Every test in a folder of its own, with the tiny datasets, without network, without pytest's arguments."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["pytest"])
    if "real_data" not in request.keywords:
        monkeypatch.delenv("CNN_LIGHTNING_DATA", raising=False)
        for module in (MNIST, FashionMNIST):
            files = (tiny_root / module.__name__ / "raw").iterdir()
            sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
            monkeypatch.setattr(module, "SHA256", sums)
    address_of = socket.getaddrinfo

    def refuse(host, *args, **kwargs):
        if host == "127.0.0.1":
            return address_of(host, *args, **kwargs)
        raise socket.gaierror("no network in tests")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory):
    """MNIST and FashionMNIST with 400 training and 100 test images, in the files that torchvision reads."""
    root = tmp_path_factory.mktemp("data")
    for name in ("MNIST", "FashionMNIST"):
        write_idx(root / name / "raw", train=400, test=100)
    return root


def write_idx(folder: Path, train: int, test: int) -> None:
    """Write a dataset in MNIST's format: class k is a bright bar in row 2k + 4, in noise."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for part, count in (("train", train), ("t10k", test)):
        labels = np.arange(count, dtype=np.uint8) % 10
        images = generator.integers(0, 60, (count, 28, 28), dtype=np.uint8)
        images[np.arange(count), 2 * labels + 4, 4:24] = 255
        header = struct.pack(">IIII", 0x803, count, 28, 28)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        header = struct.pack(">II", 0x801, count)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())


@pytest.fixture
def train(tiny_root, capsys):
    """Call ``fit`` on tiny MNIST for an epoch, without bar and dashboard; returns the folder of the run."""

    def call(*args: str) -> Path:
        from cnn_lightning.cli.fit import fit

        settings = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.max_epochs=1"]
        settings.append(f"--dashboard={call.dashboard}")
        data = [] if any(arg.startswith(("--data", "--config", "--ckpt_path")) for arg in args) else ["--data=MNIST"]
        fit([*settings, *data, f"--data.root={tiny_root}", *args])
        call.output, call.errors = capsys.readouterr()
        return Path(next(line for line in call.output.splitlines() if line.startswith("run ")).split()[1])

    call.dashboard = "false"  # it takes a third of the time
    return call


# Imports, which take long, and then runs each line of its input, code in JSON, in a process of its own.
NEW_PROCESSES = """
import json, os, sys
import cnn_lightning.cli.evaluate, cnn_lightning.cli.fit
for line in sys.stdin:
    if child := os.fork():
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    else:
        task = json.loads(line)
        os.chdir(task["folder"])
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.argv = task["argv"]
        exec(task["code"], {"__name__": "__main__"})
        sys.exit(0)
"""


@pytest.fixture(scope="session")
def new_processes():
    process = subprocess.Popen(
        [sys.executable, "-c", NEW_PROCESSES], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    yield process
    process.communicate()


@pytest.fixture
def in_new_process(tmp_path, new_processes):
    """Run Python code in a process that has the package imported; returns exit code, stdout and stderr."""

    def call(code: str, *argv: str) -> tuple[int, str, str]:
        print(
            json.dumps({"code": code, "argv": argv or ["python"], "folder": str(tmp_path)}),
            file=new_processes.stdin,
            flush=True,
        )
        ended = int(new_processes.stdout.readline())
        return ended, (tmp_path / "stdout").read_text(), (tmp_path / "stderr").read_text()

    return call


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Read the curves of a run back: tag -> [(step, value), ...]."""
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.fixture
def error_of(capsys):
    """Call a command that must fail; returns its one line."""

    def call(command, *args: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            command(list(args))
        printed = capsys.readouterr().err
        assert stopped.value.code == 2, printed
        (line,) = [line for line in printed.splitlines() if not line.startswith("warning: using Digits")]
        assert line.startswith("error: ")
        return line

    return call


@pytest.fixture
def images():
    return torch.rand(6, 1, 28, 28, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def browser():
    """Chromium, for the tests of a module."""
    from tests.browser import launch  # here, because selenium may be missing

    chromium = launch()
    yield chromium
    chromium.quit()
