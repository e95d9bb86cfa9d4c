"""The self-test of metrics: each degradation against loops, and metrics of which it is known what they see."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import _oracles as slow
from backlit import InputError
from backlit.metrics import Case, Deletion, Examples, LastLayerReset, Metric, Scores
from backlit.metrics.degradation import DEGRADATIONS
from backlit.metrics.ranking import drawn_orders
from backlit.metrics.self_test import self_test

GOOD = slow.distinct((4, 2, 14, 14), 1)


class Near(Metric):
    """The correlation with the good map, which every degradation lowers."""

    name, title, source, summary = "near", "Near", "this test", "correlation with the good map"
    higher_is_better, range = True, (-1.0, 1.0)

    def measure(self, case: Case) -> Scores:
        good = GOOD.sum(1).flatten(1).numpy()
        values = {
            k: np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(v.flatten(1).numpy(), good, strict=True)])
            for k, v in case.heat.items()
        }
        return Scores(self, case.examples.names, values)


class Far(Near):
    """The same the other way around."""

    name, higher_is_better = "far", False

    def measure(self, case: Case) -> Scores:
        found = super().measure(case)
        return Scores(self, found.names, {k: -v for k, v in found.values.items()})


class Size(Near):
    """The sum of magnitudes, which neither signs nor places change."""

    name = "size"

    def measure(self, case: Case) -> Scores:
        values = {k: case.maps[k].abs().sum((1, 2, 3)).numpy() for k in case.heat}
        return Scores(self, case.examples.names, values)


@pytest.mark.parametrize("amount", [0.25, 0.5, 1.0])
def test_each_degradation_does_what_it_says(amount: float, examples: Examples) -> None:
    order = drawn_orders(examples.inputs, 0)
    changed = round(amount * 196)
    made = {kind: change(GOOD, amount, order, 0) for kind, change in DEGRADATIONS.items()}
    for i in range(4):
        places = order[i].tolist()[:changed]
        shuffled, turned = GOOD[i].flatten(1).clone(), GOOD[i].flatten(1).clone()
        for place, source in zip(places, places[1:] + places[:1], strict=True):
            shuffled[:, place] = GOOD[i].flatten(1)[:, source]
            turned[:, place] *= -1
        assert torch.equal(made["shuffle"][i].flatten(1), shuffled)
        assert torch.equal(made["sign"][i].flatten(1), turned)
        noise = (made["noise"][i] - (1 - amount) * GOOD[i]) / (amount * GOOD[i].std(correction=0))
        assert abs(float(noise.mean())) < 0.2
        assert float(noise.std()) == pytest.approx(1, abs=0.12)
        assert abs(np.corrcoef(noise.flatten(), GOOD[i].flatten())[0, 1]) < 0.2
    spread = [float(DEGRADATIONS["blur"](GOOD, a, order, 0).std()) for a in (0.0, amount / 2, amount)]
    assert spread[0] > spread[1] > spread[2]
    assert torch.equal(DEGRADATIONS["blur"](GOOD, 0.0, order, 0), GOOD)


def test_a_metric_that_sees_a_degradation_orders_it_and_one_that_does_not_does_not(
    network: nn.Module, examples: Examples
) -> None:
    tested = self_test(network, examples, GOOD, [Near(), Far(), Size(), LastLayerReset()], steps=4)
    assert tested.metrics == ("near", "far", "size")
    for kind in DEGRADATIONS:
        assert tested.order("near", kind) == pytest.approx(1)
        assert tested.order("far", kind) == pytest.approx(1)
    assert np.isnan(tested.order("size", "shuffle"))
    assert np.isnan(tested.order("size", "sign"))
    assert tested.scores["near", "sign"][-1] == pytest.approx(-1)
    assert tested.scores["near", "noise"][0] == pytest.approx(1)
    assert tested.skipped == {"last_layer_reset": "it explains again, and no method makes a degraded map"}


def test_the_order_is_scipys_of_steps_and_scores(network: nn.Module, examples: Examples) -> None:
    metric = Deletion(steps=7)
    tested = self_test(network, examples, GOOD, [metric], degradations=("shuffle",), steps=5)
    order = drawn_orders(examples.inputs, 0)
    maps = {str(i): DEGRADATIONS["shuffle"](GOOD, i / 5, order, 0) for i in range(6)}
    means = [metric(network, examples, maps).values[str(i)].mean() for i in range(6)]
    np.testing.assert_allclose(tested.scores["deletion", "shuffle"], means, rtol=1e-10)
    assert tested.order("deletion", "shuffle") == pytest.approx(stats.spearmanr(range(6), means).statistic)
    with pytest.raises(
        InputError, match=r"degradations must be of noise, blur, shuffle, sign, but hold 'blurr'.*'blur'"
    ):
        self_test(network, examples, GOOD, [metric], degradations=("blurr",))
    with pytest.raises(InputError, match="steps must be a positive integer, but is 0"):
        self_test(network, examples, GOOD, [metric], steps=0)
