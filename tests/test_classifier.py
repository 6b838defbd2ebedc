import re

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch.nn.functional import cross_entropy

from cnn_lightning import MNIST, Digits, ImageClassifier, LeNetCNN, TwoLayerCNN
from cnn_lightning.cli.fit import fit
from cnn_lightning.errors import UsageError
from cnn_lightning.nets import ConvNet
from cnn_lightning.optim.muon import ConvMuon
from cnn_lightning.optim.schedules import Cosine, OneCycle
from tests.conftest import scalars


def trainer(**settings):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    short = {"accelerator": "cpu", "max_epochs": 1, "num_sanity_val_steps": 0, "logger": False, "log_every_n_steps": 1}
    return Trainer(**quiet | short | settings)


def sgd(lr):
    return lambda parameters: torch.optim.SGD(parameters, lr=lr)


class Recorder(Callback):
    """Computes loss and accuracy of every training batch again, with the weights before the step."""

    def __init__(self):
        self.batches = []

    def on_train_batch_start(self, trainer, model, batch, batch_idx):
        images, labels = batch
        scores = model.net(images)
        self.batches.append((cross_entropy(scores, labels).item(), (scores.argmax(1) == labels).float().mean().item()))


class TestCurves:
    def test_training_points_are_means_since_the_point_before(self, tiny_root, tmp_path):
        recorder, logger = Recorder(), TensorBoardLogger(tmp_path, default_hp_metric=False)
        fit = trainer(logger=logger, log_every_n_steps=3, callbacks=[recorder], max_epochs=2)
        fit.fit(ImageClassifier(LeNetCNN(), sgd(0.01)), MNIST(tiny_root, batch_size=36))
        assert len(recorder.batches) == 20  # two epochs of 360 images
        curves = scalars(logger.log_dir)
        # Every third step, and the rest at the end of each epoch.
        windows = [(0, 3), (3, 6), (6, 9), (9, 10), (10, 12), (12, 15), (15, 18), (18, 20)]
        for column, tag in enumerate(("train/loss", "train/acc")):
            values = [batch[column] for batch in recorder.batches]
            expected = [sum(values[start:end]) / (end - start) for start, end in windows]
            assert [value for _, value in curves[tag]] == pytest.approx(expected, abs=1e-5)
            assert [step for step, _ in curves[tag]] == [end for _, end in windows]

    def test_points_count_optimizer_steps_when_gradients_accumulate(self, tiny_root, tmp_path):
        recorder, logger = Recorder(), TensorBoardLogger(tmp_path, default_hp_metric=False)
        fit = trainer(logger=logger, log_every_n_steps=2, callbacks=[recorder], accumulate_grad_batches=3)
        fit.fit(ImageClassifier(LeNetCNN(), sgd(0.01)), MNIST(tiny_root, batch_size=30))
        losses = [loss for loss, _ in recorder.batches]
        assert [value for _, value in scalars(logger.log_dir)["train/loss"]] == pytest.approx(
            [sum(losses[:6]) / 6, sum(losses[6:12]) / 6], abs=1e-5
        )

    def test_last_point_of_an_epoch_is_there_for_bars_and_callbacks(self, tiny_root):
        run = trainer(limit_train_batches=3, limit_val_batches=0, callbacks=[recorder := Recorder()])
        run.fit(ImageClassifier(LeNetCNN(), sgd(0.01)), MNIST(tiny_root))
        loss, accuracy = recorder.batches[-1]
        assert run.progress_bar_metrics["train/loss"] == pytest.approx(loss)
        assert isinstance(run.progress_bar_metrics["train/acc"], float)
        torch.testing.assert_close(run.callback_metrics["train/acc"], torch.tensor(accuracy))

    @pytest.mark.parametrize("stage", ["val", "test"])
    def test_validation_and_test_are_means_over_all_images(self, tiny_root, stage):
        seed_everything(0)
        model, module = ImageClassifier(LeNetCNN()), MNIST(tiny_root, batch_size=17)
        run = trainer()
        run.validate(model, module, verbose=False) if stage == "val" else run.test(model, module, verbose=False)
        images, labels = module._parts[stage]
        scores = model.net(module.normalize(images))
        loss, accuracy = cross_entropy(scores, labels), (scores.argmax(1) == labels).float().mean()
        torch.testing.assert_close(run.callback_metrics[f"{stage}/loss"], loss.detach())
        torch.testing.assert_close(run.callback_metrics[f"{stage}/acc"], accuracy)

    def test_a_loss_that_is_not_a_number_shows(self, tiny_root):
        model = ImageClassifier(LeNetCNN())
        torch.nn.init.constant_(model.net.head[0].weight, float("nan"))
        run = trainer()
        run.validate(model, MNIST(tiny_root), verbose=False)
        assert run.callback_metrics["val/loss"].isnan()


