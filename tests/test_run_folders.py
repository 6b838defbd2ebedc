"""Runs that a user renamed, moved, copied, or has on read-only media."""

import os
import re
import shutil
import time
from pathlib import Path

import pytest

from cnn_lightning.cli.evaluate import evaluate
from cnn_lightning.cli.fit import fit
from cnn_lightning.cli.predict import predict
from cnn_lightning.cli.run_folders import make_run, newest_best, newest_last, next_name
from cnn_lightning.errors import UsageError
from tests.faults import assert_same_checkpoints

CPU = "--trainer.accelerator=cpu"
FOLDER = Path("logs/TwoLayerCNN-Digits")
TRAIN = [CPU, "--data=Digits", "--trainer.enable_progress_bar=false", "--dashboard=false"]


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """A run of one epoch, with a constant learning rate, so that it can be resumed for more."""
    root = tmp_path_factory.mktemp("logs")
    fit([*TRAIN, "--trainer.max_epochs=1", "--model.lr_schedule=null", f"--trainer.default_root_dir={root}"])
    return root


@pytest.fixture
def baseline(logs):
    """A copy of this run, renamed to baseline."""
    shutil.copytree(logs, "logs")
    return (FOLDER / "version_0").rename(FOLDER / "baseline")


def write(path, at):
    """Make a file that was last written at some time, in seconds from now."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.utime(path, (time.time() + at,) * 2)
    return path


class TestRenamed:
    def test_evaluate_and_predict_find_it(self, baseline, capsys):
        evaluate([CPU, "--report=false"])
        assert f"Test of {baseline}/checkpoints/best.ckpt" in capsys.readouterr().out
        Path("photos").mkdir()
        with pytest.raises(SystemExit):
            predict([CPU, "photos"])
        assert "error: photos: holds no picture" in capsys.readouterr().err

    def test_it_is_resumed_in_its_folder(self, baseline, capsys):
        resume = [*TRAIN, "--trainer.max_epochs=2", "--ckpt_path=last"]
        fit(resume)
        assert f"Resuming from {baseline}/checkpoints/last.ckpt: epoch 1" in capsys.readouterr().out
        assert [path.name for path in FOLDER.iterdir()] == ["baseline"]
        Path("whole").mkdir()
        os.chdir("whole")
        fit([*TRAIN, "--trainer.max_epochs=2", "--model.lr_schedule=null"])
        assert_same_checkpoints(Path("..") / baseline, FOLDER / "version_0")

    def test_the_newest_run_counts_whatever_its_name(self):
        old = write(Path("a/A-B/version_9/checkpoints/best.ckpt"), at=-20)
        new = write(Path("a/A-B/best so far/checkpoints/best.ckpt"), at=-10)
        last = write(new.with_name("last.ckpt"), at=-10)
        assert newest_best([Path("a/A-B")]) == new
        assert newest_last([Path("a/A-B")]) == last
        write(old, at=0)
        assert newest_best([Path("a/A-B")]) == old

    def test_a_folder_that_is_no_run_does_not_count(self):
        last = write(Path("a/A-B/version_0/checkpoints/last.ckpt"), at=-20)
        write(Path("a/A-B/plots/config.png"), at=0)
        write(Path("a/A-B/notes.txt"), at=0)
        assert newest_last([Path("a/A-B")]) == last
        Path("a/A-B/version_1").mkdir()  # killed at startup
        assert newest_last([Path("a/A-B")]) is None

    def test_new_runs_get_the_next_number(self, baseline):
        assert make_run(FOLDER).name == "version_0"
        (FOLDER / "version_7").mkdir()
        assert next_name(FOLDER, "version") == "version_8"


def test_a_run_that_has_only_its_last_checkpoint(baseline, error_of):
    (baseline / "checkpoints/best.ckpt").unlink()
    expected = f"error: there is no best.ckpt in {FOLDER}, only last.ckpt: name {baseline}/checkpoints/last.ckpt"
    assert error_of(evaluate, CPU) == expected
    assert error_of(predict, CPU, "photos") == expected
    last = expected.rpartition(" ")[2]
    evaluate([CPU, last, "--report=false"])


def test_no_run_at_all():
    with pytest.raises(UsageError, match=re.escape("there is no best.ckpt in logs: train first")):
        newest_best([Path("logs")])


def test_a_run_that_was_moved(baseline, capsys):
    moved = shutil.move(baseline, "kept")
    evaluate([CPU, f"{moved}/checkpoints/best.ckpt"])
    assert Path("kept/report_0/report.html").is_file()
    fit([*TRAIN, "--trainer.max_epochs=2", f"--ckpt_path={moved}/checkpoints/last.ckpt"])
    assert re.search(r"^run +kept$", capsys.readouterr().out, re.MULTILINE)
    assert not list(FOLDER.glob("*"))


# Runs commands in a process that cannot write where permissions forbid it; root can, until it drops its capabilities.
READ_ONLY = """
import ctypes, os, sys
from cnn_lightning.cli.{name} import {name}
if os.geteuid() == 0:
    assert ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()) == 0
{name}(sys.argv[1:])
"""


@pytest.fixture
def read_only(baseline):
    """This run in a folder that cannot be written."""
    paths = [FOLDER, baseline, *baseline.rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    yield baseline
    for path in paths:
        path.chmod(0o755)


class TestReadOnly:
    def test_to_resume_it_is_copied(self, read_only, in_new_process, capsys):
        resume = [*TRAIN, "--trainer.max_epochs=2"]
        code, _, errors = in_new_process(READ_ONLY.format(name="fit"), "fit.py", *resume, "--ckpt_path=last")
        assert code == 2
        assert errors.startswith(f"error: cannot write to {read_only.resolve()} (Permission denied): to resume, copy ")
        assert errors.endswith("and name the last.ckpt of the copy with --ckpt_path\n")
        assert errors.count("\n") == 1
        shutil.copytree(read_only, "copy", copy_function=shutil.copyfile)
        for path in [Path("copy"), *Path("copy").rglob("*")]:
            path.chmod(0o755)
        fit([*resume, "--ckpt_path=copy/checkpoints/last.ckpt"])
        output = capsys.readouterr().out
        assert "Resuming from copy/checkpoints/last.ckpt: epoch 1" in output
        assert re.search(r"^checkpoint +copy/checkpoints/best.ckpt$", output, re.MULTILINE)

    @pytest.mark.slow
    def test_its_report_needs_another_folder(self, read_only, in_new_process):
        code, _, errors = in_new_process(READ_ONLY.format(name="evaluate"), "evaluate.py", CPU)
        assert code == 2
        assert errors.startswith(f"error: cannot write to {read_only.resolve()}/report_0 (Permission denied): ")
        assert "--report" in errors
        code, *_ = in_new_process(READ_ONLY.format(name="evaluate"), "evaluate.py", CPU, "--report=mine")
        assert code == 0
        assert Path("mine/report.html").is_file()
