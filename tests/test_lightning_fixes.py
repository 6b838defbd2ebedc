"""Each workaround against plain Lightning: without it the bug shows, with it not.

A case with fixed = False that fails says that upstream has fixed the bug: then remove the workaround.
"""

from contextlib import nullcontext

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
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
