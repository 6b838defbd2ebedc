"""Building an optimizer from its constructor."""

from collections.abc import Callable, Iterable

from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer

from cnn_lightning.errors import UsageError


def adamw(parameters: Iterable[Tensor]) -> AdamW:
    """AdamW with a learning rate of 0.005, the default optimizer."""
    return AdamW(parameters, lr=0.005)


def build_optimizer(
    constructor: Callable[[Iterable], Optimizer], parameters: Iterable[Tensor], lr: float | None = None
) -> Optimizer:
    """Build an optimizer; Adam and AdamW are fused.

    Args:
        constructor: Called with the parameters.
        parameters: The weights of the network.
        lr: Replaces the learning rate. None keeps that of the constructor.

    Raises:
        UsageError: A setting is invalid.
    """
    try:
        optimizer = constructor(parameters)
    except UsageError as error:
        raise UsageError(error, f"optimizer.{error.argument}" if error.argument else "optimizer") from error
    except ValueError as error:
        raise UsageError(error, "optimizer") from error
    for group in optimizer.param_groups:
        # Twice as fast; set here because Adam(fused=True) excludes gradient clipping with 16-mixed.
        if isinstance(optimizer, Adam) and not (group["foreach"] or group["differentiable"]):
            group["fused"] = group["fused"] is not False
        group["lr"] = group["lr"] if lr is None else lr
    return optimizer
