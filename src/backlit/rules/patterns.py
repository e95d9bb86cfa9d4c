"""The rules of PatternNet and PatternAttribution: back through what sums with other weights than its own."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from backlit._errors import InputError
from backlit.capture import PRIMITIVES, Call, RuleLike, Site, named
from backlit.capture.sites import Kind
from backlit.rules.layer import affine_of
from backlit.rules.table import TRUE, RuleTable

LAYERS = named("convolution") - named("transposed") | {"linear"}
"""The layers that have patterns."""


class PatternRule:
    """Back through a layer with ``a`` in the place of ``w``, or with ``w ⊙ a``; a+ where its output is positive, else a-.

    A sum of two signals is a layer, too: each of its elements is a neuron with a weight for either.

    Args:
        patterns: For each site its patterns, "linear", or "positive" and "negative": shaped as its weight; for sums (c, 2).
        times_weight: PatternAttribution's ``w ⊙ a``; else PatternNet's ``a``.
    """

    def __init__(self, patterns: Mapping[str, Mapping[str, Tensor]], *, times_weight: bool) -> None:
        self._patterns, self._times_weight = patterns, times_weight
        self.__name__ = "pattern ⊙ weight" if times_weight else "pattern"

    def __call__(self, g: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> tuple[Tensor, ...]:
        found = self._found(call, output)
        back = self._to_summands if call.primitive.has("adds") else self._to_input
        if "linear" in found:
            return back(g, inputs, found["linear"], call)
        positive = (output > 0).to(g.dtype)
        above = back(g * positive, inputs, found["positive"], call)
        below = back(g * (1 - positive), inputs, found["negative"], call)
        return tuple(a + b for a, b in zip(above, below, strict=True))

    def _found(self, call: Call, output: Tensor) -> Mapping[str, Tensor]:
        """The call's patterns.

        Raises:
            InputError: If none were learned, or for a layer of another size.
        """
        if call.site.name not in self._patterns:
            raise InputError(
                f"fitted holds no patterns for {call.site}: it was written before sums of two signals had any, or for another "
                "way through the network. Fit again."
            )
        found = self._patterns[call.site.name]
        shape = (output.shape[1], 2) if call.primitive.has("adds") else call["weight"].shape
        for pattern in found.values():
            if pattern.shape != shape:
                raise InputError(
                    f"fitted must hold patterns of shape {tuple(shape)} for {call.site}, but holds {tuple(pattern.shape)}. Fit "
                    "again."
                )
        return found

    def _to_input(self, g: Tensor, inputs: tuple[Tensor, ...], pattern: Tensor, call: Call) -> tuple[Tensor, ...]:
        weight = call["weight"] * pattern if self._times_weight else pattern
        if call.primitive.name == "linear":
            return (g @ weight,)
        with torch.enable_grad():
            leaf = torch.zeros_like(inputs[0]).requires_grad_()
            y = call.run(leaf, weight=weight, bias=None)
        return torch.autograd.grad(y, leaf, g, create_graph=g.requires_grad)

    def _to_summands(self, g: Tensor, inputs: tuple[Tensor, ...], pattern: Tensor, call: Call) -> tuple[Tensor, ...]:
        weights = summed_with(call) if self._times_weight else (1.0, 1.0)
        along = (-1, *[1] * (g.dim() - 2))
        shares = (pattern[:, i].view(along) * w for i, w in enumerate(weights))
        return tuple((g * share).sum_to_size(x.shape) for share, x in zip(shares, inputs, strict=True))


class ScaleRule:
    """Back through ``y = w x + c`` of each element: one input is all signal, so ``a = 1 / w`` (0 for 0) and ``w a = 1``."""

    def __init__(self, *, times_weight: bool) -> None:
        self._times_weight = times_weight
        self.__name__ = "passed" if times_weight else "divided by the scale"

    def __call__(self, g: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> tuple[Tensor]:
        (x,) = inputs
        w = _scale(x, call)
        a = torch.where(w == 0, 0, 1 / torch.where(w == 0, 1, w))
        return ((g * (w * a if self._times_weight else a)).sum_to_size(x.shape),)


def _scale(x: Tensor, call: Call) -> Tensor:
    """What each element is taken times, to be broadcast with the output."""
    if call.primitive.has("adds"):
        return x.new_tensor(summed_with(call)[0])
    if call.primitive.name == "batch_norm":
        return affine_of(call, x.dtype)[0].view(-1, *[1] * (x.dim() - 2))
    with torch.no_grad():
        return call.run(torch.ones_like(x))


def summed_with(call: Call) -> tuple[float, ...]:
    """Return what an addition or subtraction takes each of its signals times."""
    alpha = call.get("alpha", 1)
    other = float(1 if alpha is None else alpha) * (1 if call.primitive.name == "add" else -1)
    return tuple(1.0 if name == "input" else other for name, _ in call.places)


def is_sum(site: Site) -> bool:
    """Tell whether a site adds two signals."""
    return site.has("adds") and len(site.input_shapes) > 1


def pattern_table(patterns: Mapping[str, Mapping[str, Tensor]], *, times_weight: bool) -> RuleTable:
    """Patterns at layers and sums, scales undone; gates, switches, pools and moves as they are; the rest has no rule."""
    rule = PatternRule(patterns, times_weight=times_weight)
    table = {p.name: TRUE for p in PRIMITIVES if p.kind in ("affine", "activation", "selection")}
    table |= dict.fromkeys(named("scales"), ScaleRule(times_weight=times_weight)) | dict.fromkeys(LAYERS, rule)
    kinds: dict[Kind, RuleLike | None] = dict.fromkeys(("affine", "activation", "selection"), TRUE)
    return RuleTable("pattern", table, kinds=kinds).where(is_sum, rule)
