"""Each workaround against plain Lightning: without it the bug shows, with it not.

A case with fixed = False that fails says that upstream has fixed the bug: then remove the workaround.
"""

import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, GradientAccumulationScheduler
from lightning.pytorch.profilers import PassThroughProfiler

from cnn_lightning import lightning_fixes as fixes

QUIET = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
QUIET |= {"enable_progress_bar": False, "enable_model_summary": False}
BATCHES = 4  # in an epoch


class Loader:
    """A loader with a state, as Lightning defines it."""

    def __init__(self):
        self.given = 0
        self.loaded = None

    def __len__(self):
        return BATCHES

    def __iter__(self):
        for self.given in range(1, BATCHES + 1):
            yield torch.ones(2, 3)

    def state_dict(self):
        return {"given": self.given}

    def load_state_dict(self, state):
        self.loaded = state


class Model(LightningModule):
    def __init__(self, asks_for_steps=False):
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)
        self.asks_for_steps, self.seen = asks_for_steps, []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, batch_idx))
        return self.layer(batch).sum()

    def test_step(self, batch, batch_idx):
        self.tested = self.layer.weight.detach().clone()

    def configure_optimizers(self):
        if self.asks_for_steps:
            assert self.trainer.estimated_stepping_batches
        return torch.optim.SGD(self.parameters(), 0.1)


class Save(Callback):
    """Saves after a batch, or after an epoch."""

    def __init__(self, batch=None):
        self.batch = batch

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == self.batch and trainer.current_epoch == 0:
            trainer.save_checkpoint("saved.ckpt", weights_only=False)

    def on_train_epoch_end(self, trainer, pl_module):
        if self.batch is None and trainer.current_epoch == 0:
            trainer.save_checkpoint("saved.ckpt", weights_only=False)


class Call(Callback):
    """Calls a workaround when training starts."""

    def __init__(self, hook, function):
        setattr(self, hook, lambda trainer, pl_module: function(trainer))


