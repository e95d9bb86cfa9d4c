"""The rules that LPR is made of: the convolution's transpose, and the plugin's four readings."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from backlit import check_rule
from backlit.capture import Rule, propagate
from backlit.rules import presets
from backlit.rules.adjoint import adjoint
from backlit.rules.plugin import READINGS, Plugin

X = torch.randn(3, 4, 9, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3), nn.Conv2d(4, 6, 3, bias=False), nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
        nn.Conv2d(4, 8, 3, groups=4, padding=1, stride=2), nn.Conv2d(4, 4, 3, padding="same", dilation=2), nn.Conv2d(4, 2, 4, padding="same"),
        nn.Conv2d(4, 2, 3, padding="valid"), nn.Conv2d(4, 2, 3, padding=1, padding_mode="circular"), nn.ConvTranspose2d(4, 2, 3),
        nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
        nn.Sequential(nn.Flatten(2), nn.Conv1d(4, 3, 5, stride=3)), nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Conv3d(2, 3, (1, 3, 3))),
    ],
)  # fmt: skip
def test_the_adjoint_is_the_true_derivative_to_second_order(layer: nn.Module) -> None:
    name = next(s.primitive for s in propagate(_flat(layer), X, presets.gradient).trace if s.has("convolution"))
    check_rule(adjoint, layer, X, primitive=name, true_gradient=True)
    after = nn.Sequential(nn.Tanh(), layer, nn.Tanh())  # so that the gradient that arrives depends on the image
    check_rule(adjoint, after, X, primitive=name, true_gradient=True)


def _flat(layer: nn.Module) -> nn.Module:
    return nn.Sequential(layer.double(), nn.Flatten()).eval()


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize(
    "function", [nn.ReLU(), nn.SiLU(), nn.Hardsigmoid(), nn.Softplus()], ids=lambda f: type(f).__name__
)
def test_readings_are_their_formula(reading: str, function: Callable[[Tensor], Tensor]) -> None:
    z0 = torch.randn_like(X)
    rule = Plugin(reading, init=0.7, reference=z0)
    run = propagate(
        _flat(nn.Sequential(function)), X, presets.gradient.where(lambda site: site.kind == "activation", rule)
    )
    weights = torch.randn(run.output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (found,) = run.gradient(weights)
    g = weights.view(X.shape)
    leaf = X.clone().requires_grad_()
    (slope,) = torch.autograd.grad(function(leaf).sum(), leaf)
    factor = {"gradient": 1, "gated": slope, "multiplier": (function(X) - function(z0)) / (X - z0)}.get(reading)
    expected = g * torch.tanh(0.7 * (X - z0)) if factor is None else factor * torch.tanh(0.7 * g)
    torch.testing.assert_close(found, expected)


def test_the_multiplier_is_the_derivative_where_image_and_reference_agree() -> None:
    rule = Plugin("multiplier", reference=X)
    run = propagate(
        _flat(nn.Sequential(nn.Tanh())), X, presets.gradient.where(lambda site: site.kind == "activation", rule)
    )
    (found,) = run.gradient(torch.ones_like(run.output))
    torch.testing.assert_close(found, torch.tanh(torch.ones(())).double() * (1 - torch.tanh(X) ** 2))


def test_a_rule_that_does_not_read_the_output_does_not_run_its_call_again() -> None:
    calls: list[int] = []

    class Counted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x)

    def formula(g, inputs, output, call):  # type: ignore[no-untyped-def]
        calls.append(int(output.grad_fn is not None))
        return (g * (inputs[0] > 0),)

    for reads, expected in ((True, 1), (False, 0)):
        rule = Rule(formula, "gate", reads_output=reads)
        run = propagate(_flat(Counted()), X, presets.gradient.but({"relu": rule}))
        run.gradient(torch.ones_like(run.output), create_graph=True)
        assert calls.pop() == expected
