"""KMNIST: cursive Japanese characters."""

from torchvision import datasets

from cnn_lightning.data.idx import IDXDataModule
from cnn_lightning.data.photos import Preparation


class KMNIST(IDXDataModule):
    """60,000 training and 10,000 test images of ten Hiragana from old books (Clanuwat et al. 2018, arXiv 1812.01718).

    The classes are transcribed in Latin letters, as torchvision does. Most characters touch the edge of their image.
    """

    source = datasets.KMNIST
    class_names = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
    preparation = Preparation(box=28, centre_by_mass=False, strokes=True, one_piece=False)
