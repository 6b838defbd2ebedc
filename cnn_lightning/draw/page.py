"""The page of scripts/draw.py: one HTML file that holds networks, test images and the JavaScript that runs them."""

import base64
import hashlib
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import StrictUndefined, Template
from torch import Tensor, nn

from cnn_lightning.draw.program import program_of
from cnn_lightning.errors import UsageError
from cnn_lightning.reporting import palette

WEB = Path(__file__).with_name("web")
SCRIPTS = (  # in this order
    *("network", "explain", "occlusion"),
    *("arrays", "ink", "photos"),
    *("paint", "bars", "gallery", "pad", "layers", "panel", "app"),
)
MOST_IMAGES = 60  # test images in a page


def model_of(
    net: nn.Module, scale: Sequence[float], shift: Sequence[float], shape: Sequence[int], half: bool
) -> dict[str, Any]:
    """Describe a network as plain values that the page can run.

    Args:
        net: Maps (B, C, H, W) images to (B, num_classes) logits; in evaluation mode. Moved to the CPU, as float32.
        scale: One number a channel: the input of the network is pixel * scale + shift, of pixels from 0 to 255.
        shift: One number a channel.
        shape: (C, H, W) of an image.
        half: Store the parameters as float16, otherwise as float32.

    Returns:
        "input", "scale", "shift", "layers", "tensors" (for each its offset and shape), "weights" (little-endian, by
        byte, compressed, base64) and "half".

    Raises:
        UsageError: The page cannot run the network.
    """
    net = net.cpu().float()
    black = torch.tensor(shift, dtype=torch.float32).view(1, -1, 1, 1).expand(1, *shape)
    program = program_of(net, black)
    tensors, offset = [], 0
    for tensor in program.tensors:
        tensors.append([offset, list(tensor.shape)])
        offset += tensor.numel()
    flat = torch.cat([tensor.flatten() for tensor in program.tensors] or [torch.zeros(0)])
    if not flat.isfinite().all():
        raise UsageError("its parameters are not finite, because its training has diverged")
    if half and flat.abs().max() > torch.finfo(torch.float16).max:
        raise UsageError("a parameter is too large for float16, expected float32", "half")
    weights = flat.numpy().astype("<f2" if half else "<f4")
    # All first bytes, then all second ones: exponents are alike, so they compress well next to each other.
    planes = weights.view(np.uint8).reshape(-1, weights.itemsize).T
    return {
        "input": list(shape),
        "scale": list(scale),
        "shift": list(shift),
        "layers": program.layers,
        "tensors": tensors,
        "weights": _packed(planes.tobytes()),
        "half": half,
    }


def choose_images(labels: Tensor, probabilities: Tensor) -> Tensor:
    """Choose test images for the page: some of each class, half of them misclassified where there are so many.

    Args:
        labels: (N,) int64.
        probabilities: (N, num_classes) float.

    Returns:
        (M,) int64 indices, at most 60, ordered by class: of each class first images that are classified correctly, in
        the order of the test set, then the misclassified ones with the lowest probability of their class. Of 60
        classes or more, the first ones have an image each.
    """
    predicted, of_label = probabilities.argmax(1), probabilities.gather(1, labels[:, None])[:, 0]
    ranked: list[tuple[int, int, bool, int]] = []  # round of choice, class, misclassified, index
    for label in labels.unique().tolist():
        right = ((labels == label) & (predicted == label)).nonzero()[:MOST_IMAGES, 0]
        wrong = ((labels == label) & (predicted != label)).nonzero()[:, 0]
        wrong = wrong[of_label[wrong].argsort(stable=True)][:MOST_IMAGES]
        ranked += [(2 * place, label, False, index) for place, index in enumerate(right.tolist())]
        ranked += [(2 * place + 1, label, True, index) for place, index in enumerate(wrong.tolist())]
    chosen = sorted(sorted(ranked, key=lambda each: each[0])[:MOST_IMAGES], key=lambda each: each[1:3])
    return torch.tensor([index for *_, index in chosen])


def packed_images(images: Tensor, labels: Tensor, predicted: Tensor) -> dict[str, Any]:
    """Pack (N, C, H, W) uint8 images, their (N,) labels and the (N,) classes that the network predicts for the page."""
    pixels = _packed(images.numpy().tobytes())
    return {"pixels": pixels, "labels": labels.tolist(), "predicted": predicted.tolist()}


def render_page(title: str, models: Sequence[dict[str, Any]]) -> str:
    """Render the page.

    Args:
        title: Shown in the head of the page.
        models: For each network of square images what ``model_of`` returns, with "title", "dataset", "source", "facts"
            (texts), "temperature" and "threshold" (of the calibration), "classes", "pad", "preparation" and "images"
            (from ``packed_images``, or None).

    Returns:
        HTML that requests nothing: a content security policy allows only its own script and style, by their hashes.
    """
    css, unpack = Template(_read("page.css")).render(palette=palette), _read("unpack.js")
    # All sources with their comments: compressed, they take a third of their size.
    scripts = "".join(_read(f"{name}.js") for name in SCRIPTS)
    policy = f"default-src 'none'; script-src {_hash(unpack)} {_hash(scripts)}; style-src {_hash(css)}"
    policy += "; img-src data: blob:"
    # No "<" reaches the HTML parser, so no text can end the element.
    data = json.dumps({"models": models}, separators=(",", ":"), allow_nan=False).replace("<", r"\u003c")
    template = Template(_read("page.html"), undefined=StrictUndefined)
    parts = {"css": css, "unpack": unpack, "scripts": _packed(scripts.encode()), "data": data}
    return template.render(title=title, policy=policy, palette=palette, **parts)


def _packed(values: bytes) -> str:
    return base64.b64encode(zlib.compress(values)).decode()


def _read(name: str) -> str:
    return (WEB / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
