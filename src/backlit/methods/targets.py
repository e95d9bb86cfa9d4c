"""From a propagation and the classes asked for to one gradient a class."""

from __future__ import annotations

from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F

from backlit.capture import Propagation


def gradients(
    run: Propagation, targets: Int[Tensor, "n t"], to: tuple[Tensor, ...] | None = None
) -> tuple[Tensor, ...]:
    """The gradient of each image's t logits to each input, or to each of ``to``: (t, n, ...), by the run's rules.

    One target is propagated as it is; several go through the same graph at once.
    """
    weights = F.one_hot(targets.T, run.output.shape[1]).to(run.output.dtype)
    if len(weights) > 1:
        return run.gradient(weights, to=to)
    return tuple(g[None] for g in run.gradient(weights[0], to=to))
