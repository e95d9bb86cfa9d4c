"""Where a network's gradient stops being a number, although its values are finite: as behind a square root of 0."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from backlit.capture import Call, Rule, Site, propagate
from backlit.rules.exact import exact


def broken_at(model: nn.Module, x: tuple[Tensor, ...], target: int) -> Site | None:
    """Return the site that gets a finite gradient of the target's logit and gives on NaN or Inf; None if none is known to.

    Args:
        model: The network.
        x: One image, for each input of the network.
        target: The class.
    """
    sites: list[Site] = []
    try:
        run = propagate(model, x, _Watching(sites.append))
        weights = torch.zeros_like(run.output)
        weights[:, target] = 1
        run.gradient(weights)
    except Exception:  # the map cannot be had in any case, which is what the caller says
        return None
    return sites[0] if sites else None


@dataclass(frozen=True)
class _Watching:
    """A table of true derivatives, which tells each site that breaks one."""

    tell: Callable[[Site], None]

    def rule_for(self, site: Site) -> tuple[str, Rule]:
        def vjp(g: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> tuple[Tensor | None, ...]:
            grads = exact(g, inputs, output, call)
            if _finite((g,) if isinstance(g, Tensor) else g) and not _finite(grads):
                self.tell(site)
            return grads

        return "exact", Rule(vjp, "exact")


def _finite(values: tuple[Tensor | None, ...]) -> bool:
    return all(bool(v.isfinite().all()) for v in values if v is not None and v.is_floating_point())
