"""What goes wrong: deaths of the process, full disks, damaged files."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Callback

from cnn_lightning.cli.fit_cli import FitCLI
from tests.conftest import scalars


class Death(BaseException):
    """Raised where the process would be killed: from then on nothing may be written."""


class DieAt(Callback):
    """Dies before an optimizer step, or before a batch of the validation after it."""

    def __init__(self, step: int, validating: bool = False) -> None:
        self.step, self.validating = step, validating

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if not self.validating and trainer.global_step == self.step:
            raise Death

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if self.validating and trainer.global_step >= self.step:
            raise Death


def add_callback(monkeypatch, callback: Callback) -> None:
    """Have the next ``fit`` call this, too."""
    callbacks = FitCLI.callbacks
    monkeypatch.setattr(FitCLI, "callbacks", lambda self, settings: [callback, *callbacks(self, settings)])


# Curves that depend on the machine.
SPEEDS = {"train/images_per_second", "time/images_per_second", "time/seconds"}


def assert_same_checkpoints(run: Path, uninterrupted: Path) -> None:
    """Make sure that both checkpoints are those of another run, to the bit."""
    for name in ("best", "last"):
        first, second = (torch.load(r / f"checkpoints/{name}.ckpt", weights_only=True) for r in (run, uninterrupted))
        assert first["global_step"] == second["global_step"]
        for part in ("state_dict", "optimizer_states", "lr_schedulers"):
            assert_equal(first[part], second[part], f"{name}.ckpt, {part}")


def assert_same_result(run: Path, uninterrupted: Path) -> None:
    """Make sure that checkpoints and curves are those of another run, to the bit."""
    assert_same_checkpoints(run, uninterrupted)
    curves, expected = scalars(run), scalars(uninterrupted)
    assert curves.keys() == expected.keys()
    for tag in curves.keys() - SPEEDS:
        assert dict(curves[tag]) == dict(expected[tag]), tag
        steps = [step for step, _ in curves[tag]]
        assert steps == sorted(steps), f"{tag} runs to and fro"


def assert_equal(first, second, where: str) -> None:
    """Compare nested tensors and numbers to the bit."""
    if isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            assert_equal(first[key], second[key], f"{where}, {key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), where
        for number, (one, other) in enumerate(zip(first, second, strict=True)):
            assert_equal(one, other, f"{where}, {number}")
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    else:
        assert first == second, where


def flipped_bits(content: bytes, count: int) -> Iterator[bytes]:
    """Flip one bit, at random places that are the same every time."""
    rng = np.random.default_rng(0)
    for position, bit in zip(rng.integers(len(content), size=count), rng.integers(8, size=count), strict=True):
        damaged = bytearray(content)
        damaged[position] ^= 1 << bit
        yield bytes(damaged)


def truncations(content: bytes, count: int) -> Iterator[bytes]:
    """Cut the end off, at random places that are the same every time."""
    for length in np.random.default_rng(0).integers(len(content), size=count):
        yield content[:length]


@contextmanager
def server(folder: Path, *behaviours: str) -> Iterator[ThreadingHTTPServer]:
    """Serve the files of a folder on this machine, each request in the way that comes next, the last way for good.

    "good", a number like "503", "html" (a page under the name of the file), "wrong" (other data), "cut" (half of it),
    "drip" (a byte now and then), "slow header" (likewise, before the file), "silent" (nothing at all).
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            number = len(served.asked)
            served.asked.append(self.path)
            behaviour = behaviours[min(number, len(behaviours) - 1)]
            if behaviour.isdecimal():
                return self.send_error(int(behaviour))
            if behaviour == "silent":
                return served.over.wait(60)
            if behaviour == "slow header":
                self.wfile.write(b"HTTP/1.0 200 OK\r\nServer: ")
                while not served.over.wait(0.05):
                    self.wfile.write(b"x")
                return None
            content = (folder / self.path.rpartition("/")[2]).read_bytes()
            if behaviour == "html":
                content = b"<html>This page has moved.</html>"
            elif behaviour == "wrong":
                content = content[:-20] + bytes(20)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if behaviour == "cut":
                content = content[: len(content) // 2]
            if behaviour == "drip":
                for byte in content:
                    if served.over.is_set():
                        return None
                    self.wfile.write(bytes([byte]))
                    time.sleep(0.02)
                return None
            return self.wfile.write(content)

        def log_message(self, *args):
            """Say nothing."""

    served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.asked, served.over = [], threading.Event()
    served.url = f"http://127.0.0.1:{served.server_port}/"
    thread = threading.Thread(target=served.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield served
    finally:
        served.over.set()
        served.shutdown()
        thread.join()
        served.server_close()
