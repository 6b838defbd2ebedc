"""Fashion-MNIST: pieces of clothing."""

from torchvision import datasets

from cnn_lightning.data.idx import IDXDataModule
from cnn_lightning.data.photos import Preparation


class FashionMNIST(IDXDataModule):
    """60,000 training and 10,000 test images of clothing (Xiao, Rasul and Vollgraf 2017, arXiv 1708.07747)."""

    source = datasets.FashionMNIST
    class_names = (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    )  # fmt: skip
    preparation = Preparation(box=28, centre_by_mass=False, strokes=False)
    # Computed from the 60,000 training images; a test computes them again.
    MEAN, STD = 0.2860, 0.3530
