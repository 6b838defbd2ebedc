import pytest
import torch
from torch.nn.functional import cross_entropy
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from cnn_lightning.metrics import LossAndAccuracy


def batches(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    for size in (20, 20, 7, 1, 64, 20, 13):
        scores = torch.randn(size, 10, generator=generator).mul(3).to(dtype)
        scores[0, 3] = scores[0].max()  # a tie, in which the first of both counts
        yield scores, torch.randint(10, (size,), generator=generator)


# With bf16-mixed the scores are bfloat16; with bf16-true the loss, too.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("loss_dtype", [torch.float32, torch.bfloat16])
def test_is_to_the_bit_what_torchmetrics_gives(dtype, loss_dtype):
    ours, loss, accuracy = LossAndAccuracy(), MeanMetric(), MulticlassAccuracy(10, average="micro")
    for _ in range(2):  # and once more after a reset
        for scores, labels in batches(dtype):
            value = cross_entropy(scores.float(), labels).to(loss_dtype)
            ours.update(value.float() * len(labels), scores, labels)
            loss.update(value, weight=len(labels))
            accuracy.update(scores, labels)
            values = ours.compute()
            assert torch.equal(values["loss"], loss.compute())
            assert torch.equal(values["acc"], accuracy.compute())
        for metric in (ours, loss, accuracy):
            metric.reset()


def test_keeps_what_a_compiled_network_writes_over():
    metric, scores = LossAndAccuracy(), torch.eye(10)
    metric.update(torch.tensor(1.0), scores, torch.arange(10))
    scores.zero_()
    assert metric.compute()["acc"] == 1


def test_a_loss_that_is_not_a_number_shows():
    metric = LossAndAccuracy()
    for value in (1.0, float("nan"), 1.0):
        metric.update(torch.tensor(value), torch.eye(10), torch.arange(10))
    assert metric.compute()["loss"].isnan()


def test_keeps_no_graph():
    metric, scores = LossAndAccuracy(), torch.eye(10, requires_grad=True)
    metric.update(cross_entropy(scores, torch.arange(10), reduction="sum"), scores, torch.arange(10))
    assert not metric.compute()["loss"].requires_grad
    assert not any(noted.requires_grad for noted in metric.scores)


def test_what_was_noted_can_be_noted_again():
    first, second = LossAndAccuracy(), LossAndAccuracy()
    for scores, labels in batches():
        first.update(cross_entropy(scores, labels, reduction="sum"), scores, labels)
    second.update(*first.noted())
    for name, value in first.compute().items():
        assert torch.equal(second.compute()[name], value)


def test_leaves_out_what_counts_for_nothing():
    metric = LossAndAccuracy()
    labels = torch.tensor([0, 1, -100])
    metric.update(cross_entropy(torch.eye(3), labels, reduction="sum"), torch.eye(3), labels)
    values = metric.compute()
    assert torch.equal(values["loss"], cross_entropy(torch.eye(3)[:2], labels[:2]))
    assert (values["acc"], values["images"]) == (1, 2)