class TestPlainLightning:
    pytestmark = pytest.mark.filterwarnings("ignore")  # what Lightning says of models this small

    @pytest.mark.parametrize("fixed", [False, True])
    def test_max_steps_resume_at_the_end_of_an_epoch(self, fixed):
        Trainer(max_steps=2 * BATCHES, callbacks=[Save()], **QUIET).fit(Model(), Loader())
        model = Model()
        callbacks = [Call("on_fit_start", fixes.begin_next_epoch_with_max_steps)] if fixed else []
        resumed = Trainer(max_steps=2 * BATCHES, callbacks=callbacks, **QUIET)
        resumed.fit(model, Loader(), ckpt_path="saved.ckpt", weights_only=True)
        assert (model.seen == [(1, index) for index in range(BATCHES)]) is fixed

    @pytest.mark.parametrize("fixed", [False, True])
    def test_the_rest_of_an_epoch_that_is_cut_short_is_skipped(self, fixed):
        class StopAndSave(Save):
            def on_train_batch_end(self, trainer, *args):
                trainer.should_stop = trainer.global_step == 2

            def on_save_checkpoint(self, trainer, pl_module, checkpoint):
                if fixed:
                    fixes.count_epoch_as_begun(checkpoint["loops"]["fit_loop"], validated=False)

        Trainer(max_epochs=2, callbacks=[StopAndSave()], **QUIET).fit(Model(), Loader())
        model = Model()
        Trainer(max_epochs=2, **QUIET).fit(model, Loader(), ckpt_path="saved.ckpt", weights_only=True)
        assert ((0, 2) in model.seen) is fixed
        assert (1, 3) in model.seen

    @pytest.mark.parametrize("fixed", [False, True])
    def test_a_batch_before_a_validation_counts_twice_where_an_epoch_is_cut_short(self, fixed):
        class Validated(Model):
            def validation_step(self, batch, batch_idx):
                pass

        class StopAndSave(Save):
            def on_validation_end(self, trainer, pl_module):
                trainer.should_stop = True

            def on_save_checkpoint(self, trainer, pl_module, checkpoint):
                fixes.count_epoch_as_begun(checkpoint["loops"]["fit_loop"], validated=fixed)

        class Count(Callback):
            def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
                steps.append(trainer.fit_loop.epoch_loop._batches_that_stepped)

        steps, settings = [], QUIET | {"max_epochs": 1, "val_check_interval": 2, "num_sanity_val_steps": 0}
        Trainer(callbacks=[StopAndSave()], **settings).fit(Validated(), Loader(), Loader())
        resumed = Trainer(callbacks=[Count()], **settings)
        resumed.fit(Validated(), Loader(), Loader(), ckpt_path="saved.ckpt", weights_only=True)
        assert steps == ([2, 3] if fixed else [3, 4])

    def test_steps_of_a_run_are_those_of_its_first_epoch_times_the_epochs(self):
        trainer = Trainer(max_epochs=3, callbacks=[GradientAccumulationScheduler({1: 2})], **QUIET)
        trainer.fit(Model(), Loader())
        assert trainer.global_step == fixes.steps_of_run(trainer) == BATCHES + 2 * BATCHES // 2
        fresh = Trainer(max_epochs=3, callbacks=[GradientAccumulationScheduler({1: 2})], **QUIET)
        asked = []
        fresh.callbacks.append(Call("on_train_start", lambda trainer: asked.append(trainer.estimated_stepping_batches)))
        fresh.fit(Model(), Loader())
        assert asked == [3 * BATCHES]

    @pytest.mark.parametrize("fixed", [False, True])
    def test_accumulation_is_forgotten_within_an_epoch(self, fixed):
        class SaveInSecondEpoch(Save):
            def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
                if (trainer.current_epoch, batch_idx) == (1, 1):
                    trainer.save_checkpoint("saved.ckpt", weights_only=False)

        def callbacks(*more):
            return [GradientAccumulationScheduler({1: 2}), *more]

        Trainer(max_epochs=2, callbacks=callbacks(SaveInSecondEpoch()), **QUIET).fit(Model(), Loader())
        more = [Call("on_train_start", lambda trainer: fixes.resume_accumulation(trainer, None))] if fixed else []
        resumed = Trainer(max_epochs=2, callbacks=callbacks(*more), **QUIET)
        resumed.fit(Model(), Loader(), ckpt_path="saved.ckpt", weights_only=True)
        assert resumed.global_step == BATCHES + (2 if fixed else 3)

    @pytest.mark.parametrize("fixed", [False, True])
    def test_position_of_a_loader_is_forgotten_where_the_number_of_steps_was_asked_for(self, fixed):
        Trainer(max_epochs=1, callbacks=[Save(batch=1)], **QUIET).fit(Model(True), Loader())
        position = torch.load("saved.ckpt")["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]
        assert position == {"given": 2}
        loader = Loader()
        restore = Call("on_train_start", lambda trainer: fixes.restore_loader_position(trainer, position))
        resumed = Trainer(max_epochs=1, callbacks=[restore] if fixed else [], **QUIET)
        resumed.fit(Model(True), loader, ckpt_path="saved.ckpt", weights_only=True)
        assert loader.loaded == (position if fixed else None)

    @pytest.mark.parametrize("fixed", [False, True])
    def test_test_after_training_uses_weights_that_are_not_averaged(self, fixed):
        averaging = EMAWeightAveraging(decay=0.9)
        trainer = Trainer(max_epochs=1, callbacks=[averaging, Save()], **QUIET)
        model = Model()
        trainer.fit(model, Loader())
        if fixed:
            fixes.remove_weight_averaging(trainer)
        trainer.test(model, Loader(), ckpt_path="saved.ckpt", weights_only=True, verbose=False)
        averaged = torch.load("saved.ckpt", weights_only=True)["state_dict"]["layer.weight"]
        assert torch.equal(model.tested, averaged) is fixed

    def test_the_name_of_a_hook_is_set_many_times_a_step(self):
        class Counting(Model):
            names = 0

            def __setattr__(self, name, value):
                type(self).names += name == "_current_fx_name"
                super().__setattr__(name, value)

        class Quick(fixes.QuickHookNames, Model):
            pass

        Trainer(max_epochs=1, **QUIET).fit(model := Counting(), Loader())
        assert model.names > 20 * BATCHES
        assert "_current_fx_name" in Quick().__dict__

    def test_a_profiler_that_measures_nothing_makes_a_context_for_each_action(self):
        first, second = (PassThroughProfiler().profile("action") for _ in range(2))
        assert first is not second
        assert fixes.NoProfiler().profile("action") is fixes.NoProfiler().profile("another")

    @pytest.mark.parametrize("fixed", [False, True])
    def test_ctrl_c_is_an_exit_with_code_1(self, fixed):
        def press(trainer):
            raise KeyboardInterrupt

        trainer = Trainer(max_epochs=1, callbacks=[Call("on_train_start", press)], **QUIET)
        with (
            pytest.raises(KeyboardInterrupt if fixed else SystemExit),
            fixes.keyboard_interrupt(trainer) if fixed else nullcontext(),
        ):
            trainer.fit(Model(), Loader())


@pytest.mark.parametrize("fixed", [False, True])
def test_distributed_data_parallel_shares_buffers_in_validation(fixed, tmp_path, monkeypatch):
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        net = torch.nn.parallel.DistributedDataParallel(torch.nn.BatchNorm1d(3)).eval()
        if fixed:

            class Strategy:
                model = net

            class FakeTrainer:
                strategy = Strategy

            fixes.sync_buffers_in_training_only(FakeTrainer)
        shared = []
        monkeypatch.setattr(net, "_sync_buffers", lambda: shared.append(True))
        with torch.no_grad():
            net(torch.ones(2, 3))
        assert bool(shared) is not fixed
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_an_integer_stays_an_integer(tmp_path):
    """In a new process, because the annotations are changed for good."""
    code = """
import sys
from jsonargparse import ArgumentParser
from lightning.pytorch import Trainer
from cnn_lightning.lightning_fixes import keep_integers_integers
if sys.argv[1] == "fixed":
    keep_integers_integers()
parser = ArgumentParser(exit_on_error=False)
parser.add_class_arguments(Trainer, "trainer")
print(repr([parser.parse_args([f"--trainer.limit_train_batches={each}"]).trainer.limit_train_batches
            for each in ("1", "1.0", "2", "0.5", "null")]))
"""
    printed = {
        fixed: subprocess.run([sys.executable, "-c", code, fixed], capture_output=True, text=True, check=True).stdout
        for fixed in ("fixed", "plain")
    }
    assert printed["fixed"] == "[1, 1.0, 2, 0.5, None]\n"
    assert printed["plain"] == "[1.0, 1.0, 2.0, 0.5, None]\n"
