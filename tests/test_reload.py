"""Checkpoints load in a new interpreter that imports nothing but the package, and those of version 0.1 still do."""

import inspect
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cnn_lightning import ImageClassifier, data, nets, optim
from cnn_lightning.cli.fit import fit
from tests.conftest import REPOSITORY, scalars

FORMER = REPOSITORY / "tests/run_of_0.1"
# A real interpreter: a forked one would have imported everything already.
RELOAD = """
import json, sys, torch
from cnn_lightning import ImageClassifier
images = torch.load("images.pt")
for name, path in json.loads(sys.argv[1]).items():
    torch.save(ImageClassifier.load_from_checkpoint(path, weights_only=True).eval()(images), f"{name}.pt")
"""


def classes(module, base=object) -> list[str]:
    """The names of all classes that a module exports, so that a new one is tested, too."""
    exported = [cls for cls in vars(module).values() if inspect.isclass(cls) and issubclass(cls, base)]
    return [cls.__name__ for cls in exported if not inspect.isabstract(cls)]


NOT_ON_DISK = {"EMNIST", "ImageFolder", "KMNIST", "QMNIST"}  # their own tests write their files
OPTIMIZERS = classes(optim, torch.optim.Optimizer)
OTHERS = [
    [f"--model.optimizer={name}" for name in [*OPTIMIZERS, "SGD"]],
    [f"--model.lr_schedule={name}" for name in classes(optim) if name not in OPTIMIZERS],
    [f"--data={name}" for name in classes(data) if name not in NOT_ON_DISK],
]
# A run for each network, with the other classes spread over the runs.
RUNS = [
    (f"--model.net={net}", *(names[number % len(names)] for names in OTHERS))
    for number, net in enumerate(classes(nets))
]


def test_every_class_is_collected():
    used = {setting for run in RUNS for setting in run}
    assert {"--model.net=WideCNN", "--model.optimizer=ConvMuon", "--model.lr_schedule=Cosine"} <= used
    assert {"--data=Digits", "--data=MNIST", "--data=FashionMNIST"} <= used


@pytest.mark.slow
def test_in_a_new_interpreter(train, images):
    short = ("--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1", "--trainer.limit_test_batches=1")
    paths = {settings[0]: f"{train(*settings, *short)}/checkpoints/best.ckpt" for settings in RUNS}
    torch.save(images, "images.pt")
    reload = [sys.executable, "-c", RELOAD, json.dumps(paths)]
    done = subprocess.run(reload, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for setting, path in paths.items():
        model = ImageClassifier.load_from_checkpoint(path).eval()
        weights = torch.load(path, weights_only=True)["state_dict"]
        assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items()), setting
        assert torch.equal(torch.load(f"{setting}.pt"), model(images)), setting


class TestOfVersion01:
    """VGGCNN on Digits with ConvMuon and OneCycle, killed after step 30 of 63."""

    def test_loads_with_the_same_logits(self, images):
        path = FORMER / "VGGCNN-Digits/version_0/checkpoints/best.ckpt"
        model = ImageClassifier.load_from_checkpoint(path, weights_only=True).eval()
        torch.testing.assert_close(model(images), torch.load(FORMER / "logits.pt", weights_only=True))

    @pytest.mark.parametrize("how", ["--ckpt_path=last", "--config"])
    def test_resumes(self, how, capsys):
        shutil.copytree(FORMER / "VGGCNN-Digits", "logs/VGGCNN-Digits")
        run = Path("logs/VGGCNN-Digits/version_0")
        quiet = ["--trainer.enable_progress_bar=false", "--dashboard=false"]
        settings = ["--data=Digits", "--model.net=VGGCNN", "--trainer.max_epochs=3", "--ckpt_path=last"]
        if how == "--config":  # it names classes by their former paths
            settings = [f"--config={run}/config.yaml", f"--ckpt_path={run}/checkpoints/last.ckpt"]
        fit([*quiet, *settings])
        assert f"Resuming from {run}/checkpoints/last.ckpt: epoch 2, step 30" in capsys.readouterr().out
        last = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
        assert last["global_step"] == 63
        # Version 0.1 reached 344 of 360, and a validation loss of 0.5467; other processors round differently.
        assert scalars(run)["test/acc"][-1][1] == pytest.approx(344 / 360, abs=0.03)
        assert scalars(run)["val/loss"][-1][1] == pytest.approx(0.5467, rel=0.1)
