"""ImageClassifier: the LightningModule that trains and tests every network."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerConfig, OptimizerLRSchedulerConfig
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from cnn_lightning.callbacks.curves import Curves
from cnn_lightning.callbacks.dataset import DatasetFacts, example_input, loss_weight
from cnn_lightning.callbacks.distributed import DistributedCorrections, loss_over_ranks
from cnn_lightning.callbacks.resume import ResumeState
from cnn_lightning.callbacks.schedule import ScheduleSpan
from cnn_lightning.callbacks.stopping import StopWithinEpoch
from cnn_lightning.checkpointing.hyperparameters import check_model, save_plain_hyperparameters
from cnn_lightning.checkpointing.safe_loading import read_checkpoint
from cnn_lightning.errors import UsageError
from cnn_lightning.lightning_fixes import QuickHookNames, callbacks_of, steps_of_run
from cnn_lightning.metrics import LossAndAccuracy
from cnn_lightning.nets.base import Network, check_initialized
from cnn_lightning.optim import Cosine, OneCycle, adamw, build_optimizer

# Base classes of what the settings in a checkpoint may name.
MODEL_CLASSES = (Network, Optimizer, OneCycle, Cosine)


class ImageClassifier(QuickHookNames):  # a LightningModule
    """Trains a network with cross-entropy and measures loss and accuracy on training, validation and test images.

    ``Curves`` logs ``train/loss``, ``val/acc`` and so on, ``StopWithinEpoch`` and ``ResumeState`` make a run resumable
    to the bit (on a CPU); they come with the model for every Trainer, see ``configure_callbacks``.

    Args:
        net: The network: any ``nn.Module`` that maps (B, C, H, W) to (B, num_classes); ``ConvNet`` is a base for it.
        optimizer: Constructor of the optimizer; ``optimizer.lr`` is the learning rate, the peak of a schedule.
            Defaults to AdamW with a learning rate of 0.005.
        lr_schedule: Constructor of the learning-rate schedule, ``OneCycle`` or ``Cosine``, called with the optimizer
            and the number of steps of the run. None keeps the learning rate constant.
        label_smoothing: Share of each label spread over all classes in training, in [0, 1) (Szegedy et al. 2016,
            arXiv 1512.00567). ``train/loss`` is then the loss of the smoothed labels.
        class_weights: Weight of each class in the training loss, or "balanced": inversely proportional to the number
            of its training images. Defaults to equal weights.
        compile_mode: Mode of ``torch.compile``, "reduce-overhead" for CUDA graphs. Defaults to no compilation, which
            is faster on a CPU; compiling takes a minute or two. Checkpoints do not depend on it.

    Raises:
        UsageError: ``label_smoothing`` is out of range, or a lazy layer of the network has no weights yet.
    """

    def __init__(
        self,
        net: Network,
        optimizer: Callable[[Iterable], Optimizer] = adamw,
        lr_schedule: Callable[[Optimizer, int], OneCycle | Cosine] | None = OneCycle,
        label_smoothing: float = 0.0,
        class_weights: Literal["balanced"] | list[float] | None = None,
        compile_mode: Literal["default", "reduce-overhead", "max-autotune"] | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            message = f"label_smoothing is {label_smoothing}, expected at least 0 and less than 1"
            raise UsageError(message, "label_smoothing")
        check_initialized(net)
        save_plain_hyperparameters(self, net)
        self.net = net.to(memory_format=torch.channels_last)  # PyTorch's fastest layout for convolutions
        self.optimizer = optimizer
        self.lr_schedule = lr_schedule
        self.label_smoothing = label_smoothing
        self.class_weights = class_weights
        self.loss_weight: Tensor | None = None  # (num_classes,), from class_weights when training starts
        self.lr: float | None = None  # replaces that of the optimizer; Lightning's Tuner sets it
        self.compile_mode = compile_mode
        self.train_metrics = LossAndAccuracy()
        self.val_metrics = LossAndAccuracy()
        self.test_metrics = LossAndAccuracy()
        self.example_input_array = example_input(net)

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits: (B, C, H, W) float, normalised -> (B, num_classes) float."""
        return self.net(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the cross-entropy of a batch: (B, C, H, W) float images and (B,) int64 labels -> () float."""
        return self._step(batch, self.train_metrics, weight=self.loss_weight, label_smoothing=self.label_smoothing)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Measure a validation batch."""
        self._step(batch, self.val_metrics)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Measure a test batch."""
        self._step(batch, self.test_metrics)

    def predict_step(self, batch: Tensor | tuple[Tensor, ...], batch_idx: int = 0) -> Tensor:
        """Compute probabilities: (B, C, H, W) images, alone or with labels -> (B, num_classes), rows sum to 1."""
        images = batch if isinstance(batch, Tensor) else batch[0]
        return self(images).softmax(dim=1)

    def on_validation_epoch_end(self) -> None:
        """Make ``val/loss`` and ``val/acc`` known to the progress bar and the checkpoints."""
        self._log_metrics("val", self.val_metrics)

    def on_test_epoch_end(self) -> None:
        """Make ``test/loss`` and ``test/acc`` the result of the test."""
        self._log_metrics("test", self.test_metrics)

    def on_train_start(self) -> None:
        """Compile the network in place, so that its parameters keep their names."""
        if self.compile_mode:
            self.net.compile(mode=self.compile_mode)
        self.loss_weight = loss_weight(self.class_weights, self)

    def configure_optimizers(self) -> OptimizerConfig | OptimizerLRSchedulerConfig:
        """Build the optimizer and the schedule, which spans all steps of the run.

        Raises:
            UsageError: A setting is invalid, or the run has no end that a schedule could span.
        """
        optimizer = build_optimizer(self.optimizer, self.net.parameters(), self.lr)
        if self.lr_schedule is None:
            return {"optimizer": optimizer}
        steps = steps_of_run(self.trainer)
        if steps == float("inf"):
            message = "a learning-rate schedule needs a run with an end, expected max_epochs or max_steps"
            raise UsageError(message, "max_epochs")
        try:
            schedule = self.lr_schedule(optimizer, int(steps))
        except (ValueError, ZeroDivisionError) as error:
            raise UsageError(error, "lr_schedule") from error
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_callbacks(self) -> list[Callback]:
        """Add curves, exact resume, facts for checkpoints, a check of the schedule, and what several ranks need."""
        if any(isinstance(callback, Curves) for callback in callbacks_of(self.trainer)):
            return []
        curves = Curves()
        distributed = [DistributedCorrections()] if self.trainer.world_size > 1 else []
        return [*distributed, curves, StopWithinEpoch(), ResumeState(curves), DatasetFacts(), ScheduleSpan()]

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]  # its other arguments are passed on by name
        cls, checkpoint_path: str | Path, **settings: Any
    ) -> "ImageClassifier":
        """Load a classifier; no code in the checkpoint runs, and only classes that are imported are built.

        Args:
            checkpoint_path: A file that a Trainer saved.
            settings: As for ``LightningModule.load_from_checkpoint``; ``weights_only`` is always True. A network that
                was built in Python and is no ``ConvNet`` is not described by its checkpoint: give it as ``net``.

        Raises:
            UsageError: The file is damaged, or holds more than tensors, plain values and known classes.
        """
        check_model(read_checkpoint(Path(checkpoint_path)), MODEL_CLASSES, checkpoint_path, settings)
        return super().load_from_checkpoint(checkpoint_path, **settings | {"weights_only": True})

    def _step(self, batch: tuple[Tensor, Tensor], metrics: LossAndAccuracy, **settings: Any) -> Tensor:
        images, labels = batch
        logits = self(images)
        uneven = self.trainer.training and (self.trainer.is_last_batch or self.loss_weight is not None)
        if self.trainer.world_size > 1 and uneven:
            loss, total = loss_over_ranks(logits, labels, self.trainer.strategy, **settings)
        else:
            loss = cross_entropy(logits, labels, **settings)
            total = loss.detach().float() * len(labels)
        metrics.update(total, logits, labels)
        return loss

    def _log_metrics(self, stage: str, metrics: LossAndAccuracy) -> None:
        values = metrics.compute()  # over all ranks; sync_dist averages equal values, without it Lightning warns
        metrics.reset()
        results = {f"{stage}/{name}": values[name] for name in ("loss", "acc")}
        in_training = self.trainer.state.fn == TrainerFn.FITTING  # then Curves logs them
        self.log_dict(results, prog_bar=True, logger=False if in_training else None, sync_dist=True)
