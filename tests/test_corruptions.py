import math

import pytest
import torch
from torch.nn.functional import interpolate

from cnn_lightning.data import Digits
from cnn_lightning.robustness import corruptions
from cnn_lightning.robustness.corruptions import CORRUPTIONS, STRENGTHS, corrupt

FIXED = {"gaussian_blur", "scale", "brightness", "inverted_contrast"}  # nothing in them is random


@pytest.fixture(scope="module")
def digits():
    data = Digits()
    data.setup("test")
    return data.part("test")[0]


@pytest.fixture(scope="module")
def colours():
    """40 smooth images in colour, neither square nor dark."""
    coarse = torch.rand(40, 3, 8, 6, generator=torch.Generator().manual_seed(0))
    return (255 * interpolate(coarse, (64, 48), mode="bilinear")).to(torch.uint8)


def point(row, column, side=29):
    image = torch.zeros(1, 1, side, side, dtype=torch.uint8)
    image[..., row, column] = 255
    return image


def centre_of(image):
    """Mean row and column of the light of (1, 1, H, W), from the centre of the image."""
    weights = image[0, 0].double()
    places = torch.arange(len(weights)) - (len(weights) - 1) / 2
    return (weights.sum(1) @ places.double() / weights.sum(), weights.sum(0) @ places.double() / weights.sum())


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_strengths_rise_and_images_depend_on_nothing_else(name, digits, colours, monkeypatch):
    for images in (digits, colours):
        results = [corrupt(images, name, strength) for strength in STRENGTHS]
        changes = [(result.float() - images.float()).abs().mean().item() for result in results]
        assert 0 < changes[0] < changes[1] < changes[2] < changes[3] < changes[4]
        assert all(result.shape == images.shape and result.dtype == torch.uint8 for result in results)
        with monkeypatch.context() as patch:
            patch.setattr(corruptions, "VALUES", 7 * images[0].numel())
            assert torch.equal(corrupt(images[:33], name, 4), results[3][:33])
        other_seed = corrupt(images, name, 4, seed=1)
        assert torch.equal(other_seed, results[3]) == (name in FIXED)
        assert torch.equal(corrupt(images, name, 4, seed=1), other_seed)


def test_each_image_has_its_own_random_change():
    images = torch.full((50, 1, 28, 28), 60, dtype=torch.uint8)
    images[:, :, 8:20, 12:16] = 200
    for name in CORRUPTIONS:
        different = len(corrupt(images, name, 3).flatten(1).unique(dim=0))
        if name in FIXED:
            assert different == 1, name
        elif name in ("rotation", "shear"):  # to the left or to the right
            assert different == 2, name
        else:
            assert different > 10, name


def test_values_are_those_that_the_levels_say(digits):
    images = digits[:100]
    assert torch.equal(corrupt(images, "inverted_contrast", 5), 255 - images)
    assert torch.equal(corrupt(images, "brightness", 2), (images.int() + 51).clamp(max=255).byte())
    grey = torch.full((200, 1, 40, 40), 128, dtype=torch.uint8)
    noise = (corrupt(grey, "gaussian_noise", 1).float() - 128) / 255
    assert noise.mean().item() == pytest.approx(0, abs=0.001)
    assert noise.std().item() == pytest.approx(0.1, abs=0.001)
    assert torch.equal(corrupt(grey, "gaussian_blur", 5), grey)
    covered = (corrupt(torch.zeros_like(grey), "occlusion", 2) == 128).flatten(1).sum(1)
    assert set(covered.tolist()) <= {7 * 7, 7 * 8, 8 * 8, 8 * 9, 9 * 9}  # 0.2 of a side of 40
    inverted = (corrupt(torch.zeros_like(grey), "stripe", 4) == 255).flatten(1).sum(1)
    assert set((inverted / 40).tolist()) <= {7.0, 8.0, 9.0}


def test_places_are_those_that_the_levels_say():
    row, column = centre_of(corrupt(point(14, 22), "rotation", 3))
    assert math.degrees(math.atan2(abs(row), column)) == pytest.approx(30, abs=1.5)
    assert math.hypot(row, column) == pytest.approx(8, abs=0.2)
    moved = centre_of(corrupt(point(14, 14), "translation", 4))
    assert math.hypot(*moved) == pytest.approx(0.16 * 29, abs=0.2)
    row, column = centre_of(corrupt(point(4, 14), "shear", 3))
    assert abs(float(column)) == pytest.approx(0.6 * 10, abs=0.2)
    assert float(row) == pytest.approx(-10, abs=0.2)
    block = torch.zeros(1, 1, 40, 40, dtype=torch.uint8)
    block[..., 10:30, 10:30] = 255
    assert (corrupt(block, "scale", 4).float().sum() / block.float().sum()).sqrt() == pytest.approx(0.55, abs=0.02)


def test_lines_are_white_on_dark_images_and_black_on_bright_ones():
    for name in ("dotted_line", "zigzag", "spatter"):
        for background, ink in ((20, 255), (230, 0)):
            images = torch.full((20, 1, 28, 28), background, dtype=torch.uint8)
            values = corrupt(images, name, 5)
            assert (values == ink).any(), name
            assert (values == background).any(), name


def test_lines_and_squares_lie_about_the_centre():
    for name in ("dotted_line", "zigzag", "occlusion", "stripe"):
        mean = corrupt(torch.zeros(2000, 1, 28, 28, dtype=torch.uint8), name, 3).float().mean(0, keepdim=True)
        assert max(map(abs, centre_of(mean))) < 0.4, name


@pytest.mark.parametrize(("name", "strength"), [("fog", 1), ("scale", 0), ("scale", 6)])
def test_other_names_and_strengths_are_refused(name, strength):
    with pytest.raises(ValueError, match=f"corruption {name}, strength {strength}: expected one of"):
        corrupt(point(1, 1), name, strength)
