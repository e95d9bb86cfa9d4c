"""Each rule against autograd or its paper's formula, to second order; and the checker against wrong rules."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backlit import RuleMismatch, check_rule
from backlit.capture import Call, propagate
from backlit.rules import activation, presets
from backlit.rules.exact import exact

X = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

SMOOTH: list[Callable[[Tensor], Tensor]] = [
    nn.ELU(1.5), nn.CELU(0.7), nn.SELU(), nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Mish(), nn.Sigmoid(), nn.Tanh(),
    nn.Tanhshrink(), nn.Softsign(), nn.LogSigmoid(), nn.ReLU(), nn.LeakyReLU(0.3), nn.Hardswish(), nn.Softplus(2.0),
    nn.ReLU6(), nn.PReLU(4),
]  # fmt: skip


@pytest.mark.parametrize("function", SMOOTH)
def test_derivatives_are_autograds_to_second_order(function: Callable[[Tensor], Tensor]) -> None:
    check_rule(activation.derivative, function, X * 2, true_gradient=True)
    check_rule(activation.guided, function, X * 2)


@pytest.mark.parametrize("function", [nn.SiLU(inplace=True), nn.ELU(inplace=True), nn.Mish(inplace=True)])
def test_second_order_goes_through_writes_in_place(function: nn.Module) -> None:
    check_rule(activation.derivative, nn.Sequential(nn.Conv2d(4, 2, 3), function), X, true_gradient=True)


@pytest.mark.parametrize(
    "operation",
    [
        nn.Conv2d(4, 6, 3, stride=2, groups=2), nn.ConvTranspose2d(4, 2, 3, stride=2), nn.Sequential(nn.Flatten(), nn.Linear(100, 3)),
        nn.BatchNorm2d(4), nn.LayerNorm(5), nn.GroupNorm(2, 4), nn.MaxPool2d(3, 2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(2),
        lambda x: torch.cat([x, x * 2], 1), lambda x: x * torch.sigmoid(x), lambda x: x.softmax(1), lambda x: x / (1 + x**2),
        lambda x: x.max(2)[0], lambda x: x[:, 1:].permute(0, 2, 3, 1),
    ],
)  # fmt: skip
def test_exact_is_the_true_derivative_of_every_kind_of_call(operation: Callable[[Tensor], Tensor]) -> None:
    model = nn.Sequential(_module(operation).double().eval(), nn.Flatten())
    run = propagate(model, X, presets.exact)
    weights = torch.randn(run.output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    leaf = X.clone().requires_grad_()
    first = torch.autograd.grad(model(leaf), leaf, weights, create_graph=True)[0]
    ours = run.gradient(weights, create_graph=True)[0]
    torch.testing.assert_close(ours, first)
    assert all(row.rule != "true" for row in run.coverage.rows)
    if first.requires_grad:
        second = torch.autograd.grad((first**3).sum(), leaf, allow_unused=True)[0]
        if second is not None:
            torch.testing.assert_close(torch.autograd.grad((ours**3).sum(), run.inputs[0])[0], second)


def test_attention_has_a_second_derivative_though_torchs_kernel_has_none() -> None:
    check_rule(exact, lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True), X, true_gradient=True)
    check_rule(exact, lambda x: F.scaled_dot_product_attention(x, x, x, X[0, 0]), X, true_gradient=True)


def _module(operation: Callable[[Tensor], Tensor]) -> nn.Module:
    if isinstance(operation, nn.Module):
        return operation

    class Wrapped(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return operation(x)

    return Wrapped()


def test_guided_and_deconvnet_are_their_papers_formulas() -> None:
    g = torch.randn_like(X)
    z = X.clone()
    call: Call = _call_of(nn.ReLU())
    (guided,) = activation.guided(g, (z,), z.clamp(min=0), call)
    (deconvnet,) = activation.deconvnet(g, (z,), z.clamp(min=0), call)
    assert torch.equal(guided, g * (g > 0) * (z > 0))
    assert torch.equal(deconvnet, g * (g > 0))


def _call_of(operation: nn.Module) -> Call:
    seen: list[Call] = []

    def spy(g: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> tuple[Tensor | None, ...]:
        seen.append(call)
        return exact(g, inputs, output, call)

    model = nn.Sequential(operation, nn.Flatten())
    run = propagate(model, X, presets.gradient.but({"relu": spy}))
    run.gradient(torch.ones_like(run.output))
    return seen[0]


def test_a_rule_reads_parameters_by_name_and_runs_the_call_with_others() -> None:
    layer = nn.Conv2d(4, 2, 3, stride=2).double()

    def positive_weights(
        g: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call
    ) -> tuple[Tensor | None, ...]:
        assert torch.equal(call["bias"], layer.bias)
        assert call.get("stride") == (2, 2)
        torch.testing.assert_close(call.run(*inputs), output)
        with torch.enable_grad():
            x = inputs[0].detach().requires_grad_()
            z = call.run(x, weight=call["weight"].clamp(min=0), bias=None)
            return torch.autograd.grad(z, x, g)

    run = propagate(nn.Sequential(layer, nn.Flatten()), X, presets.gradient.but({"conv2d": positive_weights}))
    (ours,) = run.gradient(torch.ones_like(run.output))
    grad = torch.ones(3, 2, 2, 2, dtype=torch.float64)
    expected = F.conv_transpose2d(grad, layer.weight.clamp(min=0), stride=2)
    torch.testing.assert_close(ours, expected)


def test_tables_choose_by_site_before_primitive() -> None:
    model = nn.Sequential(nn.ReLU(), nn.ReLU(), nn.Flatten())
    table = presets.gradient.where(lambda site: site.module == "1", activation.deconvnet)
    run = propagate(model, X, table)
    assert [row.rule for row in run.coverage.rows] == ["true", "deconvnet", "true"]
    assert presets.gradient.but({"relu": None}, "named").name == "named"


def relu_rule(
    change: Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor | None, ...]],
) -> Callable[..., tuple[Tensor | None, ...]]:
    return lambda g, inputs, output, call: change(g * (inputs[0] > 0), inputs)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            relu_rule(lambda g, i: (g[:, :1],)),
            r"rule at relu\[0\].*of shapes \[\(3, 1, 5, 5\)\].*of shapes \[\(3, 4, 5, 5\)\], or None",
        ),
        (relu_rule(lambda g, i: (g, g)), r"returned 2 gradients for 1 inputs"),
        (relu_rule(lambda g, i: (2 * g,)), r"differs from the true gradient by"),
        (relu_rule(lambda g, i: (g / 0,)), r"must be finite"),
        (
            relu_rule(lambda g, i: (g + g.mean(0) - g.mean(0).detach() * 0.5,)),
            r"differs from the true gradient|changes by",
        ),
    ],
)
def test_the_checker_finds_wrong_rules(rule: Callable[..., tuple[Tensor | None, ...]], message: str) -> None:
    with pytest.raises(RuleMismatch, match=message):
        check_rule(rule, torch.relu, X, true_gradient=True)


def test_the_checker_finds_batches_that_mix_and_broken_second_orders() -> None:
    with pytest.raises(RuleMismatch, match=r"image 0's gradient changes by .* with its neighbours"):
        check_rule(relu_rule(lambda g, i: (g - g.mean(0),)), torch.relu, X)
    with pytest.raises(RuleMismatch, match=r"Second order: the rule's derivative is 0.*central differences"):
        check_rule(lambda g, i, o, c: (g * torch.sigmoid(i[0].detach()),), torch.relu, X)
    with pytest.raises(
        RuleMismatch, match=r"primitive must be one that the operation calls \(relu, reshape\), but is 'conv2d'"
    ):
        check_rule(activation.guided, torch.relu, X, primitive="conv2d")
    check_rule(relu_rule(lambda g, i: (g,)), torch.relu, X, true_gradient=True)
