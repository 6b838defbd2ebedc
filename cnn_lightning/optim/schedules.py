"""Learning-rate schedules that span the whole run: PyTorch's own, told the number of steps by the classifier.

PyTorch's schedulers want step counts and take their arguments in different orders. These take the optimizer and the
total number of steps first, so that ``--model.lr_schedule OneCycle`` is all there is to say; the ``lr`` of the
optimizer is the highest learning rate. They advance with every step.
"""

from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from cnn_lightning.errors import UsageError


class OneCycle(OneCycleLR):
    """Rise to the highest learning rate, then fall to almost zero (Smith and Topin 2018, arXiv 1708.07120).

    Args:
        optimizer: The optimizer, whose ``lr`` is the highest learning rate.
        total_steps: Steps of the whole run.
        pct_start: Share of the steps in which the learning rate rises, between 0 and 1.
        div_factor: The run starts with ``lr / div_factor``.
        final_div_factor: The run ends with ``lr / div_factor / final_div_factor``.
        cycle_momentum: Lower the momentum (for Adam its first beta) from 0.95 to 0.85 while the rate rises, and
            raise it again while the rate falls.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        pct_start: float = 0.3,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        cycle_momentum: bool = False,
    ) -> None:
        super().__init__(
            optimizer,
            max_lr=[group["lr"] for group in optimizer.param_groups],
            total_steps=total_steps,
            pct_start=pct_start,
            div_factor=div_factor,
            final_div_factor=final_div_factor,
            cycle_momentum=cycle_momentum,
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on in a schedule of the same length.

        Raises:
            UsageError: The saved schedule has another length.
        """
        _check_length(state_dict["total_steps"], self.total_steps)
        super().load_state_dict(state_dict)


class Cosine(CosineAnnealingLR):
    """Fall from the highest learning rate to the lowest along half a cosine (Loshchilov and Hutter 2017).

    Args:
        optimizer: The optimizer, whose ``lr`` is the highest learning rate.
        total_steps: Steps of the whole run.
        eta_min: The lowest learning rate.
    """

    def __init__(self, optimizer: Optimizer, total_steps: int, eta_min: float = 0.0) -> None:
        super().__init__(optimizer, T_max=total_steps, eta_min=eta_min)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on in a schedule of the same length.

        Raises:
            UsageError: The saved schedule has another length.
        """
        _check_length(state_dict["T_max"], self.T_max)
        super().load_state_dict(state_dict)


def _check_length(saved: int, configured: int) -> None:
    # PyTorch would take the saved length, and fail in the middle of training when the run is longer.
    if saved != configured:
        raise UsageError(
            f"the learning-rate schedule of the checkpoint spans {saved:,} steps, that of this run {configured:,}: "
            "keep --trainer.max_epochs and --data as they were to go on, or start a new run without --ckpt_path"
        )
