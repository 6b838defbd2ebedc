"""Pictures of images, weights and feature maps, for TensorBoard and for reports.

Our own, on Pillow, because a figure of matplotlib with as many small images takes a hundred times as long, and a run
draws some after every epoch.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from cnn_lightning.nets import ConvNet

FONT = ImageFont.load_default(11)  # comes with Pillow; it has the letters of ASCII alone
LINE = 14  # pixels
INK, PAPER = (40, 40, 40), (255, 255, 255)
BLUE, ORANGE = (0, 114, 178), (213, 94, 0)  # can be told apart by everybody; plots.py has the same
MOST_CHANNELS = 16  # of a layer in a picture


def grid(images: np.ndarray, captions: Sequence[str], columns: int = 8, tile: int = 92) -> Image.Image:
    """Put images side by side, each with a caption below it.

    Args:
        images: (N, H, W) grey or (N, H, W, 3) colour, uint8, N at least 1.
        captions: N texts, also of several lines.
        columns: Images in a row.
        tile: Width of an image with its margin, in pixels; more if the image is larger.

    Returns:
        An RGB image.
    """
    columns = max(1, min(columns, len(images)))
    enlarged = [_enlarged(image, tile - 4) for image in images]
    lines = max((caption.count("\n") + 1 for caption in captions if caption), default=0)
    height = enlarged[0].height + 4 + LINE * lines
    tile = max(tile, enlarged[0].width + 4)
    rows = -(-len(images) // columns)
    picture = Image.new("RGB", (columns * tile, rows * height), PAPER)
    draw = ImageDraw.Draw(picture)
    for index, (image, caption) in enumerate(zip(enlarged, captions, strict=True)):
        left, top = index % columns * tile, index // columns * height
        picture.paste(image, (left + 2, top + 2))
        if caption:
            draw.multiline_text((left + 2, top + image.height + 2), caption, INK, FONT, spacing=2)
    return picture


def confusion_matrix(counts: np.ndarray, class_names: Sequence[str]) -> Image.Image:
    """Draw how often which class was taken for which.

    Args:
        counts: (C, C) int: a row for every true class, a column for every predicted one.
        class_names: C names.

    Returns:
        An RGB image: the darker a cell, the larger its share of the row. Mistakes are orange, and darker than right
        answers with the same share, because they are few.
    """
    cell = 44
    longest = max(int(FONT.getlength(name)) for name in class_names)
    margin = max(longest, LINE) + LINE + 14
    side = margin + cell * len(class_names)
    picture = Image.new("RGB", (side + 1, side + 1), PAPER)
    draw = ImageDraw.Draw(picture)
    # The names of the columns are written sideways where they are longer than a cell.
    columns = Image.new("RGB", (side, margin), PAPER)
    for index, name in enumerate(class_names):
        middle = margin + cell * index + cell // 2
        draw.text((margin - 6, middle), name, INK, FONT, anchor="rm")
        if longest < cell:
            ImageDraw.Draw(columns).text((middle, margin - 6), name, INK, FONT, anchor="mb")
        else:
            columns.paste(_sideways(name), (middle - LINE // 2, margin - 6 - int(FONT.getlength(name))))
    picture.paste(columns.crop((margin, 0, side, margin)), (margin, 0))
    draw.text((margin + (side - margin) // 2, 2), "predicted", INK, FONT, anchor="mt")
    picture.paste(_sideways("true"), (2, margin + (side - margin) // 2))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    for (row, column), count in np.ndenumerate(counts):
        share = shares[row, column] if row == column else shares[row, column] ** 0.5
        left, top = margin + cell * column, margin + cell * row
        colour = _mixed(BLUE if row == column else ORANGE, share)
        draw.rectangle((left, top, left + cell, top + cell), fill=colour, outline=(220, 220, 220))
        if count:
            text = PAPER if share > 0.5 else INK
            draw.text((left + cell // 2, top + cell // 2), f"{count:,}", text, FONT, anchor="mm")
    return picture


def mistakes(
    images: Tensor, labels: Tensor, probabilities: Tensor, class_names: Sequence[str], most: int = 32
) -> Image.Image:
    """Show the images that were taken for another class, those first of which the network was surest.

    Args:
        images: (N, C, H, W) uint8.
        labels: (N,) int64, the true classes.
        probabilities: (N, num_classes) float.
        class_names: The classes, by label.
        most: How many images to show at most.

    Returns:
        An RGB image, which says so if there is no mistake.
    """
    confidence, predicted = probabilities.max(dim=1)
    wrong = (predicted != labels).nonzero()[:, 0]
    wrong = wrong[confidence[wrong].argsort(descending=True, stable=True)][:most]
    if not len(wrong):
        picture = Image.new("RGB", (300, 2 * LINE), PAPER)
        ImageDraw.Draw(picture).text((2, 2), f"no mistake in {len(labels):,} images", INK, FONT)
        return picture
    captions = [
        f"{class_names[predicted[index]]} {confidence[index]:.0%}\nis {class_names[labels[index]]}" for index in wrong
    ]
    return grid(pixels(images[wrong]), captions)


def filters(net: ConvNet) -> Image.Image | None:
    """Draw the weights of the first layer: negative ones blue, positive ones orange, 0 white.

    Args:
        net: Of a convolution there is an image for each of its output channels and the first of its input channels;
            of a linear layer, the weights of its first outputs as an image of the input.

    Returns:
        An RGB image with at most 64 filters; None if the first layer with weights is another.
    """
    pixels_in = net.in_channels * net.image_size**2
    layers = (*net.features.modules(), *net.head.modules())
    layer = next((layer for layer in layers if isinstance(getattr(layer, "weight", None), Tensor)), None)
    if isinstance(layer, nn.Linear) and layer.in_features == pixels_in:
        weights = layer.weight.unflatten(1, (net.in_channels, net.image_size, net.image_size))
    elif isinstance(layer, nn.Conv2d):
        weights = layer.weight
    else:
        return None
    weights = np.nan_to_num(weights[:64, 0].detach().float().cpu().numpy())
    weights = weights / max(np.abs(weights).max(), 1e-12)
    colours = np.where(weights[..., None] < 0, BLUE, ORANGE)
    mixed = np.array(PAPER) + np.abs(weights)[..., None] * (colours - np.array(PAPER))
    return grid(mixed.round().astype(np.uint8), [""] * len(mixed), columns=16, tile=52)


@torch.no_grad()
def feature_maps(net: ConvNet, image: Tensor) -> Image.Image:
    """Draw what an image becomes layer by layer, in the channels with the lowest numbers.

    Args:
        net: In evaluation mode.
        image: (C, H, W) float, normalised as in training, on the device of the network.

    Returns:
        An RGB image with one row per layer of ``net.features``, each from its lowest value (black) to its highest
        (white).
    """
    rows = []
    for name, output in _outputs(net, image):
        maps = output[:MOST_CHANNELS].float().cpu().numpy()
        row = grid(_grey(maps), [""] * len(maps), columns=MOST_CHANNELS, tile=60)
        rows.append((f"{name}: {' x '.join(map(str, output.shape))}", row))
    picture = Image.new("RGB", (max(row.width for _, row in rows), sum(row.height + LINE for _, row in rows)), PAPER)
    top = 0
    for title, row in rows:
        ImageDraw.Draw(picture).text((2, top), title, INK, FONT)
        picture.paste(row, (0, top + LINE))
        top += LINE + row.height
    return picture


def pixels(images: Tensor) -> np.ndarray:
    """Turn (N, C, H, W) uint8, or float from its lowest value to its highest, into (N, H, W) or (N, H, W, 3) uint8."""
    array = images.cpu().numpy()
    if array.dtype != np.uint8:
        array = _grey(array)
    return array[:, 0] if array.shape[1] == 1 else array[:, :3].transpose(0, 2, 3, 1)


def _outputs(net: ConvNet, image: Tensor) -> list[tuple[str, Tensor]]:
    """The image and what every layer of ``net.features`` makes of it, with its name."""
    outputs = [("image", image)]
    hooks = []
    for name, layer in net.features.named_modules():
        if not list(layer.children()):
            note = partial(_note_output, outputs, f"features.{name} {type(layer).__name__}")
            hooks.append(layer.register_forward_hook(note))
    try:
        net.forward(image[None].to(next(net.parameters()).dtype))  # net(...) is another where it was compiled
    finally:
        for hook in hooks:
            hook.remove()
    return outputs


def _note_output(
    outputs: list[tuple[str, Tensor]], name: str, _layer: nn.Module, _args: object, output: Tensor
) -> None:
    if isinstance(output, Tensor) and output.ndim == 4:  # a network may make it flat
        outputs.append((name, output[0].clone()))  # the next layer may work in place


def _grey(values: np.ndarray) -> np.ndarray:
    values = np.nan_to_num(values)  # of a run that has diverged
    low, high = values.min(), values.max()
    return ((values - low) * (255 / max(high - low, 1e-12))).round().astype(np.uint8)


def _enlarged(image: np.ndarray, side: int) -> Image.Image:
    """An image of up to ``side`` pixels whose pixels stay sharp squares."""
    height, width = image.shape[:2]
    factor = max(1, side // max(height, width))
    return Image.fromarray(image).resize((width * factor, height * factor), Image.Resampling.NEAREST)


def _sideways(text: str) -> Image.Image:
    strip = Image.new("RGB", (int(FONT.getlength(text)) + 1, LINE), PAPER)
    ImageDraw.Draw(strip).text((0, 0), text, INK, FONT)
    return strip.rotate(90, expand=True)


def _mixed(colour: tuple[int, int, int], share: float) -> tuple[int, ...]:
    """A colour on white paper."""
    return tuple(round(255 + share * (part - 255)) for part in colour)
