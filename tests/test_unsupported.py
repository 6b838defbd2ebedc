"""What Lightning offers: each callback works, or is refused in one line before anything is written."""

from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import callbacks
from lightning.pytorch.callbacks import BaseFinetuning, StochasticWeightAveraging

from cnn_lightning.cli import unsupported
from cnn_lightning.cli.evaluate import evaluate
from cnn_lightning.cli.fit import fit
from cnn_lightning.cli.predict import predict
from tests.conftest import REPOSITORY, scalars
from tests.faults import assert_same_checkpoints

# Bases of callbacks, which do nothing by themselves.
BASES = {"BaseFinetuning", "BasePredictionWriter", "Callback", "Checkpoint", "ProgressBar"}
# Tested with the packages that they need, or by other files of tests.
ELSEWHERE = {"RichModelSummary", "RichProgressBar", "GradientAccumulationScheduler", "EarlyStopping", "TQDMProgressBar"}
WORKING = {
    "DeviceStatsMonitor": {},
    "EMAWeightAveraging": {"decay": 0.9},
    "LambdaCallback": {"on_train_start": "tests.test_unsupported.say_hello"},
    "LearningRateMonitor": {},
    "ModelCheckpoint": {"every_n_train_steps": 2, "save_top_k": -1},
    "ModelSummary": {},
    "ThroughputMonitor": {"batch_size_fn": "tests.test_unsupported.size_of", "window_size": 2},
    "Timer": {"duration": "00:01:00:00"},
    "WeightAveraging": {},
}


class Averages(StochasticWeightAveraging):
    def __init__(self, rate: float = 0.1) -> None:
        super().__init__(rate)


class Thaws(BaseFinetuning):
    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.net.features)

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 1:
            self.make_trainable(pl_module.net.features)


def say_hello(trainer, pl_module):
    print("hello of the user's")


def size_of(batch):
    return len(batch[0])


def test_every_callback_of_lightning_is_known():
    refused = {cls.__name__ for cls in unsupported.REFUSED}
    assert set(callbacks.__all__) == BASES | ELSEWHERE | WORKING.keys() | refused
    page = (REPOSITORY / "docs/usage.md").read_text()
    assert all(f"`{name}`" in page for name in refused)


@pytest.mark.filterwarnings("ignore:When using the `ThroughputMonitor`")
@pytest.mark.parametrize("averaging", ["EMAWeightAveraging", "WeightAveraging"])
def test_callbacks_that_work(averaging, train):
    """All at once: a file for each, curves for each, and the settings of each in config.yaml."""
    chosen = [name for name in WORKING if not name.endswith("Averaging") or name == averaging]
    specs = [{"class_path": name, "init_args": WORKING[name]} for name in chosen]
    Path("callbacks.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": specs}}))
    run = train("--data=MNIST", "--config=callbacks.yaml", "--trainer.log_every_n_steps=2")
    assert "hello of the user's" in train.output
    assert {f"epoch=0-step={step}.ckpt" for step in (2, 4, 6)} <= {path.name for path in run.rglob("*.ckpt")}
    tags = set(scalars(run))
    assert "train/device/batches_per_sec" in tags
    assert any(tag.startswith("DeviceStatsMonitor.on_train_batch_end/") for tag in tags)
    saved = yaml.safe_load((run / "config.yaml").read_text())["trainer"]["callbacks"]
    assert [spec["class_path"].rpartition(".")[2] for spec in saved] == chosen
    for spec in saved:
        given = WORKING[spec["class_path"].rpartition(".")[2]]
        assert given.items() <= spec.get("init_args", {}).items()
    assert saved[chosen.index("Timer")]["init_args"]["interval"] == "step"


