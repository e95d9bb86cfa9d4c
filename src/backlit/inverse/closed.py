"""The inverses that are known without data: signals go back where values came from.

Each takes what a call was given, the signals (k, n, ...) of its outputs, and gives those of its sources.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from backlit.capture.canonical import Call
from backlit.capture.watch import floats

Closed = Callable[[Call, Sequence[Tensor], Sequence[Tensor | None], bool], list[Tensor]]
"""``closed(call, values, signals, bias) -> signals of the sources``; the signal of an output that nothing reads is None."""


def kept(call: Call, values: Sequence[Tensor], signals: Sequence[Tensor | None], bias: bool) -> list[Tensor]:
    """Keep the signal: an activation's output is gated by it (Eq. 9) and reconstructed as what stands behind it; or a dropout."""
    return [s for s in signals if s is not None]


def averaged_back(call: Call, values: Sequence[Tensor], signals: Sequence[Tensor | None], bias: bool) -> list[Tensor]:
    """Return ``A'(S - A0) / A'A1`` of an affine call A whose weights are averages or scales.

    For a scale it is the exact inverse; for an average each element gets the mean of the windows that hold it. Both give
    back a constant map exactly. A scale of 0 gives 0.
    """
    (x,), (s,) = values, signals
    assert s is not None
    with torch.enable_grad():
        leaf = torch.zeros_like(x).requires_grad_()
        (zero,) = floats(call.run(leaf))
    (one,) = floats(call.run(torch.ones_like(x)))
    offset = zero.detach()
    return _normalised([zero], (leaf,), [s - offset if bias else s], [one - offset])


def moved_back(call: Call, values: Sequence[Tensor], signals: Sequence[Tensor | None], bias: bool) -> list[Tensor]:
    """Send signals where the values came from: a move, a copy, a choice of elements, or a maximum (Eq. 8).

    An element that went to several places gets the mean of their signals, one that was dropped 0.
    """
    with torch.enable_grad():
        leaves = tuple(v.detach().requires_grad_() for v in values)
        outputs = floats(call.run(*leaves))
    read = [(y, s) for y, s in zip(outputs, signals, strict=True) if s is not None]
    return _normalised([y for y, _ in read], leaves, [s for _, s in read], [torch.ones_like(y) for y, _ in read])


def stays_apart(call: Call, values: Sequence[Tensor]) -> bool:
    """Say whether a call that moves elements leaves each with its own image of the batch."""
    n = len(values[0])
    rows = torch.arange(1.0, n + 1, device=values[0].device, dtype=values[0].dtype)

    def numbered(x: Tensor) -> Tensor:
        return rows.view(n, *[1] * (x.dim() - 1)).expand_as(x)

    outputs = floats(call.run(*(v.contiguous() for v in values)))
    if any(len(y) != n for y in outputs):
        return False
    signals = [numbered(y)[None] for y in outputs]
    return all(bool(((s[0] == numbered(s[0])) | (s[0] == 0)).all()) for s in moved_back(call, values, signals, False))


def _normalised(
    outputs: Sequence[Tensor], leaves: tuple[Tensor, ...], signals: Sequence[Tensor], ones: Sequence[Tensor]
) -> list[Tensor]:
    """Return A's / A'ones for each leaf of the outputs of A."""
    ways = torch.autograd.grad(outputs, leaves, ones, retain_graph=True)
    if len(signals[0]) == 1:
        first = torch.autograd.grad(outputs, leaves, [s[0] for s in signals])
        sums = tuple(g[None] for g in first)
    else:
        sums = torch.autograd.grad(outputs, leaves, list(signals), is_grads_batched=True)
    return [torch.where(b == 0, 0, t / torch.where(b == 0, 1, b)) for t, b in zip(sums, ways, strict=True)]
