"""The inverses that are known without data: signals go back where values came from.

Each takes what a call was given, the signals (k, n, ...) of its outputs, and gives those of its sources.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor

from backlit._errors import UnsupportedOp
from backlit.capture.canonical import Call

Closed = Callable[[Call, Sequence[Tensor], Sequence[Tensor | None], bool], list[Tensor]]
"""``closed(call, values, signals, bias) -> signals of the sources``; the signal of an output that nothing reads is None."""


def kept(call: Call, values: Sequence[Tensor], signals: Sequence[Tensor | None], bias: bool) -> list[Tensor]:
    """An activation: what stands behind it is reconstructed as its output is, and gated by it (Eq. 9). Or a dropout at rest."""
    return [_only(signals)]


def averaged_back(call: Call, values: Sequence[Tensor], signals: Sequence[Tensor | None], bias: bool) -> list[Tensor]:
    """``A'(S - A0) / A'A1`` of an affine call A whose weights are averages or scales.

    For a scale it is the exact inverse; for an average each element gets the mean of the windows that hold it. Both give
    back a constant map exactly. A scale of 0 gives 0.
    """
    (x,) = values
    ones = torch.ones_like(x)
    with torch.enable_grad():
        leaf = torch.zeros_like(x).requires_grad_()
        zero = _first(call.run(leaf))
    one = _first(call.run(ones)) - zero.detach()
    s = _only(signals)
    return _normalised(zero, (leaf,), s - zero.detach() if bias else s, one)


def switched_back(call: Call, values: Sequence[Tensor], signals: Sequence[Tensor | None], bias: bool) -> list[Tensor]:
    """A max-pool or a maximum: the signal goes where the maximum was (Eq. 8), its mean where several windows chose it."""
    with torch.enable_grad():
        leaves = tuple(v.detach().requires_grad_() for v in values)
        y = _first(call.run(*leaves))
    return _normalised(y, leaves, _only(signals), torch.ones_like(y))


def _normalised(y: Tensor, leaves: tuple[Tensor, ...], s: Tensor, ones: Tensor) -> list[Tensor]:
    """A's / A'ones, for each leaf of y."""
    back = torch.autograd.grad(y, leaves, ones, retain_graph=True)
    if len(s) == 1:
        sums = tuple(g[None] for g in torch.autograd.grad(y, leaves, s[0]))
    else:
        sums = torch.autograd.grad(y, leaves, s, is_grads_batched=True)
    return [torch.where(b == 0, 0, t / torch.where(b == 0, 1, b)) for t, b in zip(sums, back, strict=True)]


class Moves:
    """Where a call that moves, copies or drops elements takes each output from; found by running it on numbered elements.

    Elements that come back from several copies are their mean; those that were dropped are 0.
    """

    def __init__(self, call: Call, values: Sequence[Tensor]) -> None:
        self._shapes = [v.shape[1:] for v in values]
        n, sizes = len(values[0]), [prod(shape) for shape in self._shapes]
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        numbered = [
            torch.arange(1, size + 1, dtype=torch.float64, device=values[0].device)
            .add(start)
            .view(1, *shape)
            .expand(n, *shape)
            for size, start, shape in zip(sizes, starts, self._shapes, strict=True)
        ]
        rows = torch.arange(1, n + 1, dtype=torch.float64, device=values[0].device)
        images = [rows.view(n, *[1] * len(shape)).expand(n, *shape) for shape in self._shapes]
        there, back, image = (
            _floats(call.run(*(v.contiguous() for v in x))) for x in (numbered, [-v for v in numbered], images)
        )
        for one, other, row in zip(there, back, image, strict=True):
            moved = (one == -other) & (one != 0)
            if (
                len(one) != n
                or bool((one != one[:1]).any())
                or bool((row != rows.view(n, *[1] * (row.dim() - 1)))[moved].any())
            ):
                raise UnsupportedOp(f"{call.site} moves values between the images of a batch, so it has no inverse.")
        places = [torch.where(one == -other, one, 0)[0].long() - 1 for one, other in zip(there, back, strict=True)]
        self._ranges = list(zip(starts, sizes, strict=True))
        self._places = [p.flatten() for p in places]

    def __call__(self, signals: Sequence[Tensor | None]) -> list[Tensor]:
        some = next(s for s in signals if s is not None)
        stack = some.shape[:2]
        total = sum(size for _, size in self._ranges)
        sums, counts = some.new_zeros(*stack, total), some.new_zeros(total)
        for s, place in zip(signals, self._places, strict=True):
            if s is None:
                continue
            flat = s.reshape(*stack, -1)
            if len(place) == total and bool((place == torch.arange(total, device=place.device)).all()):
                return [flat.reshape(*stack, *self._shapes[0])] if len(self._shapes) == 1 else self._split(flat)
            there = place >= 0
            sums.index_add_(2, place[there], flat[..., there])
            counts.index_add_(0, place[there], counts.new_ones(int(there.sum())))
        return self._split(sums / counts.clamp(min=1))

    def _split(self, flat: Tensor) -> list[Tensor]:
        return [
            flat[..., start : start + size].reshape(*flat.shape[:2], *shape)
            for (start, size), shape in zip(self._ranges, self._shapes, strict=True)
        ]


def _only(signals: Sequence[Tensor | None]) -> Tensor:
    (s,) = (s for s in signals if s is not None)
    return s


def _floats(result: object) -> list[Tensor]:
    results = (result,) if isinstance(result, Tensor) else tuple(result)  # type: ignore[arg-type]
    return [r for r in results if r.is_floating_point()]


def _first(result: object) -> Tensor:
    return _floats(result)[0]
