"""The argument matrix: every operation of the table, in every spelling of its arguments that torch takes, against the plain one.

The spellings of one example stand side by side in one network, and the plain one as often in its twin, so that a run of
each method tells for all of them. Where the maps differ, the spelling is looked for alone, and named.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from _calls import EXAMPLES, Example, Spelled, accepted, c, plain, value, word_of
from torch import Tensor, nn

import backlit
from backlit import UnsupportedOp
from backlit.capture import propagate
from backlit.capture.primitives import BY_NAME, PRIMITIVES, SPELLINGS
from backlit.rules import presets

FAST: dict[str, Callable[[nn.Module], Any]] = {
    "Gradient": backlit.Gradient,
    "DMBP": lambda net: backlit.DMBP(net, steps=2, lr=0.1),
    "LRP": lambda net: backlit.LRP(net, tolerance=1e12),
    "DeepLIFT": lambda net: backlit.DeepLIFT(net, reference=0.3 * X, tolerance=1e12),
}
SLOW: dict[str, Callable[[nn.Module], Any]] = {
    "GuidedBackprop": backlit.GuidedBackprop,
    "LPR": lambda net: backlit.LPR(net, steps=2),
    "FullGrad": backlit.FullGrad,
    "TR-GBP": lambda net: backlit.TRGBP(net, contrast=None),
}
X = torch.linspace(-1, 5, 64, dtype=torch.float64).sin().reshape(2, 2, 4, 4)
INSIDE = {"gated", "product", "quotient", "matrix_product", "einsum_product"}
"""Primitives without a spelling of their own: what others become, by their signals."""


class Side(nn.Module):
    """Two signals, the calls on them side by side, and the sum of what a fixed reader makes of each."""

    def __init__(self, calls: list[Spelled], example: Example) -> None:
        super().__init__()
        self.calls, self.example = calls, example
        self.h, self.g = nn.Conv2d(2, 2, 1).double(), nn.Conv2d(2, 2, 1).double()
        with torch.no_grad():
            for i, p in enumerate(self.parameters()):
                p.copy_(c(*p.shape) + 0.1 * i)

    def forward(self, x: Tensor) -> Tensor:
        h, g = torch.relu(self.h(x)) - 0.4, self.g(x)
        h, g = h + 0.1 * x, torch.tanh(g) + 0.2
        beside = (h.flatten(1) + g.flatten(1)) @ c(32, 3)
        return beside + torch.stack([self._read(call, h, g, len(x)) for call in self.calls]).sum(0)

    def _read(self, call: Spelled, h: Tensor, g: Tensor, n: int) -> Tensor:
        y = call(self.example.signal(h), self.example.signal(g)).to(h.dtype)
        y = y.reshape(n, -1) if y.numel() % n == 0 and not self.example.first else y.reshape(1, -1).expand(n, -1)
        return y @ c(y.shape[1], 3)


CASES = [(word, i) for word in EXAMPLES for i in range(len(EXAMPLES[word]))]


def spelled(word: str, example: Example) -> list[Spelled]:
    """Every accepted spelling of an example, by every function of that name."""
    reference = plain(word, example)
    assert reference is not None, f"torch takes no spelling of the example of {word}"
    like = value(reference, example.plain or example)
    return [s for f in SPELLINGS if word_of(f) == word for s in accepted(f, example, like)]


def found(method: Callable[[nn.Module], Any], calls: list[Spelled], example: Example) -> Tensor | UnsupportedOp:
    """The map, or the refusal; any other error is a fault."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return method(Side(calls, example)).attribute(X, 1)
        except UnsupportedOp as error:
            return error


def compare(word: str, example: Example, methods: dict[str, Callable[[nn.Module], Any]]) -> int:
    calls = spelled(word, example)
    reference = plain(word, example)
    assert reference is not None
    for name, method in methods.items():
        expected = found(method, [reference] * len(calls), example.plain or example)
        if not _same(found(method, calls, example), expected):
            _find(name, method, calls, reference, example)
    return len(calls)


def _find(name: str, method: Any, calls: list[Spelled], reference: Spelled, example: Example) -> None:
    expected = found(method, [reference], example.plain or example)
    for call in calls:
        one = found(method, [call], example)
        assert _same(one, expected), f"{name}, {call} against {reference}: {one} instead of {expected}"
    raise AssertionError(f"{name}: the spellings of {reference} differ together, and none alone")


def _same(one: Tensor | UnsupportedOp, other: Tensor | UnsupportedOp) -> bool:
    if isinstance(one, UnsupportedOp) or isinstance(other, UnsupportedOp):
        return isinstance(one, UnsupportedOp) and isinstance(other, UnsupportedOp)
    return torch.allclose(one, other, rtol=1e-7, atol=1e-9 * float(other.abs().max()))