@pytest.mark.parametrize("typed", [True, False])
def test_single_callback_that_is_no_list(typed, train):
    stops = {"class_path": "EarlyStopping", "init_args": {"monitor": "val/loss", "patience": 2}}
    Path("single.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": stops}}))
    options = ["--config=single.yaml"]
    if typed:
        options = [f"--trainer.callbacks={yaml.safe_dump(stops, default_flow_style=True)}"]
    settings = ["--trainer.max_epochs=9", "--model.optimizer.lr=0", "--model.lr_schedule=null"]
    run = train("--data=MNIST", *settings, *options)
    assert len(scalars(run)["val/loss"]) == 3
    evaluate([f"{run}/checkpoints/best.ckpt", f"--config={run}/config.yaml", "--report=false"])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("BackboneFinetuning", "BackboneFinetuning: the model has no part called backbone: write a subclass of Base"),
        ("BaseFinetuning", "BaseFinetuning: it does nothing by itself, expected a subclass of it"),
        ("BatchSizeFinder", "BatchSizeFinder: it would change the batch size after config.yaml is saved"),
        ("LearningRateFinder", "set --model.optimizer.lr, or compare rates with scripts/compare.py"),
        ("ModelPruning pruning_fn=l1_unstructured", "prune the network of best.ckpt in Python"),
        ("OnExceptionCheckpoint dirpath=.", "a new run would start from what it saved of another one"),
        ("SpikeDetection", "SpikeDetection: it cannot load what it saves, so that no run could be tested or resumed"),
        ("StochasticWeightAveraging swa_lrs=0.1", "so that no checkpoint holds the average: use EMAWeightAveraging"),
        ("tests.test_unsupported.Averages", "--trainer.callbacks Averages: it averages after the last checkpoint is"),
        ("ModelCheckpoint save_last=true", "ModelCheckpoint: every run saves last.ckpt: leave out save_last"),
        ("ModelCheckpoint filename=best", "ModelCheckpoint: every run saves best.ckpt: change filename"),
    ],
)
def test_callbacks_that_are_refused(args, message, error_of):
    name, *settings = args.split()
    options = [f"--trainer.callbacks+={name}", *(f"--trainer.callbacks.{setting}" for setting in settings)]
    assert message in error_of(fit, "--data=Digits", *options)
    assert not Path("logs").exists()


def test_device_stats_need_psutil(monkeypatch, error_of):
    monkeypatch.setattr(unsupported, "find_spec", lambda name: None)
    error = error_of(fit, "--data=Digits", "--trainer.accelerator=cpu", "--trainer.callbacks+=DeviceStatsMonitor")
    assert "DeviceStatsMonitor: it needs the package psutil: pip install psutil" in error


def test_own_finetuning_trains_and_is_resumed(train):
    """Lightning would leave the layers frozen that a resumed run thawed before."""
    thaws = ["--data=MNIST", "--model.lr_schedule=null", "--trainer.callbacks+=tests.test_unsupported.Thaws"]
    features = {}
    for epochs in (1, 2):
        run = train(*thaws, f"--trainer.max_epochs={epochs}")
        state = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        features[epochs] = state["net.features.0.weight"]
    assert not torch.equal(features[1], features[2])
    resumed = train(*thaws, "--trainer.max_epochs=3", "--ckpt_path=last")
    assert_same_checkpoints(resumed, train(*thaws, "--trainer.max_epochs=3", "--trainer.default_root_dir=whole"))


def test_a_former_configuration_with_a_refused_callback_can_be_tested(train, capsys):
    checkpoint = train() / "checkpoints/best.ckpt"
    refused = "--trainer.callbacks+=BatchSizeFinder"
    evaluate([str(checkpoint), refused, "--report=false"])
    predict([str(REPOSITORY / "docs/photos/digit_8.jpg"), f"--ckpt_path={checkpoint}", refused])
    assert "digit_8.jpg" in capsys.readouterr().out


def test_barebones(train, tiny_root, error_of):
    checkpoint = train() / "checkpoints/best.ckpt"
    for command, args in ((fit, ["--data=MNIST", f"--data.root={tiny_root}"]), (evaluate, [str(checkpoint)])):
        line = error_of(command, *args, "--trainer.barebones=true")
        assert "--trainer.barebones true excludes logging, and with it" in line
    advice = line.split("leave it out; ")[1].split(" switch off")[0].split()
    assert advice[::2] == [
        f"--trainer.{name}"
        for name in (
            "logger",
            "enable_checkpointing",
            "enable_progress_bar",
            "enable_model_summary",
            "log_every_n_steps",
        )
    ]
    run = train("--data=MNIST", *advice)
    assert "Test of the last weights" in train.output
    assert not list(run.rglob("*.ckpt"))
    assert not list(run.rglob("events.*"))


@pytest.mark.parametrize("option", ["max_steps", "limit_train_batches"])
@pytest.mark.parametrize("schedule", ["OneCycle", "null"])
def test_nothing_to_train(option, schedule, error_of):
    error = error_of(fit, "--data=Digits", f"--model.lr_schedule={schedule}", f"--trainer.{option}=0")
    assert f"{option} is 0, expected more than 0: change --trainer.{option}" in error
    assert not Path("logs").exists()


@pytest.mark.filterwarnings("ignore:.*could not find the monitored key")
@pytest.mark.parametrize(
    "option",
    [
        "detect_anomaly=true",
        "overfit_batches=2",
        "profiler=simple",
        "profiler=advanced",
        "limit_val_batches=0",
        "reload_dataloaders_every_n_epochs=1",
        "use_distributed_sampler=false",
        "inference_mode=false",
        "deterministic=true",
        "benchmark=true",
    ],
)
def test_other_options_of_the_trainer_train_and_test(option, train):
    run = train("--data=MNIST", f"--trainer.{option}")
    last = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == (2 if option.startswith("overfit") else 6)
    assert "accuracy " in train.output
