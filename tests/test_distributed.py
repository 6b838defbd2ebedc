import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.util.tensor_util import make_ndarray

from cnn_lightning.cli.fit import fit
from tests.conftest import REPOSITORY, scalars
from tests.faults import assert_same_result
from tests.test_dashboard import PICTURES, events

# 1,293 training images: in the last of the 21 steps of an epoch, the processes have 7 and 6 of them.
SETTINGS = ("--data=Digits", "--data.shift=1", "--trainer.accelerator=cpu", "--trainer.max_epochs=2")
SETTINGS += ("--trainer.enable_progress_bar=false", "--trainer.log_every_n_steps=1")
TWO = ("--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=32")


def train_with_two(tmp_path, *args, **environment):
    command = [sys.executable, str(REPOSITORY / "scripts/fit.py"), *SETTINGS, *TWO, *args]
    return subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment
    )


@pytest.mark.slow
def test_two_processes_are_as_one(tmp_path):
    """With double precision, in which what is equal in theory is so to many digits."""
    process = train_with_two(tmp_path, "--trainer.precision=64-true")
    alone = ("--data.batch_size=64", "--trainer.default_root_dir=alone", "--dashboard=false")
    fit([*SETTINGS, *alone, "--trainer.precision=64-true"])
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert output.count("Training TwoLayerCNN") == output.count("accuracy ") == 1
    assert int(re.search(r"accuracy +\S+% \([\d,]+/([\d,]+)\)", output)[1]) == 360

    (run,) = (tmp_path / "logs/TwoLayerCNN-Digits").iterdir()
    curves, alone = scalars(run), scalars(Path("alone/TwoLayerCNN-Digits/version_0"))
    assert curves.keys() == alone.keys()
    for tag in curves.keys() - {"train/images_per_second", "time/images_per_second", "time/seconds"}:
        (steps, values), (expected_steps, expected) = (zip(*curve[tag], strict=True) for curve in (curves, alone))
        assert steps == expected_steps
        assert values == pytest.approx(expected, rel=1e-6), tag

    read = events(run)
    assert set(read.Tags()["images"]) == PICTURES | {"images/augmentation"}
    right, wrong = make_ndarray(read.Tensors("pr_curve/3")[-1].tensor_proto)[:2]
    assert (right[0], right[0] + wrong[0]) == (15, 144)  # at threshold 0: all images of the class, all images


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.campaign)]
)
@pytest.mark.slow
def test_two_processes_stop_and_resume_together(tmp_path, number, code):
    settings = ("--model.net=WideCNN", "--model.net.width=4", "--trainer.max_epochs=5", "--dashboard=false")
    process = train_with_two(tmp_path, *settings, PYTHONUNBUFFERED="1")
    for line in process.stdout:
        if line.startswith("epoch 2:"):
            process.send_signal(number)
            break
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    for args in (("--ckpt_path=last",), ("--trainer.default_root_dir=whole",)):
        process = train_with_two(tmp_path, *settings, *args)
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
    assert_same_result(tmp_path / "logs/WideCNN-Digits/version_0", tmp_path / "whole/WideCNN-Digits/version_0")
