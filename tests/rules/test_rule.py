"""Rules as values: what a wrapper keeps, what a plain function is made into, what a rule may return."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import backlit
from backlit._errors import RuleMismatch
from backlit.capture import Call, Rule, Shares, propagate, rule
from backlit.capture.rule import as_rule
from backlit.rules import check_rule, norm, presets
from backlit.rules.adjoint import adjoint
from backlit.rules.exact import exact
from backlit.rules.structural import at_pixels

SOURCE = Path(__file__).parents[2] / "src" / "backlit"
X = torch.randn(2, 1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def _net() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2))
    net = nn.Sequential(*layers).double().eval()
    nn.init.uniform_(net[1].running_mean)  # type: ignore[arg-type]
    return net


def halved(grad_output: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> tuple[Tensor | None, ...]:
    return exact(grad_output / 2, inputs, output, call)


def test_a_plain_function_is_a_rule_of_its_name() -> None:
    made = as_rule(halved)
    assert made == Rule(halved, "halved")
    assert as_rule(made) is made
    assert as_rule(None) is None
    net = _net()
    whole = backlit.Gradient(net).attribute(X, 1)
    for given in (halved, made, rule(reads_output=False)(halved)):
        maps = backlit.Gradient(net, rules={"linear": given})(X, 1)
        torch.testing.assert_close(maps.values, whole / 2)
        assert maps.coverage.count()["halved"] == 1
    check_rule(made, torch.relu, X)  # type: ignore[arg-type]


def test_a_wrapper_keeps_what_the_engine_must_know() -> None:
    for original in (norm.batch_norm, adjoint):
        for wrapped in (replace(original, vjp=halved), at_pixels(original, (True,), given=False)):
            for field in fields(Rule):
                if field.name != "vjp":
                    assert getattr(wrapped, field.name) == getattr(original, field.name)
    table = presets.epsilon()
    joined = propagate(_net(), X, table).coverage.count()

    class Wrapped:
        def rule_for(self, site):  # type: ignore[no-untyped-def]
            name, entry = table.rule_for(site)
            return name, entry and replace(entry, vjp=lambda *args: entry(*args))

    run = propagate(_net(), X, Wrapped())
    assert run.coverage.count() == joined
    assert joined["joined to its layer"] == 1
    expected = propagate(_net(), X, table).gradient(torch.ones(2, 2, dtype=torch.float64))
    assert torch.equal(run.gradient(torch.ones(2, 2, dtype=torch.float64))[0], expected[0])


def test_what_a_constant_takes_goes_beside_the_gradients() -> None:
    def with_bias(g: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> Shares:
        return Shares(exact(g, inputs, output, call), g * call["bias"])

    def in_a_row(g: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> tuple[Tensor | None, ...]:
        return (*exact(g, inputs, output, call), g * call["bias"])

    net, weights = _net(), torch.eye(2, dtype=torch.float64)
    run = propagate(net, X, presets.gradient.but({"linear": with_bias}))
    (absorbed,) = run.gradient(weights, to=(run.unit,))
    torch.testing.assert_close(absorbed, net[4].bias)  # type: ignore[arg-type]
    run = propagate(net, X, presets.gradient.but({"linear": in_a_row}))
    with pytest.raises(RuleMismatch, match=r"2 gradients for 1 inputs.*beside them: Shares\(gradients, absorbed\)"):
        run.gradient(weights)


def test_nothing_is_hung_on_a_function() -> None:
    names = "|".join(["absorbs", "reads_pixels", *(f.name for f in fields(Rule))])
    for path in SOURCE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(rf"^\w+\.({names}) = |getattr\(\w*rule\w*, \"({names})\"", text, re.MULTILINE), path.name
