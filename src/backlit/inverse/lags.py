"""Sums of products of shifted maps, without the patches: what the regression of a stride-1 convolution needs.

A patch holds a map at K x K shifts, and the sum of the products of two shifts depends on where each of them starts only at
the borders; inside, it depends on their difference. So the (c K K)^2 sums come from one product of (c, c) for each of the
(2K - 1)^2 differences, half of them by symmetry, less what lies outside of each window at the borders.
"""

from __future__ import annotations

from itertools import pairwise, product

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Shape = tuple[int, ...]


def shifted_products(
    v: Float[Tensor, "k r g c hp wp"], x: Float[Tensor, "r g m h w"], kernel: Shape, dilation: Shape
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over r and over the pixels of x of s, ``s s'`` and ``x s'``, where s at pixel u is v at u + dilation * tap.

    Returns:
        (k, g, q), (k, g, q, q) and (k, g, m, q) with q = c * taps, the channel first.
    """
    k, _, g, c = v.shape[:4]
    size = x.shape[-2:]
    taps = list(product(*(range(n) for n in kernel)))
    starts = [tuple(d * t for d, t in zip(dilation, tap, strict=True)) for tap in taps]
    # A shift of the map is an offset in memory: what runs over the end of a row meets the margin's zeros.
    margins = [d * (n - 1) for d, n in zip(dilation, kernel, strict=True)]
    v = F.pad(v.permute(0, 2, 3, 1, 4, 5), (0, margins[1], 0, margins[0]))  # (k, g, c, r, hp, wp)
    x = F.pad(x.permute(1, 2, 0, 3, 4), (0, v.shape[5] - size[1], 0, v.shape[4] - size[0])).flatten(2)
    flat, row = v.flatten(3), v.shape[5]
    length = flat.shape[3]

    over_images = v.sum(3)
    sums = torch.stack([over_images[..., a : a + size[0], b : b + size[1]].sum((3, 4)) for a, b in starts], -1).flatten(
        2
    )
    offsets = [a * row + b for a, b in starts]
    xs = torch.stack([x[..., : length - o] @ flat[..., o:].mT for o in offsets], -1).flatten(3)

    n = len(taps)
    ss = v.new_zeros(k, g, c, n, c, n)
    blocks = list(product(_blocks(v, 4, starts, size[0], 0), _blocks(v, 5, starts, size[1], 1)))
    for lag in product(*(range(1 - kernel[i], kernel[i]) for i in range(2))):
        pairs = [
            (i, j)
            for i, j in product(range(n), range(n))
            if tuple(b - a for a, b in zip(taps[i], taps[j], strict=True)) == lag
        ]
        if lag < (0, 0):
            continue
        dy, dx = dilation[0] * lag[0], dilation[1] * lag[1]
        offset = dy * row + dx
        everywhere = flat[..., : length - offset] @ flat[..., offset:].mT
        for i, j in pairs:
            ss[:, :, :, i, :, j] += everywhere
        for (top, bottom), (left, right) in blocks:
            outside = [p for p in pairs if not _within(starts[p[0]], (top, left), (bottom, right), size)]
            if not outside:
                continue
            top, left = max(top, -dy), max(left, -dx)  # what lies before the map is zero
            if top >= bottom or left >= right:
                continue
            lower = v[..., top:bottom, left:right]
            moved = v[..., top + dy : bottom + dy, left + dx : right + dx]
            found = lower.flatten(3) @ moved.flatten(3).mT
            for i, j in outside:
                ss[:, :, :, i, :, j] -= found
    for i, j in product(range(n), range(n)):
        if taps[j] < taps[i]:
            ss[:, :, :, i, :, j] = ss[:, :, :, j, :, i].mT
    return sums, ss.flatten(4, 5).flatten(2, 3), xs


def _blocks(v: Tensor, dim: int, starts: list[Shape], size: int, axis: int) -> list[tuple[int, int]]:
    """The pixels along a dimension, cut wherever a tap's window begins or ends, without the zeros at both ends."""
    used = (v != 0).transpose(dim, -1).flatten(0, -2).any(0).nonzero().flatten()
    if not len(used):
        return []
    first, last = int(used[0]), int(used[-1]) + 1
    edges = {edge for start in starts for edge in (start[axis], start[axis] + size) if first < edge < last}
    cuts = sorted({first, last, *edges})
    return list(pairwise(cuts))


def _within(start: Shape, low: Shape, high: Shape, size: Shape) -> bool:
    return all(s <= a and b <= s + h for s, a, b, h in zip(start, low, high, size, strict=True))
