"""Loggers that the user chooses: one run is one folder of ours and one of the logger, also after it was resumed."""

import csv
import json
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
from tests.test_invariant import csv_rows, log_records, wandb_rows
from tests.test_resume import SETTINGS

CSV = ("--trainer.logger=CSVLogger", "--trainer.logger.save_dir=.")
TENSORBOARD = ("--trainer.logger=TensorBoardLogger", "--trainer.logger.save_dir=tb")
ALSO_TENSORBOARD = ("--trainer.logger+=TensorBoardLogger", "--trainer.logger.save_dir=tb")
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


def wandb_settings(root: Path) -> list[dict[str, object]]:
    """The settings of each run, in the order of their start."""
    from wandb.proto import wandb_internal_pb2

    runs = []
    for path in sorted(root.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime):
        runs.append({})
        for record in log_records(path):
            parsed = wandb_internal_pb2.Record()
            parsed.ParseFromString(record)
            runs[-1] |= {item.key or item.nested_key[0]: json.loads(item.value_json) for item in parsed.config.update}
    return runs


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
        names = {path.name for path in (folder / "checkpoints").iterdir()}
        assert names == {"best.ckpt", "best.calibration.json", "last.ckpt"}
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


def test_csv_has_settings_curves_and_test_figures(run):
    run(*CSV, "--trainer.max_epochs=1")
    settings = yaml.safe_load(Path("lightning_logs/version_0/hparams.yaml").read_text())
    assert settings["trainer.max_epochs"] == 1
    assert settings["model.net"] == "WideCNN"
    rows = csv_rows(Path())
    steps = {tag: [int(row["step"]) for row in rows if tag in row] for tag in ("train/loss", "val/acc", "test/acc")}
    assert steps == {"train/loss": [2, 4, 6], "val/acc": [6], "test/acc": [6]}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # what MLflow calls in SQLAlchemy
def test_mlflow_has_settings_curves_and_test_figures(run, error_of, tiny_root, monkeypatch, capsys):
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    pytest.importorskip("alembic", reason="mlflow-skinny has no database without sqlalchemy and alembic")
    from mlflow.tracking import MlflowClient

    options = ("--trainer.logger+=MLFlowLogger", "--trainer.logger.tracking_uri=sqlite:///mlflow.db", *ALSO_TENSORBOARD)
    run(*options, "--trainer.max_epochs=1")
    run(*options, "--ckpt_path=last")
    client = MlflowClient("sqlite:///mlflow.db")
    (tracked,) = client.search_runs([client.get_experiment_by_name("lightning_logs").experiment_id])
    assert tracked.info.status == "FINISHED"
    assert tracked.data.params["model.net"] == "WideCNN"
    assert tracked.data.params["trainer.max_epochs"] == "1"  # MLflow keeps the first value
    folder = Path("logs/WideCNN-MNIST/version_0")
    artifacts = Path(tracked.info.artifact_uri)
    assert {path.name: path.read_bytes() for path in artifacts.iterdir()} == {
        name: (folder / name).read_bytes() for name in ("config.yaml", "config_2.yaml")
    }
    curves = scalars(Path("tb/lightning_logs/version_0"))
    for tag in ("train/loss", "train/acc", "val/loss", "val/acc", "test/loss", "test/acc"):
        points = [(point.step, point.value) for point in client.get_metric_history(tracked.info.run_id, tag)]
        assert len(points) == (2 if tag.startswith(("val", "test")) else 6)
        expected = [(step, value) for step, value in curves[tag] if step]  # at step 0 a test figure begins its line
        assert points == [(step, pytest.approx(value)) for step, value in expected]
    capsys.readouterr()
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    elsewhere = ("--trainer.logger=MLFlowLogger", "--trainer.logger.save_dir=elsewhere", "--ckpt_path=last")
    line = error_of(fit, *SETTINGS, f"--data.root={tiny_root}", CONSTANT, *elsewhere)
    assert "cannot resume the run of MLflow" in line
    assert tracked.info.run_id in line


def test_weights_and_biases_has_settings_curves_and_test_figures(run, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")

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
    for folder in Path("wandb").glob("offline-run-*"):
        (config,) = folder.glob("files/version_?/config.yaml")
        assert config.read_bytes() == Path("logs/WideCNN-MNIST", config.parent.name, "config.yaml").read_bytes()
    settings = wandb_settings(Path())
    assert [each["model.net"] for each in settings] == ["WideCNN"] * 2
    assert [each["model.optimizer.lr"] for each in settings] == rates
    for tag, steps in {"train/loss": [2, 4, 6], "val/loss": [6], "test/acc": [6]}.items():
        assert [int(row["step"]) for row in wandb_rows(Path()) if tag in row] == steps * 2
    assert os.environ.get("WANDB_MODE") in (None, "dryrun", "offline")
