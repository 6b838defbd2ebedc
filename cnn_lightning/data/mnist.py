"""MNIST: handwritten digits."""

from torchvision import datasets

from cnn_lightning.data.idx import IDXDataModule
from cnn_lightning.data.photos import Preparation


class MNIST(IDXDataModule):
    """60,000 training and 10,000 test images of handwritten digits (LeCun, Cortes and Burges 1998)."""

    source = datasets.MNIST
    class_names = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
    preparation = Preparation(box=20, centre_by_mass=True, strokes=True)
    # Computed from the 60,000 training images; a test computes them again.
    MEAN, STD = 0.1307, 0.3081
