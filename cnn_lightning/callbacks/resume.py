"""The state that makes a resumed run equal, bit for bit, to one that was never interrupted."""

import os
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from cnn_lightning.callbacks.curves import Curves
from cnn_lightning.callbacks.position import stopped_early
from cnn_lightning.checkpointing.settings import FORMER_RESUME_KEY, RESUME_KEY
from cnn_lightning.cores import own_cores
from cnn_lightning.lightning_fixes import (
    begin_next_epoch_with_max_steps,
    callbacks_of,
    restart_loader,
    restore_loader_position,
    resume_accumulation,
    skip_trained_batches,
)
from cnn_lightning.metrics import metrics_of


class ResumeState(Callback):
    """Saves in every checkpoint, under the key ``resume_state``, what Lightning does not save, and restores it.

    What a resumed run needs:

    - weights, optimizer, schedule, counters of epochs, steps and batches: saved by Lightning
    - the position in the epoch, from which the order and the augmentation of the images follow: saved by Lightning as
      the state of the loader, and restored here because Lightning may forget it (``lightning_fixes``)
    - ``random``: states of PyTorch's generators, which dropout uses: device -> (world_size, bytes) uint8
    - ``epoch_random``: the same at the start of the epoch, from which PyTorch's DataLoader draws its order; empty for
      loaders that save a state, as ours do
    - ``sums``, ``val``: sums of the epoch so far and its last validation, see ``Curves``
    - ``noted``: losses, logits and labels of the batches since the last training point
    - ``elapsed``: seconds of training since that point
    - ``frozen``: names of the weights that are not trained; callbacks such as BackboneFinetuning freeze them anew
    - ``threads``: PyTorch's threads on a CPU, since sums of another number of them differ in the last bits
    - ``precision``: that of the Trainer, which "auto" then keeps on another machine
    - ``loggers``: class and version of each logger, and how many rows a CSVLogger has written

    Args:
        curves: The callback whose sums are saved.
    """

    def __init__(self, curves: Curves) -> None:
        self.curves = curves
        self._state: dict[str, Any] = {}
        self._position: dict[str, Any] = {}
        self._epoch_random: dict[str, Tensor] = {}

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the state."""
        metrics = metrics_of(pl_module, "train")
        checkpoint[RESUME_KEY] = {
            "random": _random_states(trainer, pl_module.device),
            "epoch_random": self._epoch_random,
            "sums": self.curves.sums,
            "val": self.curves.val,
            "noted": list(metrics.gathered()) if metrics.update_called else [],
            "elapsed": time.perf_counter() - self.curves.since,
            "frozen": [name for name, weight in pl_module.named_parameters() if not weight.requires_grad],
            "threads": torch.get_num_threads(),
            "precision": trainer.precision,
            "loggers": [_logger_state(logger) for logger in trainer.loggers],
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the state until training starts."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._state = checkpoint.get(RESUME_KEY) or checkpoint.get(FORMER_RESUME_KEY) or {}
            loaders = checkpoint["loops"]["fit_loop"]["state_dict"].get("combined_loader")
            self._position = loaders[0] if loaders else {}
            threads = self._state.get("threads", 0)
            if trainer.strategy.root_device.type == "cpu" and 0 < threads <= own_cores():
                torch.set_num_threads(threads)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep Lightning from skipping an epoch where ``max_steps`` is given."""
        begin_next_epoch_with_max_steps(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the state, after ``Curves`` has started its clock."""
        resume_accumulation(trainer, pl_module)
        if self._position:
            restore_loader_position(trainer, self._position)
        self._epoch_random = self._state.get("epoch_random", {})
        if self._epoch_random:
            # The order is drawn with the first batch: draw it again, and skip the batches that were trained.
            _set_random_states(self._epoch_random, trainer, pl_module.device)
            skip_trained_batches(trainer)
        state, self._state, self._position = self._state, {}, {}
        if not state:
            return
        for name, weight in pl_module.named_parameters() if "frozen" in state else ():
            weight.requires_grad_(name not in state["frozen"])
        # Other reasons to stop, such as max_time, do not hold for the resumed run.
        if stopped_early(callbacks_of(trainer)):
            trainer.should_stop = True
        _set_random_states(state["random"], trainer, pl_module.device)
        self.curves.sums, self.curves.val = state["sums"], state["val"]
        self.curves.since = time.perf_counter() - state.get("elapsed", 0.0)
        if state["noted"] and trainer.is_global_zero:  # rank 0 has what all ranks noted
            metrics_of(pl_module, "train").update(*(part.to(pl_module.device) for part in state["noted"]))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the states from which a loader without a state draws its order."""
        if not hasattr(trainer.train_dataloader, "state_dict"):
            self._epoch_random = _random_states(trainer, pl_module.device)
            if trainer.fit_loop.is_resuming:
                restart_loader(trainer)


def _logger_state(logger: Logger) -> dict[str, Any]:
    """Flush a logger to the disk, because a resumed run logs only what follows the checkpoint; return its state."""
    logger.save()
    files: list[Path] = []
    if isinstance(logger, TensorBoardLogger):
        files = list(Path(logger.log_dir).glob("events.*"))
    elif isinstance(logger, CSVLogger):
        files = list(Path(logger.log_dir).glob("metrics.csv"))
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    rows = sum(map(_rows, files)) if isinstance(logger, CSVLogger) else None
    version = logger.version if isinstance(logger.version, int | str) else None  # safe loading refuses other types
    return {"class": type(logger).__name__, "version": version, "rows": rows}


def _rows(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines()) - 1


def _set_random_states(states: dict[str, Tensor], trainer: Trainer, device: torch.device) -> None:
    """Set the generators, unless another number of ranks saved their states."""
    rank = trainer.global_rank
    if len(states["cpu"]) == trainer.world_size:
        torch.set_rng_state(states["cpu"][rank].clone())
        if device.type == "cuda" and "cuda" in states:
            torch.cuda.set_rng_state(states["cuda"][rank].clone(), device)


def _random_states(trainer: Trainer, device: torch.device) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    of_ranks = [states] * trainer.world_size
    if trainer.world_size > 1:
        torch.distributed.all_gather_object(of_ranks, states)
    return {name: torch.stack([states[name] for states in of_ranks]) for name in states}
