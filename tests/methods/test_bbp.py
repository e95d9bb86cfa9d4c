"""Bias back-propagation against its recursion on dense matrices, and its sum on every architecture."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from _networks import ARCHITECTURES, SIX, SPELLINGS, build, images
from backlit import BBp, GradientXInput, InputError, UnsupportedOp

TARGET = torch.tensor([2, 0])
Alpha = Literal["ratio", "equal"]


def _net() -> nn.Sequential:
    torch.manual_seed(1)
    layers = [
        nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2),
        nn.ReLU(),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 4, 2, dilation=2),
        nn.LeakyReLU(0.2),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 5),
        nn.ReLU(),
        nn.Linear(5, 3),
    ]
    net = nn.Sequential(*layers).double().eval()
    for name, tensor in net.state_dict().items():
        if "running_mean" in name or name.endswith("bias"):
            nn.init.normal_(tensor)
    return net


def _oracle(net: nn.Sequential, x: Tensor, target: int, alpha: Alpha) -> Tensor:
    """One image, unit by unit: what a unit holds is shared out by alpha, and each layer's bias is added below it."""
    values = [x.clone().requires_grad_()]
    for module in net:
        values.append(module(values[-1]))
    grads = [g.flatten() for g in torch.autograd.grad(values[-1][0, target], values)]
    held = torch.zeros_like(grads[-1])
    for i in reversed(range(len(net))):
        z = values[i].detach()
        jacobian = torch.autograd.functional.jacobian(net[i], z)
        weights = jacobian.reshape(held.numel(), z.numel())
        bias = values[i + 1].detach().flatten() - weights @ z.flatten()
        held = held + grads[i + 1] * bias
        below = torch.zeros(z.numel(), dtype=z.dtype)
        elementwise = isinstance(net[i], (nn.ReLU, nn.LeakyReLU, nn.BatchNorm2d, nn.Flatten))
        for p in range(held.numel()):
            if elementwise:
                below[p] += held[p]
                continue
            inputs = weights[p] != 0
            sizes = (weights[p] * z.flatten()).abs() if alpha == "ratio" else inputs.double()
            sizes = sizes if float(sizes.sum()) else inputs.double()
            below += held[p] * sizes / sizes.sum()
        held = below
    return held.view(x.shape[1:])


@pytest.mark.parametrize("alpha", ["ratio", "equal"])
def test_is_the_recursion_unit_by_unit(alpha: Alpha) -> None:
    net = _net()
    x = torch.randn(2, 2, 14, 14, dtype=torch.float64)
    x[0, :, :5] = 0  # units into which nothing comes
    found = BBp(net, alpha=alpha).attribute(x, TARGET)
    for i, target in enumerate(TARGET.tolist()):
        expected = _oracle(net, x[i : i + 1], target, alpha)
        assert float(expected.abs().max()) > 1e-3
        torch.testing.assert_close(found[i], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("alpha", ["ratio", "equal"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_sum_is_what_gradient_times_input_leaves_out(architecture: str, alpha: Alpha) -> None:
    xs = images(architecture)
    for spellings in (SPELLINGS, SIX):
        whole = BBp(build(architecture, "module", spellings), alpha=alpha)(xs, TARGET)
        products = GradientXInput(build(architecture, "module", spellings))(xs, TARGET)
        biases = products[0].completeness["biases"]
        torch.testing.assert_close(sum(one.values.sum((1, 2, 3)) for one in whole), biases)
        for one in whole:
            torch.testing.assert_close(one.completeness["biases"], biases)
            assert float(one.completeness["gap"].abs().max()) < 1e-9
        for spelling in spellings:
            found = BBp(build(architecture, spelling, spellings), alpha=alpha)(xs, TARGET)
            for ours, theirs in zip(found, whole, strict=True):
                torch.testing.assert_close(ours.values, theirs.values, msg=spelling)


class Gated(nn.Module):
    """A squeeze-and-excitation gate, a concat with a constant, a subtraction, a scaled residual."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate, self.fc = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 1), nn.Linear(4, 3)
        self.scale = nn.Parameter(torch.randn(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.hardswish(self.conv(x))
        y = y * torch.sigmoid(self.gate(y.mean((2, 3), keepdim=True))) - self.scale * y.relu() + 0.5
        return self.fc(torch.addmm(torch.ones(4, dtype=y.dtype), y.amax((2, 3)), torch.eye(4, dtype=y.dtype)))


@pytest.mark.parametrize("alpha", ["ratio", "equal"])
def test_gates_and_constants_lose_nothing(alpha: Alpha) -> None:
    torch.manual_seed(0)
    net = Gated().double().eval()
    x = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    found = BBp(net, alpha=alpha)(x, TARGET)
    assert float(found.completeness["gap"].abs().max()) < 1e-12
    assert float(found.completeness["biases"].abs().min()) > 0.1


def test_a_network_without_biases_has_an_empty_map() -> None:
    net = (
        nn.Sequential(nn.Conv2d(2, 3, 3, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double().eval()
    )
    assert float(BBp(net).attribute(torch.randn(2, 2, 8, 8, dtype=torch.float64), 1).abs().max()) == 0


def test_softmax_is_refused_and_alpha_checked() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Softmax(1)).double().eval()
    with pytest.raises(UnsupportedOp, match=r"softmax\[0\] .* has no rule in the table 'bias shares, ratio'"):
        BBp(net)(torch.randn(2, 2, 8, 8, dtype=torch.float64))
    with pytest.raises(InputError, match="alpha must be 'ratio' or 'equal', but is 'softmax'"):
        BBp(net, alpha="softmax")
