"""Class sensitivity, infidelity, max-sensitivity, and the source signal's percentage change."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import _oracles as slow
from backlit import Attribution, Gradient, GradientXInput, InputError
from backlit._random import image_bytes, stable_seed
from backlit.methods import Random
from backlit.metrics import (
    ClassSensitivity,
    Examples,
    Infidelity,
    MaxSensitivity,
    PercentageChange,
    PositivePercentageChange,
)


def test_class_sensitivity_is_the_distance_of_two_maps(network: nn.Module, examples: Examples) -> None:
    method = GradientXInput(network)
    maps = {"gxi": method(examples.inputs, examples.target)}
    plain = ClassSensitivity(classes=(1, 3), scale="none")(network, examples, maps, {"gxi": method})
    to_max = ClassSensitivity(classes=(1, 3))(network, examples, maps, {"gxi": method})
    for i in range(4):
        one, two = (method.attribute(examples.inputs[i : i + 1], c)[0].sum(0).numpy() for c in (1, 3))
        assert plain.values["gxi"][i] == pytest.approx(np.sqrt(((one - two) ** 2).sum()))
        assert to_max.values["gxi"][i] == pytest.approx(np.linalg.norm(one / abs(one).max() - two / abs(two).max()))
    drawn = ClassSensitivity(seed=5)(network, examples, maps, {"gxi": method})
    assert drawn.notes == ClassSensitivity(seed=5)(network, examples, maps, {"gxi": method}).notes
    noise = Random(network)
    still = ClassSensitivity()(network, examples, {"r": noise(examples.inputs, examples.target)}, {"r": noise})
    assert still.values["r"].tolist() == [0] * 4
    with pytest.raises(InputError, match="classes must be indices from 0 to 4, but hold 7"):
        ClassSensitivity(classes=(1, 7))(network, examples, maps, {"gxi": method})
    with pytest.raises(InputError, match="classes must be two different class indices or None"):
        ClassSensitivity(classes=(1, 1))


class Linear(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        score = (self.weight * x).sum((1, 2, 3))
        return torch.stack([score, -score], 1)


def test_the_gradient_of_a_linear_model_is_faithful_and_still() -> None:
    network = Linear(slow.distinct((2, 5, 5), 1))
    examples = Examples(slow.distinct((3, 2, 5, 5), 2), torch.tensor([0, 1, 0]))
    method = Gradient(network)
    maps = {"gradient": method(examples.inputs, examples.target), "other": slow.distinct((3, 2, 5, 5), 3)}
    methods = {"gradient": method, "other": method}
    infidelity = Infidelity()(network, examples, maps)
    np.testing.assert_allclose(infidelity.values["gradient"], 0, atol=1e-12)
    assert (infidelity.values["other"] > 1e-3).all()
    np.testing.assert_allclose(MaxSensitivity()(network, examples, maps, methods).values["gradient"], 0, atol=1e-12)


def test_max_sensitivity_is_the_largest_relative_change(network: nn.Module, examples: Examples) -> None:
    method = GradientXInput(network)
    maps = {"a": method(examples.inputs, examples.target)}
    found = MaxSensitivity(samples=6, radius=0.3)(network, examples, maps, {"a": method}).values["a"]
    for i in range(4):
        x, target = examples.inputs[i : i + 1], int(examples.target[i])
        generator = torch.Generator().manual_seed(stable_seed("max-sensitivity", 0, image_bytes(x[0])))
        noise = (torch.rand((6, *x.shape[1:]), generator=generator, dtype=torch.float64) * 2 - 1) * 0.3
        own = method.attribute(x, target)
        changes = [float((method.attribute(x + d, target) - own).norm() / own.norm()) for d in noise]
        assert found[i] == pytest.approx(max(changes), rel=1e-5)


@pytest.mark.parametrize("metric", [Infidelity(samples=4), MaxSensitivity(samples=4)], ids=lambda m: m.name)
def test_what_captum_draws_depends_on_the_seed_alone(metric, network: nn.Module, examples: Examples) -> None:
    method = GradientXInput(network)
    maps = {"a": method(examples.inputs, examples.target)}
    state = torch.get_rng_state()
    whole = metric(network, examples, maps, {"a": method}).values["a"]
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    alone = [metric(network, examples[i : i + 1], {"a": maps["a"][i]}, {"a": method}).values["a"] for i in range(4)]
    np.testing.assert_allclose(np.concatenate(alone), whole, rtol=1e-9)
    other = type(metric)(samples=4, seed=1)(network, examples, maps, {"a": method}).values["a"]
    assert not np.allclose(other, whole)


def test_a_map_of_one_channel_is_spread_over_the_images(network: nn.Module, examples: Examples) -> None:
    one = slow.distinct((4, 1, 14, 14), 3)
    both = {"one": one, "three": (one / 3).expand(4, 3, 14, 14)}
    found = Infidelity(samples=3, normalise=False)(network, examples, both)
    np.testing.assert_allclose(found.values["one"], found.values["three"])


def test_the_percentage_change_is_the_mean_over_classes(network: nn.Module) -> None:
    x, source = slow.distinct((7, 3, 14, 14), 1), slow.distinct((7, 3, 14, 14), 2)
    target = torch.tensor([0, 0, 0, 0, 1, 1, 4])
    found = Attribution(x, target, network(x)[range(7), target].detach(), parts={"source": source})
    examples = Examples(x, target)
    both = [m(network, examples, {"mip_in": found}) for m in (PercentageChange(), PositivePercentageChange())]
    change: dict[int, list[tuple[float, float]]] = {}
    with torch.no_grad():
        for i, c in enumerate(target.tolist()):
            own, signal = float(network(x[i : i + 1])[0, c]), float(network(source[i : i + 1])[0, c])
            change.setdefault(c, []).append((abs(own - signal) / abs(own), max(own - signal, 0) / abs(own)))
    for k, scores in enumerate(both):
        expected = np.mean([np.mean([pair[k] for pair in pairs]) for pairs in change.values()])
        assert scores.estimate("mip_in").value == pytest.approx(expected)
        flat = [pair[k] for pairs in change.values() for pair in pairs]
        np.testing.assert_allclose(scores.values["mip_in"], flat)
        assert np.mean(flat) != pytest.approx(expected)
    many = np.random.default_rng(0)
    values, groups = many.random((50, 300)), many.integers(40, size=(50, 300)).astype(float)
    slow_means = [np.mean([v[g == c].mean() for c in np.unique(g)]) for v, g in zip(values, groups, strict=True)]
    np.testing.assert_allclose(PercentageChange().statistic(values, groups), slow_means)
    with pytest.raises(InputError, match=r"needs a source signal .*MIP-IN.*maps\['a'\] has none"):
        PercentageChange()(network, examples, {"a": x})
