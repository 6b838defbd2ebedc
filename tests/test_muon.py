import io

import pytest
import torch
from torch.nn.functional import cross_entropy

from cnn_lightning.errors import UsageError
from cnn_lightning.nets import DeepCNN
from cnn_lightning.optim.muon import ConvMuon, orthogonal


@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])  # computes in float32, and in bfloat16
@pytest.mark.parametrize("shape", [(8, 72), (72, 8)])
def test_orthogonal_keeps_the_singular_vectors_and_equalises_the_singular_values(shape, capability, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, sizes, v = torch.linalg.svd(matrix, full_matrices=False)
    assert sizes.max() > 1.5 * sizes.min()
    result = orthogonal(matrix, steps=5)
    # In the basis of singular vectors the result is diagonal up to rounding, with 0.7 to 1.2 on the diagonal.
    inside = u.T @ result @ v.T
    assert inside.diag().min() > 0.6
    assert inside.diag().max() < 1.3
    assert (inside - inside.diag().diag()).abs().max() < 0.05


def test_matrices_of_a_batch_do_not_mix():
    sizes = torch.tensor([1e-3, 1, 1e3])[:, None, None]
    matrices = sizes * torch.randn(3, 8, 72, generator=torch.Generator().manual_seed(0))
    alone = torch.stack([orthogonal(matrix, steps=5) for matrix in matrices])
    # In bfloat16, where there is AVX-512, rounding may differ.
    torch.testing.assert_close(orthogonal(matrices, steps=5), alone, rtol=0, atol=0.02)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_steps_as_muon_on_matrices_and_adamw_on_the_rest(memory_format):
    torch.manual_seed(0)
    net = DeepCNN().to(memory_format=memory_format)
    images, labels = torch.randn(8, 1, 28, 28), torch.arange(8)
    before = {name: param.detach().clone() for name, param in net.named_parameters()}
    optimizer = ConvMuon(net.parameters(), lr=0.1, momentum=0.8, weight_decay=0.1, adamw_lr=0.03, betas=(0.8, 0.9))
    kernels = {name for name, param in net.named_parameters() if param.ndim == 4 and param.shape[1] > 1}
    assert len(kernels) == 5
    matrices = {name: before[name].clone().contiguous().flatten(1).requires_grad_() for name in kernels}
    others = {name: before[name].clone().requires_grad_() for name in before.keys() - kernels}
    muon = torch.optim.Muon(matrices.values(), lr=0.1, momentum=0.8, weight_decay=0.1, ns_steps=3)
    adamw = torch.optim.AdamW(others.values(), lr=0.03, betas=(0.8, 0.9), weight_decay=0)
    for _ in range(3):
        optimizer.zero_grad()
        cross_entropy(net(images), labels).backward()
        for name, param in net.named_parameters():
            if name in kernels:
                matrices[name].grad = param.grad.flatten(1).contiguous()
            else:
                others[name].grad = param.grad.clone()
        for step in (optimizer.step, muon.step, adamw.step):
            step()
        for name, param in net.named_parameters():
            if name in kernels:
                # Muon, and on some machines ConvMuon, computes in bfloat16, with two to three significant digits.
                moved = (matrices[name] - before[name].flatten(1)).norm()
                assert (param.flatten(1) - matrices[name]).norm() < 0.03 * moved
            else:
                torch.testing.assert_close(param, others[name])


@pytest.mark.parametrize("fused", [None, True])
def test_resumes_from_its_state(fused):
    def network():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3), torch.nn.Flatten(), torch.nn.Linear(16, 3))

    def train(net, optimizer, steps):
        for group in optimizer.param_groups:
            group["fused"] = fused
        for _ in range(steps):
            optimizer.zero_grad()
            cross_entropy(net(images), torch.tensor([0, 1, 2])).backward()
            optimizer.step()
        return torch.cat([param.flatten() for param in net.parameters()])

    images = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    whole, resumed = network(), network()
    expected = train(whole, ConvMuon(whole.parameters()), 4)
    first = ConvMuon(resumed.parameters())
    train(resumed, first, 2)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = ConvMuon(resumed.parameters())
    second.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(train(resumed, second, 2), expected)


def test_runs_the_closure_and_returns_the_loss():
    weights = torch.nn.Parameter(torch.ones(3))
    optimizer = ConvMuon([weights])

    def closure():
        loss = (weights**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 3
    assert (weights < 1).all()


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("momentum", 1.0, "0 or more and less than 1"),
        ("momentum", -0.1, "0 or more"),
        ("newton_schulz_steps", 0, "1 or more"),
        ("adamw_lr", -1.0, "0 or more"),
        ("adamw_lr", float("nan"), "0 or more"),
    ],
)
def test_invalid_arguments_are_usage_errors(name, value, expected):
    with pytest.raises(UsageError, match=f"^{name} is {value}, expected {expected}") as error:
        ConvMuon([torch.nn.Parameter(torch.ones(1))], **{name: value})
    assert error.value.argument == name


def test_adamw_checks_the_other_arguments():
    with pytest.raises(ValueError, match=r"Invalid learning rate: -1\.0"):
        ConvMuon([torch.nn.Parameter(torch.ones(1))], lr=-1.0)
