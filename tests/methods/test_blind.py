"""The baselines: each against plain loops or scipy, on what they look at and on nothing else."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from backlit import InputError
from backlit.methods import BASELINES, Method
from backlit.methods.blind import Centre, Constant, Edges

X = torch.randn(2, 3, 9, 14, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 4)).double().eval()


def test_the_centre_is_a_gaussian_along_both_axes() -> None:
    found = Centre(network(), sigma=0.2).attribute(X, 1)
    assert found.shape == (2, 1, 9, 14)
    for r in range(9):
        for c in range(14):
            y, x = (r + 0.5) / 9 - 0.5, (c + 0.5) / 14 - 0.5  # of the sides
            expected = math.exp(-(y**2) / (2 * 0.2**2)) * math.exp(-(x**2) / (2 * 0.2**2))
            assert found[0, 0, r, c].item() == pytest.approx(expected, rel=1e-12)
    assert torch.equal(found[0], found[1])
    with pytest.raises(InputError, match="sigma must be a positive number, but is 0"):
        Centre(network(), sigma=0)


def test_edges_are_scipys_sobel_of_the_channels_mean() -> None:
    found = Edges(network()).attribute(X, 1)
    for image, edges in zip(X.numpy(), found[:, 0].numpy(), strict=True):
        across, down = (ndimage.sobel(image.mean(0), axis=axis, mode="nearest") for axis in (1, 0))
        np.testing.assert_allclose(edges, np.hypot(across, down), rtol=1e-10, atol=1e-12)


def test_the_constant_is_one() -> None:
    assert torch.equal(Constant(network()).attribute(X, 1), torch.ones(2, 1, 9, 14, dtype=torch.float64))


@pytest.mark.parametrize("kind", BASELINES, ids=lambda m: m.name)
def test_no_baseline_looks_at_the_network_or_the_target(kind: type[Method]) -> None:
    one, other = kind(network())(X, 1), kind(network(1))(X, 2)
    assert torch.equal(one.values, other.values)
    torch.testing.assert_close(one.output, network()(X)[:, 1].detach())  # but tells the network's score


@pytest.mark.parametrize("shape", [(2, 3, 20), (2, 3, 4, 5, 6)], ids=["signals", "volumes"])
def test_the_centre_and_the_constant_take_signals_and_volumes(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 3)).double().eval()
    bump = Centre(flat).attribute(x, 1)
    assert bump.shape == (2, 1, *shape[2:])
    assert torch.equal(bump, bump.flip(list(range(2, x.dim()))))
    assert Constant(flat).attribute(x, 1).shape == bump.shape
