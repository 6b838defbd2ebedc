import pytest
import torch
from torch.nn.functional import cross_entropy
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from cnn_lightning.metrics import LossAndAccuracy


def batches(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    for size in (20, 20, 7, 1, 64, 20, 13):
        logits = torch.randn(size, 10, generator=generator).mul(3).to(dtype)
        logits[0, 3] = logits[0].max()  # a tie: the first class counts
        yield logits, torch.randint(10, (size,), generator=generator)


# With bf16-mixed the logits are bfloat16; with bf16-true the loss is, too.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("loss_dtype", [torch.float32, torch.bfloat16])
def test_is_bit_identical_to_torchmetrics(dtype, loss_dtype):
    ours, loss, accuracy = LossAndAccuracy(), MeanMetric(), MulticlassAccuracy(10, average="micro")
    for _ in range(2):  # the second time after a reset
        for logits, labels in batches(dtype):
            value = cross_entropy(logits.float(), labels).to(loss_dtype)
            ours.update(value.float() * len(labels), logits, labels)
            loss.update(value, weight=len(labels))
            accuracy.update(logits, labels)
            values = ours.compute()
            assert torch.equal(values["loss"], loss.compute())
            assert torch.equal(values["acc"], accuracy.compute())
        for metric in (ours, loss, accuracy):
            metric.reset()


def test_keeps_logits_that_a_compiled_network_overwrites():
    metric, logits = LossAndAccuracy(), torch.eye(10)
    metric.update(torch.tensor(1.0), logits, torch.arange(10))
    logits.zero_()
    assert metric.compute()["acc"] == 1


def test_a_nan_loss_gives_a_nan_mean():
    metric = LossAndAccuracy()
    for value in (1.0, float("nan"), 1.0):
        metric.update(torch.tensor(value), torch.eye(10), torch.arange(10))
    assert metric.compute()["loss"].isnan()


def test_keeps_no_graph():
    metric, logits = LossAndAccuracy(), torch.eye(10, requires_grad=True)
    metric.update(cross_entropy(logits, torch.arange(10), reduction="sum"), logits, torch.arange(10))
    assert not metric.compute()["loss"].requires_grad
    assert not any(stored.requires_grad for stored in metric.logits)


def test_gathered_batches_can_be_added_again():
    first, second = LossAndAccuracy(), LossAndAccuracy()
    for logits, labels in batches():
        first.update(cross_entropy(logits, labels, reduction="sum"), logits, labels)
    second.update(*first.gathered())
    assert first.images == second.images == 145
    for name, value in first.compute().items():
        assert torch.equal(second.compute()[name], value)


def test_ignores_negative_labels():
    metric = LossAndAccuracy()
    labels = torch.tensor([0, 1, -100])
    metric.update(cross_entropy(torch.eye(3), labels, reduction="sum"), torch.eye(3), labels)
    values = metric.compute()
    assert torch.equal(values["loss"], cross_entropy(torch.eye(3)[:2], labels[:2]))
    assert (values["acc"], values["images"]) == (1, 2)
