"""Reset checks: what is drawn, what stays, and what the maps of known methods do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from backlit import GradientXInput, GuidedBackprop, InputError
from backlit.methods import Random
from backlit.metrics import CascadingReset, Examples, LastLayerReset, Scores
from backlit.metrics.reset import layers_from_the_top, reset


@pytest.fixture(scope="module")
def wide() -> nn.Module:
    """Two layers of one shape, batch norm, a layer that is never called, one that is called twice."""

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Linear(3, 3)
            self.head = nn.Linear(8, 4)
            self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
            self.c = nn.Conv2d(8, 8, 3, padding=1)
            self.norm = nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.norm(self.a(x)))
            x = torch.relu(self.c(torch.relu(self.b(x))))
            return self.head(torch.relu(self.b(x)).mean((2, 3)))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Wide().double().eval()
        nn.init.normal_(model.norm.weight, 1.0, 0.2)
        nn.init.normal_(model.norm.bias, 0.0, 0.2)
    return model


def test_layers_are_found_in_the_order_of_their_last_call(wide: nn.Module) -> None:
    assert layers_from_the_top(wide, torch.zeros(1, 3, 12, 12, dtype=torch.float64)) == ("head", "b", "c", "norm", "a")


def test_what_is_reset_is_drawn_anew_and_nothing_else(wide: nn.Module) -> None:
    before = {k: v.clone() for k, v in wide.state_dict().items()}
    blank = reset(wide, ["b", "norm"], seed=0)
    for name, value in blank.state_dict().items():
        changed = not torch.equal(value, before[name])
        assert changed == (name.split(".")[0] in ("b", "norm") and "running" not in name and "num" not in name), name
    assert all(torch.equal(v, before[k]) for k, v in wide.state_dict().items())


def test_each_layer_has_a_stream_of_its_own(wide: nn.Module) -> None:
    both, alone = reset(wide, ["b", "c"], seed=0), reset(wide, ["c"], seed=0)
    assert torch.equal(both.c.weight, alone.c.weight)
    standard = [
        ((m.weight - m0.weight.mean()) / m0.weight.std(correction=0)).detach()
        for m, m0 in ((both.b, wide.b), (both.c, wide.c))
    ]
    assert float((standard[0] - standard[1]).abs().max()) > 1  # a peer seeds every layer alike, and gets two equal ones
    assert not torch.equal(reset(wide, ["c"], seed=1).c.weight, alone.c.weight)


def test_the_draw_is_normal_with_the_parameters_own_mean_and_spread(wide: nn.Module) -> None:
    big = nn.Sequential(nn.Linear(200, 300)).double()
    with torch.no_grad():
        big[0].weight.uniform_(1, 3, generator=torch.Generator().manual_seed(0))
    drawn = reset(big, ["0"], seed=0)[0].weight.detach().flatten()
    assert float(drawn.mean()) == pytest.approx(2, abs=0.01)
    assert float(drawn.std()) == pytest.approx(1 / 3**0.5, rel=0.02)
    assert stats.kstest((drawn - drawn.mean()) / drawn.std(), "norm").pvalue > 0.01


def test_a_layers_own_initialisation_is_drawn_beside_the_global_stream(wide: nn.Module) -> None:
    state = torch.get_rng_state()
    one, two = (reset(wide, ["b"], seed=0, draw="own").b.weight for _ in range(2))
    assert torch.equal(one, two)
    assert float(one.abs().max()) <= 1 / 72**0.5
    assert torch.equal(torch.get_rng_state(), state)


def test_correlations_are_scipys_with_maps_of_the_reset_network(wide: nn.Module) -> None:
    x = torch.randn(3, 3, 12, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    examples = Examples(x, torch.tensor([0, 1, 2]))
    method = GradientXInput(wide)
    found = CascadingReset(stages=None)(wide, examples, {"gxi": method(x, examples.target)}, {"gxi": method})
    before = method.attribute(x, examples.target).sum(1).flatten(1)
    order = ("head", "b", "c", "norm", "a")
    expected = np.ones((3, 6))
    for stage in range(1, 6):
        after = GradientXInput(reset(wide, order[:stage], seed=0)).attribute(x, examples.target).sum(1).flatten(1)
        expected[:, stage] = [stats.spearmanr(a, b).statistic for a, b in zip(before, after, strict=True)]
    np.testing.assert_allclose(found.curves["gxi"], expected, atol=1e-12)
    np.testing.assert_allclose(found.values["gxi"], expected[:, 1:].mean(1))
    assert found.labels == list(order)
    assert found.pictures["gxi"].shape == (5, 3, 12, 12)
    last = LastLayerReset()(wide, examples, {"gxi": method(x, examples.target)}, {"gxi": method})
    np.testing.assert_allclose(last.values["gxi"], expected[:, 1])
    assert set(last.extra) == {"spearman of magnitudes", "ssim"}
    few = CascadingReset(stages=3)(wide, examples, {"gxi": method(x, examples.target)}, {"gxi": method})
    assert few.labels == ["head", "c", "a"]
    assert few.positions is not None
    np.testing.assert_allclose(few.positions, [0, 0.2, 0.6, 1])  # of five layers
    np.testing.assert_allclose(few.curves["gxi"][:, 1:], expected[:, [1, 3, 5]], atol=1e-12)


def test_guided_backprop_survives_what_gradient_times_input_does_not(network: nn.Module, examples: Examples) -> None:
    methods = {m.name: m(network) for m in (GuidedBackprop, GradientXInput, Random)}
    maps = {name: m(examples.inputs, examples.target) for name, m in methods.items()}
    found = LastLayerReset()(network, examples, maps, methods)
    assert found.values["random"].tolist() == [1.0] * 4
    assert found.values["guided_backprop"].mean() > found.values["gradient_x_input"].mean() + 0.2


def test_a_constant_map_has_no_correlation(network: nn.Module, examples: Examples) -> None:
    methods = {"a": GradientXInput(network)}
    found = LastLayerReset()(network, examples, {"a": torch.zeros(4, 1, 14, 14)}, methods)
    assert np.isnan(found.values["a"]).all()
    assert found.remarks == ("4 images of a not scored: a map is constant",)


def test_layers_that_cannot_be_reset_are_refused(wide: nn.Module) -> None:
    with pytest.raises(
        InputError, match=r"layers must be module paths of the network, but 'heads' is none. Did you mean 'head'"
    ):
        reset(wide, ["heads"], seed=0)
    with pytest.raises(InputError, match=r"layers must have parameters of their own, but '' \(Wide\) has none"):
        reset(wide, [""], seed=0)
    with pytest.raises(InputError, match="draw must be 'normal' or 'own', but is 'uniform'"):
        LastLayerReset(draw="uniform")
    x = torch.zeros(1, 3, 12, 12, dtype=torch.float64)
    one = Examples(x, torch.tensor([0]))
    with pytest.raises(InputError, match="Last-layer reset needs the methods themselves"):
        LastLayerReset()(wide, one, {"a": x})
    with pytest.raises(InputError, match=r"methods must hold the method of maps\['a'\], by the same name, but has"):
        LastLayerReset()(wide, one, {"a": x}, {"b": GradientXInput(wide)})
    with pytest.raises(InputError, match="'nope' is none"):
        LastLayerReset(layers="nope").check(wide, one, {})
    assert LastLayerReset(layers="head").layers == ("head",)


def test_statistics_of_batch_norm_stay_whatever_is_drawn(wide: nn.Module) -> None:
    trained = reset(wide, [], seed=0)
    trained.norm.running_mean.fill_(3.0)
    blank = reset(trained, ["norm"], seed=0, draw="own")
    assert torch.equal(blank.norm.running_mean, trained.norm.running_mean)
    assert torch.equal(blank.norm.weight, torch.ones(8, dtype=torch.float64))


def test_a_map_turned_around_has_kept_as_much_as_one_that_stays() -> None:
    values = {"turned": np.full(6, -0.99), "lost": np.full(6, 0.02), "kept": np.full(6, 0.95)}
    scores = Scores(LastLayerReset(), list("abcdef"), values)
    assert [name for name, _ in scores.ranking()] == ["lost", "kept", "turned"]
    assert scores.protocol.direction == "nearest 0 is best"
    assert scores.difference("turned", "lost").value == pytest.approx(0.97)
    assert scores.estimate("turned").value == pytest.approx(-0.99)
