"""Sums of products of shifted maps, without the patches: what the regression of a stride-1 convolution needs.

A patch holds a map at K x K shifts, and the sum of the products of two shifts depends on where each of them starts only at
the borders; inside, it depends on their difference. So the (c K K)^2 sums come from one product of (c, c) for each of the
(2K - 1)^2 differences, half of them by symmetry, on each of the few blocks of rows and columns that the windows cut.
"""

from __future__ import annotations

from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor

Shape = tuple[int, ...]


def shifted_products(
    v: Float[Tensor, "k r g c hp wp"], x: Float[Tensor, "r g m h w"], kernel: Shape, dilation: Shape
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over r and over the pixels of x of s, ``s s'`` and ``x s'``, where s at pixel u is v at u + dilation * tap.

    Returns:
        (k, g, q), (k, g, q, q) and (k, g, m, q) with q = c * taps, the channel first.
    """
    k, r, g, c = v.shape[:4]
    size = x.shape[-2:]
    taps = list(product(*(range(n) for n in kernel)))
    starts = {tap: tuple(d * t for d, t in zip(dilation, tap, strict=True)) for tap in taps}
    v = v.permute(0, 2, 3, 1, 4, 5).contiguous()  # (k, g, c, r, hp, wp)
    x = x.permute(1, 2, 0, 3, 4).reshape(1, g, -1, r * size[0] * size[1])

    windows = [v[..., a : a + size[0], b : b + size[1]] for a, b in starts.values()]
    sums = torch.stack([w.sum((3, 4, 5)) for w in windows], -1).flatten(2)
    xs = torch.stack([x @ w.flatten(3).mT for w in windows], -1).flatten(3)

    n = len(taps)
    ss = v.new_zeros(k, g, c, n, c, n)
    blocks = list(product(_blocks(v, 4, kernel[0], dilation[0], size[0]), _blocks(v, 5, kernel[1], dilation[1], size[1])))
    for lag in product(*(range(1 - kernel[i], kernel[i]) for i in range(2))):
        if lag < (0, 0):
            continue
        pairs = [(i, taps.index(other)) for i, tap in enumerate(taps) if (other := (tap[0] + lag[0], tap[1] + lag[1])) in starts]
        dy, dx = dilation[0] * lag[0], dilation[1] * lag[1]
        for (top, bottom), (left, right) in blocks:
            inside = [p for p in pairs if _within(starts[taps[p[0]]], (top, left), (bottom, right), size)]
            if not inside:
                continue
            one = v[..., top:bottom, left:right].flatten(3)
            other = v[..., top + dy : bottom + dy, left + dx : right + dx].flatten(3)
            found = one @ other.mT
            for i, j in inside:
                ss[:, :, :, i, :, j] += found
    for i, j in product(range(n), range(n)):
        if (taps[j][0] - taps[i][0], taps[j][1] - taps[i][1]) < (0, 0):
            ss[:, :, :, i, :, j] = ss[:, :, :, j, :, i].mT
    return sums, ss.flatten(4, 5).flatten(2, 3), xs


def _blocks(v: Tensor, dim: int, taps: int, dilation: int, size: int) -> list[tuple[int, int]]:
    """The pixels along a dimension, cut wherever a tap's window begins or ends, without the zeros at both ends."""
    used = (v != 0).transpose(dim, -1).flatten(0, -2).any(0).nonzero().flatten()
    if not len(used):
        return []
    first, last = int(used[0]), int(used[-1]) + 1
    edges = {edge for t in range(taps) for edge in (dilation * t, dilation * t + size) if first < edge < last}
    cuts = sorted({first, last, *edges})
    return list(zip(cuts[:-1], cuts[1:], strict=True))


def _within(start: Shape, low: Shape, high: Shape, size: Shape) -> bool:
    return all(s <= a and b <= s + h for s, a, b, h in zip(start, low, high, size, strict=True))
