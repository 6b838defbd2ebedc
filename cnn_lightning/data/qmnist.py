"""QMNIST: MNIST with all of its test images."""

from collections.abc import Mapping
from functools import cached_property

from torchvision import datasets

from cnn_lightning.data.idx import IDXDataModule
from cnn_lightning.data.mnist import MNIST


class QMNIST(IDXDataModule):
    """60,000 training and 60,000 test images of handwritten digits (Yadav and Bottou 2019, arXiv 1905.10498).

    MNIST made again from NIST's scans. Its first 10,000 test images are those of MNIST, the other 50,000 were lost.
    """

    source = datasets.QMNIST
    class_names = MNIST.class_names
    preparation = MNIST.preparation

    @cached_property
    def archives(self) -> Mapping[str, tuple[str, str]]:
        """Addresses and MD5 of the archives, by the file in them."""
        resources = [*self.source.resources["train"], *self.source.resources["test"]]
        return {url.rpartition("/")[2].removesuffix(".gz"): (url, md5) for url, md5 in resources}
