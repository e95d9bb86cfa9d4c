"""The rule of PatternNet and PatternAttribution: a layer's own vector-Jacobian product with other weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from backlit._errors import RuleMismatch
from backlit.capture import PRIMITIVES, Call
from backlit.rules.table import TRUE, RuleTable


class PatternRule:
    """Back through a layer with ``a`` in the place of ``w``, or with ``w ⊙ a``; a+ where its output is positive, else a-.

    Args:
        patterns: For each site its patterns, shaped as its weight: "linear", or "positive" and "negative".
        times_weight: PatternAttribution's ``w ⊙ a``; else PatternNet's ``a``.
    """

    def __init__(self, patterns: Mapping[str, Mapping[str, Tensor]], *, times_weight: bool) -> None:
        self._patterns, self._times_weight = patterns, times_weight
        self.__name__ = "pattern ⊙ weight" if times_weight else "pattern"

    def __call__(self, g: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> tuple[Tensor]:
        if call.site.name not in self._patterns:
            raise RuleMismatch(f"{call.site} has no patterns; they were learned for {', '.join(self._patterns)}.")
        found = self._patterns[call.site.name]
        if "linear" in found:
            return (self._back(g, inputs[0], found["linear"], call),)
        positive = (output > 0).to(g.dtype)
        return (
            self._back(g * positive, inputs[0], found["positive"], call)
            + self._back(g * (1 - positive), inputs[0], found["negative"], call),
        )

    def _back(self, g: Tensor, x: Tensor, pattern: Tensor, call: Call) -> Tensor:
        weight = call["weight"] * pattern if self._times_weight else pattern
        if call.primitive.name == "linear":
            return g @ weight
        with torch.enable_grad():
            leaf = torch.zeros_like(x).requires_grad_()
            y = call.run(leaf, weight=weight, bias=None)
        return torch.autograd.grad(y, leaf, g, create_graph=g.requires_grad)[0]


def pattern_table(rule: PatternRule) -> RuleTable:
    """Patterns at linear layers and convolutions; gates, switches and everything affine as they are; the rest has no rule."""
    table = {p.name: TRUE for p in PRIMITIVES if p.kind in ("affine", "activation", "selection")}
    layers = dict.fromkeys(("linear", "conv1d", "conv2d", "conv3d"), rule)
    return RuleTable("pattern", {**table, **layers})
