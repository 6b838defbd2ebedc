"""The training loops of the five articles, for ``scripts/benchmark.py``.

All read single images from a DataLoader without worker processes, and train in float32; those of the articles apply
ReLU before max-pooling. They differ in what happens to an image, and in what they compute in a step besides. Articles
002 to 004 show no code of their loops, but say what they plot. What happens once an epoch, or every 500 iterations as
in article 003, is left out.

FastCNN and VGGCNN are in no article: they get the loop of PyTorch's MNIST example, with ToTensor and Normalize.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, random_split
from torchvision import transforms

Step = Callable[[Tensor, Tensor], None]
Batches = Iterator[tuple[Tensor, Tensor]]


class Article(NamedTuple):
    """What an article's loop does its own way.

    Attributes:
        mean_std: Figures of Normalize; None where pixels stay in [0, 1].
        record: What it computes after each step: value so far, number of the step, loss, scores, labels -> new value.
        resize: Whether images are resized, to the size that they have.
        train_size: Images that random_split leaves for training; None for all.
        drop_last: Whether the last, smaller batch is left out.
    """

    mean_std: tuple[float, float] | None
    record: Callable[[Any, int, Tensor, Tensor, Tensor], Any] | None = None
    resize: bool = False
    train_size: int | None = None
    drop_last: bool = False


def mean_loss(mean: Any, number: int, loss: Tensor, scores: Tensor, labels: Tensor) -> Any:
    """The mean of the losses so far, as a tensor (article 000)."""
    return mean + (loss.detach() - mean) / number


def accuracy(before: Any, number: int, loss: Tensor, scores: Tensor, labels: Tensor) -> float:
    """The accuracy of each batch; every 100th is printed (article 001)."""
    return (scores.detach().argmax(1) == labels).sum().item() / len(labels)


def loss_and_accuracy(before: Any, number: int, loss: Tensor, scores: Tensor, labels: Tensor) -> tuple[float, float]:
    """Loss and accuracy of each batch; they are plotted (article 002)."""
    return loss.item(), accuracy(before, number, loss, scores, labels)


def cost(total: Any, number: int, loss: Tensor, scores: Tensor, labels: Tensor) -> float:
    """The sum of the losses of an epoch (article 004)."""
    return total + loss.item()


ARTICLES = {
    "SigmoidCNN": Article(None, mean_loss, train_size=48_000),
    "WideCNN": Article((0.1307, 0.3081), accuracy),
    "DropoutCNN": Article(None, loss_and_accuracy),
    "LeNetCNN": Article((0.5, 0.5), resize=True, drop_last=True),
    "TwoLayerCNN": Article(None, cost),
}


def article_of(network: str, data: Any) -> Article:
    """Return the article of a network; for one without, PyTorch's MNIST example with the figures of its dataset."""
    return ARTICLES.get(network) or Article((data.mean, data.std))


def article_loop(model: Any, data: Any, device: str) -> tuple[Batches, Step]:
    """Return the batches and the step of the loop of a network's article.

    Args:
        model: An ImageClassifier: its network, which is changed, and its optimizer are used.
        data: The data module: its source, folder and batch size are used.
        device: Where to train.
    """
    article = article_of(type(model.net).__name__, data)
    net = as_in_the_article(model.net).to(device)
    optimizer = model.optimizer(net.parameters())
    number, recorded = 0, 0.0

    def step(images: Tensor, labels: Tensor) -> None:
        nonlocal number, recorded
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        scores = net(images)
        loss = cross_entropy(scores, labels)
        loss.backward()
        optimizer.step()
        number += 1
        if article.record:
            recorded = article.record(recorded, number, loss, scores, labels)

    dataset = data.source(data.root, train=True, transform=to_input(article))
    if article.train_size is not None:
        dataset, _ = random_split(dataset, [article.train_size, len(dataset) - article.train_size])
    return iter(DataLoader(dataset, data.batch_size, shuffle=True, drop_last=article.drop_last)), step


def to_input(article: Article) -> transforms.Compose:
    """Return what turns an image of PIL into the network's input."""
    steps: list[Any] = [transforms.Resize((28, 28))] if article.resize else []
    steps.append(transforms.ToTensor())
    if article.mean_std:
        mean, std = article.mean_std
        steps.append(transforms.Normalize((mean,), (std,)))
    return transforms.Compose(steps)


def as_in_the_article(net: Any) -> Any:
    """Move ReLU before max-pooling, and use PyTorch's usual memory format; the scores stay the same."""
    layers = list(net.features)
    for index in range(len(layers) - 1):
        if isinstance(layers[index], nn.MaxPool2d) and isinstance(layers[index + 1], nn.ReLU):
            layers[index : index + 2] = layers[index + 1], layers[index]
    net.features = nn.Sequential(*layers)
    return net.to(memory_format=torch.contiguous_format)
