"""MNIST: handwritten digits."""

from typing import ClassVar

from torchvision import datasets

from cnn_lightning.data.idx import IDXDataModule
from cnn_lightning.data.photos import Preparation


class MNIST(IDXDataModule):
    """60,000 training and 10,000 test images of handwritten digits (LeCun, Cortes and Burges 1998)."""

    source = datasets.MNIST
    MIRRORS = ("https://storage.googleapis.com/cvdf-datasets/mnist/", "https://github.com/fgnt/mnist/raw/master/")
    SHA256: ClassVar = {
        "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    }
    class_names = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
    preparation = Preparation(box=20, centre_by_mass=True, strokes=True, stroke_width=2.45)
    MEAN, STD = 0.1307, 0.3081  # of the 60,000 training images; a test recomputes them
