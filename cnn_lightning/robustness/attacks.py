"""Attacks: the small change of each pixel that raises the loss of a network most, with FGSM and PGD."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

EPSILONS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3)  # of the curves; pixels are in [0, 1]
STEPS = {"FGSM": 1, "PGD": 10}
BATCH = 64  # images at a time, as many as in training by default


def attack(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    scale: Sequence[float],
    shift: Sequence[float],
    epsilon: float,
    steps: int = 1,
    seed: int = 0,
    border: int = 0,
) -> Tensor:
    """Change images within the L∞ ball of a radius so that the cross-entropy of their labels rises.

    One step is the fast gradient sign method, FGSM (Goodfellow et al. 2015, arXiv 1412.6572), which starts from the
    image. More steps are projected gradient descent, PGD (Madry et al. 2018, arXiv 1706.06083), with steps of
    2.5 · epsilon / steps from a random place in the ball.

    Args:
        net: Maps (B, C, H, W) normalised images to (B, num_classes) logits; in evaluation mode. It is not changed.
        images: (N, C, H, W) uint8, on the device of the network.
        labels: (N,) int64, on the same device.
        scale: C numbers: the input of the network is pixel * scale + shift, for pixels from 0 to 255.
        shift: C numbers.
        epsilon: The radius: the largest change of a pixel in [0, 1].
        steps: Number of gradient steps.
        seed: Of the random start.
        border: Black pixels on every side that the network is given besides the images, and that stay black.

    Returns:
        (N, C, H, W) float32 in [0, 1].

    Raises:
        ValueError: The network is in training mode.
    """
    if net.training:
        raise ValueError("the network is in training mode, expected evaluation mode")
    rng = np.random.default_rng(seed)
    attacked = []
    for batch, target in zip(images.split(BATCH), labels.split(BATCH), strict=True):
        clean = batch.float() / 255
        low, high = (clean - epsilon).clamp(min=0), (clean + epsilon).clamp(max=1)
        pixels, size = clean, epsilon
        if steps > 1:
            start = torch.from_numpy(rng.random(batch.shape, dtype=np.float32)).to(batch.device)
            pixels, size = torch.lerp(low, high, start), 2.5 * epsilon / steps
        for _ in range(steps):
            gradient = _gradient(net, pixels, target, scale, shift, border)
            pixels = (pixels + size * gradient.sign()).clamp(low, high)
        attacked.append(pixels)
    return torch.cat(attacked)


def logits_of(
    net: nn.Module, pixels: Tensor, scale: Sequence[float], shift: Sequence[float], border: int = 0
) -> Tensor:
    """Compute the logits of images as ``attack`` takes and returns them: (N, C, H, W) float32 in [0, 1]."""
    scales, shifts = (torch.tensor(numbers, device=pixels.device).view(-1, 1, 1) for numbers in (scale, shift))
    return net(pad(pixels, [border] * 4) * (255 * scales) + shifts)


@torch.enable_grad()
def _gradient(
    net: nn.Module, pixels: Tensor, labels: Tensor, scale: Sequence[float], shift: Sequence[float], border: int
) -> Tensor:
    """Return the gradient of each image's cross-entropy, times a positive number of its own."""
    pixels, true = pixels.detach().requires_grad_(), labels[:, None]
    logits = logits_of(net, pixels, scale, shift, border)
    # softmax − one-hot, divided by 1 − p(true), which vanishes where a network is certain: attacks would fail there.
    others = logits.detach().scatter(1, true, -torch.inf).softmax(dim=1)
    return torch.autograd.grad(logits, pixels, others.scatter(1, true, -1.0))[0]
