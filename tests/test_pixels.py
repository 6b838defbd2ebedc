"""Images of any size, grey or in colour: what ImageDataModule makes of what a dataset reads."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torchvision.transforms.functional import normalize

from cnn_lightning import Digits, FashionMNIST, ImageClassifier, LeNetCNN, TwoLayerCNN
from cnn_lightning.data import ImageDataModule
from cnn_lightning.data.augment import Erase, FlipAndShift, Warp
from cnn_lightning.data.pixels import mean_and_std
from cnn_lightning.errors import UsageError

# The lines that a user writes for an own dataset of colour images.
OWN = """
import numpy as np
import torch
from cnn_lightning.data import ImageDataModule

class Shapes(ImageDataModule):
    class_names, in_channels, SIDE = ("disc", "square", "star"), 3, 64

    def read(self, train):
        file = np.load(self.root / ("train.npz" if train else "test.npz"))
        return torch.from_numpy(file["images"]), torch.from_numpy(file["labels"])
"""


def colour_images(count, side=64, seed=0):
    """Class k is bright in channel k."""
    labels = np.arange(count) % 3
    images = np.random.default_rng(seed).integers(0, 90, (count, 3, side, side), dtype=np.uint8)
    images[np.arange(count), labels] += 120
    return images, labels


@pytest.fixture
def shapes():
    """The class of OWN, and its files in the folder "shapes"."""
    Path("shapes").mkdir()
    for part, count, seed in (("train", 60, 0), ("test", 12, 1)):
        images, labels = colour_images(count, seed=seed)
        np.savez(f"shapes/{part}.npz", images=images, labels=labels)
    names = {}
    exec(OWN, names)
    return names["Shapes"]


class Returns(ImageDataModule):
    """Reads what it is given."""

    class_names, in_channels, SIDE = ("a", "b", "c"), 3, 8

    def __init__(self, result, **settings):
        self.result = result
        super().__init__(**settings)

    def read(self, train):
        return self.result


class TestOwnDataset:
    def test_ten_lines_train_and_are_tested(self, shapes):
        data = shapes("shapes")
        assert (data.in_channels, data.image_size, data.num_classes, data.name) == (3, 64, 3, "Shapes")
        model = ImageClassifier(TwoLayerCNN(3, 3, 64))
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = Trainer(max_epochs=6, accelerator="cpu", enable_checkpointing=False, num_sanity_val_steps=0, **quiet)
        trainer.fit(model, data)
        (metrics,) = trainer.test(model, data, verbose=False)
        assert metrics["test/acc"] == 1.0
        assert len(OWN.strip().splitlines()) <= 10

    def test_from_the_command_line(self, shapes, in_new_process):
        Path("own.py").write_text(OWN)
        options = ["--data=own.Shapes", "--data.root=shapes", "--trainer.max_epochs=1", "--dashboard=false"]
        options += ["--model.net=TwoLayerCNN", "--model.net.in_channels=3", "--model.net.num_classes=3"]
        code = "import sys; sys.path.insert(0, ''); from cnn_lightning.cli.fit import fit; fit()"
        ended, printed, errors = in_new_process(code, "fit.py", *options, "--model.net.image_size=64")
        assert ended == 0, errors
        assert "Training TwoLayerCNN on Shapes: 54 training and 6 validation images" in printed

    def test_mean_and_std_are_those_of_the_training_part(self, shapes):
        data = shapes("shapes")
        assert data.mean is data.std is None
        with pytest.raises(UsageError, match="mean and std of Shapes are not known"):
            data.normalize(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
        data.setup("test")  # nobody has told them
        train, everything = data.part("train")[0].double() / 255, data.read(train=True)[0].double() / 255
        assert data.mean == pytest.approx(train.mean((0, 2, 3)).tolist(), abs=1e-12)
        assert data.std == pytest.approx(train.std((0, 2, 3), correction=0).tolist(), abs=1e-12)
        assert data.mean != pytest.approx(everything.mean((0, 2, 3)).tolist(), abs=1e-6)

    @pytest.mark.parametrize(("mean", "std"), [(0.5, [0.1, 0.2, 0.3]), ([0.1, 0.2, 0.3], None), (0.5, 0.25)])
    def test_given_figures_stay(self, shapes, mean, std):
        data = shapes("shapes", mean=mean, std=std)
        data.setup("fit")
        assert data.mean == mean
        assert data.std == std or (std is None and len(data.std) == 3)
        images, _ = next(iter(data.val_dataloader()))
        mean, std = (figure if isinstance(figure, list) else [figure] * 3 for figure in (data.mean, data.std))
        torch.testing.assert_close(images, normalize(data.part("val")[0] / 255, mean, std))

    def test_given_figures_need_no_training_images(self, shapes):
        data = shapes("shapes", mean=0.5, std=[0.1, 0.2, 0.3])
        data.setup("test")
        assert list(data._parts) == ["test"]

    def test_pad(self, shapes):
        data = shapes("shapes", pad=2)
        data.setup("test")
        images, plain = data.part("test")[0], data.read(train=False)[0]
        assert (data.image_size, tuple(images.shape)) == (68, (12, 3, 68, 68))
        assert torch.equal(images[:, :, 2:-2, 2:-2], plain)
        assert images.sum() == plain.sum()
        unpadded = shapes("shapes")
        unpadded.setup("fit")
        assert data.mean == unpadded.mean  # the border does not count

    def test_missing_folder_is_named(self, shapes):
        with pytest.raises(UsageError, match=r"there is no folder /.*/nowhere, expected .* Shapes is read") as error:
            shapes("nowhere").prepare_data()
        assert error.value.argument == "root"
        Digits("nowhere").prepare_data()  # needs none

    def test_normalisation_does_not_keep_gradients_out(self, shapes):
        data = shapes("shapes", mean=[0.1, 0.2, 0.3], std=[0.1, 0.2, 0.4])
        with torch.inference_mode():
            data.normalize(torch.zeros(1, 3, 64, 64))
        weights = torch.ones(1, 3, 64, 64, requires_grad=True)
        data.normalize(weights * 1).sum().backward()
        assert weights.grad[0, :, 0, 0].tolist() == pytest.approx([1 / 25.5, 1 / 51, 1 / 102])


class TestFigures:
    def test_grey_is_computed_as_before(self, tiny_root):
        images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
        for data, mean, std in ((FashionMNIST(tiny_root), 0.2860, 0.3530), (Digits(mean=[0.1], std=[0.3]), 0.1, 0.3)):
            assert (data.mean, data.std) == (mean, std)
            assert torch.equal(data.normalize(images), images.float().mul_(1 / (255 * std)).sub_(mean / std))

    @pytest.mark.parametrize("channels", [1, 3])
    def test_are_exact(self, channels):
        images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2345, channels, 5, 5), dtype=np.uint8))
        mean, std = mean_and_std(images)
        pixels = images.double() / 255
        expected = pixels.mean((0, 2, 3)).tolist(), pixels.std((0, 2, 3), correction=0).tolist()
        assert np.atleast_1d(mean) == pytest.approx(expected[0], abs=1e-14)
        assert np.atleast_1d(std) == pytest.approx(expected[1], abs=1e-14)
        assert isinstance(mean, list) == isinstance(std, list) == (channels > 1)

    def test_a_channel_without_differences_can_be_normalised(self):
        images = torch.zeros(4, 3, 2, 2, dtype=torch.uint8)
        images[:, 1] = 51
        images[:2, 2] = 255
        assert mean_and_std(images) == ([0, pytest.approx(0.2), 0.5], [1, 1, 0.5])

    @pytest.mark.parametrize(
        ("name", "value", "expected"),
        [
            ("mean", [0.1, 0.2], r"mean is \[0.1, 0.2\], expected a finite number, or 3 of them, one for each channel"),
            ("mean", [], r"mean is \[\], expected"),
            ("mean", [0.1, math.nan, 0.1], "expected a finite number, or 3"),
            ("std", [0.1, 0.0, 0.1], "expected a number above 0, or 3 of them"),
            ("std", [0.1, math.inf, 0.1], "expected a number above 0, or 3 of them"),
        ],
    )
    def test_invalid_ones(self, name, value, expected):
        with pytest.raises(UsageError, match=expected) as error:
            Returns(None, **{name: value})
        assert error.value.argument == name


LABELS = torch.arange(9) % 3
IMAGES = torch.zeros(9, 3, 8, 8, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("result", "returned"),
    [
        (None, "NoneType"),
        (IMAGES, "Tensor"),
        ((IMAGES.numpy(), LABELS), r"\(ndarray, Tensor\)"),
        ((IMAGES, LABELS, LABELS), r"\(Tensor, Tensor, Tensor\)"),
        ((IMAGES.permute(0, 2, 3, 1), LABELS), r"\(9, 8, 8, 3\) uint8 images and \(9,\) int64 labels"),
        ((IMAGES[:, :1], LABELS), r"\(9, 1, 8, 8\) uint8 images"),
        ((IMAGES.float(), LABELS), r"\(9, 3, 8, 8\) float32 images"),
        ((IMAGES[:8], LABELS), r"\(8, 3, 8, 8\) uint8 images and \(9,\) int64 labels"),
        ((IMAGES, LABELS.int()), r"\(9,\) int32 labels"),
        ((IMAGES, LABELS[:, None]), r"\(9, 1\) int64 labels"),
        ((IMAGES[:0], LABELS[:0]), r"\(0, 3, 8, 8\) uint8 images and \(0,\) int64 labels"),
        ((IMAGES, LABELS + 1), "labels from 1 to 3"),
        ((IMAGES, LABELS - 1), "labels from -1 to 1"),
    ],
)
def test_what_read_returns_is_checked(result, returned):
    expected = r"expected \(N, 3, 8, 8\) uint8 images and \(N,\) int64 labels from 0 to 2, N at least 1"
    for stage, argument in (("fit", "True"), ("test", "False")):
        with pytest.raises(UsageError, match=rf"^Returns.read\(train={argument}\) returned .*{returned}.*{expected}"):
            Returns(result, mean=0, std=1).setup(stage)


@pytest.mark.parametrize(("few", "count"), [(1, 1), (3, 3)])
def test_a_class_with_too_few_images_is_named(few, count):
    labels = torch.tensor([0] * 100 + [1] * 100 + [2] * few)
    data = Returns((torch.zeros(len(labels), 3, 8, 8, dtype=torch.uint8), labels), mean=0, std=1, val_size=0.1)
    with pytest.raises(
        UsageError, match=rf"class c has too few images \({count}\) to have some for validation"
    ) as error:
        data.setup("fit")
    assert error.value.argument == "val_size"


class TestAugmentationOfColour:
    def test_all_channels_move_together(self):
        grey = torch.from_numpy(np.random.default_rng(0).integers(1, 256, (20, 1, 16, 16), dtype=np.uint8))
        for change in (FlipAndShift(True, 3), Warp(20, 0.2, 5, 1.0)):
            draws = change.draw(20, np.random.default_rng(1))
            moved, expected = change(grey.expand(-1, 3, -1, -1), draws), change(grey, draws)
            torch.testing.assert_close(moved, expected.expand(-1, 3, -1, -1))
            assert not torch.equal(expected.float(), grey.float())

    def test_erased_rectangles_are_grey(self):
        images = torch.tensor([255, 0, 0], dtype=torch.uint8)[:, None, None].expand(30, 3, 16, 16)
        erase = Erase(1.0)
        changed = erase(images, erase.draw(30, np.random.default_rng(0)))
        covered = (changed != images).any(dim=1)
        red, green, blue = changed.transpose(0, 1)
        assert 0.05 < covered.float().mean() < 0.5
        assert torch.equal(red[covered], green[covered])
        assert torch.equal(green, blue)


def test_a_network_of_other_channels_is_an_error(tiny_root):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(max_epochs=1, accelerator="cpu", enable_checkpointing=False, **quiet)
    with pytest.raises(RuntimeError, match="channels"):
        trainer.fit(ImageClassifier(LeNetCNN()), Returns((IMAGES, LABELS), val_size=3))
