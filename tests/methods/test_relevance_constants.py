"""Relevance propagation beside constants, gates and attention weights: each is known by where it comes from."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from _relevance_networks import Net, drawn, quietly
from torch import Tensor, nn
from torch.nn import functional as F

from backlit import DMBP, LRP, DeepTaylor, ExcitationBackprop, GuidedBackprop, UnsupportedOp
from backlit.capture import propagate
from backlit.rules import presets


def test_a_network_that_ends_in_a_softmax_is_refused() -> None:
    net = Net(lambda net, x: net.f(net.a(x).relu().mean((2, 3))).softmax(1))
    for method in (LRP(net), DeepTaylor(net), ExcitationBackprop(net)):
        with pytest.raises(UnsupportedOp, match=r"ends in softmax\[0\] .* probabilities are held: the map is zero"):
            method(drawn())
    GuidedBackprop(net)(drawn())

    def aside(net: Net, x: Tensor) -> Tensor:
        y = net.f(net.a(x).relu().mean((2, 3)))
        net.probabilities = y.softmax(1)  # type: ignore[assignment]  no part of the output
        return y

    assert float(LRP(Net(aside)).attribute(drawn()).abs().max()) > 0


def _written(h: Tensor, s: Tensor, values: Tensor | float) -> Tensor:
    s = s + 0.0
    s[:, :1] = values
    return h * s


def _squashed_through_a_view(h: Tensor, s: Tensor) -> Tensor:
    z = h + 0.0
    z[:, :].sigmoid_()
    return h * z


@pytest.mark.parametrize(
    "spelled",
    [
        lambda h, w: h * w.to(h),
        lambda h, w: h * w.type_as(h),
        lambda h, w: w.expand_as(h) * h,
        lambda h, w: h * w.expand(len(h), -1, 6, 6).reshape_as(h),
        lambda h, w: h * w.expand(len(h), -1, 6, 6).contiguous().view_as(other=h),
        lambda h, w: h + (w.expand_as(h) - 1) * h,
        lambda h, w: F.conv2d(h, w.view(4, 1, 1, 1).to(h), groups=4),  # as a weight, too
    ],
)
@pytest.mark.parametrize("method", [LRP, DeepTaylor, partial(DMBP, sites="rectifiers")])  # a weight is a layer
def test_a_constant_shaped_like_a_signal_is_a_constant(
    spelled: Callable[[Tensor, Tensor], Tensor], method: Callable[[nn.Module], Any]
) -> None:
    """It takes the signal's shape or type, none of its values: the product has one signal, the sum a bias."""
    scale = torch.tensor([0.5, 2.0, 1.0, 3.0], dtype=torch.float64).view(1, 4, 1, 1)
    plain, other = (
        quietly(
            method(Net(lambda net, x, act=act: net.f((act(net.a(x).relu(), scale) + 0.1).mean((2, 3))))), drawn(), 1
        )
        for act in (lambda h, w: h * w, spelled)
    )
    torch.testing.assert_close(other.values, plain.values)  # type: ignore[attr-defined]
    added = Net(lambda net, x: net.f((net.a(x).relu() + scale.expand_as(net.a(x))).mean((2, 3))))
    assert float(LRP(added)(drawn(), 1).completeness["gap"].abs().max()) < 1e-6
    masked = Net(lambda net, x: net.f(torch.where((scale > 1).expand_as(h := net.a(x).relu()), h, 0).mean((2, 3))))
    assert "gated[0]" not in {site.name for site in propagate(masked, drawn(), presets.gradient).trace}


@pytest.mark.parametrize(
    ("product", "maker"),
    [
        (lambda h, s: h * (1 - s), "sigmoid"),
        (lambda h, s: h * (s + h), "add"),
        (lambda h, s: h * torch.where(torch.arange(6) < 3, s, 0), "sigmoid"),
        (lambda h, s: h * torch.where(h > 1, s, h), "where"),
        (lambda h, s: _written(h, s, 0.0), "sigmoid"),
        (lambda h, s: _written(h, s, h[:, :1]), "setitem"),
        (lambda h, s: h * torch.cat([s, h], 1)[:, 2:6], "cat"),
        (_squashed_through_a_view, "sigmoid"),
    ],
)
def test_a_factor_knows_what_made_its_values(product: Callable[..., Tensor], maker: str) -> None:
    """Through what moves, scales and shifts one signal; a sum of two, or one written into another, is a new value."""
    net = Net(
        lambda net, x: net.f(product(net.a(x).relu(), net.b(x[:, :1].expand(-1, 4, -1, -1)).sigmoid()).mean((2, 3)))
    )
    trace = propagate(net, drawn(), presets.gradient).trace
    assert trace["product[0]"].makers == ("relu", maker)


