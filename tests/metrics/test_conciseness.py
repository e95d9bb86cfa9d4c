"""Sparseness and complexity, against sums written out in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from _oracles import distinct
from backlit.metrics import Complexity, Examples, Sparseness

SIDE = 14


def gini(values: list[float]) -> float:
    """The mean absolute difference of all pairs over twice the mean."""
    p = len(values)
    return sum(abs(a - b) for a in values for b in values) / (2 * p * sum(values))


def entropy(values: list[float]) -> float:
    return -sum(v / sum(values) * math.log(v / sum(values)) for v in values if v)


@pytest.mark.parametrize(("metric", "slow"), [(Sparseness(), gini), (Complexity(), entropy)], ids=["gini", "entropy"])
def test_equal_to_the_definition(metric: Sparseness | Complexity, slow, network: nn.Module, examples: Examples) -> None:
    maps = {"one": distinct((4, 1, SIDE, SIDE), 1), "three": distinct((4, 3, SIDE, SIDE), 2)}
    maps["one"][0, 0, :7] = 0
    found = metric(network, examples, maps)
    for name, given in maps.items():
        for i in range(4):
            magnitudes = given[i].sum(0).abs().flatten().tolist()
            np.testing.assert_allclose(found.values[name][i], slow(magnitudes), rtol=1e-10)


def test_the_ends_of_both(network: nn.Module, examples: Examples) -> None:
    flat, spike = torch.full((4, 1, SIDE, SIDE), -2.0), torch.zeros(4, 1, SIDE, SIDE)
    spike[:, :, 3, 4] = -1e30
    p = SIDE * SIDE
    gini_of, entropy_of = (
        m(network, examples, {"flat": flat, "spike": spike}).values for m in (Sparseness(), Complexity())
    )
    np.testing.assert_allclose(gini_of["flat"], 0, atol=1e-12)
    np.testing.assert_allclose(gini_of["spike"], 1 - 1 / p)
    np.testing.assert_allclose(entropy_of["flat"], math.log(p))
    np.testing.assert_allclose(entropy_of["spike"], 0, atol=1e-12)


@pytest.mark.parametrize("metric", [Sparseness(), Complexity()], ids=lambda m: m.name)
def test_neither_depends_on_the_scale_and_a_map_of_zeros_is_counted(
    metric, network: nn.Module, examples: Examples
) -> None:
    heat = distinct((4, 1, SIDE, SIDE), 3)
    heat[2] = 0
    scores = metric(network, examples, {"a": heat, "b": heat * 1e306, "c": heat * 1e-300})
    assert np.isnan(scores.values["a"]).tolist() == [False, False, True, False]
    np.testing.assert_allclose(scores.values["b"], scores.values["a"], rtol=1e-10)
    np.testing.assert_allclose(scores.values["c"], scores.values["a"], rtol=1e-10)
    assert "3 maps not scored: they are zero everywhere" in scores.remarks
