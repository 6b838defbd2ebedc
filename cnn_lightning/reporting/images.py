"""RGB images of datasets, filters and feature maps, for TensorBoard and reports.

Custom because a matplotlib figure with as many images takes 100 times as long, and a run draws some every epoch.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageColor, ImageDraw, ImageFont
from torch import Tensor, nn

from cnn_lightning.nets import ConvNet
from cnn_lightning.reporting.palette import BLUE, INK, ORANGE, PAPER

FONT = ImageFont.load_default(11)  # comes with Pillow and covers ASCII only
LINE = 14  # pixels
MAX_CHANNELS = 16  # of a layer in the feature maps
_BLUE, _ORANGE = (np.array(ImageColor.getrgb(colour)) for colour in (BLUE, ORANGE))


def grid(images: np.ndarray, captions: Sequence[str], columns: int = 8, tile: int = 92) -> Image.Image:
    """Draw images in rows, each with a caption below it.

    Args:
        images: (N, H, W) grey or (N, H, W, 3) colour, uint8, N at least 1.
        captions: N texts of one or more lines.
        columns: Images in a row.
        tile: Width of an image with its margin, in pixels; more if the image is larger.
    """
    columns = max(1, min(columns, len(images)))
    factor = max(1, (tile - 4) // max(images.shape[1:3]))  # a whole number, so that pixels stay sharp squares
    enlarged = images.repeat(factor, axis=1).repeat(factor, axis=2)
    lines = max((caption.count("\n") + 1 for caption in captions if caption), default=0)
    width, height = max(tile, enlarged.shape[2] + 4), enlarged.shape[1] + 4 + LINE * lines
    picture = Image.new("RGB", (columns * width, -(-len(images) // columns) * height), PAPER)
    for index, (image, caption) in enumerate(zip(enlarged, captions, strict=True)):
        left, top = index % columns * width + 2, index // columns * height + 2
        picture.paste(Image.fromarray(image), (left, top))
        ImageDraw.Draw(picture).multiline_text((left, top + len(image)), caption, INK, FONT, spacing=2)
    return picture


def confusion_matrix(counts: np.ndarray, class_names: Sequence[str]) -> Image.Image:
    """Draw a confusion matrix: the darker a cell, the larger its share of the row.

    Misclassified images are orange, and darker than correct ones with the same share, because they are few.

    Args:
        counts: (C, C) int: a row for each true class, a column for each predicted one.
        class_names: C names.
    """
    cell, longest = 44, max(int(FONT.getlength(name)) for name in class_names)
    margin = max(longest, LINE) + LINE + 14
    side = margin + cell * len(class_names)
    centre = (margin + side) // 2
    picture = Image.new("RGB", (side + 1, side + 1), PAPER)
    draw = ImageDraw.Draw(picture)
    for index, name in enumerate(class_names):
        middle = margin + cell * index + cell // 2
        draw.text((margin - 6, middle), name, INK, FONT, anchor="rm")
        if longest < cell:
            draw.text((middle, margin - 6), name, INK, FONT, anchor="mb")
        else:
            picture.paste(_sideways(name), (middle - LINE // 2, margin - 6 - int(FONT.getlength(name))))
    draw.text((centre, 2), "predicted", INK, FONT, anchor="mt")
    picture.paste(_sideways("true"), (2, centre))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    for (row, column), count in np.ndenumerate(counts):
        is_correct, left, top = row == column, margin + cell * column, margin + cell * row
        share = shares[row, column] if is_correct else shares[row, column] ** 0.5
        fill = tuple(_tint(share, _BLUE if is_correct else _ORANGE).tolist())
        draw.rectangle((left, top, left + cell, top + cell), fill=fill, outline=(220, 220, 220))
        if count:
            text = PAPER if share > 0.5 else INK
            draw.text((left + cell // 2, top + cell // 2), f"{count:,}", text, FONT, anchor="mm")
    return picture


def misclassified(
    images: Tensor, labels: Tensor, probabilities: Tensor, class_names: Sequence[str], limit: int = 32
) -> Image.Image:
    """Draw the misclassified images with the highest confidence, or a sentence that there are none.

    Args:
        images: (N, C, H, W) uint8.
        labels: (N,) int64: true classes.
        probabilities: (N, num_classes) float.
        class_names: The classes, by label.
        limit: Number of images drawn at most.
    """
    confidence, predicted = probabilities.max(dim=1)
    wrong = (predicted != labels).nonzero()[:, 0]
    wrong = wrong[confidence[wrong].argsort(descending=True, stable=True)][:limit]
    if not len(wrong):
        picture = Image.new("RGB", (300, 2 * LINE), PAPER)
        ImageDraw.Draw(picture).text((2, 2), f"none of {len(labels):,} images is misclassified", INK, FONT)
        return picture
    rows = zip(*(column[wrong].tolist() for column in (predicted, confidence, labels)), strict=True)
    captions = [f"{class_names[guess]} {share:.0%}\nis {class_names[label]}" for guess, share, label in rows]
    return grid(pixels(images[wrong]), captions)


def filters(net: ConvNet) -> Image.Image | None:
    """Draw at most 64 filters of the first layer: negative weights blue, positive ones orange, 0 white.

    Args:
        net: A convolution is drawn as one image per output channel, of its first input channel; a linear layer as one
            image per output, in the shape of the input.

    Returns:
        An image, or None if the first layer with weights is neither.
    """
    layers = (*net.features.modules(), *net.head.modules())
    layer = next((layer for layer in layers if isinstance(getattr(layer, "weight", None), Tensor)), None)
    if isinstance(layer, nn.Linear) and layer.in_features == net.in_channels * net.image_size**2:
        weights = layer.weight.unflatten(1, (net.in_channels, net.image_size, net.image_size))
    elif isinstance(layer, nn.Conv2d):
        weights = layer.weight
    else:
        return None
    values = np.nan_to_num(weights[:64, 0].detach().float().cpu().numpy())[..., None]
    values = values / max(np.abs(values).max(), 1e-12)
    colours = _tint(np.abs(values), np.where(values < 0, _BLUE, _ORANGE))
    return grid(colours, [""] * len(colours), columns=16, tile=52)


@torch.no_grad()
def feature_maps(net: ConvNet, image: Tensor) -> Image.Image:
    """Draw the first channels of each layer's output, from its lowest value (black) to its highest (white).

    Args:
        net: In evaluation mode; every layer of ``net.features`` has a row.
        image: (C, H, W) float, normalised as in training, on the device of the network.
    """
    rows: list[tuple[str, Image.Image]] = []

    def draw(title: str, _layer: Any, _args: Any, output: Any) -> None:
        # Drawn at once, because the next layer may work in place.
        if isinstance(output, Tensor) and output.ndim == 4:  # a network may flatten it
            maps = _grey(output[0, :MAX_CHANNELS].float().cpu().numpy())
            size = " x ".join(map(str, output.shape[1:]))
            rows.append((f"{title}: {size}", grid(maps, [""] * len(maps), columns=MAX_CHANNELS, tile=60)))

    draw("image", None, None, image[None])
    with ExitStack() as hooks:
        for name, layer in net.features.named_modules():
            if not list(layer.children()):
                hook = partial(draw, f"features.{name} {type(layer).__name__}")
                hooks.enter_context(layer.register_forward_hook(hook))
        net.forward(image[None].to(next(net.parameters()).dtype))  # net(...) may be compiled and skip the hooks
    width, height = max(row.width for _, row in rows), sum(row.height + LINE for _, row in rows)
    picture, top = Image.new("RGB", (width, height), PAPER), 0
    for title, row in rows:
        ImageDraw.Draw(picture).text((2, top), title, INK, FONT)
        picture.paste(row, (0, top + LINE))
        top += LINE + row.height
    return picture


def pixels(images: Tensor) -> np.ndarray:
    """Convert (N, C, H, W) to (N, H, W) or (N, H, W, 3) uint8; floats are scaled from their lowest to highest value."""
    array = images.cpu().numpy() if images.dtype == torch.uint8 else _grey(images.float().cpu().numpy())
    return array[:, 0] if array.shape[1] == 1 else array[:, :3].transpose(0, 2, 3, 1)


def _grey(values: np.ndarray) -> np.ndarray:
    values = np.nan_to_num(values)  # a diverged run has NaN
    low, high = values.min(), values.max()
    return ((values - low) * (255 / max(high - low, 1e-12))).round().astype(np.uint8)


def _tint(share: Any, colour: np.ndarray) -> np.ndarray:
    """Mix a share in [0, 1] of a colour with white."""
    return (255 + share * (colour - 255)).round().astype(np.uint8)


def _sideways(text: str) -> Image.Image:
    strip = Image.new("RGB", (int(FONT.getlength(text)) + 1, LINE), PAPER)
    ImageDraw.Draw(strip).text((0, 0), text, INK, FONT)
    return strip.rotate(90, expand=True)
