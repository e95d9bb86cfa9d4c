"""Relevance at the pixels: averages, windows, coordinates, boxes, and pixels that are zero."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from _relevance_networks import Net, drawn
from torch import Tensor
from torch.nn import functional as F

from backlit import LRP, DeepTaylor, InputError, SmoothGrad
from backlit.rules import presets
from backlit.rules.linear import Epsilon, Flat, Gamma, LayerRule, WSquare, ZBox
from backlit.rules.relevance import relevance


def test_averages_of_pixels_share_by_their_weights_alone() -> None:
    """A pool before the first layer: no division by what it put out, which may vanish."""
    for average in (
        lambda x: F.avg_pool2d(x, 2),
        lambda x: F.avg_pool2d(x, 3, padding=1),
        lambda x: F.adaptive_avg_pool2d(x, 4),
    ):
        net = Net(lambda net, x, average=average: net.f(net.a(average(x)).relu().mean((2, 3))), bias=False)
        x = drawn(2, 6)
        x[:, :, :2, :2] = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])  # an average of 0
        found = DeepTaylor(net, bounded=False)(x, 1)
        torch.testing.assert_close(found.completeness["ratio"], torch.ones(2).double())
        signs = found.values * found.output.sign()[:, None, None, None]
        assert float(signs.min()) >= -1e-12
        bare = Net(lambda net, x: net.f(net.a(x).relu().mean((2, 3))), bias=False)
        below = DeepTaylor(bare, bounded=False)(average(x), 1).values
        with torch.enable_grad():
            leaf = torch.zeros_like(x).requires_grad_()
            scale = average(torch.ones_like(x))
            (expected,) = torch.autograd.grad(average(leaf), leaf, below / scale)
        torch.testing.assert_close(found.values, expected)
    grey = Net(lambda net, x: net.f(net.a(x.mean(1, keepdim=True)).relu().mean((2, 3))), bias=False, channels=1)
    found = DeepTaylor(grey, bounded=False)(drawn(), 1)
    torch.testing.assert_close(found.values[:, 0], found.values[:, 2])
    torch.testing.assert_close(found.completeness["ratio"], torch.ones(2).double())


def by_unfolding(net: Net, x: Tensor) -> Tensor:
    return (F.unfold(x, 3, padding=1).mT @ net.a.weight.flatten(1).T).mT


def by_views(net: Net, x: Tensor) -> Tensor:
    windows = F.pad(x, (1, 1, 1, 1)).unfold(2, 3, 1).unfold(3, 3, 1).permute(0, 2, 3, 1, 4, 5).flatten(3)
    return (windows @ net.a.weight.flatten(1).T).permute(0, 3, 1, 2).flatten(2)


def by_folding(net: Net, x: Tensor) -> Tensor:
    return net.a(F.fold(F.unfold(x, 2, stride=2), 6, 2, stride=2)).flatten(2)


def by_sampling(net: Net, x: Tensor) -> Tensor:
    grid = F.affine_grid(torch.eye(2, 3).to(x).expand(len(x), 2, 3), list(x.shape), align_corners=True)
    return net.a(F.grid_sample(x, grid, align_corners=True)).flatten(2)


@pytest.mark.parametrize("way", [by_unfolding, by_views, by_folding, by_sampling])
@pytest.mark.parametrize("rule", [Flat(), WSquare(), ZBox(-2, 2), Epsilon()])
def test_pixels_that_are_zero_have_relevance_however_the_first_layer_gets_them(
    way: Callable[[Net, Tensor], Tensor], rule: LayerRule
) -> None:
    """Windows cut by hand are a convolution; what they read beyond the edge is the constants'."""
    table = relevance("t", dense=Epsilon(), convolution=Epsilon(), first=rule)
    x = drawn().round().clamp(-1, 1)
    assert bool((x == 0).any())
    plain, other = (
        LRP(Net(lambda net, x, cut=cut: net.f(cut(net, x).relu().mean(2)), bias=False), rules=table)(x, 1)
        for cut in (lambda net, x: net.a(x).flatten(2), way)
    )
    edge = 1 if way in (by_unfolding, by_views) else 0  # there the padding is a signal like any other
    inside = (..., slice(2 * edge, 6 - 2 * edge), slice(2 * edge, 6 - 2 * edge))
    torch.testing.assert_close(other.values[inside], plain.values[inside])
    assert float(other.completeness["gap"].abs().max()) < 1e-5 * float(other.output.abs().max())


