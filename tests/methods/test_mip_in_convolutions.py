"""MIP-IN's transposed convolutions: solved in closed form, against descent; their sums without patches, against patches."""

from __future__ import annotations

import random

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


STRIDE_ONE = [kind for kind, options in CONVOLUTIONS.items() if "stride" not in options]


@pytest.mark.parametrize("kind", STRIDE_ONE)
def test_products_without_patches_are_those_of_patches(kind: str) -> None:
    _compare(nn.Conv2d(4, 4, **CONVOLUTIONS[kind]).double(), drawn(5, 4, 7, 7))


def test_products_without_patches_of_sixty_geometries() -> None:
    draw = random.Random(0)
    done = 0
    while done < 60:
        groups, size = draw.choice([1, 1, 2]), (draw.randint(3, 9), draw.randint(3, 9))
        kernel = (draw.randint(1, 7), draw.randint(1, 7))
        dilation = (draw.randint(1, 2), draw.randint(1, 3))
        padding = "same" if draw.random() < 0.25 else (draw.randint(0, 5), draw.randint(0, 5))
        margins = (99, 99) if padding == "same" else [2 * p for p in padding]  # type: ignore[operator]
        if any(h + p <= d * (k - 1) for h, p, d, k in zip(size, margins, dilation, kernel, strict=True)) or kernel == (
            1,
            1,
        ):
            continue
        conv = nn.Conv2d(2 * groups, groups, kernel, 1, padding, dilation, groups).double()
        _compare(conv, drawn(3, 2 * groups, *size))
        done += 1


def _compare(conv: nn.Conv2d, x: Tensor) -> None:
    regression = _transposed(conv, x)
    assert regression._by_lags
    s = drawn(3, len(x), *conv(x[:1]).shape[1:], seed=2)
    lags, rows = (Moments(3, regression.sizes, x.device) for _ in range(2))
    classes = torch.arange(3)
    for part in (slice(0, 2), slice(2, None)):
        regression.learn(lags, classes, [s[:, part]], [x[part]])
        super(Transposed, regression).learn(rows, classes, [s[:, part]], [x[part]])
    for name in ("count", "mean_s", "mean_x", "ss", "xs", "xx"):
        torch.testing.assert_close(
            getattr(lags, name), getattr(rows, name), rtol=1e-10, atol=1e-10, msg=f"{name} of {conv}"
        )


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
