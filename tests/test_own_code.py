"""The user's own network, data module and callback, in a file of theirs: they train, and mistakes end in that file."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

OWN = """
import torch
from lightning.pytorch import Callback
from torch import nn
from cnn_lightning import Digits
from cnn_lightning.nets import ConvNet

class MyNet(ConvNet):
    def __init__(self, in_channels: int = 1, num_classes: int = 10, image_size: int = 28, width: int = 8):
        super().__init__(in_channels, num_classes, image_size)
        self.features = nn.Sequential(nn.Conv2d(in_channels, width, 3), nn.AdaptiveAvgPool2d(4))
        self.head = nn.Linear(16 * width, num_classes)

class Lazy(nn.Module):
    def __init__(self, in_channels: int = 1, num_classes: int = 10, image_size: int = 28):
        super().__init__()
        self.features = nn.Sequential(nn.LazyConv2d(8, 3, stride=2), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten())
        self.head = nn.LazyLinear(num_classes)

    def forward(self, images):
        return self.head(self.features(images))

class CalledLazy(Lazy):
    def __init__(self, in_channels: int = 1, num_classes: int = 10, image_size: int = 28):
        super().__init__(in_channels, num_classes, image_size)
        self(torch.zeros(1, in_channels, image_size, image_size))

class Misspelt(MyNet):
    def __init__(self, in_channels: int = 1, num_classes: int = 10, image_size: int = 28):
        super().__init__(in_channels, num_classes, image_size)
        self.extra = nn.Linear(widht, 1)  # NameError

class Unpacked(MyNet):
    def __init__(self, in_channels: int = 1, num_classes: int = 10, image_size: int = 28):
        super().__init__(in_channels, num_classes, image_size)
        self.first, self.second = 1, 2, 3  # ValueError

class WrongShape(MyNet):
    def forward(self, images):
        features = self.features(images)
        return self.head(features)  # RuntimeError

class WrongUnpacking(MyNet):
    def forward(self, images):
        batch, channels = images.shape  # ValueError
        return super().forward(images)

class BadData(Digits):
    def __init__(self, batch_size: int = 64):
        super().__init__(batch_size=batch_size)
        self.names = {}["digits"]  # KeyError

class BadRead(Digits):
    def read(self, train):
        return super().read(train)[2]  # IndexError

class BadCallback(Callback):
    def __init__(self, level: int = 3):
        self.level = [][level]  # IndexError

class BadHook(Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        raise ValueError("expected something else")  # ValueError
"""


SHORT = ["--trainer.max_epochs=1", "--trainer.enable_progress_bar=false", "--dashboard=false"]


@pytest.mark.parametrize(("name", "settings"), [("MyNet", ["--model.net.width=4"]), ("CalledLazy", [])])
def test_own_network_trains(name, settings):
    Path("own.py").write_text(OWN)
    options = ["--data=Digits", f"--model.net=own.{name}", *settings, *SHORT]
    command = [sys.executable, str(REPOSITORY / "scripts/fit.py"), *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"Training {name} on Digits" in done.stdout
    assert Path(f"logs/own.{name}-Digits/version_0/checkpoints/best.ckpt").is_file()


@pytest.fixture
def call(in_new_process):
    """Call ``fit`` with own.py in the path; returns exit code and stderr."""
    Path("own.py").write_text(OWN)
    code = "import sys; sys.path.insert(0, ''); from cnn_lightning.cli.fit import fit; fit()"

    def fit(*options: str) -> tuple[int, str]:
        data = [] if any(option.startswith("--data=") for option in options) else ["--data=Digits"]
        ended, _, errors = in_new_process(code, "fit.py", *data, *SHORT, *options)
        return ended, errors

    return fit


@pytest.mark.parametrize(
    "option",
    [
        *(f"--model.net=own.{name}" for name in ("Misspelt", "Unpacked", "WrongShape", "WrongUnpacking")),
        *(f"--data=own.{name}" for name in ("BadData", "BadRead")),
        *(f"--trainer.callbacks+=own.{name}" for name in ("BadCallback", "BadHook")),
    ],
)
def test_mistake_is_a_traceback_that_ends_in_the_own_file(option, call):
    ended, errors = call(option)
    assert ended == 1
    name = option.rpartition(".")[2]
    lines = OWN.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"class {name}("))
    number, error = next((i + 1, line.split("# ")[1]) for i, line in enumerate(lines) if i > start and "# " in line)
    frames = re.findall(r'File "(.+)", line (\d+), in', errors)
    assert Path(frames[-1][0]).name == "own.py", errors
    assert int(frames[-1][1]) == number, errors
    assert errors.strip().splitlines()[-1].startswith(f"{error}: ")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--model.net=own.MyNet --model.net.widht=3", "there is no option --model.net.widht; did you mean"),
        ("--model.net=own.MyNet --model.net.width=x", "--model.net.width x: expected int"),
        ("--model.net=nowhere.MyNet", "--model.net nowhere.MyNet: No module named 'nowhere'"),
        ("--model.net=own.MyNet --model.net.num_classes=0", "num_classes is 0, expected at least 1"),
        ("--model.net=own.Lazy", "the lazy layers features.0, features.1, head of Lazy have no weights yet: end its"),
    ],
)
def test_wrong_option_of_own_code_is_one_line(option, message, call):
    ended, errors = call(*option.split())
    assert ended == 2
    (line,) = errors.splitlines()
    assert line.startswith(f"error: {message}")
