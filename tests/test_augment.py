import numpy as np
import pytest
import torch

from cnn_lightning.data.augment import FlipAndShift


def moved(image, mirrored, top, left, shift):
    """The slow way: one image with channels, moved on a black canvas, then cut out and mirrored."""
    canvas = torch.zeros(image.shape[0], image.shape[1] + 2 * shift, image.shape[2] + 2 * shift, dtype=image.dtype)
    canvas[:, shift : shift + image.shape[1], shift : shift + image.shape[2]] = image
    window = canvas[:, top : top + image.shape[1], left : left + image.shape[2]]
    return window.flip(2) if mirrored else window


@pytest.mark.parametrize("shape", [(50, 1, 28, 28), (50, 3, 6, 9)])
@pytest.mark.parametrize(("flip", "shift"), [(True, 2), (False, 3), (True, 0)])
def test_every_image_in_its_own_way(shape, flip, shift):
    augment = FlipAndShift(flip, shift)
    images = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    draws = augment.draw(50, np.random.default_rng(0))
    changed = augment(images, draws)
    assert changed.dtype == torch.uint8
    expected = [moved(image, *draw, shift) for image, draw in zip(images, draws.tolist(), strict=True)]
    assert torch.equal(changed, torch.stack(expected))


def test_draws_all_there_is_equally_often():
    draws = FlipAndShift(True, 2).draw(10_000, np.random.default_rng(0))
    for column, values in enumerate((2, 5, 5)):
        counts = draws[:, column].bincount()
        assert len(counts) == values
        assert (counts / 10_000 - 1 / values).abs().max() < 0.02
    assert (FlipAndShift(False, 1).draw(100, np.random.default_rng(0))[:, 0] == 0).all()
