"""Every spelling of a ReLU, in every architecture: the map equals the module-spelled twin's, and captum's where it is right."""

from __future__ import annotations

import warnings

import pytest
import torch
from captum.attr import Deconvolution, GuidedBackprop

import backlit
from _networks import ARCHITECTURES, SIX, SPELLINGS, build, images
from backlit.capture import freeze, propagate
from backlit.rules import RuleTable, presets

TABLES = (presets.gradient, presets.exact, presets.guided, presets.deconvnet)
CASES = [(a, s) for a in ARCHITECTURES for s in SPELLINGS if s != "module"]
TARGET = torch.tensor([2, 0])


def maps(net: torch.nn.Module, xs: tuple[torch.Tensor, ...], table: RuleTable) -> tuple[torch.Tensor, ...]:
    run = propagate(net, xs, table)
    return run.gradient(torch.nn.functional.one_hot(TARGET, run.output.shape[1]).double())


@pytest.mark.parametrize(("architecture", "spelling"), CASES)
def test_every_map_equals_the_twins(architecture: str, spelling: str) -> None:
    net, twin, xs = build(architecture, spelling), build(architecture, "module"), images(architecture)
    before = [x.clone() for x in xs]
    for table in TABLES:
        for ours, theirs in zip(maps(net, xs, table), maps(twin, xs, table), strict=True):
            assert float(theirs.abs().max()) > 1e-6
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    assert all(torch.equal(x, b) for x, b in zip(xs, before, strict=True))
    run = propagate(net, xs, presets.guided)
    assert torch.equal(run.output, twin(*xs))  # bit for bit
    assert {r.rule for r in run.coverage.rows if r.primitive == "relu"} == {"guided"}
    frozen = freeze(net, *xs)
    torch.testing.assert_close(frozen(*xs), twin(*xs))


@pytest.mark.parametrize(("architecture", "spelling"), CASES)
def test_dmbp_equals_the_twins(architecture: str, spelling: str) -> None:
    net, twin, xs = build(architecture, spelling), build(architecture, "module"), images(architecture)
    ours = backlit.DMBP(net, steps=3, lr=0.1)(xs, TARGET)
    theirs = backlit.DMBP(twin, steps=3, lr=0.1)(xs, TARGET)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.values, b.values, rtol=1e-9, atol=1e-12)
        assert float(a.completeness["gap"].abs().max()) < 1e-12


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_exact_and_frozen_gradients_are_autograds(architecture: str) -> None:
    net, xs = build(architecture, "module"), images(architecture)
    leaves = tuple(x.clone().requires_grad_() for x in xs)
    true = torch.autograd.grad(net(*leaves).gather(1, TARGET[:, None]).sum(), leaves)
    frozen_leaves = tuple(x.clone().requires_grad_() for x in xs)
    of_frozen = torch.autograd.grad(freeze(net, *xs)(*frozen_leaves).gather(1, TARGET[:, None]).sum(), frozen_leaves)
    for ours, frozen, expected in zip(maps(net, xs, presets.exact), of_frozen, true, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(frozen, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("architecture", [a for a in ARCHITECTURES if a not in ("reused layers", "two inputs")])
@pytest.mark.parametrize(("table", "peer"), [(presets.guided, GuidedBackprop), (presets.deconvnet, Deconvolution)])
def test_equals_captum_where_captum_is_right(architecture: str, table: RuleTable, peer: type) -> None:
    """That is where each ReLU is a module of its own, called once."""
    net, xs = build(architecture, "module"), images(architecture)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peer(net).attribute(xs[0].clone().requires_grad_(), target=TARGET)
    torch.testing.assert_close(maps(net, xs, table)[0], theirs.detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("architecture", ["plain", "residual", "depthwise"])
@pytest.mark.parametrize("spelling", [s for s in SIX if s != "module"])
def test_relu6_in_every_spelling(architecture: str, spelling: str) -> None:
    net, twin, xs = build(architecture, spelling, SIX), build(architecture, "module", SIX), images(architecture)
    xs = tuple(5 * x for x in xs)  # so that some activations saturate
    for table in TABLES:
        torch.testing.assert_close(maps(net, xs, table), maps(twin, xs, table), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(freeze(net, *xs)(*xs), twin(*xs))
    assert any("offset" in vars(f) and f.offset is not None for _, f in freeze(net, *xs).activations)
