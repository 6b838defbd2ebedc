"""How many test images are in the training set, too? Counts exact and near duplicates.

    python scripts/duplicates.py --data FashionMNIST
    python scripts/duplicates.py --data MNIST --picture pairs.png

For every test image, the training image that is nearest in the root mean square of the pixel differences (RMS, pixels
from 0 to 255), for clothing also mirrored. Who learns a duplicate by heart is right about the test image without having
understood anything, and wrong where the two have different labels.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from cnn_lightning.cli.exit_codes import OptionParser, command
from cnn_lightning.data import MNIST, FashionMNIST
from cnn_lightning.errors import UsageError
from cnn_lightning.reporting import images as pictures

DATASETS = {"MNIST": MNIST, "FashionMNIST": FashionMNIST}
LIMITS = (0, 1, 2, 5, 10, 15, 20)  # RMS
SHOWN = 16  # pairs in the picture


@command
def duplicates(args: Sequence[str]) -> None:
    """Count the duplicates, print a table, and draw the nearest pairs that differ."""
    parser = OptionParser(__doc__)
    parser.add_argument("--data", choices=DATASETS, default="FashionMNIST", help="default: FashionMNIST")
    parser.add_argument("--picture", type=Path, help=f"draw {SHOWN} near duplicates to this new file")
    options = parser.parse_args(args)
    picture = options.picture
    if picture and (picture.exists() or picture.suffix != ".png" or not picture.parent.is_dir()):
        raise UsageError(f"--picture {picture}: expected a new file with the end .png in a folder that is there")
    data = DATASETS[options.data]()
    data.prepare_data()
    (train, train_labels), (test, test_labels) = data.read(train=True), data.read(train=False)
    distance, nearest, mirrored = nearest_images(test, train, data.can_flip)
    same = train_labels[nearest] == test_labels
    print(f"{options.data}: {len(test):,} test images and the training image that is nearest to each\n")
    print("| RMS difference at most | test images | of them mirrored | of them with another label |")
    print("| ---: | ---: | ---: | ---: |")
    for limit in LIMITS:
        near = distance <= limit
        print(f"| {limit} | {near.sum():,} | {(near & mirrored).sum():,} | {(near & ~same).sum():,} |")
    if options.picture:
        order = torch.where(distance > 0, distance, torch.inf).argsort()[:SHOWN]
        found = train[nearest[order]]
        found = torch.where(mirrored[order, None, None, None], found.flip(3), found)
        pairs = torch.stack([test[order], found], dim=1).flatten(0, 1)
        names = [
            text
            for index in order.tolist()
            for text in (f"test {index}", f"RMS {distance[index]:.1f}{'' if same[index] else ', other label'}")
        ]
        pictures.grid(pairs[:, 0].numpy(), names).save(options.picture)
        print(f"\npairs       {options.picture}")


def nearest_images(test: Tensor, train: Tensor, flip: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Find the training image nearest to each test image.

    Args:
        test: (N, C, H, W) uint8.
        train: (M, C, H, W) uint8.
        flip: Look at the training images mirrored, too.

    Returns:
        (N,) float32 root mean square of the pixel differences, (N,) int64 index of the training image, and (N,) bool
        whether it is nearest when mirrored. Distances are exact; which one is nearest is rounded to 0.1.
    """
    both = torch.cat([train, train.flip(3)] if flip else [train]).flatten(1).float()
    squares = both.square().sum(1)
    # |a - b|² = |a|² - 2ab + |b|², of which |a|² is the same for all.
    index = torch.cat([(squares - 2 * images @ both.T).argmin(dim=1) for images in test.flatten(1).float().split(500)])
    distance = (test.flatten(1).double() - both[index].double()).square().mean(1).sqrt().float()
    return distance, index % len(train), index >= len(train)
