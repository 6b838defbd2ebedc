"""PyTorch's learning-rate schedules over a whole run: optimizer and total number of steps first, one step a batch."""

from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from cnn_lightning.errors import UsageError


class OneCycle(OneCycleLR):
    """Rise to the ``lr`` of the optimizer, then fall to almost zero (Smith and Topin 2018, arXiv 1708.07120).

    Args:
        cycle_momentum: Lower the momentum (Adam's first beta) from 0.95 to 0.85 while the rate rises, then raise it.
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
        rates = [group["lr"] for group in optimizer.param_groups]
        factors: Any = {"div_factor": div_factor, "final_div_factor": final_div_factor}
        if pct_start * total_steps == 1:
            pct_start = 0.0  # PyTorch divides by zero where the rise is one step long
        super().__init__(optimizer, rates, total_steps, pct_start=pct_start, cycle_momentum=cycle_momentum, **factors)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of a schedule of the same length, or raise a UsageError."""
        _check_length(state_dict["total_steps"], self.total_steps)
        super().load_state_dict(state_dict)


class Cosine(CosineAnnealingLR):
    """Fall from the ``lr`` of the optimizer to ``eta_min`` along half a cosine (Loshchilov and Hutter 2017)."""

    def __init__(self, optimizer: Optimizer, total_steps: int, eta_min: float = 0.0) -> None:
        super().__init__(optimizer, T_max=total_steps, eta_min=eta_min)

    @property
    def total_steps(self) -> int:
        """Steps that it spans, as ``OneCycle`` calls them."""
        return self.T_max

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of a schedule of the same length, or raise a UsageError."""
        _check_length(state_dict["T_max"], self.T_max)
        super().load_state_dict(state_dict)


def _check_length(saved: int, configured: int) -> None:
    # PyTorch would use the saved length, and fail in the middle of a longer run.
    if saved != configured:
        problem = f"the saved learning-rate schedule spans {saved:,} steps, expected the {configured:,} of this run"
        raise UsageError(f"{problem}: resume with the same epochs and data, or start a new run", "max_epochs")