def test_every_primitive_and_every_function_has_an_example() -> None:
    spelled_primitives = {s.primitive for s in SPELLINGS.values()}
    assert {p.name for p in PRIMITIVES} - spelled_primitives <= INSIDE
    words = {word_of(f) for f in SPELLINGS} - {""}
    assert words == set(EXAMPLES)


def test_torch_takes_some_spelling_of_every_function() -> None:
    missing = []
    for function in SPELLINGS:
        word = word_of(function)
        some = [s for e in EXAMPLES.get(word, ()) for s in accepted(function, e)]
        missing += [] if some or not word else [function]
    assert not missing


@pytest.mark.parametrize(("word", "i"), CASES)
def test_the_map_does_not_depend_on_the_spelling(word: str, i: int) -> None:
    names = ("Gradient", "DMBP", "LRP", "DeepLIFT") if _is_read(word) else ("Gradient", "DMBP")
    assert compare(word, EXAMPLES[word][i], {name: FAST[name] for name in names}) > 0


BOUND, OF_BIASES = {"scatter"}, ("FullGrad", "TR-GBP")
"""Calls with an index for each image of the batch, where methods of biases would run one image alone and refuse to."""


@pytest.mark.slow
@pytest.mark.parametrize(("word", "i"), CASES)
def test_nor_do_the_other_methods_maps(word: str, i: int) -> None:
    rest = {} if _is_read(word) else {name: FAST[name] for name in ("LRP", "DeepLIFT")}
    slow = {name: method for name, method in SLOW.items() if word not in BOUND or name not in OF_BIASES}
    assert compare(word, EXAMPLES[word][i], {**slow, **rest}) > 0


def _is_read(word: str) -> bool:
    """Whether rules of the relevance family read the arguments of such a call."""
    primitives = {BY_NAME[s.primitive] for f, s in SPELLINGS.items() if word_of(f) == word}
    return any(p.has("layer") or (p.kind in ("other", "selection") and p.signature) for p in primitives)


EXACT = {"LRP": 1e-6, "DeepLIFT": 1e-6, "FullGrad": 1e-9, "DMBP": 1e-9}
"""What a method may lose of the logit, as a share of it."""
NO_RULE = {
    "DeepLIFT": {"einsum", "msort", "sort", "topk", "kthvalue", "median", "cummax", "cummin", "norm", "vector_norm", "prod", "cumprod",
                 "cosine_similarity"},
    "FullGrad": {"var_mean"},
}  # fmt: skip
MIXED = {"half", "bfloat16", "float", "masked_scatter"}
"""Calls that round to another precision, or move values between the images of a batch."""


def cases_of_one_image() -> list[tuple[str, int]]:
    return [(w, i) for w, i in CASES if not (EXAMPLES[w][i].first or EXAMPLES[w][i].plain or w in MIXED)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("methods", [("LRP", "DeepLIFT"), pytest.param(("FullGrad", "DMBP"), marks=pytest.mark.slow)])
@pytest.mark.parametrize(("word", "i"), cases_of_one_image())
def test_every_operation_is_accounted_for(word: str, i: int, methods: tuple[str, ...]) -> None:
    """Equal to autograd; nothing of the logit lost; or refused by name with a way out."""
    example = EXAMPLES[word][i]
    call = plain(word, example)
    assert call is not None
    net = Side([call], example)
    leaf = X.clone().requires_grad_()
    (true,) = torch.autograd.grad(net(leaf)[:, 1].sum(), leaf)
    torch.testing.assert_close(backlit.Gradient(net).attribute(X, 1), true)
    for name in methods:
        if word in BOUND and name in OF_BIASES:
            continue
        method = {**FAST, **SLOW, "LRP": lambda n: backlit.LRP(n, preset="epsilon", tolerance=1e12)}[name](net)
        result = _attribution(method)
        if isinstance(result, UnsupportedOp):
            assert word in NO_RULE.get(name, ()), f"{name}: {result}"
            assert any(way_out in str(result) for way_out in ("rules={", "Split it", "x.var(...)"))
            continue
        gap = (result.completeness["gap"] / result.output).abs().max()
        assert gap <= EXACT[name], f"{name} loses {float(gap):.2g} at {call}"


def _attribution(method: Any) -> Any:
    try:
        return method(X, 1)
    except UnsupportedOp as error:
        return error


@pytest.mark.parametrize("name", ["max", "min", "median", "sort", "topk", "kthvalue", "cummax"])
def test_results_keep_their_names_under_a_rule(name: str) -> None:
    class Named(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            given = {"k": 2} if name in ("topk", "kthvalue") else {}
            found = getattr(x.flatten(2), name)(dim=2, **given)
            return (found.values * (1 + found.indices)).reshape(len(x), 2, -1).sum(2)

    weights = torch.ones(2, 2, dtype=X.dtype)
    (ours,) = propagate(Named(), X, presets.exact).gradient(weights)
    x = X.clone().requires_grad_()
    torch.testing.assert_close(ours, torch.autograd.grad(Named()(x).sum(), x)[0])
