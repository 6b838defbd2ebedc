"""ConvMuon, an optimizer for high accuracy in few epochs."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import AdamW

from cnn_lightning.errors import UsageError


class ConvMuon(AdamW):
    """Muon for the kernels of convolutions, AdamW for all other parameters.

    Muon (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks") orthogonalises the momentum,
    so that all directions of a kernel learn at the same rate. Custom because PyTorch's Muon takes only 2-D parameters:
    here a kernel is a matrix, output channels × rest. AdamW updates kernels that have one input channel.

    Args:
        params: Parameters to optimize.
        lr: Learning rate of the kernels.
        momentum: Decay of the momentum, in [0, 1).
        weight_decay: Decoupled weight decay of the kernels; the other parameters have none.
        newton_schulz_steps: Iterations of orthogonalisation; more are more exact.
        adamw_lr: Learning rate of all other parameters.
        betas: Decay of AdamW's running means of the gradient and the squared gradient.

    Raises:
        ValueError: An argument is out of range.
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
            raise UsageError(f"momentum is {momentum}, expected 0 or more and less than 1", "momentum")
        if newton_schulz_steps < 1:
            raise UsageError(f"newton_schulz_steps is {newton_schulz_steps}, expected 1 or more", "newton_schulz_steps")
        kernels: list[Parameter] = []
        others: list[Parameter] = []
        for param in params:
            (kernels if param.ndim == 4 and param.shape[1] > 1 else others).append(param)
        muon = {"momentum": momentum, "newton_schulz_steps": newton_schulz_steps}
        groups = [{"params": kernels, **muon}, {"params": others, "lr": adamw_lr, "weight_decay": 0.0}]
        super().__init__(groups, lr=lr, betas=betas, weight_decay=weight_decay)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step, and return the result of ``closure``, which computes the gradients."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group in self.param_groups:
            for param in group["params"]:
                if "momentum" in group and param.grad is not None:
                    self._step_kernel(param, param.grad, group)
                    param.grad = None  # AdamW skips parameters without a gradient
        super().step()
        return loss

    def _step_kernel(self, kernel: Parameter, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[kernel]
        if not state:
            state["momentum"] = torch.zeros_like(kernel)
            state["step"] = torch.tensor(0.0)  # unused, but AdamW expects it in every state it loads
        momentum = state["momentum"].lerp_(grad, 1 - group["momentum"])
        nesterov = grad.lerp(momentum, group["momentum"])
        update = orthogonal(nesterov.flatten(1), group["newton_schulz_steps"]).view(kernel.shape)
        kernel.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * update)


def orthogonal(matrix: Tensor, steps: int) -> Tensor:
    """Bring the singular values of an (M, N) matrix close to 1; after 5 Newton-Schulz steps they are in [0.7, 1.2]."""
    rows, columns = matrix.shape
    # On CPUs without AVX-512, bfloat16 is emulated and 14 times slower.
    emulated = matrix.device.type == "cpu" and "AVX512" not in torch.backends.cpu.get_cpu_capability()
    x = matrix if emulated else matrix.bfloat16()
    x = x.T if rows > columns else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.T if rows > columns else x).to(matrix.dtype)