@pytest.mark.parametrize("preset", ["epsilon_plus_flat", "epsilon_gamma_box", "deep_taylor_unbounded"])
def test_a_first_layer_without_one_tensor_of_weights_gives_pixels_relevance(preset: str) -> None:
    """No weights, or two: the pixels still get relevance, not multipliers."""
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    for gray in (
        lambda x: torch.einsum("nchw->nhw", x),
        lambda x: torch.einsum("nchw,c,c->nhw", x, weights, weights),
    ):
        net = Net(lambda net, x, gray=gray: net.f(net.a(gray(x)[:, None]).relu().mean((2, 3))), channels=1)
        found = LRP(net, preset=preset)(drawn(), 1)
        assert float(found.completeness["gap"].abs().max()) < 1e-6


@pytest.mark.parametrize(
    "cut",
    [
        lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
        lambda x: F.pad(x, (1, 1, 1, 1), value=1.0),
        lambda x: torch.cat([x[:, 1:], torch.ones_like(x[:, :1])], 1),
        lambda x: torch.where(torch.arange(6) < 3, x, 0.5),
        lambda x: F.fold(F.unfold(x, 3, padding=1), 6, 3, padding=1),
        lambda x: F.avg_pool2d(x, 3, 1, 1),
        lambda x: (x - 0.1) / 0.2,
    ],
)
@pytest.mark.parametrize("preset", ["epsilon_plus", "epsilon_plus_flat", "deep_taylor_unbounded"])
def test_several_classes_at_once_before_the_first_layer(cut: Callable[[Tensor], Tensor], preset: str) -> None:
    net, x = Net(lambda net, x: net.f(net.a(cut(x)).relu().mean((2, 3)))), drawn()
    together = LRP(net, preset=preset).each(x, [[0, 1], [2, 0]])
    for t, target in enumerate(([0, 2], [1, 0])):
        alone = LRP(net, preset=preset)(x, target)
        torch.testing.assert_close(together[t].values, alone.values)
        torch.testing.assert_close(together[t].completeness["biases"], alone.completeness["biases"])


def test_a_sum_of_pixels_is_their_mean() -> None:
    """Whichever way it is written: not by values, which may cancel."""
    x = drawn().round().clamp(-1, 1)
    ways = (
        lambda x: x.mean(1, keepdim=True),
        lambda x: x.sum(1, keepdim=True) / 3,
        lambda x: (x / 3).sum(1, keepdim=True),
    )
    nets = [Net(lambda net, x, way=way: net.f(net.a(way(x)).relu().mean((2, 3))), channels=1) for way in ways]
    for preset in ("epsilon_plus", "epsilon_plus_flat", "deep_taylor"):
        found, *others = (LRP(net, preset=preset)(x, 1) for net in nets)
        for other in others:
            torch.testing.assert_close(other.values, found.values)
            assert float(other.completeness["gap"].abs().max()) < 1e-6


def test_coordinates_beside_the_pixels_take_their_own_share() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        rows = torch.linspace(-1, 1, 6, dtype=x.dtype).view(1, 1, 6, 1).expand(len(x), 1, 6, 6)
        return net.f(net.a(torch.cat([x, rows], 1)).relu().mean((2, 3)))

    net, x = Net(forward, bias=False, channels=3), drawn(channels=2)
    whole = Net(lambda net, x: net.f(net.a(x).relu().mean((2, 3))), bias=False)
    rows = torch.linspace(-1, 1, 6, dtype=x.dtype).view(1, 1, 6, 1).expand(2, 1, 6, 6)
    for preset in ("epsilon", "epsilon_plus", "epsilon_plus_flat"):
        found = LRP(net, preset=preset)(x, 1)
        both = LRP(whole, preset=preset)(torch.cat([x, rows], 1), 1).values
        torch.testing.assert_close(found.values, both[:, :2])
        torch.testing.assert_close(found.completeness["biases"], both[:, 2:].sum((1, 2, 3)), rtol=1e-6, atol=1e-9)


