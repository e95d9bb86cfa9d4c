"""MIP-IN's transposed convolutions: solved in closed form, against descent on the weights of F.conv_transpose2d."""

from __future__ import annotations

import pytest
import torch
from _fit_networks import drawn
from torch import Tensor, nn
from torch.nn import functional as F

from backlit.inverse.moments import Moments, Ridge, solve
from backlit.inverse.part import find_part
from backlit.inverse.regressions import Transposed
from backlit.inverse.signals import Who

CONVOLUTIONS = {
    "plain": {"kernel_size": 3},
    "padded": {"kernel_size": 3, "padding": 1},
    "strided": {"kernel_size": 3, "stride": 2, "padding": 1},
    "dilated": {"kernel_size": 2, "dilation": 3, "padding": 2},
    "grouped": {"kernel_size": 3, "groups": 2},
    "oblong": {"kernel_size": (1, 3), "stride": (2, 1), "padding": (0, 2)},
    "same": {"kernel_size": 2, "padding": "same"},
    "depthwise": {"kernel_size": 3, "groups": 4, "padding": 1},
    "five": {"kernel_size": 5, "padding": 2},
    "seven": {"kernel_size": 7, "padding": 3},
    "wide margin": {"kernel_size": 3, "padding": 2},
    "same five": {"kernel_size": 5, "padding": "same"},
    "same seven": {"kernel_size": 7, "padding": "same"},
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_transposed_convolutions_are_solved_as_gradient_descent_would(kind: str) -> None:
    """The closed form's loss is that of descent on the weights of F.conv_transpose2d, which knows nothing of patches."""
    conv = nn.Conv2d(4, 4, **CONVOLUTIONS[kind]).double()
    x = drawn(12, 4, 7, 7)
    s = conv(x).relu().detach()
    regression = _transposed(conv, x)
    moments = Moments(1, regression.sizes, x.device)
    regression.learn(moments, torch.tensor([0]), [s[None]], [x])
    strength = 1e-3
    solution = solve(moments, Ridge(strength), kind)
    parameters = regression.parameters(solution.weight, solution.bias)
    assert parameters["weight"].shape == (1, 4, 4 // conv.groups, *conv.kernel_size)
    who = Who(torch.zeros(1, 12, dtype=torch.int64), torch.tensor([0]))
    (closed,) = regression.apply(parameters, [s[None]], who, bias=True)

    full = [
        (h - 1) * st + d * (k - 1) + 1
        for h, st, d, k in zip(s.shape[2:], conv.stride, conv.dilation, conv.kernel_size, strict=True)
    ]
    before = [d * (k - 1) // 2 if conv.padding == "same" else p
              for d, k, p in zip(conv.dilation, conv.kernel_size, conv.padding if conv.padding != "same" else (0, 0), strict=True)]  # fmt: skip

    def reconstructed(weight: Tensor, bias: Tensor) -> Tensor:
        y = F.conv_transpose2d(s, weight, stride=conv.stride, dilation=conv.dilation, groups=conv.groups)
        assert list(y.shape[2:]) == full
        y = F.pad(y, [-before[1], 7 + before[1] - full[1], -before[0], 7 + before[0] - full[0]])
        return y + bias.view(-1, 1, 1)

    def loss(weight: Tensor, bias: Tensor) -> Tensor:
        return (x - reconstructed(weight, bias)).square().sum() / (12 * 49) + strength * weight.square().sum()

    best, shift = parameters["weight"][0], parameters["bias"][0]
    torch.testing.assert_close(closed[0], reconstructed(best, shift))
    weight, bias = torch.zeros_like(best).requires_grad_(), torch.zeros_like(shift).requires_grad_()
    descent = torch.optim.LBFGS(
        [weight, bias], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        descent.zero_grad()
        value = loss(weight, bias)
        value.backward()
        return value

    descent.step(closure)
    assert float(loss(best, shift)) == pytest.approx(float(loss(weight, bias).detach()), rel=1e-6)
    torch.testing.assert_close(best, weight.detach(), rtol=1e-3, atol=1e-4)
    assert float(loss(best, shift)) < float(loss(best + 0.01, shift))


def _transposed(conv: nn.Conv2d, x: Tensor) -> Transposed:
    part = find_part(nn.Sequential(conv, nn.ReLU(), nn.Flatten(), _Head(conv, x)).eval(), (x[:2],), "input")
    (found,) = (r for r in part.regressions.values() if isinstance(r, Transposed))
    return found


class _Head(nn.Linear):
    def __init__(self, conv: nn.Conv2d, x: Tensor) -> None:
        super().__init__(conv(x[:1]).numel(), 2)
        self.double()


@pytest.mark.parametrize("mean", [0.0, 300.0])
@pytest.mark.parametrize("kind", ["plain", "padded", "depthwise"])
def test_products_in_float32_keep_their_digits_far_from_zero(kind: str, mean: float) -> None:
    conv = nn.Conv2d(4, 4, **CONVOLUTIONS[kind]).double()
    x = drawn(64, 4, 7, 7)
    regression = _transposed(conv, x)
    s = conv(x).detach()[None] + mean
    weights = {}
    for dtype in (torch.float64, torch.float32):
        moments = Moments(1, regression.sizes, x.device, dtype)
        for part in (slice(0, 24), slice(24, None)):
            regression.learn(moments, torch.tensor([0]), [s[:, part].to(dtype)], [x[part].to(dtype)])
        weights[dtype] = solve(moments, Ridge(1e-3), kind).weight
    gap = (weights[torch.float32] - weights[torch.float64]).abs().max() / weights[torch.float64].abs().max()
    assert float(gap) < 1e-3
