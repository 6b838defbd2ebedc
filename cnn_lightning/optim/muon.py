"""ConvMuon, for the most learnt in a few epochs."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import AdamW


class ConvMuon(AdamW):
    """Muon for the kernels of convolutions, AdamW for all other weights.

    Muon (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks") steps along the momentum made
    orthogonal, so that all directions of a kernel learn at the same pace. Our own, because PyTorch's Muon takes
    matrices alone. A kernel is taken as the matrix of its output channels by all the rest; kernels that see one
    channel only, as the first ones do of a grey image, are left to AdamW.

    Args:
        params: The weights.
        lr: Learning rate of the kernels.
        momentum: Share of the momentum that a step keeps, in [0, 1).
        weight_decay: Share of the kernels, times the learning rate, that is lost in a step.
        newton_schulz_steps: Steps of the iteration that makes the momentum orthogonal; more are more exact.
        adamw_lr: Learning rate of all other weights.
        betas: Shares of the running means of gradient and squared gradient that a step of AdamW keeps.

    Raises:
        ValueError: A number is not possible.
    """

    def __init__(
        self,
        params: Iterable[Parameter],
        lr: float = 0.1,
        momentum: float = 0.85,
        weight_decay: float = 0.02,
        newton_schulz_steps: int = 3,
        adamw_lr: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.99),
    ) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"Invalid momentum: {momentum}")
        if newton_schulz_steps < 1:
            raise ValueError(f"Invalid newton_schulz_steps: {newton_schulz_steps}")
        params = list(params)
        kernels = [param for param in params if _is_kernel(param)]
        others = [param for param in params if not _is_kernel(param)]
        muon = {"momentum": momentum, "newton_schulz_steps": newton_schulz_steps}
        groups = [{"params": kernels, **muon}, {"params": others, "lr": adamw_lr, "weight_decay": 0.0}]
        super().__init__(groups, lr=lr, betas=betas, weight_decay=weight_decay)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step; return what ``closure``, which computes the gradients, returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for param in group["params"]:
                if "momentum" in group and param.grad is not None:
                    self._step_kernel(param, group)
        super().step()
        return loss

    def _step_kernel(self, kernel: Parameter, group: dict[str, Any]) -> None:
        state = self.state[kernel]
        if not state:
            state["momentum"] = torch.zeros_like(kernel)
            state["step"] = torch.tensor(0.0)  # not used, but AdamW wants to find one in every state that is loaded
        momentum = state["momentum"].lerp_(kernel.grad, 1 - group["momentum"])
        nesterov = kernel.grad.lerp(momentum, group["momentum"])
        step = orthogonal(nesterov.flatten(1), group["newton_schulz_steps"]).view(kernel.shape)
        kernel.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * step)
        kernel.grad = None  # it has had its step: AdamW leaves it out


def orthogonal(matrix: Tensor, steps: int) -> Tensor:
    """Bring all singular values of a matrix close to 1, by the Newton-Schulz iteration of Jordan et al. 2024.

    Args:
        matrix: (M, N) float.
        steps: Steps of the iteration; after 5, singular values lie between 0.7 and 1.2.

    Returns:
        (M, N) of the same dtype. Computed in bfloat16, but where that is imitated in float32, 14 times as fast.
    """
    rows, columns = matrix.shape
    imitated = matrix.device.type == "cpu" and "AVX512" not in torch.backends.cpu.get_cpu_capability()
    x = matrix if imitated else matrix.bfloat16()
    x = x.T if rows > columns else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.T if rows > columns else x).to(matrix.dtype)


def _is_kernel(param: Parameter) -> bool:
    return param.ndim == 4 and param.shape[1] > 1
