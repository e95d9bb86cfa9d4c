"""Where relevance, or DeepLIFT's difference, is lost: the pass again for one image, with what each site gets and gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from backlit._errors import BacklitError
from backlit.capture import Call, Rule, Site, propagate
from backlit.rules import RuleTable
from backlit.rules.exact import exact
from backlit.rules.layer import finite
from backlit.rules.structural import AtPixels
from backlit.rules.table import rule_name


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
        return name, _Watched(rule, site, self.changes, self.leaks)


@dataclass(frozen=True)
class _Watched:
    rule: Rule | None
    site: Site
    changes: Changes | None
    leaks: list[Leak] = field(repr=False)

    @property
    def joins(self) -> bool:
        return getattr(self.rule, "joins", False)

    @property
    def absorbs(self) -> bool:
        return getattr(self.rule, "absorbs", False)

    def __call__(self, g: Any, inputs: tuple[Tensor, ...], output: Any, call: Call) -> Any:
        found = tuple((self.rule or exact)(g, inputs, output, call))
        got, y = (g, output) if isinstance(output, Tensor) else (g[0], output[0])
        if self.changes is not None:
            xs, y = self.changes(inputs, output, call)
            lost = (got * y).sum() - sum((m * x).sum() for m, x in zip(found, xs, strict=True) if m is not None)
        else:
            lost = self._relevance_lost(got, y, inputs, found)
        sound = all(bool(m.isfinite().all()) for m in found if m is not None)
        self.leaks.append(Leak(self.site, rule_name(self.rule), float(lost), sound))
        return found

    def _relevance_lost(self, g: Tensor, y: Tensor, inputs: tuple[Tensor, ...], found: tuple[Any, ...]) -> Tensor:
        reads_pixels = getattr(self.rule, "reads_pixels", False)
        pixels = self.rule.pixels if isinstance(self.rule, AtPixels) else (reads_pixels,) * len(inputs)
        given = self.rule.given if isinstance(self.rule, AtPixels) else not self._multiplies()
        lost = (g if given else g * finite(y)).sum()
        for m, x, is_relevance in zip(found, inputs, pixels, strict=False):
            if m is not None:
                lost = lost - (m if is_relevance or given else m * finite(x)).sum()
        extra = found[len(inputs)] if self.absorbs else None
        return lost if extra is None else lost - extra.sum()

    def _multiplies(self) -> bool:
        """Whether the output is a layer's or follows one, so that it carries multipliers."""
        return self.site.has("layer") or max(self.site.depths, default=0) > 0
