import numpy as np
import pytest
import torch
from torch.nn.functional import grid_sample

from cnn_lightning.data import augment
from cnn_lightning.data.augment import Erase, FlipAndShift, Warp
from cnn_lightning.data.loader import TensorLoader


def moved(image, flipped, top, left, shift):
    """The slow way: one image with channels, moved on a black canvas, then cut out and flipped."""
    canvas = torch.zeros(image.shape[0], image.shape[1] + 2 * shift, image.shape[2] + 2 * shift, dtype=image.dtype)
    canvas[:, shift : shift + image.shape[1], shift : shift + image.shape[2]] = image
    window = canvas[:, top : top + image.shape[1], left : left + image.shape[2]]
    return window.flip(2) if flipped else window


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


class TestWarp:
    @pytest.fixture
    def dots(self):
        """A dot right of the middle, one above it, as 29×29 images that have a middle pixel."""
        images = torch.zeros(2, 1, 29, 29, dtype=torch.uint8)
        images[0, 0, 14, 24] = images[1, 0, 4, 14] = 255
        return images

    def where(self, images):
        """(B, 2): row and column of the brightest pixel."""
        return [divmod(image.flatten().argmax().item(), 29) for image in images]

    def test_rotates_about_the_middle(self, dots):
        draws = torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]])
        turned = Warp(rotate=90)(dots, draws)
        assert self.where(turned) == [(24, 14), (14, 4)]  # clockwise, counter-clockwise
        torch.testing.assert_close(turned.amax((1, 2, 3)), torch.full((2,), 255.0), atol=0.01, rtol=0)

    def test_scales_about_the_middle(self, dots):
        assert self.where(Warp(scale=0.4)(dots, torch.tensor([[0, -1.0, 0], [0, 1.0, 0]]))) == [(14, 20), (0, 14)]

    def test_shears_upright_lines(self):
        images = torch.zeros(1, 1, 29, 29, dtype=torch.uint8)
        images[0, 0, :, 14] = 255
        slanted = Warp(shear=45)(images, torch.tensor([[0, 0, 1.0]]))[0, 0]
        columns = slanted.argmax(dim=1)
        assert columns[14] == 14
        assert set(columns.diff().tolist()) == {-1} or set(columns.diff().tolist()) == {1}

    def test_distorts_smoothly_by_so_many_pixels(self, monkeypatch):
        def linear(*args, **kwargs):
            return grid_sample(*args, **kwargs | {"mode": "bilinear"})

        monkeypatch.setattr(augment, "grid_sample", linear)  # cubics do not keep a ramp straight
        ramp = torch.arange(64.0).expand(500, 1, 64, 64)  # its brightness says from which column a pixel comes
        warp = Warp(elastic=2.0)
        moves = (warp(ramp, warp.draw(500, np.random.default_rng(0))) - ramp)[..., 8:-8, 8:-8]
        assert moves.mean().abs() < 0.2
        assert 1 < moves.std() < 2  # between the points of the grid, moves are smaller
        assert moves.diff(dim=2).abs().max() < 0.6

    def test_stays_as_sharp(self):
        noise = 255 * torch.rand(100, 1, 28, 28, generator=torch.Generator().manual_seed(0))
        turn = Warp(rotate=10)
        turned = turn(noise, turn.draw(100, np.random.default_rng(0)))
        assert turned[..., 6:-6, 6:-6].std() > 0.85 * noise.std()  # bilinear interpolation leaves 0.72
        assert 0 <= turned.min() < turned.max() <= 255

    def test_nothing_is_drawn_nothing_changes(self):
        images = torch.randint(256, (5, 3, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        warp = Warp(rotate=20, scale=0.2, shear=20, elastic=2)
        torch.testing.assert_close(warp(images, torch.zeros(5, 35)), images.float(), atol=0.01, rtol=0)

    def test_draws_evenly(self):
        draws = Warp(rotate=1, elastic=1).draw(20_000, np.random.default_rng(0))
        assert draws.shape == (20_000, 35)
        assert draws[:, :3].abs().max() <= 1
        torch.testing.assert_close(draws[:, :3].std(0), torch.full((3,), 3**-0.5), atol=0.02, rtol=0)
        torch.testing.assert_close(draws[:, 3:].std(0), torch.ones(32), atol=0.03, rtol=0)


class TestErase:
    def test_covers_a_rectangle_of_one_brightness(self):
        images = torch.full((2_000, 1, 28, 28), 200, dtype=torch.uint8)
        erase = Erase(0.5)
        draws = erase.draw(2_000, np.random.default_rng(0))
        erased = erase(images, draws)
        assert erased.dtype == torch.uint8
        covered = (draws[:, 0] == 1).tolist()
        assert 0.46 < np.mean(covered) < 0.54
        assert torch.equal(erased[~draws[:, 0].bool()], images[~draws[:, 0].bool()])
        areas = []
        for image, draw in zip(erased[covered, 0], draws[covered], strict=True):
            brightness = int(draw[5] * 255)
            if brightness == 200:
                continue
            changed = image == brightness
            assert torch.equal(image[~changed], torch.full_like(image[~changed], 200))
            rows, columns = changed.any(1), changed.any(0)
            assert torch.equal(changed, rows[:, None] & columns)
            assert (rows.int().diff() != 0).sum() <= 2  # one block
            areas.append(changed.float().mean().item())
        assert max(areas) <= 0.45
        assert 0.1 < np.mean(areas) < 0.21  # the mean of the areas, less what reaches over the edge

    def test_covers_at_most_a_share_of_the_image(self):
        images = torch.full((500, 1, 28, 28), 99.0)
        for area in (0.05, 0.2):
            erase = Erase(1.0, area)
            erased = erase(images, erase.draw(500, np.random.default_rng(0)))
            shares = (erased != 99).flatten(1).float().mean(1)
            assert 0.8 * area < shares.max() < 1.2 * area  # whole pixels

    def test_covers_none_or_all(self):
        images = torch.full((100, 2, 8, 9), 99.0)
        for probability, share in ((0.0, 0), (1.0, 1)):
            erase = Erase(probability)
            draws = erase.draw(100, np.random.default_rng(1))
            assert draws[:, 0].mean() == share
            erased = erase(images, draws)
            assert erased.dtype == torch.float32
            assert (erased != 99).flatten(1).any(1).float().mean() == share


def test_changes_are_made_one_after_the_other():
    images = torch.randint(256, (9, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    changes = [FlipAndShift(True, 2), Warp(rotate=10, elastic=1), Erase(0.5)]
    whole, alone = (
        TensorLoader(images, torch.zeros(9), size, lambda x: x, shuffle_seed=5, augment=changes) for size in (9, 1)
    )
    rng, expected = np.random.default_rng((5, 0, 1)), images[whole.sampler.order()]
    for change in changes:
        expected = change(expected, change.draw(9, rng))
    ((changed, _),) = whole
    assert torch.equal(changed, expected)
    torch.testing.assert_close(torch.cat([image for image, _ in alone]), expected)  # whatever the batches are
