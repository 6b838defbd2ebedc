"""Loggers that the user chooses: one run is one folder of ours and one of the logger, also after it was resumed."""

import csv
import os
import shutil
from pathlib import Path

import pytest
import yaml
from lightning.pytorch.loggers import CSVLogger

from cnn_lightning.callbacks import resume
from cnn_lightning.cli.fit import fit
from cnn_lightning.cli.run_folders import run_lock
from tests.conftest import scalars
from tests.test_invariant import csv_rows, wandb_rows
from tests.test_resume import SETTINGS

CSV = ("--trainer.logger=CSVLogger", "--trainer.logger.save_dir=.")
TENSORBOARD = ("--trainer.logger=TensorBoardLogger", "--trainer.logger.save_dir=tb")
CONSTANT = "--model.lr_schedule=null"


class Elsewhere(CSVLogger):
    """A logger of the user's, which passes on its arguments."""

    def __init__(self, save_dir: str, **kwargs):
        super().__init__(save_dir, **kwargs)

    @property
    def version(self):
        return Path("here")

    @property
    def log_dir(self):
        return "here"


def steps_with(tag: str, path: Path) -> list[int]:
    with path.open() as file:
        return [int(row["step"]) for row in csv.DictReader(file) if row[tag]]


@pytest.fixture
def run(tiny_root):
    def call(*args: str) -> None:
        fit([*SETTINGS, f"--data.root={tiny_root}", CONSTANT, *args])

    return call


def tree(*folders: str) -> dict[Path, bytes]:
    paths = (path for folder in folders for path in Path(folder).rglob("*"))
    return {path: path.read_bytes() for path in paths if path.is_file()}


def test_the_folder_of_the_run_is_ours_whatever_the_logger(run):
    run(*CSV)
    run(*TENSORBOARD)
    for version in ("version_0", "version_1"):
        folder = Path("logs/WideCNN-MNIST", version)
        assert {path.name for path in folder.iterdir()} == {"config.yaml", "checkpoints", ".lock"}
        assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert Path("lightning_logs/version_0/metrics.csv").exists()
    assert "val/loss" in scalars(Path("tb/lightning_logs/version_0"))


def test_another_tensorboard_logger_is_resumed_in_its_folder(run):
    run(*TENSORBOARD, "--trainer.max_epochs=1")
    run(*TENSORBOARD, "--ckpt_path=last", "--trainer.max_epochs=2")
    assert [path.name for path in Path("tb/lightning_logs").iterdir()] == ["version_0"]
    curves = scalars(Path("tb/lightning_logs/version_0"))
    assert [step for step, _ in curves["val/loss"]] == [6, 12]


def test_two_loggers_at_once(run):
    spec = [{"class_path": "CSVLogger", "init_args": {"save_dir": "."}}]
    spec.append({"class_path": "TensorBoardLogger", "init_args": {"save_dir": "tb"}})
    Path("both.yaml").write_text(yaml.safe_dump({"trainer": {"logger": spec}}))
    run("--config=both.yaml", "--trainer.max_epochs=1")
    run("--config=both.yaml", "--ckpt_path=last")
    assert [int(row["step"]) for row in csv_rows(Path()) if "val/loss" in row] == [6, 12]
    assert [step for step, _ in scalars(Path("tb/lightning_logs/version_0"))["val/loss"]] == [6, 12]
    assert not list(Path("logs").rglob("config_*.yaml"))[1:], "max_epochs alone has changed"


def test_a_new_run_from_a_copy_leaves_the_old_curves(run):
    run(*CSV, "--trainer.max_epochs=1")
    shutil.copy("logs/WideCNN-MNIST/version_0/checkpoints/last.ckpt", "mine.ckpt")
    before = tree("logs", "lightning_logs")
    run(*CSV, "--ckpt_path=mine.ckpt")
    assert tree("logs", "lightning_logs").items() >= before.items()
    assert Path("lightning_logs/version_1/metrics.csv").exists()


