"""Where relevance, or DeepLIFT's difference, is lost: the pass again for one image, with what each site gets and gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from backlit._errors import BacklitError
from backlit.capture import Call, Rule, Shares, Site, propagate
from backlit.rules import RuleTable
from backlit.rules.exact import exact
from backlit.rules.layer import finite
from backlit.rules.linear import PixelRule
from backlit.rules.structural import AtPixels


@dataclass(frozen=True)
class Leak:
    """What one site gets and does not give on, in units of the logit; what its bias takes is not counted."""

    site: Site
    rule: str
    lost: float
    finite: bool


Changes = Callable[[tuple[Tensor, ...], Any, Call], tuple[tuple[Tensor, ...], Tensor]]
"""``changes(inputs, output, call)``: what inputs and output differ by from a reference."""


def audit(
    model: nn.Module,
    x: tuple[Tensor, ...],
    table: RuleTable,
    target: int,
    changes: Changes | None = None,
    *,
    image: int = 0,
) -> tuple[Leak, ...]:
    """The leak of every site for one image of x, from the output down; of ``changes``, if given, not of values."""
    leaks: list[Leak] = []
    try:
        run = propagate(model, x, _Audited(table, changes, leaks))
        weights = torch.zeros_like(run.output)
        weights[image, target] = 1
        run.gradient(weights)
    except BacklitError:  # a network that writes through views runs only with its own derivatives there
        return ()
    return tuple(leaks)


@dataclass(frozen=True)
class _Audited:
    table: RuleTable
    changes: Changes | None
    leaks: list[Leak]

    def rule_for(self, site: Site) -> tuple[str, Rule | None]:
        name, rule = self.table.rule_for(site)
        rule = rule or Rule(exact, name)
        return name, replace(rule, vjp=_Watched(rule, site, self.changes, self.leaks))


@dataclass(frozen=True)
class _Watched:
    """The formula of a rule, which notes what is lost at its site."""

    rule: Rule
    site: Site
    changes: Changes | None
    leaks: list[Leak] = field(repr=False)

    def __call__(self, g: Any, inputs: tuple[Tensor, ...], output: Any, call: Call) -> Shares:
        shares = self.rule(g, inputs, output, call)
        got, y = (g, output) if isinstance(output, Tensor) else (g[0], output[0])
        if self.changes is not None:
            xs, y = self.changes(inputs, output, call)
            lost = (got * y).sum() - sum((m * x).sum() for m, x in zip(shares.grads, xs, strict=True) if m is not None)
        else:
            lost = self._relevance_lost(got, y, inputs, shares)
        absorbed = () if shares.absorbed is None else (shares.absorbed,)
        sound = all(bool(m.isfinite().all()) for m in (*shares.grads, *absorbed) if m is not None)
        self.leaks.append(Leak(self.site, self.rule.name, float(lost), sound))
        return shares

    def _relevance_lost(self, g: Tensor, y: Tensor, inputs: tuple[Tensor, ...], shares: Shares) -> Tensor:
        formula = self.rule.vjp
        pixels = formula.pixels if isinstance(formula, AtPixels) else (isinstance(formula, PixelRule),) * len(inputs)
        given = formula.given if isinstance(formula, AtPixels) else not self._multiplies()
        lost = (g if given else g * finite(y)).sum()
        for m, x, is_relevance in zip(shares.grads, inputs, pixels, strict=True):
            if m is not None:
                lost = lost - (m if is_relevance or given else m * finite(x)).sum()
        return lost if shares.absorbed is None else lost - shares.absorbed.sum()

    def _multiplies(self) -> bool:
        """Whether the output is a layer's or follows one, so that it carries multipliers."""
        return self.site.has("layer") or max(self.site.depths, default=0) > 0