class TestTraining:
    def test_memorises_32_images(self):
        seed_everything(0)
        module = Digits(batch_size=32)
        module.setup("fit")
        module._parts["train"] = tuple(part[:32] for part in module._parts["train"])
        run = trainer(max_epochs=60, limit_val_batches=0)
        run.fit(ImageClassifier(LeNetCNN(), lambda parameters: torch.optim.Adam(parameters, lr=0.003)), module)
        assert run.callback_metrics["train/acc"] == 1
        assert run.callback_metrics["train/loss"] < 0.05

    def test_same_seed_gives_the_same_curve_and_weights(self, tiny_root, tmp_path):
        curves, weights = [], []
        for attempt, seed in enumerate((3, 3, 4)):
            seed_everything(seed)
            logger = TensorBoardLogger(tmp_path, version=attempt, default_hp_metric=False)
            model = ImageClassifier(TwoLayerCNN())
            trainer(logger=logger, max_epochs=2).fit(model, MNIST(tiny_root, batch_size=40))
            curves.append(scalars(logger.log_dir)["train/loss"])
            weights.append(torch.cat([parameter.flatten() for parameter in model.parameters()]))
        assert curves[0] == curves[1]
        assert torch.equal(weights[0], weights[1])
        assert curves[0] != curves[2]

    def test_resumed_run_without_dropout_ends_with_the_weights_of_an_uninterrupted_one(self, tiny_root, tmp_path):
        def model():
            seed_everything(0)
            return ImageClassifier(LeNetCNN(), lambda p: torch.optim.Adam(p, lr=0.01), lr_schedule=OneCycle)

        class Stop(Callback):
            def on_train_epoch_end(self, trainer, pl_module):
                if trainer.current_epoch == 1:
                    trainer.save_checkpoint(tmp_path / "epoch.ckpt")

        whole, resumed = model(), model()
        trainer(max_epochs=4, callbacks=[Stop()]).fit(whole, MNIST(tiny_root))
        trainer(max_epochs=4).fit(resumed, MNIST(tiny_root), ckpt_path=tmp_path / "epoch.ckpt", weights_only=True)
        for name, weights in whole.state_dict().items():
            assert torch.equal(weights, resumed.state_dict()[name]), name

    @pytest.mark.parametrize("schedule", [OneCycle, Cosine])
    def test_schedule_spans_the_whole_run(self, tiny_root, schedule):
        rates = []

        class Rates(Callback):
            def on_train_batch_start(self, trainer, *_):
                rates.append(trainer.optimizers[0].param_groups[0]["lr"])

        model = ImageClassifier(LeNetCNN(), sgd(0.1), lr_schedule=schedule)
        trainer(max_epochs=3, callbacks=[Rates()]).fit(model, MNIST(tiny_root, batch_size=36))
        assert len(rates) == 30
        assert max(rates) == pytest.approx(0.1, rel=0.01)
        assert rates[-1] < 0.001

    def test_schedule_of_a_run_without_end(self, tiny_root):
        model = ImageClassifier(LeNetCNN(), sgd(0.1), lr_schedule=OneCycle)
        with pytest.raises(UsageError, match="needs a run with an end, expected max_epochs or max_steps") as error:
            trainer(max_epochs=-1).fit(model, MNIST(tiny_root))
        assert error.value.argument == "max_epochs"

    def test_smooths_labels_in_training_alone(self, tiny_root):
        losses = []

        class Record(Callback):
            def on_train_batch_start(self, trainer, model, batch, batch_idx):
                images, labels = batch
                losses.append(cross_entropy(model.net(images), labels, label_smoothing=0.3).item())

        model, module = ImageClassifier(LeNetCNN(), sgd(0.01), label_smoothing=0.3), MNIST(tiny_root)
        run = trainer(callbacks=[Record()], limit_train_batches=1)
        run.fit(model, module)
        assert run.callback_metrics["train/loss"].item() == pytest.approx(losses[0])
        images, labels = module.part("val")
        loss = cross_entropy(model.net(module.normalize(images)), labels)
        assert run.callback_metrics["val/loss"].item() == pytest.approx(loss.item())

    @pytest.mark.parametrize("value", [-0.1, 1.0])
    def test_impossible_label_smoothing(self, value):
        with pytest.raises(UsageError, match=r"label_smoothing is .*, expected at least 0 and less than 1"):
            ImageClassifier(LeNetCNN(), label_smoothing=value)

    @pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW, ConvMuon])
    def test_adam_does_its_step_in_a_single_pass(self, tiny_root, optimizer):
        run = trainer(limit_train_batches=1, gradient_clip_val=1.0)
        run.fit(ImageClassifier(LeNetCNN(), optimizer), MNIST(tiny_root))
        assert all(group["fused"] for group in run.optimizers[0].param_groups)

    def test_but_not_where_another_way_was_chosen(self, tiny_root):
        run = trainer(limit_train_batches=1)
        model = ImageClassifier(LeNetCNN(), lambda parameters: torch.optim.Adam(parameters, foreach=True))
        run.fit(model, MNIST(tiny_root))
        assert not run.optimizers[0].param_groups[0]["fused"]

    def test_convolutions_get_their_channels_next_to_each_other(self, tiny_root):
        formats = []
        model = ImageClassifier(TwoLayerCNN())
        model.net.features[3].register_forward_hook(lambda layer, inputs, output: formats.append(output.stride()))
        trainer(limit_train_batches=1).fit(model, MNIST(tiny_root))
        assert formats[-1] == (14 * 14 * 32, 1, 14 * 32, 32)

    def test_compiled_network_learns_the_same_and_keeps_the_names_of_its_weights(self, tiny_root, monkeypatch):
        compile_module = torch.nn.Module.compile
        modes = []

        def without_compiler(module, mode):
            modes.append(mode)
            compile_module(module, backend="eager")

        monkeypatch.setattr(torch.nn.Module, "compile", without_compiler)
        states = []
        for mode in (None, "reduce-overhead"):
            seed_everything(0)
            model = ImageClassifier(LeNetCNN(), sgd(0.1), compile_mode=mode)
            trainer().fit(model, MNIST(tiny_root))
            states.append(model.state_dict())
        assert modes == ["reduce-overhead"]
        assert model.net._compiled_call_impl is not None
        assert states[0].keys() == states[1].keys()
        for name, weights in states[0].items():
            torch.testing.assert_close(weights, states[1][name])

    def test_compiler_that_is_missing(self, tiny_root, monkeypatch, error_of):
        def broken(module, mode):
            def fail(*args):
                raise torch._inductor.exc.InductorError(FileNotFoundError("g++ is not there"), None)

            module.forward = fail

        import torch._inductor.exc

        monkeypatch.setattr(torch.nn.Module, "compile", broken)
        message = error_of(fit, "--data=MNIST", f"--data.root={tiny_root}", "--model.compile_mode=default")
        assert re.search(r"torch.compile fails \(.*g\+\+ is not there.*--model.compile_mode", message)

    def test_impossible_optimizer(self, tiny_root):
        with pytest.raises(UsageError, match="Invalid learning rate: -1") as error:
            trainer().fit(ImageClassifier(LeNetCNN(), sgd(-1)), MNIST(tiny_root))
        assert error.value.argument == "optimizer"