def test_a_csv_file_survives_a_kill_while_it_is_restored(run):
    run(*CSV, "--trainer.max_epochs=1")
    rows = csv_rows(Path())
    path = Path("lightning_logs/version_0/metrics.csv")
    path.rename(path.with_name("metrics_until_resume.csv"))  # as after a kill in the middle
    path.write_text("step\n")
    run(*CSV, "--ckpt_path=last")
    kept = [
        row for row in csv_rows(Path()) if int(row["step"]) <= 6 and "test/acc" not in row and "lr-AdamW" not in row
    ]
    assert kept == [row for row in rows if "test/acc" not in row and "lr-AdamW" not in row]
    assert [path.name for path in Path("lightning_logs/version_0").glob("metrics*")] == ["metrics.csv"]


def test_rows_of_a_run_that_is_still_training_are_kept(run, capsys):
    run(*CSV, "--trainer.max_epochs=1")
    path = Path("lightning_logs/version_0/metrics.csv")
    with path.open("a") as file:  # what was logged after the checkpoint
        file.write(path.read_text().splitlines()[-1] + "\n")
    before = path.read_bytes()
    with run_lock(Path("logs/WideCNN-MNIST/version_0")), pytest.raises(SystemExit):
        run(*CSV, "--ckpt_path=last")
    assert "another process trains in" in capsys.readouterr().err
    assert path.read_bytes() == before


@pytest.mark.parametrize("known", [True, False])
def test_rows_are_kept_whatever_the_order_of_the_loggers(run, known, monkeypatch):
    """Also of a run whose checkpoints do not know how many rows there were."""
    if not known:
        monkeypatch.setattr(resume, "_logger_state", lambda logger: {"class": "", "version": None, "rows": None})
    csv = {"class_path": "CSVLogger", "init_args": {"save_dir": ".", "version": 7}}
    tensorboard = {"class_path": "TensorBoardLogger", "init_args": {"save_dir": "tb"}}
    for name, spec in (("one", [csv]), ("two", [tensorboard, csv])):
        Path(f"{name}.yaml").write_text(yaml.safe_dump({"trainer": {"logger": spec}}))
    run("--config=one.yaml", "--trainer.max_epochs=1")
    run("--config=two.yaml", "--ckpt_path=last")
    (path,) = Path("lightning_logs").glob("*/metrics.csv")
    assert steps_with("val/loss", path) == [6, 12]


def test_a_logger_whose_version_is_no_plain_value(run):
    run("--trainer.logger=tests.test_loggers.Elsewhere", "--trainer.logger.save_dir=.", "--trainer.max_epochs=1")
    run("--trainer.logger=tests.test_loggers.Elsewhere", "--trainer.logger.save_dir=.", "--ckpt_path=last")
    assert sorted(path.name for path in Path("logs/WideCNN-MNIST").iterdir()) == ["version_0"]


def test_settings_are_in_the_logger(run):
    run(*CSV, "--trainer.max_epochs=1")
    settings = yaml.safe_load(Path("lightning_logs/version_0/hparams.yaml").read_text())
    assert settings["trainer.max_epochs"] == 1
    assert settings["model.net"] == "WideCNN"


def test_weights_and_biases_writes_nothing_of_ours_into_the_current_folder(run, monkeypatch):
    import wandb

    monkeypatch.setenv("WANDB_SILENT", "true")
    Path("config.yaml").write_text("of: another program\n")
    options = ("--trainer.logger=WandbLogger", "--trainer.logger.offline=true")
    for more in (("--trainer.max_epochs=1",), ("--trainer.max_epochs=1", "--model.optimizer.lr=0.001")):
        run(*options, *more)
        wandb.finish()
        wandb.teardown()
    assert Path("config.yaml").read_text() == "of: another program\n"
    assert {path.name for path in Path().iterdir()} == {"config.yaml", "logs", "wandb"}
    rates = []
    for version in ("version_0", "version_1"):
        folder = Path("logs/WideCNN-MNIST", version)
        assert {path.name for path in folder.iterdir()} == {"config.yaml", "checkpoints", ".lock"}
        settings = yaml.safe_load((folder / "config.yaml").read_text())
        rates.append(settings["model"]["optimizer"]["init_args"]["lr"])
    assert rates == [0.005, 0.001]
    assert len(list(Path("wandb").glob("offline-run-*"))) == 2
    assert [int(row["step"]) for row in wandb_rows(Path()) if "val/loss" in row] == [6, 6]
    assert os.environ.get("WANDB_MODE") in (None, "dryrun", "offline")
