"""ImageClassifier: the only training code, for every network."""

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from cnn_lightning.errors import UsageError
from cnn_lightning.nets import ConvNet
from cnn_lightning.schedules import Cosine, OneCycle


class ImageClassifier(LightningModule):
    """Trains a network with cross-entropy, and measures loss and accuracy on training, validation and test images.

    ``train/loss`` and ``train/acc`` are means over the images since the last point of the curve, which comes every
    ``--trainer.log_every_n_steps`` steps and at the end of an epoch; those of ``val`` and ``test`` are means over
    all their images. Accuracy is the share of correctly classified images, in [0, 1].

    Args:
        net: The network.
        optimizer: Makes the optimizer of the network's weights; ``optimizer.lr`` is the learning rate, the highest
            one where there is a schedule.
        lr_schedule: Makes the learning-rate schedule of the optimizer and the total number of steps, OneCycle or
            Cosine. Default: the learning rate stays as it is.
    """

    def __init__(
        self,
        net: ConvNet,
        optimizer: Callable[[Iterable], Optimizer] = torch.optim.AdamW,
        lr_schedule: Callable[[Optimizer, int], OneCycle | Cosine] | None = None,
    ) -> None:
        super().__init__()
        self._save_plain_hyperparameters(net)
        self.net = net
        self.optimizer = optimizer
        self.lr_schedule = lr_schedule
        self.train_metrics = _loss_and_accuracy(net.num_classes)
        self.val_metrics = _loss_and_accuracy(net.num_classes)
        self.test_metrics = _loss_and_accuracy(net.num_classes)
        # Shows Lightning's model summary the size of every layer's output.
        self.example_input_array = torch.zeros(1, net.in_channels, net.image_size, net.image_size)

    def forward(self, images: Tensor) -> Tensor:
        """Score every class: (B, C, H, W) float, normalised -> (B, num_classes) float."""
        return self.net(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy of a batch of (B, C, H, W) images and (B,) labels, to be minimised.

        Raises:
            UsageError: The network cannot be trained on this batch: batch normalisation on a single image.
        """
        try:
            return self._step(batch, self.train_metrics)
        except ValueError as error:
            raise UsageError(f"{error}: change --data.batch_size, or set --data.drop_last true") from error

    def on_train_batch_end(self, outputs: object, batch: object, batch_idx: int) -> None:
        """Add a point to the training curves."""
        stepped = (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0
        interval = self.trainer.log_every_n_steps  # 0: only at the end of an epoch
        if stepped and interval and self.global_step % interval == 0:
            self._log("train", self.train_metrics)

    def on_train_epoch_end(self) -> None:
        """Add a point for the steps since the last one."""
        if self.train_metrics["loss"].update_called:
            self._log("train", self.train_metrics)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Measure a validation batch."""
        self._step(batch, self.val_metrics)

    def on_validation_epoch_end(self) -> None:
        """Add a point to the validation curves."""
        self._log("val", self.val_metrics)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Measure a test batch."""
        self._step(batch, self.test_metrics)

    def on_test_epoch_end(self) -> None:
        """Log loss and accuracy on the test images."""
        self._log("test", self.test_metrics)

    def predict_step(self, batch: Tensor | tuple[Tensor, ...], batch_idx: int = 0) -> Tensor:
        """Probability of every class: (B, C, H, W) images, alone or with labels -> (B, num_classes), rows sum to 1."""
        images = batch if isinstance(batch, Tensor) else batch[0]
        return self(images).softmax(dim=1)

    def configure_optimizers(self) -> dict[str, Any]:
        """Make the optimizer, and the schedule over all steps of the run.

        Raises:
            UsageError: One of their settings is not possible, or the schedule has no end because the run has none.
        """
        try:
            optimizer = self.optimizer(self.net.parameters())
        except (ValueError, TypeError) as error:
            raise UsageError(f"{error}: change --model.optimizer") from error
        if self.lr_schedule is None:
            return {"optimizer": optimizer}
        total_steps = self.trainer.estimated_stepping_batches
        if total_steps == float("inf"):
            raise UsageError("a learning-rate schedule needs an end: set --trainer.max_epochs or --trainer.max_steps")
        try:
            schedule = self.lr_schedule(optimizer, total_steps)
        except (ValueError, TypeError, ZeroDivisionError) as error:
            raise UsageError(f"{error}: change --model.lr_schedule") from error
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _step(self, batch: tuple[Tensor, Tensor], metrics: nn.ModuleDict) -> Tensor:
        images, labels = batch
        scores = self(images)
        loss = cross_entropy(scores, labels)
        metrics["loss"].update(loss.detach(), weight=len(labels))
        metrics["acc"].update(scores.detach(), labels)
        return loss

    def _log(self, stage: str, metrics: nn.ModuleDict) -> None:
        for name, metric in metrics.items():
            # torchmetrics has gathered the processes; sync_dist, without which Lightning warns, averages equal values.
            self.log(f"{stage}/{name}", metric.compute(), prog_bar=True, sync_dist=True)
            metric.reset()

    def _save_plain_hyperparameters(self, net: ConvNet) -> None:
        """Save what rebuilds this classifier as plain values, so that a checkpoint loads without any code in it.

        From the command line, Lightning gives the parsed configuration of all arguments. Built in Python, it gives
        the objects: then the network is described by its class and arguments, and the optimizer is left out.
        """
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Attribute 'net' is an instance of `nn.Module`")
            self.save_hyperparameters()
        if self.hparams["net"] is net:
            config = {"class_path": f"{type(net).__module__}.{type(net).__qualname__}", "init_args": net.init_args}
            plain = {"net": config, "_instantiator": "lightning.pytorch.cli.instantiate_module"}
            self.save_hyperparameters(plain, ignore=["optimizer", "lr_schedule"])


def _loss_and_accuracy(num_classes: int) -> nn.ModuleDict:
    # NaN stands for NaN: a loss that is not a number must show, not be left out of the mean. (What torchmetrics 1.9
    # calls "disable" ignores the weights.)
    loss = MeanMetric(nan_strategy=float("nan"))
    return nn.ModuleDict({"loss": loss, "acc": MulticlassAccuracy(num_classes, average="micro")})
