"""ImageClassifier: the only training code, for every network."""

import math
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from cnn_lightning.checkpointing.checkpoint_io import check_classes, read_checkpoint
from cnn_lightning.errors import DivergedError, UsageError
from cnn_lightning.metrics import LossAndAccuracy
from cnn_lightning.nets import ConvNet
from cnn_lightning.optim.schedules import Cosine, OneCycle

# The classes that the settings in a checkpoint may name.
MODEL_CLASSES = (ConvNet, Optimizer, OneCycle, Cosine)


class ImageClassifier(LightningModule):
    """Trains a network with cross-entropy, and measures loss and accuracy on training, validation and test images.

    ``train/loss`` and ``train/acc`` are means over the images since the last point of the curve, which comes every
    ``--trainer.log_every_n_steps`` steps and at the end of an epoch; those of ``val`` and ``test`` are means over
    all their images. Accuracy is the share of correctly classified images, in [0, 1]. These curves are drawn over the
    optimizer steps made; ``epoch/train_loss``, ``epoch/val_acc`` and so on, over the epochs, the first of which is 1.
    ``images_per_second`` and ``epoch/seconds`` count the time of training, without validation.

    Args:
        net: The network.
        optimizer: Makes the optimizer of the network's weights; ``optimizer.lr`` is the learning rate, the highest
            one where there is a schedule.
        lr_schedule: Makes the learning-rate schedule of the optimizer and the total number of steps, OneCycle or
            Cosine. Default: the learning rate stays as it is.
        label_smoothing: Share of every label that is spread over all classes in training, in [0, 1) (Szegedy et al.
            2016, arXiv 1512.00567). ``train/loss`` is then that of the smoothed labels.
        compile_mode: Mode in which ``torch.compile`` takes the network when training starts, "reduce-overhead" for
            CUDA graphs. Default: it does not. Checkpoints stay as they are. It takes a minute or two to start, and
            does not pay on a CPU.

    Raises:
        UsageError: ``label_smoothing`` is not possible.
    """

    def __init__(
        self,
        net: ConvNet,
        optimizer: Callable[[Iterable], Optimizer] = torch.optim.AdamW,
        lr_schedule: Callable[[Optimizer, int], OneCycle | Cosine] | None = None,
        label_smoothing: float = 0.0,
        compile_mode: Literal["default", "reduce-overhead", "max-autotune"] | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise UsageError(
                f"label_smoothing is {label_smoothing}, expected 0 or more and less than 1: "
                "change --model.label_smoothing"
            )
        self._save_plain_hyperparameters(net)
        # Convolutions of PyTorch are fastest on images whose channels lie next to each other, on CPUs as on GPUs.
        self.net = net.to(memory_format=torch.channels_last)
        self.optimizer = optimizer
        self.lr_schedule = lr_schedule
        self.label_smoothing = label_smoothing
        self.compile_mode = compile_mode
        self.train_metrics = LossAndAccuracy()
        self.val_metrics = LossAndAccuracy()
        self.test_metrics = LossAndAccuracy()
        self._epoch_sums: dict[str, float] = {}  # of training, over the images
        self._epoch_val: dict[str, Tensor] = {}  # of its last validation
        self._since = self._paused = 0.0  # seconds: the last point of the training curves, the start of validation
        self._to_go_on: dict[str, Any] = {}  # what a checkpoint says of the epoch it was saved in
        # Shows Lightning's model summary the size of every layer's output.
        self.example_input_array = torch.zeros(1, net.in_channels, net.image_size, net.image_size)

    def forward(self, images: Tensor) -> Tensor:
        """Score every class: (B, C, H, W) float, normalised -> (B, num_classes) float."""
        return self.net(images)

    def on_fit_start(self) -> None:
        """Have Lightning (2.6.6) go on as it should, and the processes wait for each other in training steps only."""
        # With max_steps it would take the end of an epoch for its middle, and leave out the next.
        self.trainer.fit_loop._iteration_based_training = lambda: False
        if isinstance(self.trainer.strategy.model, DistributedDataParallel):
            # It would share the batch statistics in every batch of validation, too, of which one process may have
            # more; they are shared before it instead.
            self.trainer.strategy.model.broadcast_buffers = False

    def on_train_start(self) -> None:
        """Compile the network in place, if it is to be: its weights keep their names. Go on where a run stopped."""
        if self.compile_mode:
            self.net.compile(mode=self.compile_mode)
        self._since = time.perf_counter()
        # Lightning (2.6.6) forgets this if the schedule has asked for the number of steps before.
        self.trainer.fit_loop._load_combined_loader_states()
        if self._to_go_on:
            self._go_on(**self._to_go_on)
            self._to_go_on = {}

    def on_train_epoch_start(self) -> None:
        """Begin the means of an epoch."""
        self._epoch_sums = dict.fromkeys(("images", "seconds", "loss", "acc"), 0.0)
        self._epoch_val = {}
        self._since = time.perf_counter()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy of a batch of (B, C, H, W) images and (B,) labels, to be minimised.

        Raises:
            UsageError: The network cannot be trained on this batch (batch normalisation on a single image), or
                cannot be compiled here.
        """
        try:
            return self._step(batch, self.train_metrics, self.label_smoothing)
        except ValueError as error:
            raise UsageError(f"{error}: change --data.batch_size, or set --data.drop_last true") from error
        except RuntimeError as error:
            if type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
                reason = str(error).splitlines()[0]
                raise UsageError(f"torch.compile fails ({reason}): leave out --model.compile_mode") from error
            raise

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Make a step, and add a point to the training curves where one is due.

        Here, and not when Lightning is done with the batch, so that checkpoints, which are saved then, are of the
        same moment as the curves.
        """
        super().optimizer_step(*args, **kwargs)
        step = self.global_step + 1  # Lightning counts it after this
        interval = self.trainer.log_every_n_steps  # 0: only at the end of an epoch
        if interval and step % interval == 0:
            self._draw_training_point(step)

    def on_train_epoch_end(self) -> None:
        """Add a point for the steps since the last one, and one for the epoch."""
        if self.train_metrics.update_called:
            self._draw_training_point(self.global_step)
        sums, val = self._epoch_sums, self._epoch_val
        point = {f"epoch/train_{name}": sums[name] / sums["images"] for name in ("loss", "acc")}
        point |= {f"epoch/{name.replace('/', '_')}": value.item() for name, value in val.items()}
        point |= {"epoch/images_per_second": sums["images"] / sums["seconds"], "epoch/seconds": sums["seconds"]}
        for logger in self.loggers:
            # Other loggers have one horizontal axis for all curves.
            counts_epochs = isinstance(logger, TensorBoardLogger)
            logger.log_metrics(point, step=self.current_epoch + 1 if counts_epochs else self.global_step)

    def on_validation_start(self) -> None:
        """Stop the clock of training."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # steps that still run there belong to training
        self._paused = time.perf_counter()

    def on_validation_epoch_start(self) -> None:
        """Have all processes validate what is saved: batch statistics differ between them, those of the first count.

        Averaged weights are in place by now.
        """
        if self.trainer.world_size > 1:
            for buffer in self.net.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def on_validation_end(self) -> None:
        """Start the clock of training again."""
        self._since += time.perf_counter() - self._paused

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Measure a validation batch."""
        self._step(batch, self.val_metrics)

    def on_validation_epoch_end(self) -> None:
        """Add a point to the validation curves."""
        self._epoch_val = self._log("val", self.val_metrics)

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

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what else it takes to go on in the middle of an epoch: random numbers, and the means so far.

        Raises:
            DivergedError: Weights are not finite, so that nothing good is to be replaced by them.
        """
        fitting, weights = self.trainer.state.fn == TrainerFn.FITTING, checkpoint["state_dict"].values()
        if fitting and not all(weight.isfinite().all() for weight in weights):
            self._refuse("a weight is not a finite number", self.global_step)
        checkpoint["to_go_on"] = {
            "random": self._random_states(),
            "sums": self._epoch_sums,
            "val": self._epoch_val,
            "noted": list(self.train_metrics.noted()) if self.train_metrics.update_called else [],
            "elapsed": time.perf_counter() - self._since,
            "should_stop": self.trainer.should_stop,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep it until training starts, if it does."""
        if self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            self._to_go_on = checkpoint.get("to_go_on", {})

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: str | Path, **settings: Any) -> "ImageClassifier":
        """Load a classifier; no code in the checkpoint is run, and only classes that are imported are built.

        Args:
            checkpoint_path: A file that a Trainer saved.
            settings: As for ``LightningModule.load_from_checkpoint``; ``weights_only`` is always True.

        Raises:
            UsageError: It is damaged, or asks for more than tensors, plain values and known classes.
        """
        checkpoint = read_checkpoint(Path(checkpoint_path))
        for key in ("hyper_parameters", "hparams", "module_arguments"):  # Lightning still reads its old names
            check_classes(checkpoint.get(key), MODEL_CLASSES, checkpoint_path)
        return super().load_from_checkpoint(checkpoint_path, **settings | {"weights_only": True})

    def configure_optimizers(self) -> dict[str, Any]:
        """Make the optimizer, and the schedule over all steps of the run.

        Raises:
            UsageError: One of their settings is not possible, or the schedule has no end because the run has none.
        """
        try:
            optimizer = self.optimizer(self.net.parameters())
        except (ValueError, TypeError) as error:
            raise UsageError(f"{error}: change --model.optimizer") from error
        for group in optimizer.param_groups if isinstance(optimizer, torch.optim.Adam) else ():
            # In a single pass over the weights, in which Adam's step takes half the time. Told so in its constructor,
            # it would refuse gradient clipping with 16-mixed.
            if group["fused"] is None and not group["foreach"] and not group["differentiable"]:
                group["fused"] = True
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

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; past the checks of nn.Module that of Lightning, which it sets 50 times in a step."""
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def _step(self, batch: tuple[Tensor, Tensor], metrics: LossAndAccuracy, smoothing: float = 0.0) -> Tensor:
        images, labels = batch
        scores = self(images)
        if self.trainer.world_size > 1 and self.trainer.training and self.trainer.is_last_batch:
            # The processes may have different numbers of images, and DistributedDataParallel takes the plain mean of
            # their gradients.
            total = cross_entropy(scores, labels, label_smoothing=smoothing, reduction="sum")
            images = self.trainer.strategy.reduce((labels >= 0).sum(), reduce_op="sum")
            loss = total * self.trainer.world_size / images
        else:
            loss = cross_entropy(scores, labels, label_smoothing=smoothing)
            total = loss.detach().float() * len(labels)
        metrics.update(total, scores, labels)
        return loss

    def _draw_training_point(self, step: int) -> None:
        point = self._values("train", self.train_metrics)
        # Waits for the device, once, so that its time is counted.
        numbers = dict(zip(point, torch.stack(list(point.values())).tolist(), strict=True))
        images = numbers.pop("train/images")
        self._check_finite(numbers["train/loss"], "train/loss", step)
        seconds = time.perf_counter() - self._since
        self._since += seconds
        # By hand what self.log does, for that takes as long as a step of a small network.
        self._draw(numbers | {"train/images_per_second": images / seconds}, step)
        self.trainer.progress_bar_metrics.update(numbers)
        self.trainer.callback_metrics.update({name: point[name] for name in numbers})
        terms = {"loss": numbers["train/loss"] * images, "acc": numbers["train/acc"] * images}
        for name, term in (terms | {"images": images, "seconds": seconds}).items():
            self._epoch_sums[name] += term

    def _log(self, stage: str, metrics: LossAndAccuracy) -> dict[str, Tensor]:
        values = self._values(stage, metrics)
        del values[f"{stage}/images"]
        fitting = self.trainer.state.fn == TrainerFn.FITTING
        if fitting:
            self._check_finite(values[f"{stage}/loss"].item(), f"{stage}/loss", self.global_step)
        # torchmetrics has gathered the processes; sync_dist, without which Lightning warns, averages equal values.
        self.log_dict(values, prog_bar=True, sync_dist=True, logger=False if fitting else None)
        if fitting and not self.trainer.sanity_checking:
            # Lightning has not counted the last step before validation yet.
            self._draw({name: value.item() for name, value in values.items()}, self.global_step)
        return values

    def _values(self, stage: str, metrics: LossAndAccuracy) -> dict[str, Tensor]:
        values = {f"{stage}/{name}": value for name, value in metrics.compute().items()}
        metrics.reset()
        return values

    def _draw(self, point: dict[str, float], step: int) -> None:
        for logger in self.loggers:
            logger.log_metrics(point, step=step)

    def _check_finite(self, value: float, name: str, step: int) -> None:
        if not math.isfinite(value):
            self._refuse(f"{name} is {value}", step)

    def _refuse(self, what: str, step: int) -> NoReturn:
        lr = self.trainer.optimizers[0].param_groups[0]["lr"]
        raise DivergedError(
            f"training has diverged: {what} at step {step:,}, where the learning rate is {lr:.3g}: try a tenth of "
            "--model.optimizer.lr, or --trainer.gradient_clip_val 1"
        )

    def _random_states(self) -> dict[str, Tensor]:
        """State of PyTorch's random numbers, which dropout draws, by device: (world_size, bytes) uint8."""
        states = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.device)
        of_all = [states]
        if self.trainer.world_size > 1:
            of_all *= self.trainer.world_size
            torch.distributed.all_gather_object(of_all, states)
        return {name: torch.stack([states[name] for states in of_all]) for name in states}

    def _go_on(
        self,
        random: dict[str, Tensor],
        sums: dict[str, float],
        val: dict[str, Tensor],
        noted: list[Tensor],
        should_stop: bool,
        elapsed: float = 0.0,
    ) -> None:
        if any(isinstance(callback, EarlyStopping) for callback in self.trainer.callbacks):
            self.trainer.should_stop = should_stop
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        if len(random["cpu"]) == world_size:
            torch.set_rng_state(random["cpu"][rank].clone())
            if self.device.type == "cuda" and "cuda" in random:
                torch.cuda.set_rng_state(random["cuda"][rank].clone(), self.device)
        self._epoch_sums, self._epoch_val, self._since = sums, val, time.perf_counter() - elapsed
        if noted and self.trainer.is_global_zero:  # it has what all processes noted
            self.train_metrics.update(*(part.to(self.device) for part in noted))

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
