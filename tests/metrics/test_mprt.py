"""Smooth and efficient MPRT against slow selves: scipy's correlations, numpy's histograms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from backlit import GradientXInput, InputError
from backlit.methods import SmoothGrad
from backlit.methods.blind import Centre, Random
from backlit.metrics import EfficientMPRT, Examples, SmoothMPRT
from backlit.metrics.mprt import entropy
from backlit.metrics.reset import reset

LAYERS = ("0", "2", "6")  # of the network, bottom first


def smoothed(network: nn.Module, examples: Examples, seed: int = 0) -> Tensor:
    of = GradientXInput(network)
    return SmoothGrad(network, of=of, samples=3, sigma=0.2, seed=seed).attribute(examples.inputs, examples.target)


@pytest.mark.parametrize("order", ["bottom", "top"])
def test_smooth_mprt_correlates_averages_of_both_networks(order: str, network: nn.Module, examples: Examples) -> None:
    method = GradientXInput(network)
    maps = {"a": method(examples.inputs, examples.target)}
    metric = SmoothMPRT(samples=3, noise=0.2, stages=None, order=order)
    found = metric(network, examples, maps, {"a": method})
    before = smoothed(network, examples).sum(1).flatten(1)
    layers, expected = LAYERS if order == "bottom" else LAYERS[::-1], np.ones((4, 4))
    for stage in range(1, 4):
        after = smoothed(reset(network, layers[:stage], seed=0), examples).sum(1).flatten(1)
        expected[:, stage] = [stats.spearmanr(a, b).statistic for a, b in zip(before, after, strict=True)]
    np.testing.assert_allclose(found.curves["a"], expected, atol=1e-12)
    np.testing.assert_allclose(found.values["a"], expected[:, 1:].mean(1))
    assert found.labels == list(layers)
    assert metric.axes[0] == f"share of the layers reset, from the {order}"


def slow_entropy(values: np.ndarray, bins: int) -> float:
    counts, _ = np.histogram(values, bins=bins)
    return float(stats.entropy(counts / counts.sum()))


def test_efficient_mprt_is_the_relative_rise_of_the_entropy(network: nn.Module, examples: Examples) -> None:
    method = GradientXInput(network)
    maps = method(examples.inputs, examples.target)
    found = EfficientMPRT(bins=20)(network, examples, {"a": maps}, {"a": method})
    again = GradientXInput(reset(network, LAYERS, seed=0)).attribute(examples.inputs, examples.target)
    for i in range(4):
        one, two = (slow_entropy(m[i].sum(0).numpy(), 20) for m in (maps.values, again))
        assert found.values["a"][i] == pytest.approx((two - one) / one, rel=1e-10)
        assert found.extra["entropy"]["a"][i] == pytest.approx(one, rel=1e-12)
        assert found.extra["entropy, all layers reset"]["a"][i] == pytest.approx(two, rel=1e-12)


def test_the_entropy_is_that_of_numpys_histogram() -> None:
    x = torch.randn(3, 1, 40, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x[1].clamp_(min=0)
    x[2] = 3.0
    found = entropy(x, 100)
    expected = [slow_entropy(v.numpy(), 100) for v in x]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)
    assert found[2] == 0


def test_what_does_not_look_at_the_network_does_not_rise(network: nn.Module, examples: Examples) -> None:
    methods = {m.name: m(network) for m in (Random, Centre)}
    maps = {name: m(examples.inputs, examples.target) for name, m in methods.items()}
    found = EfficientMPRT()(network, examples, maps, methods)
    assert found.values["random"].tolist() == found.values["centre"].tolist() == [0.0] * 4


def test_a_constant_map_has_no_entropy_to_rise_from(network: nn.Module, examples: Examples) -> None:
    found = EfficientMPRT()(network, examples, {"a": torch.zeros(4, 1, 14, 14)}, {"a": GradientXInput(network)})
    assert np.isnan(found.values["a"]).all()
    assert found.remarks == ("4 images of a not scored: a map is constant",)


def test_options_that_cannot_be_are_refused(network: nn.Module, examples: Examples) -> None:
    for make, message in (
        (lambda: SmoothMPRT(samples=0), "samples must be a positive integer up to 1,000,000, but is 0"),
        (lambda: SmoothMPRT(noise=0), "noise must be a positive number, but is 0"),
        (lambda: SmoothMPRT(order="up"), "order must be 'bottom' or 'top', but is 'up'"),
        (lambda: EfficientMPRT(bins=1), "bins must be at least 2, but is 1"),
        (lambda: EfficientMPRT(draw="zero"), "draw must be 'normal' or 'own', but is 'zero'"),
        (lambda: EfficientMPRT(layers=3), "layers must be a tuple of module paths, or None, but is 3"),
        (lambda: EfficientMPRT(layers="nope").check(network, examples, {}), "'nope' is none"),
    ):
        with pytest.raises(InputError, match=message):
            make()
