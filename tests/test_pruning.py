import os
import subprocess
import sys
from pathlib import Path

import pytest
from optuna.trial import TrialState

from cnn_lightning.callbacks import PruneTrial
from cnn_lightning.checkpointing.safe_loading import read_checkpoint
from cnn_lightning.cli.fit import fit
from cnn_lightning.studies.storage import StudySource
from cnn_lightning.studies.trials import KEY, PRUNED, claim, enqueue, follow
from tests.conftest import REPOSITORY, scalars

# 1,293 training images: 11 steps an epoch.
SETTINGS = ("--data=Digits", "--data.batch_size=128", "--model.net=MLP", "--trainer.accelerator=cpu")
SETTINGS += ("--model.lr_schedule=null", "--trainer.enable_progress_bar=false", "--dashboard=false")
PRUNE = "--trainer.callbacks+=PruneTrial"
WORSE, BETTER = 100.0, 0.0  # than any loss of a run


@pytest.fixture
def source(tmp_path):
    return StudySource(str(tmp_path / "journal.log"), "study")


def rival(study, losses):
    """Add a trial that has reported losses, epoch -> loss."""
    key = f"rival {len(study.get_trials())}"
    enqueue(study, key)
    trial = claim(study, {key})
    for epoch, loss in losses.items():
        trial.report(loss, epoch)
    study.tell(trial, 0.0)


def begin(source, monkeypatch):
    """Add a trial that this process trains."""
    study = source.open()
    enqueue(study, "mine")
    return become(source, claim(study, {"mine"}).number, monkeypatch)


def become(source, number, monkeypatch):
    for name, value in source.environment(number).items():
        monkeypatch.setenv(name, value)
    return number


def trial_of(source, number):
    return source.open().get_trials()[number]


def losses_of(run):
    """Validation losses: optimizer step -> loss."""
    return dict(scalars(run.folder)["val/loss"])


def test_bad_trial_is_pruned_at_its_rung(source, monkeypatch):
    """It passes after epoch 2 and fails after epoch 4."""
    rival(source.open(), {1: WORSE, 2: WORSE, 4: BETTER})
    number = begin(source, monkeypatch)
    run = fit([*SETTINGS, PRUNE, "--trainer.max_epochs=7"])
    trial = trial_of(source, number)
    assert trial.user_attrs[PRUNED] == run.trainer.current_epoch == 4
    losses = losses_of(run)
    assert [*losses] == [11, 22, 33, 44]
    assert trial.intermediate_values == pytest.approx(dict(enumerate(losses.values(), 1)))
    assert trial.state == TrialState.RUNNING  # whose process says how it ended
    assert "test/acc" in run.metrics


def test_good_trial_is_not_pruned(source, monkeypatch):
    rival(source.open(), {1: WORSE, 2: WORSE, 4: WORSE})
    number = begin(source, monkeypatch)
    run = fit([*SETTINGS, PRUNE, "--trainer.max_epochs=5"])
    trial = trial_of(source, number)
    assert PRUNED not in trial.user_attrs
    assert run.trainer.current_epoch == 5
    assert [*trial.intermediate_values] == [1, 2, 3, 4, 5]


def test_direction_is_that_of_the_study(tmp_path, monkeypatch):
    """Accuracies: the rival's is as low as can be after epoch 1, and as high as can be after epoch 3."""
    source = StudySource(str(tmp_path / "journal.log"), "study", "maximize")
    rival(source.open(), {1: 0.0, 3: 1.0})
    number = begin(source, monkeypatch)
    options = ("--trainer.callbacks.monitor=val/acc", "--trainer.callbacks.reduction_factor=3")
    fit([*SETTINGS, PRUNE, *options, "--trainer.max_epochs=5"])
    assert trial_of(source, number).user_attrs[PRUNED] == 3


def test_min_epochs_is_the_first_rung(source, monkeypatch):
    rival(source.open(), {1: BETTER, 3: BETTER})
    number = begin(source, monkeypatch)
    fit([*SETTINGS, PRUNE, "--trainer.callbacks.min_epochs=3", "--trainer.max_epochs=5"])
    assert trial_of(source, number).user_attrs[PRUNED] == 3


@pytest.mark.parametrize(
    ("rivals", "epochs"), [([BETTER], 2), ([WORSE, BETTER], 2), ([WORSE, WORSE, BETTER], 3)], ids=str
)
def test_the_best_half_of_those_that_came_so_far_continues(rivals, epochs, source, monkeypatch):
    """The trial is the second of two, three and four after epoch 2; epoch 1 it passes."""
    for loss in rivals:
        rival(source.open(), {1: WORSE, 2: loss})
    number = begin(source, monkeypatch)
    run = fit([*SETTINGS, PRUNE, "--trainer.max_epochs=3"])
    assert run.trainer.current_epoch == epochs
    assert trial_of(source, number).user_attrs.get(PRUNED) == (2 if epochs == 2 else None)


def test_killed_trial_and_its_follower_count_once(source, monkeypatch):
    """The trial is the second of three; a worst one that counted twice would make it the second of four."""
    study = source.open()
    enqueue(study, "killed")
    trial = claim(study, {"killed"})
    trial.report(WORSE, 1)
    study.tell(trial, state=TrialState.FAIL)
    follow(study, study.get_trials()[trial.number])
    assert claim(study, {"killed"})
    rival(study, {1: BETTER})
    number = begin(source, monkeypatch)
    run = fit([*SETTINGS, PRUNE, "--trainer.max_epochs=3"])
    assert run.trainer.current_epoch == trial_of(source, number).user_attrs[PRUNED] == 1


