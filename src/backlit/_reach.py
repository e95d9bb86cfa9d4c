"""What a score reads: a backward pass of zeros and ones, in which nothing cancels and no rectifier is closed.

A gradient of zero says that a value does not matter here and now; this pass says whether it is read at all. A class token
that alone feeds the head reads no other token, and a score of one head nothing of another head's branch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from backlit.capture.canonical import Call
from backlit.capture.primitives import BY_NAME, LAYERS
from backlit.capture.propagate import Rule
from backlit.capture.sites import Site

_TRUE = frozenset(
    "reshape permute slice expand copy dropout cat stack pad interpolate grid_sample unfold setitem mean sum".split()
)
"""Derivatives that are masks already."""
_BROADCAST = frozenset(
    "add sub mul div neg addcmul lerp where batch_norm product quotient maximum minimum logaddexp".split()
)  # and every activation
_FACTORS = frozenset({*LAYERS, "matrix_product", "einsum_product"})


@dataclass(frozen=True)
class ReachTable:
    """The rule table of the pass."""

    name: str = "reach"

    def rule_for(self, site: Site) -> tuple[str, Rule | None]:
        """The rule by the site's role; what has none may read all of its input."""
        name, primitive = site.primitive, BY_NAME.get(site.primitive)
        if name in _TRUE or "pool" in name:
            return "true", None
        if name in _BROADCAST or (primitive is not None and primitive.kind == "activation"):
            return "elementwise", _elementwise
        rule = _factors if name in _FACTORS else _OWN.get(name, _all)
        return rule.__name__, rule


def _ones(mask: Tensor) -> Tensor:
    return (mask != 0).to(mask.dtype)


def _all(g: Any, inputs: tuple[Tensor, ...], output: Any, call: Call) -> tuple[Tensor | None, ...]:
    """Any element that is read reads all of the input."""
    grads = [g] if isinstance(g, Tensor) else [m for m in g if m is not None]
    read = _ones(sum((m.abs().sum() for m in grads), grads[0].new_zeros(())))
    return tuple(read.expand(x.shape) for x in inputs)


def _elementwise(g: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> tuple[Tensor | None, ...]:
    if not isinstance(g, Tensor) or any(torch.broadcast_shapes(x.shape, g.shape) != g.shape for x in inputs):
        return _all(g, inputs, output, call)
    return tuple(_ones(_ones(g).sum_to_size(x.shape)) for x in inputs)


def _factors(g: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> tuple[Tensor | None, ...]:
    """The derivative of the layer or product with ones for its weights and for its other factor."""
    places = {name for name, _ in call.places}
    ones: dict[str, Any] = {
        k: torch.ones_like(v)
        for k, v in call.arguments.items()
        if isinstance(v, Tensor) and v.is_floating_point() and k not in places
    }
    with torch.enable_grad():
        leaves = tuple(torch.ones_like(x).requires_grad_() for x in inputs)
        result = call.run(*leaves, **ones)
        grads = torch.autograd.grad(result, leaves, _ones(g), allow_unused=True)
    return tuple(None if m is None else _ones(m) for m in grads)


def _along(dims: Callable[[Call, Tensor], tuple[int, ...]]) -> Rule:
    """The rule of a call in which an element reads its whole row along some axes."""

    def rule(g: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> tuple[Tensor | None, ...]:
        return tuple(_ones(g).amax(dims(call, x), keepdim=True).expand(x.shape) for x in inputs)

    return rule


def _attention(g: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> tuple[Tensor | None, ...]:
    rows = _ones(g).amax(-1, keepdim=True)
    heads = rows.amax(-2, keepdim=True)
    found = []
    for (name, _), x in zip(call.places, inputs, strict=True):
        read = rows if name == "query" else heads if heads.shape[:-2] == x.shape[:-2] else heads.amax()
        found.append(read.expand(x.shape))
    return tuple(found)


def _glu(g: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> tuple[Tensor | None, ...]:
    return (torch.cat([_ones(g)] * 2, call.get("dim", -1)),)


def _normalised(call: Call, x: Tensor) -> tuple[int, ...]:
    shape = call["normalized_shape"]
    return tuple(range(-(1 if isinstance(shape, int) else len(shape)), 0))


def _one_dim(call: Call, x: Tensor) -> tuple[int, ...]:
    return tuple(range(x.dim())) if call.get("dim") is None else (call["dim"],)


_OWN: dict[str, Rule] = {
    "layer_norm": _along(_normalised),
    "rms_norm": _along(_normalised),
    "softmax": _along(_one_dim),
    "log_softmax": _along(_one_dim),
    "attention": _attention,
    "glu": _glu,
}
