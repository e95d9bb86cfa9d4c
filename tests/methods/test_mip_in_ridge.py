"""MIP-IN's ridge at sums and joins, and the memory that a fit may take."""

from __future__ import annotations

import warnings

import pytest
import torch
from _fit_networks import drawn, randomised
from torch import Tensor, nn

from backlit import MIPIN
from backlit.inverse import fit as fits
from backlit.inverse.moments import Moments, Ridge, solve
from backlit.inverse.part import find_part
from backlit.inverse.regressions import PerChannel
from backlit.inverse.signals import Who


@pytest.mark.parametrize("ridge", [1e-3, 0.0])
@pytest.mark.parametrize("unit", [100.0, 1.0, 0.01, 1e-6])
def test_sums_and_joins_do_not_depend_on_the_unit(unit: float, ridge: float) -> None:
    x, noise = drawn(200, 3, 4, 4), drawn(2, 200, 3, 4, 4, seed=1)
    signals, parts = [(x + 0.1 * noise[0]) * unit, (x + noise[1]) * unit], [x * unit, 0.3 * noise[0] * unit]
    only = Who(torch.zeros(1, 200, dtype=torch.int64), torch.tensor([0]))

    def learned(given: list[Tensor], wanted: list[Tensor]) -> list[Tensor]:
        regression = PerChannel((3, 4, 4), len(given), len(wanted))
        moments = Moments(1, regression.sizes, x.device)
        regression.learn(moments, torch.tensor([0]), [s[None] for s in given], wanted)
        solution = solve(moments, Ridge(ridge, regression.relative), "here")
        parameters = regression.parameters(solution.weight, solution.bias)
        return regression.apply(parameters, [s[None] for s in given], only, bias=True)

    (joined,) = learned(signals, [parts[0]])
    error = float((joined[0] - parts[0]).square().mean() / unit**2)
    assert error < 1.01 * 0.01 / 1.01  # the better of the two alone, by its own best slope
    split = learned([parts[0] + parts[1]], parts)
    back = split[0][0] + split[1][0]
    torch.testing.assert_close(back / unit, (parts[0] + parts[1]) / unit, rtol=0, atol=5e-3)


def test_signals_without_variance_or_twice_the_same_are_solved_without_a_ridge() -> None:
    x = drawn(50, 2, 3, 3)
    x[:, 1] = 0
    regression = PerChannel((2, 3, 3), 2, 1)
    moments = Moments(1, regression.sizes, x.device)
    regression.learn(moments, torch.tensor([0]), [x[None], x[None]], [x])
    weight = solve(moments, Ridge(0.0, relative=True), "here").weight[0, :, 0]
    torch.testing.assert_close(weight[0], torch.full((2,), 0.5, dtype=torch.float64), rtol=1e-3, atol=0)
    assert not bool(weight[1].any())


class _Wide(nn.Module):
    """Three layers that are learned in one pass."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 30)
        self.branches = nn.ModuleList(nn.Linear(30, 30) for _ in range(3))
        self.end = nn.Linear(90, 6)
        randomised(self)

    def forward(self, x: Tensor) -> Tensor:
        z = self.a(x.flatten(1)).relu()
        return self.end(torch.cat([b(z).relu() for b in self.branches], 1))


def test_memory_holds_all_that_one_pass_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = _Wide(), drawn(200, 2, 2, 2)
    held: list[int] = []
    passed = fits._Fit._pass

    def looked(self: fits._Fit, classes: list[int], layers: fits.Layers) -> dict[str, Moments]:
        moments = passed(self, classes, layers)
        held.append(len(classes) * sum(m.sizes.bytes for m in moments.values()))
        return moments

    monkeypatch.setattr(fits._Fit, "_pass", looked)
    branch = 8 * (60 + 30 * 60)
    one = find_part(net, (x[:2],), "input").bytes_at_once
    assert 3 * branch + 3 * branch < one < 9 * branch
    together = MIPIN.fit(net, [x])
    assert max(held) == 6 * 3 * branch
    held.clear()
    apart = MIPIN.fit(net, [x], memory=2 * one)
    assert len(held) == 3 * 4  # two classes at a time; head, branches, join, first layer
    assert max(held) == 2 * 3 * branch
    for name, layer in together.layers.items():
        for key, value in layer.items():
            torch.testing.assert_close(apart.layers[name][key], value, rtol=1e-8, atol=1e-10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MIPIN.fit(net, [x], memory=one)
    with pytest.warns(
        UserWarning, match=r"the moments of one class take [\d,]+ bytes, more than memory, which is 1,000"
    ):
        MIPIN.fit(net, [x], memory=1000)


def test_a_start_that_is_read_several_times_is_not_inverted_itself() -> None:
    net, x = _Wide(), drawn(20, 2, 2, 2)
    part = find_part(net, (x[:2],), "relu[0]")
    assert [step.outputs == step.sources == part.starts for step in part.steps][-1]  # the join
    assert {row.site: row.rule for row in part.coverage().rows}["relu[0]"] == "not inverted"