def test_rung_without_validation_counts_at_the_next_one(source, monkeypatch):
    """Rungs 1 and 2 count at epoch 3, rung 4 at epoch 6; the rival was validated after each epoch."""
    rival(source.open(), {1: BETTER, 2: WORSE, 3: BETTER, 4: BETTER})
    number = begin(source, monkeypatch)
    fit([*SETTINGS, PRUNE, "--trainer.check_val_every_n_epoch=3", "--trainer.max_epochs=9"])
    trial = trial_of(source, number)
    assert trial.user_attrs[PRUNED] == 6
    assert [*trial.intermediate_values] == [3, 6]


@pytest.mark.parametrize("end", ["--trainer.max_epochs=2", "--trainer.max_steps=22"])
def test_trial_that_ends_anyway_is_complete(end, source, monkeypatch):
    rival(source.open(), {1: WORSE, 2: BETTER})
    number = begin(source, monkeypatch)
    fit([*SETTINGS, PRUNE, end])
    trial = trial_of(source, number)
    assert PRUNED not in trial.user_attrs
    assert [*trial.intermediate_values] == [1, 2]


@pytest.mark.parametrize(("pruned", "epochs"), [(None, 5), (2, 2), (3, 3)], ids=["not pruned", "saved", "not saved"])
def test_resumed_trial(pruned, epochs, source, monkeypatch):
    """The process died after it had reported epoch 3 and saved epoch 2; what is reported is not reported again."""
    study = source.open()
    number = begin(source, monkeypatch)
    run = fit([*SETTINGS, PRUNE, "--trainer.max_epochs=2"])
    dead = study.get_trials()[number]
    dead.intermediate_values[3] = 50.0
    if pruned:
        dead.user_attrs[PRUNED] = pruned
    study.tell(number, state=TrialState.FAIL)
    follow(study, dead)
    following = become(source, claim(study, {"mine"}).number, monkeypatch)
    assert following == number + 1

    run = fit([*SETTINGS, PRUNE, "--trainer.max_epochs=5", "--ckpt_path=last"])  # a warning of Optuna is an error here
    trial = trial_of(source, following)
    assert trial.user_attrs[KEY] == "mine"
    assert trial.user_attrs.get(PRUNED) == pruned
    assert run.trainer.current_epoch == read_checkpoint(run.folder / "checkpoints/last.ckpt")["epoch"] + 1 == epochs
    assert [*trial.intermediate_values] == [*range(1, max(epochs, 3) + 1)]
    assert trial.intermediate_values[3] == 50.0
    assert trial_of(source, number).intermediate_values.keys() == {1, 2}


@pytest.mark.parametrize(
    ("options", "reported", "end"),
    [
        (["--trainer.val_check_interval=0.5"], (10, 20), 20),  # after steps 5, 10, 15, 20: at the end of epochs
        # After 7 batches of each epoch, steps 3, 8, 13; the gradients of batch 7 are half of a step.
        (["--trainer.val_check_interval=0.7", "--trainer.accumulate_grad_batches=2"], (8, 13), 14),
    ],
    ids=["several", "within the epoch"],
)
def test_first_validation_after_an_epoch_counts(options, reported, end, source, monkeypatch):
    """The stop within an epoch is that of StopWithinEpoch: after an optimizer step."""
    rival(source.open(), {1: WORSE, 2: BETTER})
    number = begin(source, monkeypatch)
    run = fit([*SETTINGS, PRUNE, *options, "--trainer.limit_train_batches=10", "--trainer.max_epochs=5"])
    trial = trial_of(source, number)
    assert trial.user_attrs[PRUNED] == 2
    losses = losses_of(run)
    assert trial.intermediate_values == pytest.approx({1: losses[reported[0]], 2: losses[reported[1]]})
    assert run.trainer.global_step == read_checkpoint(run.folder / "checkpoints/last.ckpt")["global_step"] == end


def test_without_trial_it_does_nothing(monkeypatch):
    monkeypatch.delenv("CNN_LIGHTNING_TRIAL", raising=False)
    run = fit([*SETTINGS, PRUNE, "--trainer.callbacks.monitor=none", "--trainer.max_epochs=2"])
    assert run.trainer.current_epoch == 2
    assert not Path("journal.log").exists()


def test_missing_metric(source, monkeypatch):
    begin(source, monkeypatch)
    with pytest.raises(ValueError, match=r"^PruneTrial: monitor is val/f1, expected one of .*val/acc, val/loss"):
        fit([*SETTINGS, PRUNE, "--trainer.callbacks.monitor=val/f1", "--trainer.max_epochs=2"])


@pytest.mark.parametrize(("name", "value"), [("min_epochs", 0), ("reduction_factor", 1)])
def test_wrong_settings(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}.*expected min_epochs >= 1 and reduction_factor >= 2"):
        PruneTrial(**{name: value})


@pytest.mark.slow
def test_two_processes_stop_together(source, tmp_path):
    study = source.open()
    rival(study, {1: WORSE, 2: BETTER})
    enqueue(study, "mine")
    number = claim(study, {"mine"}).number
    command = [sys.executable, str(REPOSITORY / "scripts/fit.py"), *SETTINGS, PRUNE, "--trainer.max_epochs=6"]
    command += ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=64"]
    environment = os.environ | source.environment(number)
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "accuracy" in done.stdout
    trial = trial_of(source, number)
    assert trial.user_attrs[PRUNED] == 2
    (run,) = (tmp_path / "logs/MLP-Digits").iterdir()
    assert trial.intermediate_values == pytest.approx(dict(enumerate(dict(scalars(run)["val/loss"]).values(), 1)))
    assert read_checkpoint(run / "checkpoints/last.ckpt")["epoch"] == 1  # counted from 0


@pytest.mark.slow
def test_optuna_is_imported_by_trials_only():
    code = "import sys, cnn_lightning, cnn_lightning.callbacks.pruning; print('optuna' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"
