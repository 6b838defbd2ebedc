"""RGB images of datasets, filters and feature maps, for TensorBoard and reports.

They are 704 pixels wide, twice the width at which TensorBoard first shows them, and stay legible there.

Custom because a matplotlib figure with as many images takes 100 times as long, and a run draws some every epoch.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageColor, ImageDraw
from torch import Tensor, nn

from cnn_lightning.reporting.lettering import LINE, SIZE, length, shorten, sideways, write
from cnn_lightning.reporting.palette import BLUE, INK, ORANGE, PAPER

WIDTH, GAP = 704, 4  # pixels: a picture, and the margin of an image in it
MAX_CHANNELS = 8  # of a layer in the feature maps
MAX_LAYERS = 40
MAX_ROWS = 6  # of misclassified images
_BLUE, _ORANGE = (np.array(ImageColor.getrgb(colour)) for colour in (BLUE, ORANGE))


def grid(images: np.ndarray, captions: Sequence[str], columns: int | None = None) -> Image.Image:
    """Draw images in rows, each with a caption below it.

    Args:
        images: (N, H, W) grey or (N, H, W, 3) colour, uint8, N at least 1; drawn as large as the columns allow.
        captions: N texts of one or more lines.
        columns: Images in a row. Defaults to 8, or fewer where the captions are longer.
    """
    columns = columns or _columns(captions)
    tile = WIDTH // columns
    shown = _fit(images, tile - GAP)
    lines = max((caption.count("\n") + 1 for caption in captions if caption), default=0)
    height = shown.shape[1] + GAP + LINE * lines
    picture = Image.new("RGB", (columns * tile, -(-len(images) // columns) * height), PAPER)
    for index, (image, caption) in enumerate(zip(shown, captions, strict=True)):
        left, top = index % columns * tile + GAP // 2, index // columns * height + GAP // 2
        picture.paste(Image.fromarray(image), (left, top))
        for number, line in enumerate(caption.split("\n")):
            write(picture, (left, top + len(image) + LINE * number), shorten(line, tile - GAP))
    return picture


def confusion_matrix(counts: np.ndarray, class_names: Sequence[str]) -> Image.Image:
    """Draw a confusion matrix: the darker a cell, the larger its share of the row.

    Misclassified images are orange, and darker than correct ones with the same share, because they are few. Of many
    classes, only the colours are drawn, and not every name.

    Args:
        counts: (C, C) int: a row for each true class, a column for each predicted one.
        class_names: C names.
    """
    names = [shorten(name, WIDTH // 4) for name in class_names]
    longest = max(map(length, names))
    margin = LINE + max(longest, LINE) + 12
    cell = min(96, max(8, (WIDTH - 1 - margin) // len(names)))
    side = margin + cell * len(names)
    every = -(-LINE // cell)  # so that the names do not overlap
    size = min(SIZE, int(SIZE * (cell - 6) / max(length(f"{counts.max():,}"), 1)))  # of the numbers
    picture = Image.new("RGB", (max(WIDTH, side + 1), side + 1), PAPER)
    draw = ImageDraw.Draw(picture)
    for index, name in list(enumerate(names))[::every]:
        middle = margin + cell * index + cell // 2
        write(picture, (margin - 6, middle), name, anchor="rm")
        if longest < cell:
            write(picture, (middle, margin - 6), name, anchor="mb")
        else:
            picture.paste(sideways(name), (middle - LINE // 2, margin - 6 - length(name)))
    write(picture, ((margin + side) // 2, 0), "predicted", anchor="mt")
    picture.paste(sideways("true"), (0, (margin + side - length("true")) // 2))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    for (row, column), count in np.ndenumerate(counts):
        is_correct, left, top = row == column, margin + cell * column, margin + cell * row
        share = shares[row, column] if is_correct else shares[row, column] ** 0.5
        fill = tuple(_tint(share, _BLUE if is_correct else _ORANGE).tolist())
        draw.rectangle((left, top, left + cell, top + cell), fill=fill, outline=(220, 220, 220))
        if count and size >= 14:
            where, text = (left + cell // 2, top + cell // 2), PAPER if share > 0.5 else INK
            write(picture, where, f"{count:,}", anchor="mm", fill=text, size=size)
    return picture


def misclassified(
    images: Tensor,
    labels: Tensor,
    probabilities: Tensor,
    class_names: Sequence[str],
    limit: int = 32,
    total: int | None = None,
) -> Image.Image:
    """Draw the misclassified images with the highest confidence, or a sentence that there are none.

    Args:
        images: (N, C, H, W) uint8, or float as the network sees them.
        labels: (N,) int64: true classes.
        probabilities: (N, num_classes) float.
        class_names: The classes, by label.
        limit: Number of images drawn at most, fewer where names are long.
        total: Number of all images, these N among them. Defaults to N.
    """
    confidence, predicted = probabilities.max(dim=1)
    wrong = (predicted != labels).nonzero()[:, 0]
    wrong = wrong[confidence[wrong].argsort(descending=True, stable=True)][:limit]
    if not len(wrong):
        picture = Image.new("RGB", (WIDTH, 2 * LINE), PAPER)
        write(picture, (2, 2), f"none of {total or len(labels):,} images is misclassified")
        return picture
    rows = zip(*(column[wrong].tolist() for column in (predicted, confidence, labels)), strict=True)
    captions = [f"{class_names[guess]} ({share:.0%})\nis {class_names[label]}" for guess, share, label in rows]
    columns = _columns(captions)
    shown = columns * MAX_ROWS
    return grid(pixels(images[wrong[:shown]]), captions[:shown], columns)


@torch.no_grad()
def filters(net: nn.Module, image: Tensor) -> Image.Image | None:
    """Draw at most 64 filters of the layer that runs first: negative weights blue, positive ones orange, 0 white.

    Args:
        net: In evaluation mode. Its first layer with a matrix of weights is drawn: a convolution as one image per
            output channel, of its first input channel; a linear layer as one image per output, in the shape of the
            input.
        image: (C, H, W) float, on the device of the network.

    Returns:
        An image, or None if that layer is neither.
    """
    weights: list[Tensor | None] = []

    def note(_name: str, layer: nn.Module, _args: Any, _output: Any) -> None:
        weight = getattr(layer, "weight", None)
        if isinstance(weight, Tensor) and weight.ndim > 1 and not weights:
            if isinstance(layer, nn.Linear) and layer.in_features == image.numel():
                weight = weight.unflatten(1, image.shape)
            weights.append(weight if weight.ndim == 4 else None)

    _run(net, image, note)
    if not weights or weights[0] is None:
        return None
    values = np.nan_to_num(weights[0][:64, 0].float().cpu().numpy())[..., None]
    values = values / max(np.abs(values).max(), 1e-12)
    colours = _tint(np.abs(values), np.where(values < 0, _BLUE, _ORANGE))
    return grid(colours, [""] * len(colours))


@torch.no_grad()
def feature_maps(net: nn.Module, image: Tensor) -> Image.Image | None:
    """Draw the first channels of each layer's output, from its lowest value (black) to its highest (white).

    Args:
        net: In evaluation mode. Each module without modules of its own, and with an output of 4 dimensions, has a row,
            in the order in which they run; of several outputs, the first of 4 dimensions is drawn.
        image: (C, H, W) float, normalised as in training, on the device of the network.

    Returns:
        An image, or None if there is no such module.
    """
    rows: list[tuple[str, Image.Image]] = []

    def draw(title: str, layer: nn.Module | None, _args: Any, output: Any) -> None:
        # Drawn at once, because the next layer may work in place.
        outputs = output if isinstance(output, tuple | list) else (output,)
        maps = next((part for part in outputs if isinstance(part, Tensor) and part.ndim == 4), None)
        if maps is not None:
            size = " x ".join(map(str, maps.shape[1:]))
            kind = f" {type(layer).__name__}" if layer else ""
            grey = _grey(maps[0, :MAX_CHANNELS].float().cpu().numpy())
            rows.append((f"{title}{kind}: {size}", grid(grey, [""] * len(grey), MAX_CHANNELS)))

    draw("image", None, None, image[None])
    _run(net, image, draw)
    if len(rows) == 1:
        return None
    more = f"and {len(rows) - MAX_LAYERS - 1} more layers" if len(rows) > MAX_LAYERS + 1 else ""
    rows = rows[: MAX_LAYERS + 1]
    height = sum(row.height + LINE for _, row in rows) + LINE * bool(more)
    picture, top = Image.new("RGB", (WIDTH, height), PAPER), 0
    for title, row in rows:
        write(picture, (2, top), shorten(title, WIDTH - 2))
        picture.paste(row, (0, top + LINE))
        top += LINE + row.height
    write(picture, (2, top), more)
    return picture


def pixels(images: Tensor) -> np.ndarray:
    """Convert (N, C, H, W) to (N, H, W) or (N, H, W, 3) uint8; floats are scaled from their lowest to highest value."""
    array = images.cpu().numpy() if images.dtype == torch.uint8 else _grey(images.float().cpu().numpy())
    return array[:, :3].transpose(0, 2, 3, 1) if array.shape[1] >= 3 else array[:, 0]


def _run(net: nn.Module, image: Tensor, hook: Callable[[str, nn.Module, Any, Any], None]) -> None:
    """Call ``hook(name, module, input, output)`` after each module without modules of its own."""
    with ExitStack() as hooks:
        for name, layer in net.named_modules():
            if not list(layer.children()):
                hooks.enter_context(layer.register_forward_hook(partial(hook, name)))
        weight = next(net.parameters(), image)
        net.forward(image[None].to(weight.dtype))  # net(...) may be compiled and skip the hooks


def _fit(images: np.ndarray, side: int) -> np.ndarray:
    """Enlarge or shrink images by a whole number, so that they fit a square and enlarged pixels stay sharp."""
    longest = max(images.shape[1:3])
    if longest <= side:
        return images.repeat(side // longest, axis=1).repeat(side // longest, axis=2)
    return np.stack([np.asarray(Image.fromarray(image).reduce(-(-longest // side))) for image in images])


def _columns(captions: Sequence[str]) -> int:
    longest = max(length(line) for caption in captions for line in caption.split("\n"))
    return next((columns for columns in (8, 6, 4) if longest <= WIDTH // columns - GAP), 3)


def _grey(values: np.ndarray) -> np.ndarray:
    values = np.nan_to_num(values)  # a diverged run has NaN
    low, high = values.min(), values.max()
    return ((values - low) * (255 / max(high - low, 1e-12))).round().astype(np.uint8)


def _tint(share: Any, colour: np.ndarray) -> np.ndarray:
    """Mix a share in [0, 1] of a colour with white."""
    return (255 + share * (colour - 255)).round().astype(np.uint8)
