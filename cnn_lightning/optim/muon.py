"""ConvMuon, an optimizer for high accuracy in few epochs."""

from collections import defaultdict
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
        UsageError: An argument is out of range.
        ValueError: One that AdamW checks is.
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
        if not adamw_lr >= 0:  # PyTorch checks lr only
            raise UsageError(f"adamw_lr is {adamw_lr}, expected 0 or more", "adamw_lr")
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
            if "momentum" in group:
                self._step_kernels(group)
        super().step()
        return loss

    def _step_kernels(self, group: dict[str, Any]) -> None:
        by_shape = defaultdict[torch.Size, list[Parameter]](list)
        for kernel in group["params"]:
            if kernel.grad is not None:
                by_shape[kernel.shape].append(kernel)
        for kernels in by_shape.values():  # one batch a shape: fewer launches on a GPU, and as fast on a CPU
            matrices = torch.stack([self._nesterov(kernel, group["momentum"]).flatten(1) for kernel in kernels])
            updates = group["lr"] * orthogonal(matrices, group["newton_schulz_steps"])
            for kernel, update in zip(kernels, updates, strict=True):
                kernel.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update.view(kernel.shape))
                kernel.grad = None  # AdamW skips parameters without a gradient

    def _nesterov(self, kernel: Parameter, decay: float) -> Tensor:
        """Update the momentum of a kernel, and return its Nesterov momentum."""
        assert kernel.grad is not None
        state = self.state[kernel]
        if not state:
            state["momentum"] = torch.zeros_like(kernel)
            state["step"] = torch.tensor(0.0)  # unused, but AdamW expects it in every state it loads
        return kernel.grad.lerp(state["momentum"].lerp_(kernel.grad, 1 - decay), decay)


def orthogonal(matrices: Tensor, steps: int) -> Tensor:
    """Bring the singular values of (..., M, N) matrices close to 1: in [0.7, 1.2] after 5 Newton-Schulz steps."""
    rows, columns = matrices.shape[-2:]
    # On CPUs without AVX-512, bfloat16 is emulated and 14 times slower.
    emulated = matrices.device.type == "cpu" and "AVX512" not in torch.backends.cpu.get_cpu_capability()
    x = matrices if emulated else matrices.bfloat16()
    x = x.mT if rows > columns else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.mT if rows > columns else x).to(matrices.dtype)
