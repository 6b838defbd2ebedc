"""Fashion-MNIST: pieces of clothing."""

from typing import ClassVar

from torchvision import datasets

from cnn_lightning.data.idx import IDXDataModule
from cnn_lightning.data.photos import Preparation


class FashionMNIST(IDXDataModule):
    """60,000 training and 10,000 test images of clothing (Xiao, Rasul and Vollgraf 2017, arXiv 1708.07747)."""

    source = datasets.FashionMNIST
    MIRRORS = ("https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",)
    SHA256: ClassVar = {
        "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    }
    class_names = (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    )  # fmt: skip
    can_flip = True
    preparation = Preparation(box=28, centre_by_mass=False, strokes=False)
    MEAN, STD = 0.2860, 0.3530  # of the 60,000 training images; a test recomputes them