def test_a_box_is_that_of_the_networks_input() -> None:
    """A normalisation inside the network: black and white are what it makes of them."""
    mean = torch.tensor([0.4, 0.5, 0.6], dtype=torch.float64).view(3, 1, 1)
    inside = Net(lambda net, x: net.f(net.a((x - mean) / 0.2).relu().mean((2, 3))))
    outside = Net(lambda net, x: net.f(net.a(x).relu().mean((2, 3))))
    x = torch.rand(2, 3, 6, 6, dtype=torch.float64)
    low, high = (-mean / 0.2).flatten().tolist(), ((1 - mean) / 0.2).flatten().tolist()
    expected = DeepTaylor(outside, low=low, high=high)((x - mean) / 0.2, 1).values
    torch.testing.assert_close(DeepTaylor(inside, low=0.0, high=1.0)(x, 1).values, expected)
    found = LRP(inside, preset="epsilon_gamma_box", low=0, high=[1.0, 1.0, 1.0])(x, 1).values
    theirs = LRP(outside, preset="epsilon_gamma_box", low=low, high=high)((x - mean) / 0.2, 1).values
    torch.testing.assert_close(found, theirs)
    negative = Net(lambda net, x: net.f(net.a((mean - x) / 0.2).relu().mean((2, 3))))  # white is below black
    bounds = {"low": ((mean - 1) / 0.2).flatten().tolist(), "high": (mean / 0.2).flatten().tolist()}
    expected = DeepTaylor(outside, **bounds)((mean - x) / 0.2, 1).values
    torch.testing.assert_close(DeepTaylor(negative, low=0.0, high=1.0)(x, 1).values, expected)


def test_a_value_a_little_outside_of_the_box_is_its_own_bound() -> None:
    """Noise that a sensitivity test adds may leave the box; the rule's contributions stay positive."""
    net = Net(lambda net, x: net.f(net.a(x).relu().mean((2, 3))), bias=False)
    x = torch.rand(2, 3, 6, 6, dtype=torch.float64) * 1.1 - 0.05
    found = DeepTaylor(net, low=0.0, high=1.0)(x, 1)
    assert float((found.values * found.output.sign()[:, None, None, None]).min()) >= 0
    torch.testing.assert_close(found.completeness["ratio"], torch.ones(2).double())
    with pytest.raises(InputError, match="low and high must bound the input, but it reaches from"):
        DeepTaylor(net, low=0.3, high=1.0)(x, 1)


@pytest.mark.parametrize("chunk", [1, None])
def test_noisy_copies_leave_the_box_and_the_image_itself_may_not(chunk: int | None) -> None:
    """SmoothGrad's noise reaches far outside of black and white; a pixel there is its own bound."""
    net = Net(lambda net, x: net.f(net.a(x).relu().mean((2, 3))))
    x = torch.rand(2, 3, 6, 6, dtype=torch.float64)
    for of in (DeepTaylor(net, low=0.0, high=1.0), LRP(net, preset="epsilon_gamma_box", low=0.0, high=1.0)):
        ends = "low and high must bound the input, but it reaches from"
        found = SmoothGrad(net, of=of, samples=3, chunk=chunk)(x, 1)
        with pytest.raises(InputError, match=ends):
            SmoothGrad(net, of=replace(of, low=0.5), samples=3, chunk=chunk)(x, 1)
    table = relevance("box", dense=Epsilon(1e-7), convolution=Gamma(0.25), first=ZBox(0.0, 1.0, strict=False))
    expected = SmoothGrad(net, of=LRP(net, rules=table), samples=3)(x, 1)
    torch.testing.assert_close(found.values, expected.values)


def test_an_image_without_any_signal_has_a_map_of_zeros() -> None:
    net = Net(lambda net, x: net.f(net.b(net.a(x).relu()).relu().mean((2, 3))), bias=False)
    for preset in presets.RELEVANCE:
        assert float(LRP(net, preset=preset).attribute(torch.zeros(1, 3, 6, 6).double(), 1).abs().max()) == 0
