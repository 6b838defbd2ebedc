"""What commands write to a terminal, a file, and a pipe whose reader is gone; each in a process of its own."""

import re
from pathlib import Path

import pytest
from PIL import Image

from cnn_lightning import Digits
from tests.conftest import scalars

CPU = "--trainer.accelerator=cpu"
FIT = f"fit {CPU} --data=Digits --dashboard=false --trainer.max_epochs=2"
# {setup} changes file 1, to which stdout writes, with a buffer even where PYTHONUNBUFFERED is set.
CALL = """
import io, os, subprocess, sys, threading
from importlib import import_module
{setup}
sys.stdout = io.TextIOWrapper(open(1, "wb", {buffering}, closefd=False), write_through=not {buffering})
name, *args = sys.argv[1:]
try:
    getattr(import_module(f"cnn_lightning.cli.{{name}}"), name)(args)
finally:
    {end}
"""
HEAD = """
reader = subprocess.Popen(["head", "-n", "1"], stdin=subprocess.PIPE, stdout=open("read", "wb"))
os.dup2(reader.stdin.fileno(), 1)
reader.stdin.close()
"""
NOBODY = """
reader, writer = os.pipe()
os.dup2(writer, 1)
os.close(reader)
os.close(writer)
"""
TERMINAL = """
import fcntl, struct, termios
main, terminal = os.openpty()
fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 200, 0, 0))
os.dup2(terminal, 1)
os.close(terminal)

def show():
    with open("screen", "wb") as screen:
        try:
            while shown := os.read(main, 1 << 16):
                screen.write(shown)
        except OSError:  # the other end is closed
            pass

thread = threading.Thread(target=show)
thread.start()
"""
TERMINAL_END = "sys.stdout.flush(); os.dup2(os.open(os.devnull, os.O_WRONLY), 1); thread.join()"


@pytest.fixture
def call(in_new_process):
    """Run a command whose stdout is changed by some code; returns exit code, stdout and stderr."""

    def call_with(command: str, setup: str = "", end: str = "pass", buffering: int = 8192) -> tuple[int, str, str]:
        code = CALL.format(setup=setup, end=end, buffering=buffering)
        return in_new_process(code, "script.py", *command.split())

    return call_with


@pytest.fixture
def picture():
    """Save a test image as picture.png."""
    data = Digits()
    data.setup("test")
    Image.fromarray(255 - data.part("test")[0][0, 0].numpy()).save("picture.png")


@pytest.mark.slow
def test_a_file_has_a_line_an_epoch_and_no_bar(call, picture):
    code, output, errors = call(FIT)
    assert (code, errors) == (0, "")
    written = Path("stdout").read_bytes()
    assert b"\r" not in written
    assert len(written) < 3000
    lines = [line for line in output.splitlines() if line.startswith("epoch ")]
    curves = scalars(Path("logs/TwoLayerCNN-Digits/version_0"))
    assert len(lines) == 2
    for number, line in enumerate(lines):
        loss, accuracy = (curves[f"epoch/{name}"][number][1] for name in ("train_loss", "val_acc"))
        assert line.startswith(f"epoch {number + 1}/2: train/loss {loss:.4f}, ")
        assert f", val/acc {accuracy:.2%}, " in line
    for command in ("evaluate --report=false", "predict picture.png"):
        code, output, errors = call(f"{command} {CPU}")
        assert (code, errors) == (0, "")
        assert output
        assert b"\r" not in Path("stdout").read_bytes()
        assert "DataLoader" not in output
        assert call(f"{command} {CPU}", NOBODY)[::2] == (141, "")


@pytest.mark.slow
def test_a_file_has_the_bar_that_is_asked_for(call):
    _, output, _ = call(f"{FIT} --trainer.enable_progress_bar=true")
    assert b"\rEpoch 2/2: 100%" in Path("stdout").read_bytes()
    assert re.search(r"^epoch 1: val/loss [\d.]+, val/acc [\d.]+%, saved as best.ckpt", output, re.MULTILINE)
    assert "epoch 1/2" not in output


def test_a_terminal_shows_the_bar(call):
    code, _, errors = call(FIT, TERMINAL, TERMINAL_END)
    assert (code, errors) == (0, "")
    screen = Path("screen").read_bytes().decode()
    assert "\rEpoch 2/2: 100%" in screen
    assert "Testing DataLoader 0: 100%" in screen
    assert re.search(r"epoch 1: val/loss [\d.]+, val/acc [\d.]+%, saved as best.ckpt", screen)
    assert "epoch 1/2" not in screen


@pytest.mark.slow
def test_training_stops_with_its_reader_and_is_resumed(call):
    code, _, errors = call(FIT, HEAD.replace('"head", "-n", "1"', '"sed", "/^epoch 1/q"'))
    assert (code, errors) == (141, "")
    first, *_, last = Path("read").read_text().splitlines()
    assert re.fullmatch(r"Training TwoLayerCNN on Digits: .*", first)
    assert last.startswith("epoch 1/2: ")
    code, output, _ = call(f"{FIT} --ckpt_path=last")
    assert code == 0
    assert "Resuming from" in output
    assert "accuracy  " in output
    assert [path.name for path in Path("logs/TwoLayerCNN-Digits").iterdir()] == ["version_0"]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["fit --help", "compare --help", "fit --data=Digits --print_config"])
@pytest.mark.parametrize("both", [NOBODY, f"{NOBODY}os.dup2(1, 2)"], ids=["", "2>&1"])
def test_texts_for_nobody(call, command, both):
    assert call(command, both)[::2] == (141, "")


def test_unbuffered_output_for_nobody(call):
    """As where PYTHONUNBUFFERED is set."""
    assert call("fit --data=Digits --print_config", NOBODY, buffering=0)[::2] == (141, "")


def test_a_broken_connection_of_the_users_own_is_an_error(in_new_process):
    code, _, errors = in_new_process(
        "import socket\n"
        "from cnn_lightning.cli.exit_codes import command\n"
        "@command\n"
        "def send(args):\n"
        "    ours, theirs = socket.socketpair()\n"
        "    theirs.close()\n"
        "    ours.send(b'x')\n"
        "send([])\n"
    )
    assert code == 1
    assert errors.endswith("BrokenPipeError: [Errno 32] Broken pipe\n")