def test_predictions_are_probabilities_with_and_without_labels(images):
    model = ImageClassifier(LeNetCNN()).eval()
    probabilities = model.predict_step(images)
    torch.testing.assert_close(probabilities, model.net(images).softmax(1))
    torch.testing.assert_close(probabilities.sum(1), torch.ones(6))
    assert torch.equal(model.predict_step((images, torch.arange(6))), probabilities)


class TestCheckpointOfAClassifierBuiltInPython:
    def test_needs_nothing_else(self, tiny_root, tmp_path, in_new_process, images):
        model = ImageClassifier(TwoLayerCNN(kernel_size=3), sgd(0.1))
        fit = trainer()
        fit.fit(model, MNIST(tiny_root))
        fit.save_checkpoint(tmp_path / "model.ckpt")
        torch.save(images, "images.pt")
        ended, _, errors = in_new_process(
            "import torch; from cnn_lightning import ImageClassifier\n"
            "model = ImageClassifier.load_from_checkpoint('model.ckpt', weights_only=True).eval()\n"
            "torch.save(model(torch.load('images.pt')), 'scores.pt')"
        )
        assert ended == 0, errors
        assert torch.equal(torch.load("scores.pt"), model.eval()(images))

    def test_and_so_does_one_that_was_loaded_and_saved_again(self, tiny_root, tmp_path, images):
        for path, model in (("first", ImageClassifier(TwoLayerCNN(kernel_size=3))), ("second", None)):
            model = model or ImageClassifier.load_from_checkpoint(tmp_path / "first", weights_only=True)
            fit = trainer()
            fit.fit(model, MNIST(tiny_root))
            fit.save_checkpoint(tmp_path / path)
        again = ImageClassifier.load_from_checkpoint(tmp_path / "second", weights_only=True)
        assert torch.equal(again.eval()(images), model.eval()(images))


def test_takes_any_network_under_the_contract(tiny_root):
    class Tiny(ConvNet):
        def __init__(self, in_channels=1, num_classes=10, image_size=28):
            super().__init__(in_channels, num_classes, image_size)
            self.features = torch.nn.AvgPool2d(7)
            self.head = torch.nn.Linear(16, num_classes)

    run = trainer()
    run.fit(ImageClassifier(Tiny()), MNIST(tiny_root))
    assert run.callback_metrics["val/loss"] < 3
