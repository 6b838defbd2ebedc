"""Count the test images that have a duplicate or near-duplicate in the training set.

    python scripts/duplicates.py --data FashionMNIST
    python scripts/duplicates.py --data MNIST --picture pairs.png

Finds for every test image the training image with the smallest root mean square of the pixel differences (RMS, pixels
from 0 to 255), for clothing also flipped. A network that memorises the training image classifies its near-duplicate
correctly without generalising, and misclassifies it where the two have different labels.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from cnn_lightning.cli.exit_codes import OptionParser, command
from cnn_lightning.data import MNIST, FashionMNIST
from cnn_lightning.errors import UsageError
from cnn_lightning.reporting import images

DATASETS = {"MNIST": MNIST, "FashionMNIST": FashionMNIST}
LIMITS = (0, 1, 2, 5, 10, 15, 20)  # RMS
SHOWN = 16  # pairs in the picture


@command
def duplicates(args: Sequence[str]) -> None:
    """Print a table of the near-duplicates, and draw the nearest pairs that differ."""
    parser = OptionParser(__doc__)
    parser.add_argument("--data", choices=DATASETS, default="FashionMNIST", help="default: FashionMNIST")
    parser.add_argument("--picture", type=Path, help=f"draw {SHOWN} near-duplicates to this new PNG file")
    options = parser.parse_args(args)
    data, picture = DATASETS[options.data](), options.picture
    if picture and (picture.exists() or picture.suffix != ".png" or not picture.parent.is_dir()):
        raise UsageError(f"--picture {picture}: expected a new file that ends in .png, in an existing folder")
    data.prepare_data()
    (train, train_labels), (test, test_labels) = data.read(train=True), data.read(train=False)
    distance, nearest, flipped = nearest_images(test, train, data.can_flip)
    same = train_labels[nearest] == test_labels
    print(f"{options.data}: {len(test):,} test images and the training image that is nearest to each\n")
    print("| RMS difference at most | test images | flipped among them | with another label |")
    print("| ---: | ---: | ---: | ---: |")
    for limit in LIMITS:
        near = distance <= limit
        print(f"| {limit} | {near.sum():,} | {(near & flipped).sum():,} | {(near & ~same).sum():,} |")
    if picture:
        order = torch.where(distance > 0, distance, torch.inf).argsort()[:SHOWN]
        found = train[nearest[order]]
        found = torch.where(flipped[order, None, None, None], found.flip(3), found)
        captions = []
        for index in order.tolist():
            captions += [f"test {index}", f"RMS {distance[index]:.1f}{'' if same[index] else ', other label'}"]
        images.grid(torch.stack([test[order], found], dim=1).flatten(0, 2).numpy(), captions).save(picture)
        print(f"\npairs       {picture}")


def nearest_images(test: Tensor, train: Tensor, flip: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Find the training image nearest to each test image.

    Args:
        test: (N, C, H, W) uint8.
        train: (M, C, H, W) uint8.
        flip: Whether to compare with the flipped training images as well.

    Returns:
        (N,) float32 exact root mean square of the pixel differences, (N,) int64 index of the training image, and (N,)
        bool whether it is flipped. The choice of the nearest is exact to 0.1.
    """
    both = torch.cat([train, train.flip(3)] if flip else [train]).flatten(1).float()
    squares = both.square().sum(1)
    # |a - b|² = |a|² - 2ab + |b|², where |a|² is the same for all b.
    index = torch.cat([(squares - 2 * part @ both.T).argmin(dim=1) for part in test.flatten(1).float().split(500)])
    distance = (test.flatten(1).double() - both[index].double()).square().mean(1).sqrt().float()
    return distance, index % len(train), index >= len(train)
