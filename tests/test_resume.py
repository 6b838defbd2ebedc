import fcntl
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import BaseFinetuning, ModelCheckpoint

from cnn_lightning import ImageClassifier
from cnn_lightning.checkpointing.safe_loading import read_run_checkpoint
from cnn_lightning.cli import run_folders as runs
from cnn_lightning.cli.evaluate import evaluate
from cnn_lightning.cli.fit import FitCLI, fit
from cnn_lightning.data import MNIST
from cnn_lightning.errors import UsageError
from cnn_lightning.nets import WideCNN
from tests.conftest import REPOSITORY, scalars
from tests.faults import Death, DieAt, add_callback, assert_equal, assert_same_checkpoints, assert_same_result

# 6 steps an epoch, with augmentation and dropout.
SETTINGS = (
    *("--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
    *("--dashboard=false", "--data=MNIST", "--data.shift=2", "--data.val_size=40", "--data.batch_size=64"),
    *("--model.net=WideCNN", "--model.net.width=4", "--trainer.max_epochs=2", "--trainer.log_every_n_steps=2"),
)
AVERAGING = ("--trainer.callbacks+=EMAWeightAveraging", "--trainer.callbacks.decay=0.9")


WHOLE: dict[tuple[str, ...], Path] = {}  # runs that nothing interrupted, by their settings


@pytest.fixture
def run(tiny_root):
    """Train in a folder, where the same command resumes the run that is there; returns the folder of the run."""

    def call(root: str, *args: str) -> Path:
        fit([*SETTINGS, f"--data.root={tiny_root}", f"--trainer.default_root_dir={root}", "--ckpt_path=last", *args])
        return folder(root)

    return call


@pytest.fixture
def whole(run, tmp_path_factory):
    """The folder of a run that nothing interrupted."""

    def call(*args: str) -> Path:
        if args not in WHOLE:
            WHOLE[args] = run(str(tmp_path_factory.mktemp("whole")), *args)
        return WHOLE[args]

    return call


@pytest.fixture
def interrupt(run, monkeypatch):
    """Train until a callback stops it; returns how it ended."""

    def call(callback: Callback, root: str, *args: str) -> BaseException | None:
        with monkeypatch.context() as patch:
            add_callback(patch, callback)
            try:
                run(root, *args)
            except (Death, SystemExit) as end:
                return end

    return call


def folder(root: str) -> Path:
    (path,) = sorted(Path(root).glob("*/version_*"))[-1:]
    return path


class Kill(Callback):
    """Sends this process a signal before an optimizer step, or in the validation after it."""

    def __init__(self, number: int, step: int, validating: bool = False) -> None:
        self.number, self.step, self.validating, self.sent = number, step, validating, 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if not self.validating and trainer.global_step == self.step and not self.sent:
            self.send()

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if self.validating and trainer.global_step >= self.step and not self.sent:
            self.send()

    def send(self):
        self.sent += 1
        os.kill(os.getpid(), self.number)


VARIANTS = [
    ("--save_every_n_steps=1",),
    ("--save_every_n_steps=2", "--trainer.val_check_interval=0.5"),
    ("--save_every_n_steps=1", "--trainer.val_check_interval=4", "--trainer.check_val_every_n_epoch=null"),
    ("--save_every_n_steps=1", "--trainer.accumulate_grad_batches=2", "--model.lr_schedule=Cosine"),
    ("--save_every_n_steps=3", "--trainer.max_steps=10", "--trainer.limit_train_batches=5"),
    ("--save_every_n_steps=1", "--trainer.check_val_every_n_epoch=2", "--trainer.log_every_n_steps=0"),
    ("--save_every_n_steps=1", "--data.drop_last=true", "--model.lr_schedule=null", "--trainer.gradient_clip_val=1"),
    ("--save_every_n_steps=2", "--trainer.precision=bf16-mixed", "--data.elastic=1", "--data.erase=0.5"),
    ("--save_every_n_steps=1", *AVERAGING),
]
MOMENTS = [(step, validating) for step in range(12) for validating in (False, True)]


@pytest.mark.slow
class TestDeath:
    """The process is gone at once, and the same command is typed again."""

    @pytest.mark.parametrize(
        ("variant", "moments"),
        [
            (("--trainer.max_steps=12",), [(8, False)]),
            (("--save_every_n_steps=2", "--trainer.val_check_interval=0.5", "--model.optimizer=ConvMuon"), [(8, True)]),
            (("--save_every_n_steps=2", "--data.rotate=10", *AVERAGING), [(3, False), (6, True), (9, False)]),
            *(pytest.param(variant, MOMENTS, marks=pytest.mark.campaign) for variant in VARIANTS),
        ],
    )
    def test_ends_as_if_it_had_not_been(self, run, whole, interrupt, variant, moments):
        for step, validating in moments:
            interrupt(DieAt(step, validating), f"{step}{validating}", *variant)
            assert_same_result(run(f"{step}{validating}", *variant), whole(*variant))

    def test_again_and_again(self, run, whole, interrupt):
        settings = ("--save_every_n_steps=1", "--dashboard=true")
        for step in (1, 6, 10):
            assert isinstance(interrupt(DieAt(step), "killed", *settings), Death)
        killed = run("killed", *settings)
        assert_same_result(killed, whole(*settings))
        assert [path.name for path in killed.glob("config*")] == ["config.yaml"]

    def test_while_a_checkpoint_is_saved(self, run, whole, monkeypatch):
        replace = Path.replace
        for name, renamed in (("best", False), ("last", False), ("best", True), ("last", True)):
            root = f"{name}{renamed}"

            def die(path, target, name=name, renamed=renamed, root=root):
                second = path.name == f"{name}.ckpt.part" and (folder(root) / "checkpoints/last.ckpt").exists()
                if renamed or not second:
                    replace(path, target)
                if second:
                    raise Death

            with monkeypatch.context() as patch:
                patch.setattr(Path, "replace", die)
                with pytest.raises(Death):
                    run(root)
            assert_same_result(run(root), whole())

    def test_of_a_run_that_stopped_early(self, run, whole, interrupt):
        class DieAtTheEnd(Callback):
            def on_train_end(self, trainer, pl_module):
                raise Death

        early = ("--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/loss", "--trainer.max_epochs=9")
        early += ("--trainer.callbacks.patience=1", "--model.optimizer=SGD", "--model.optimizer.lr=0.0")
        early += ("--model.lr_schedule=null",)
        assert isinstance(interrupt(DieAtTheEnd(), "killed", *early), Death)
        assert_same_result(run("killed", *early), whole(*early))


class TestSignal:
    @pytest.mark.parametrize(
        ("number", "step", "validating"),
        [(signal.SIGINT, 3, False), (signal.SIGTERM, 5, False), (signal.SIGINT, 6, True), (signal.SIGTERM, 9, False)],
    )
    def test_stops_after_the_step_with_all_saved(self, run, whole, interrupt, capfd, number, step, validating):
        assert interrupt(Kill(number, step, validating), "stopped").code == {signal.SIGINT: 130}.get(number, 143)
        printed = capfd.readouterr()
        assert "Stopping as soon as everything is saved." in printed.err
        assert f"--ckpt_path {folder('stopped')}/checkpoints/last.ckpt" in printed.out
        saved = torch.load(folder("stopped") / "checkpoints/last.ckpt", weights_only=True)
        assert saved["global_step"] == (6 if validating else step + 1)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        assert_same_result(run("stopped"), whole())

    def test_time_before_it_counts(self, run, interrupt):
        class KillAfterASecond(Kill):
            def send(self):
                time.sleep(1)
                super().send()

        interrupt(KillAfterASecond(signal.SIGTERM, 9), "stopped")
        (_, seconds) = scalars(run("stopped"))["time/seconds"][-1]
        assert seconds > 1

    def test_in_the_middle_of_an_epoch_with_validations(self, run, whole, interrupt):
        settings = "--trainer.val_check_interval=2"
        interrupt(Kill(signal.SIGTERM, 2, validating=True), "stopped", settings)
        assert torch.load(folder("stopped") / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 2
        assert_same_result(run("stopped", settings), whole(settings))

    def test_waits_until_gradients_that_add_up_have_made_a_step(self, run, whole, interrupt):
        settings = ("--trainer.accumulate_grad_batches=4", "--trainer.val_check_interval=2")
        interrupt(Kill(signal.SIGTERM, 0, validating=True), "stopped", *settings)
        assert_same_result(run("stopped", *settings), whole(*settings))

    def test_after_the_last_epoch_is_not_forgotten(self, interrupt):
        class KillAtTheEnd(Callback):
            def on_train_end(self, trainer, pl_module):
                os.kill(os.getpid(), signal.SIGTERM)

        assert interrupt(KillAtTheEnd(), "stopped").code == 143

    @pytest.mark.slow
    def test_a_closed_terminal(self, tiny_root):
        """A real one: the kernel sends SIGHUP, and whatever is printed from then on raises."""
        command = [sys.executable, str(REPOSITORY / "scripts/fit.py"), *SETTINGS, "--trainer.default_root_dir=stopped"]
        command += ["--trainer.max_epochs=500", "--trainer.enable_progress_bar=true"]
        command += [f"--data.root={tiny_root}", "--ckpt_path=last", "--data=Digits"]
        terminal, other_end = pty.openpty()
        fcntl.ioctl(other_end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
        # SIGHUP as usual, also where pytest itself runs under nohup.
        command = ["setsid", "--ctty", "env", "--default-signal=HUP", *command]
        process = subprocess.Popen(command, stdin=other_end, stdout=other_end, stderr=other_end)
        os.close(other_end)
        seen = b""
        while not re.search(rb"Epoch [3-9]/500", seen):
            seen += os.read(terminal, 65536)  # raises once the process has ended
        os.close(terminal)
        assert process.wait(60) == 128 + signal.SIGHUP
        saved = torch.load(folder("stopped") / "checkpoints/last.ckpt", weights_only=True)
        assert saved["loops"]["fit_loop"]["epoch_progress"]["current"]["started"] >= 3
        assert not list(folder("stopped").rglob("*.part"))

    def test_nohup_is_respected(self, interrupt, monkeypatch):
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            assert interrupt(Kill(signal.SIGHUP, 3), "nohup") is None
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        finally:
            signal.signal(signal.SIGHUP, before)

    def test_twice_stops_at_once(self, interrupt, capfd):
        class Impatient(Kill):
            def send(self):
                super().send()
                super().send()

        assert interrupt(Impatient(signal.SIGINT, 3), "stopped").code == 130
        assert "Stopped before anything was saved." in capfd.readouterr().out

    def test_of_slurm_saves_and_asks_for_the_queue(self, run, whole, monkeypatch, tmp_path):
        """Lightning's own way, at a moment when everything is of one step."""
        scontrol = tmp_path / "bin/scontrol"
        scontrol.parent.mkdir()
        scontrol.write_text(f"#!/bin/sh\necho $@ > {tmp_path}/asked")
        scontrol.chmod(0o755)
        job = {"SLURM_NTASKS": "1", "SLURM_JOB_ID": "77", "SLURM_JOB_NAME": "train", "SLURM_PROCID": "0"}
        job |= {"SLURM_LOCALID": "0", "SLURM_NODEID": "0", "PATH": f"{scontrol.parent}:{os.environ['PATH']}"}
        with monkeypatch.context() as patch:
            for name, value in job.items():
                patch.setenv(name, value)
            add_callback(patch, Kill(signal.SIGUSR1, 3))
            requeued = run("job", "--trainer.devices=1", "--trainer.num_nodes=1")
        assert (tmp_path / "asked").read_text() == "requeue 77\n"
        assert torch.load(requeued / "hpc_ckpt_1.ckpt", weights_only=True)["global_step"] == 4
        assert_same_result(requeued, whole())


class TestCutShort:
    def test_max_time_says_how_to_resume(self, run, capsys, monkeypatch):
        class Slow(Callback):
            """Lets time run out in the middle of an epoch of 6 steps: at its end, there would be nothing to say."""

            def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
                if trainer.global_step == 2:
                    time.sleep(1.1)

        add_callback(monkeypatch, Slow())
        settings = ("--model.lr_schedule=null", "--trainer.max_epochs=500")
        run("logs", *settings, "--trainer.max_time=00:00:00:01")
        printed = capsys.readouterr().out
        (stopped,) = re.findall(r"Stopped within epoch (\d+), at step (\d+)\.", printed)
        saved = torch.load(folder("logs") / "checkpoints/last.ckpt", weights_only=True)
        assert stopped == (str(saved["global_step"] // 6 + 1), str(saved["global_step"]))
        assert f"--ckpt_path {folder('logs')}/checkpoints/last.ckpt --trainer.max_time=null" in printed
        resumed = run("logs", *settings, "--trainer.max_time=null", f"--trainer.max_steps={saved['global_step'] + 3}")
        now = torch.load(resumed / "checkpoints/last.ckpt", weights_only=True)
        assert now["global_step"] == saved["global_step"] + 3

    def test_early_stopping_does_not_stop_a_run_that_time_has_stopped(self, run, interrupt):
        class TimeIsUp(Callback):
            def on_train_batch_end(self, trainer, *args):
                trainer.should_stop |= trainer.global_step == 3

        patience = ("--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/loss")
        assert interrupt(TimeIsUp(), "logs", *patience) is None
        assert torch.load(run("logs", *patience) / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 12

    def test_a_run_that_may_not_stop_yet_is_validated(self, run, interrupt):
        class StopSoon(Callback):
            def on_train_batch_end(self, trainer, *args):
                trainer.should_stop |= trainer.global_step == 3

        settings = ("--trainer.max_epochs=4", "--trainer.min_epochs=2", "--model.lr_schedule=null")
        assert interrupt(StopSoon(), "logs", *settings) is None
        assert [step for step, _ in scalars(folder("logs"))["val/loss"]] == [6, 12]

    def test_a_run_that_early_stopping_has_ended_is_no_run_to_resume(self, run, capsys):
        stops = ("--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/loss")
        stops += ("--trainer.callbacks.stopping_threshold=100", "--trainer.val_check_interval=3")
        run("logs", *stops)
        assert torch.load(folder("logs") / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 3
        assert "To resume" not in capsys.readouterr().out

    def test_validation_is_on_again_after_an_exception(self, tiny_root):
        class Stop(Callback):
            def on_train_batch_end(self, trainer, *args):
                trainer.should_stop = True

            def on_train_epoch_end(self, trainer, pl_module):
                raise RuntimeError

        quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = Trainer(max_epochs=2, callbacks=[Stop()], enable_checkpointing=False, **quiet)
        with pytest.raises(RuntimeError):
            trainer.fit(ImageClassifier(WideCNN(width=4)), MNIST(tiny_root, batch_size=64, val_size=40))
        assert trainer.limit_val_batches == 1.0

    def test_without_a_validation_the_last_weights_are_tested(self, run, capsys):
        run("logs", "--trainer.max_steps=3", "--model.lr_schedule=null")
        assert "Test of the last weights" in capsys.readouterr().out
        assert not (folder("logs") / "checkpoints/best.ckpt").exists()

    def test_early_stopping_does_not_count_the_validation_before_twice(self, run, whole, interrupt):
        class TimeIsUp(Callback):
            def on_train_batch_end(self, trainer, *args):
                trainer.should_stop |= trainer.global_step == 9

        # Every validation is the one too many: a second look at the first would end the run.
        settings = ("--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/loss")
        settings += ("--trainer.callbacks.min_delta=100", "--trainer.callbacks.patience=3", "--trainer.max_epochs=4")
        assert interrupt(TimeIsUp(), "logs", *settings) is None
        resumed, uninterrupted = run("logs", *settings), whole(*settings)
        assert_same_checkpoints(resumed, uninterrupted)
        assert scalars(resumed)["val/loss"] == scalars(uninterrupted)["val/loss"]
        assert len(scalars(resumed)["val/loss"]) == 4

    @pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
    def test_with_checkpoints_of_lightning_in_python(self, tiny_root):
        """What Lightning's ModelCheckpoint saves within an epoch is resumed there, without our command line."""
        data = {"batch_size": 64, "val_size": 40}
        quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        steps = []

        class Stop(Callback):
            def on_train_batch_end(self, trainer, *args):
                steps.append(trainer.global_step)
                trainer.should_stop |= trainer.global_step == 8

        torch.manual_seed(3)
        saver = ModelCheckpoint("saved", "last", save_on_train_epoch_end=True)
        trainer = Trainer(max_epochs=3, callbacks=[Stop(), saver], **quiet)
        trainer.fit(ImageClassifier(WideCNN(width=4)), MNIST(tiny_root, **data))
        weights = []
        for seed in (1, 2):  # the seed of the resumed process does not matter
            torch.manual_seed(seed)
            model = ImageClassifier(WideCNN(width=4))
            resumed = Trainer(max_epochs=3, enable_checkpointing=False, **quiet)
            resumed.fit(model, MNIST(tiny_root, **data), ckpt_path="saved/last.ckpt", weights_only=True)
            assert resumed.global_step == 18
            weights.append([parameter.detach() for parameter in model.net.parameters()])
        assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))


class TestFrozen:
    def test_weights_that_a_callback_has_thawed_are_trained_after_a_resume(self, run, whole, interrupt, monkeypatch):
        class ThawInSecondEpoch(BaseFinetuning):
            def freeze_before_training(self, pl_module):
                self.freeze(pl_module.net.features)

            def finetune_function(self, pl_module, epoch, optimizer):
                if epoch == 1:
                    self.make_trainable(pl_module.net.features)

        settings = ("--save_every_n_steps=1", "--model.lr_schedule=null", "--model.optimizer.weight_decay=0")
        callbacks = FitCLI.callbacks
        monkeypatch.setattr(FitCLI, "callbacks", lambda *args: [ThawInSecondEpoch(), *callbacks(*args)])
        assert isinstance(interrupt(DieAt(9), "killed", *settings), Death)
        assert_same_result(run("killed", *settings), run("whole", *settings))


class TestSeed:
    def test_a_run_without_a_seed_is_evaluated_and_resumed(self, run, capsys):
        torch.seed()
        stopped = run("logs", "--seed_everything=false", "--trainer.max_steps=8", "--model.lr_schedule=null")
        saved = torch.load(stopped / "checkpoints/last.ckpt", weights_only=True)
        (loader,) = saved["loops"]["fit_loop"]["state_dict"]["combined_loader"]
        assert loader["seed"] >= 2**32
        assert "no seed" in capsys.readouterr().out
        evaluate([str(stopped / "checkpoints/best.ckpt"), "--report=false"])
        results = []
        for name in ("first", "second"):
            shutil.copytree(stopped, f"{name}/WideCNN-MNIST/version_0")
            resumed = run(name, "--model.lr_schedule=null")
            results.append(torch.load(resumed / "checkpoints/last.ckpt", weights_only=True))
            assert results[-1]["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]["seed"] == loader["seed"]
        assert_equal(results[0]["state_dict"], results[1]["state_dict"], "weights")

    def test_another_seed_is_refused(self, run, capsys):
        torch.seed()
        run("logs", "--seed_everything=false", "--trainer.max_epochs=1")
        with pytest.raises(SystemExit):
            run("logs", "--seed_everything=0")
        assert "was trained with --seed_everything False, here it is 0" in capsys.readouterr().err


class TestDiverged:
    def test_says_where_and_keeps_the_best(self, interrupt, capsys):
        class Poison(Callback):
            def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
                if trainer.global_step == 8:
                    pl_module.net.head[-1].bias.data[0] = float("nan")

        assert interrupt(Poison(), "bad", "--model.lr_schedule=null").code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(
            "error: training has diverged: train/loss is nan at step 10, where the learning rate is 0.005: try a tenth"
        )
        assert line.endswith(f"; the best until then is {folder('bad')}/checkpoints/best.ckpt")
        for name in ("best", "last"):
            state = torch.load(folder("bad") / f"checkpoints/{name}.ckpt", weights_only=True)
            assert state["global_step"] == 6
            assert all(weight.isfinite().all() for weight in state["state_dict"].values())

    def test_never_saves_weights_that_are_not_finite(self, interrupt, capsys):
        class Poison(Callback):
            def on_train_batch_end(self, trainer, pl_module, *args):
                if trainer.global_step == 3:
                    pl_module.net.head[-1].bias.data[0] = float("inf")

        assert interrupt(Poison(), "bad", "--save_every_n_steps=1").code == 2
        assert "a weight is not a finite number at step 3" in capsys.readouterr().err
        assert torch.load(folder("bad") / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 2


class TestRuns:
    def test_started_at_once_never_share_a_folder(self):
        with ThreadPoolExecutor(8) as pool:
            made = list(pool.map(runs.make_run, [Path("net")] * 100))
        assert len(set(made)) == 100

    def test_in_use_are_refused(self, run, capsys):
        last = run("first") / "checkpoints/last.ckpt"
        before = last.read_bytes()
        with runs.run_lock(folder("first")), pytest.raises(SystemExit):
            run("first", "--trainer.max_epochs=2")
        assert re.search(r"another process trains in \S+first/WideCNN-MNIST/version_0: wait", capsys.readouterr().err)
        assert last.read_bytes() == before

    def test_killed_before_they_saved_are_not_passed_over(self, run, interrupt, capsys):
        run("logs")
        interrupt(DieAt(0), "logs", "--ckpt_path=null")
        assert run("logs").name == "version_2"
        assert "Resuming" not in capsys.readouterr().out

    def test_read_their_checkpoint_once(self, run, interrupt, monkeypatch):
        interrupt(DieAt(8), "logs")
        reads, read_bytes = [], Path.read_bytes
        monkeypatch.setattr(Path, "read_bytes", lambda path: reads.append(path.name) or read_bytes(path))
        run("logs", "--trainer.limit_test_batches=0")
        assert reads.count("last.ckpt") == 1

    def test_last_starts_a_new_run_if_no_run_exists(self, run, capsys):
        assert run("new").name == "version_0"
        assert "starting a new run" in capsys.readouterr().out

    def test_mistakes_leave_no_empty_run(self, run):
        for mistake in (
            "--trainer.precision=transformer-engine",
            "--model.optimizer=SparseAdam",
            "--data.val_size=9999",
        ):
            with pytest.raises(SystemExit):
                run("logs", mistake)
        assert [path.parent.name for path in Path("logs").rglob("config.yaml")] in ([], ["version_0"])

    def test_other_settings_than_it_began_with(self, run, capsys):
        last = run("logs") / "checkpoints/last.ckpt"
        state = torch.load(last, weights_only=True)
        torch.save(state | {"global_step": 6}, last.with_name("first.ckpt"))
        files = {path: path.read_bytes() for path in last.parents[1].rglob("*") if path.is_file()}
        for settings, message in (
            (
                ("--seed_everything=4",),
                "was trained with --seed_everything 0, here it is 4: leave out --seed_everything",
            ),
            (("--trainer.max_epochs=1",), "is of epoch 2, and max_epochs is 1: change --trainer.max_epochs"),
            ((f"--ckpt_path={last.with_name('first.ckpt')}",), "is newer (step 12) and would be overwritten"),
        ):
            with pytest.raises(SystemExit):
                run("logs", *settings)
            assert message in capsys.readouterr().err
        assert {path: path.read_bytes() for path in last.parents[1].rglob("*") if path.is_file()} == files

    def test_a_damaged_checkpoint_is_named_and_a_good_one_offered(self, run, interrupt, capsys):
        interrupt(DieAt(8), "logs")
        last = folder("logs") / "checkpoints/last.ckpt"
        content = bytearray(last.read_bytes())
        content[len(content) // 2] ^= 4
        last.write_bytes(content)
        with pytest.raises(SystemExit):
            run("logs")
        best = last.with_name("best.ckpt")
        assert f"{last} is not a checkpoint, or a damaged one" in (error := capsys.readouterr().err)
        assert f"use {best}, which is intact" in error
        run("logs", f"--ckpt_path={best}")
        assert read_run_checkpoint(last)["global_step"] == 12
        for path in (best, last):
            path.write_bytes(b"")
        with pytest.raises(UsageError, match="name another"):
            read_run_checkpoint(last)

    def test_resume_with_their_seed(self, run, interrupt, capsys):
        interrupt(DieAt(8), "logs", "--seed_everything=7")
        run("logs")
        assert "seed 7" in capsys.readouterr().out.split("Resuming")[1]

    def test_say_what_is_not_as_it_was(self, run, interrupt, capsys):
        interrupt(DieAt(8), "logs")
        for clip in (1.5, 2.5, 1.5):
            run("logs", f"--trainer.gradient_clip_val={clip}")
        said = [
            line for line in capsys.readouterr().out.splitlines() if line.startswith("Resuming with other settings")
        ]
        assert said[0].endswith(": --trainer.gradient_clip_val None -> 1.5")
        assert [path.name for path in sorted(folder("logs").glob("*.yaml"))][:3] == [
            "config.yaml", "config_2.yaml", "config_3.yaml",
        ]  # fmt: skip

    @pytest.mark.filterwarnings("ignore:Experiment logs directory")
    def test_of_a_logger_whose_folder_is_always_the_same(self, run, capsys):
        logger = ("--ckpt_path=null", "--trainer.logger=CSVLogger", "--trainer.logger.save_dir=csv")
        logger += ("--trainer.logger.version=0", "--trainer.max_epochs=1")
        run("logs", *logger)
        saved = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
        assert Path("csv/lightning_logs/version_0/metrics.csv") in saved
        with pytest.raises(SystemExit):
            run("logs", *logger)
        assert "metrics.csv is of another run: give --trainer.logger another folder" in capsys.readouterr().err
        assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == saved

    def test_a_damaged_best_checkpoint_is_noticed_on_resume(self, run, capsys):
        path = run("logs") / "checkpoints/best.ckpt"
        os.truncate(path, 5000)
        with pytest.raises(SystemExit):
            run("logs", "--trainer.max_epochs=2")
        assert f"{path} is damaged: move it away to resume without it" in capsys.readouterr().err
        path.unlink()
        run("logs", "--trainer.max_epochs=2")


def test_curves_are_on_disk_before_a_checkpoint_is(interrupt):
    """A process that is killed takes with it what TensorBoard has not written yet."""
    interrupt(DieAt(8), "killed")
    assert [step for step, _ in scalars(folder("killed"))["train/loss"]][:3] == [2, 4, 6]