@pytest.mark.parametrize(
    "gated",
    [
        lambda h, y: h * y,
        lambda h, y: h * y.expand_as(h),
        lambda h, y: y.expand_as(h) * h,
        lambda h, y: h * (2 * y).expand(-1, -1, *h.shape[2:]) / 2,
        lambda h, y: h * y.view(len(h), 4, 1, 1).repeat(1, 1, *h.shape[2:]),
    ],
)
@pytest.mark.parametrize("size", [6, 1])
def test_a_gate_is_one_in_every_spelling_and_at_every_size(gated: Callable[..., Tensor], size: int) -> None:
    """Squeeze and excitation: the sigmoid gets none, also where both factors have one shape."""

    def forward(net: Net, x: Tensor, gate: Callable[..., Tensor]) -> Tensor:
        h = net.a(x).relu()
        return net.f(gate(h, net.b(h.mean((2, 3), keepdim=True)).sigmoid()).mean((2, 3)))

    x = drawn(2, size)
    net = Net(lambda net, x: forward(net, x, gated), bias=False)
    found = LRP(net, preset="epsilon")(x, 1)
    torch.testing.assert_close(found.completeness["ratio"], torch.ones(2).double(), rtol=1e-5, atol=1e-5)
    h = net.a(x).relu().detach()
    held = net.b(h.mean((2, 3), keepdim=True)).sigmoid().detach()
    fixed = Net(lambda net, x: net.f((net.a(x).relu() * held).mean((2, 3))), bias=False)
    torch.testing.assert_close(found.values, LRP(fixed, preset="epsilon")(x, 1).values, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "weights",
    [
        lambda s: s.softmax(-1),
        lambda s: s.softmax(-1) * 0.9,
        lambda s: F.dropout(s.softmax(-1), 0.5, training=False).transpose(-1, -2).contiguous().transpose(-1, -2),
    ],
)
def test_attention_weights_are_known_by_where_they_come_from(
    weights: Callable[..., Tensor], dtype: torch.dtype
) -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        h = net.a(x).relu().flatten(2).transpose(1, 2)
        mixed = weights(8 * h @ h.transpose(1, 2)) @ h
        return net.f(mixed).mean(1)

    for size in (3, 1):  # one token has the weight 1
        net, x = Net(forward, bias=False).to(dtype), drawn(2, size).to(dtype)
        found = quietly(LRP(net, preset="epsilon_plus"), x, 1)
        off = 1e-3 if dtype != torch.bfloat16 else 0.1
        assert float((found.completeness["ratio"] - 1).abs().max()) < off  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "mask",
    [
        lambda u, m: u.masked_fill(m, -1e9),
        lambda u, m: u.masked_fill(m, -torch.inf),
        lambda u, m: torch.where(m, -torch.inf, u),
        lambda u, m: u + torch.zeros_like(u).masked_fill(m, -torch.inf) + 0.0,
    ],
)
@pytest.mark.parametrize("attention", ["held", "attnlrp"])
def test_masked_attention_has_a_finite_account(mask: Callable[..., Tensor], attention: str) -> None:
    """Infinity times the zero that reaches it is nothing, neither in the account nor in the warning's."""

    def forward(net: Net, x: Tensor) -> Tensor:
        t = net.a(x).flatten(2).mT
        u = mask(t @ t.mT, torch.ones(36, 36, dtype=torch.bool).triu(1))
        return net.f((t + u.softmax(-1) @ t).mean(1))

    fused = Net(lambda net, x: net.f(((t := net.a(x).flatten(2).mT) + _causal(t)).mean(1)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = LRP(Net(forward), attention=attention)(drawn(), 1)
        expected = LRP(fused, attention=attention)(drawn(), 1)
    for key in ("biases", "gap", "ratio"):
        torch.testing.assert_close(found.completeness[key], expected.completeness[key], rtol=1e-5, atol=1e-6)
    messages = [str(w.message) for w in caught]
    assert len(messages) == (2 if attention == "attnlrp" else 0)
    assert not any("nan" in m for m in messages)


def _causal(t: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(t, t, t, is_causal=True, scale=1.0)


@pytest.mark.parametrize(
    "constant",
    [
        lambda h: F.pad(h, [1, 1, 1, 1], value=1.0),
        lambda h: torch.where(torch.arange(6) % 2 == 0, h, torch.full((), 0.5, dtype=h.dtype)),
        lambda h: h.masked_fill(torch.arange(6) % 2 == 0, 0.5),
        lambda h: torch.addcmul(torch.ones(6, dtype=h.dtype), h, torch.full((6,), 2.0, dtype=h.dtype)),
        lambda h: h + 1 / (1 + h),
        lambda h: h + (1 + h) ** -0.5,
        lambda h: h + h.exp(),
    ],
)
def test_constants_on_the_way_are_biases(constant: Callable[[Tensor], Tensor]) -> None:
    net = Net(lambda net, x: net.f(net.b(constant(net.a(x).relu())).mean((2, 3))), bias=False)
    found = LRP(net, preset="epsilon")(drawn(), 1)
    c = found.completeness
    assert float(c["biases"].abs().min()) > 1e-3
    torch.testing.assert_close(c["relevance"] + c["biases"], found.output, rtol=1e-5, atol=1e-7)


def test_a_power_without_a_value_at_zero_is_a_divisor() -> None:
    """RMS norm by hand, in three spellings."""
    one = Net(lambda net, x: net.f((h := net.a(x).relu()).mul((h.pow(2).mean(1, True) + 1e-5).pow(-0.5)).mean((2, 3))))
    two = Net(lambda net, x: net.f((h := net.a(x).relu()).div((h.pow(2).mean(1, True) + 1e-5) ** 0.5).mean((2, 3))))
    three = Net(lambda net, x: net.f((h := net.a(x).relu()).mul((h.pow(2).mean(1, True) + 1e-5).rsqrt()).mean((2, 3))))
    found, *others = (quietly(LRP(net, preset="epsilon"), drawn(), 1) for net in (one, two, three))
    for other in others:
        torch.testing.assert_close(found.values, other.values)  # type: ignore[attr-defined]
