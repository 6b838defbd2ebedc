"""PruneTrial: the run of a bad trial of a study stops early, in all processes."""

import math
from typing import TYPE_CHECKING

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from cnn_lightning.callbacks.position import within_epoch

if TYPE_CHECKING:  # importing Optuna takes a second, and most runs are no trials
    from optuna import Trial


class PruneTrial(Callback):
    """Stops the run of a study's trial early by asynchronous successive halving.

    The rungs are ``min_epochs``, ``min_epochs * reduction_factor``, ``min_epochs * reduction_factor**2``, ... epochs.
    After a rung, a trial continues only if it is among the best ``1 / reduction_factor`` of those that came so far. The
    first validation after a rung counts, also if it is epochs later, or within an epoch. A run that no study has
    started is left alone.

    Rank 0 alone talks to the study. The callback of optuna-integration does not work with several processes
    (https://github.com/optuna/optuna/issues/6043).

    Source: Li et al. 2020, A System for Massively Parallel Hyperparameter Tuning, arXiv 1810.05934.

    Args:
        monitor: The metric that is compared; the study says whether low or high is better.
        min_epochs: Epochs before the first comparison, at least 1.
        reduction_factor: At least 2.

    Raises:
        ValueError: ``min_epochs`` or ``reduction_factor`` is too low; by the hooks, if there is no such metric.
    """

    def __init__(self, monitor: str = "val/loss", min_epochs: int = 1, reduction_factor: int = 2) -> None:
        if min_epochs < 1 or reduction_factor < 2:
            expected = "min_epochs >= 1 and reduction_factor >= 2"
            raise ValueError(f"min_epochs is {min_epochs}, reduction_factor is {reduction_factor}, expected {expected}")
        self.monitor, self.min_epochs, self.reduction_factor = monitor, min_epochs, reduction_factor
        self._trial: Trial | None = None  # on rank 0 only
        self._is_trial = False
        self._reported: set[int] = set()  # epochs
        self._pruned_at: int | None = None  # epoch

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the study; stop where the trial was pruned before its run was resumed."""
        if trainer.is_global_zero:
            self._open()
        self._is_trial, self._pruned_at = trainer.strategy.broadcast((self._trial is not None, self._pruned_at))
        self._stop_if_pruned(trainer, trainer.current_epoch)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the metric, and let all ranks stop if the trial is pruned."""
        if not self._is_trial or trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        if self.monitor not in trainer.callback_metrics:
            known = ", ".join(sorted(trainer.callback_metrics))
            raise ValueError(f"PruneTrial: monitor is {self.monitor}, expected one of {known}")
        epoch = trainer.current_epoch if within_epoch(trainer) else trainer.current_epoch + 1
        ends = epoch == trainer.max_epochs or trainer.global_step == trainer.max_steps
        if trainer.is_global_zero and epoch > 0:
            self._report(trainer.callback_metrics[self.monitor].item(), epoch, ends)
        self._pruned_at = trainer.strategy.broadcast(self._pruned_at)
        self._stop_if_pruned(trainer, epoch)

    def _open(self) -> None:
        from cnn_lightning.studies.storage import current_trial, trials_of
        from cnn_lightning.studies.trials import PRUNED

        self._trial = trial = current_trial()
        if trial:
            frozen = trials_of(trial.study)[trial.number]
            self._reported = {*frozen.intermediate_values}  # also those of the trial that this one follows
            self._pruned_at = frozen.user_attrs.get(PRUNED)

    def _report(self, value: float, epoch: int, ends: bool) -> None:
        """Report once an epoch; a trial that ends anyway is complete, not pruned."""
        from cnn_lightning.studies.storage import patiently
        from cnn_lightning.studies.trials import PRUNED

        trial = self._trial
        assert trial is not None
        if not math.isfinite(value):
            return  # the run diverged, and will raise
        if epoch not in self._reported:
            patiently(lambda: trial.report(value, step=epoch))
            self._reported.add(epoch)
        rung = self._rung(epoch)
        if self._pruned_at is None and not ends and rung and self._is_behind(trial, value, rung):
            self._pruned_at = epoch
            patiently(lambda: trial.set_user_attr(PRUNED, epoch))

    def _rung(self, epoch: int) -> int | None:
        """Return the last rung that is reached by this epoch, and was not by the one that was reported before."""
        before = max((reported for reported in self._reported if reported < epoch), default=0)
        rung = self.min_epochs
        while rung * self.reduction_factor <= epoch:
            rung *= self.reduction_factor
        return rung if before < rung <= epoch else None

    def _is_behind(self, trial: "Trial", value: float, rung: int) -> bool:
        """Compare a trial with those that came this far; Optuna's pruner counts a killed one and its follower twice."""
        from cnn_lightning.studies.storage import trials_of
        from cnn_lightning.studies.trials import KEY, tasks_of

        tasks = tasks_of(trials_of(trial.study))
        tasks.pop(trial.user_attrs[KEY], None)
        values = [value]
        for trials in tasks.values():
            reported = sorted(trials[-1].intermediate_values.items())
            values += [loss for epoch, loss in reported if epoch >= rung][:1]
        values.sort()
        if trial.study.direction.name == "MAXIMIZE":
            values.reverse()
        best = values[: max(1, len(values) // self.reduction_factor)]
        return value not in best

    def _stop_if_pruned(self, trainer: Trainer, epoch: int) -> None:
        if self._pruned_at is not None and epoch >= self._pruned_at:
            trainer.should_stop = True
