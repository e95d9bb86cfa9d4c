"""From a map to an order of its pixels, whatever the memory layout."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor


def pixel_ranks(heat: Float[Tensor, "*b p"], *, seed: int, ascending: bool = False) -> Int64[Tensor, "*b p"]:
    """The place of each pixel in the order of the map's values, 0 first: the largest value first, or the smallest.

    Equal pixels come in an order that the seed draws, the same for every map of this size: a constant map is a random
    one, and the score of a map depends on no other map of its batch.
    """
    p = heat.shape[-1]
    drawn = torch.randperm(p, generator=torch.Generator().manual_seed(seed)).to(heat.device)
    order = drawn[heat[..., drawn].argsort(dim=-1, descending=not ascending, stable=True)]
    places = torch.arange(p, device=heat.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places)


def average_ranks(values: Float[Tensor, "*b p"]) -> Float[Tensor, "*b p"]:
    """Ranks from 0, smallest first; equal values share the mean of their ranks."""
    ordered = values.sort(-1).values.contiguous()
    values = values.contiguous()
    below, upto = (torch.searchsorted(ordered, values, right=right) for right in (False, True))
    return (below + upto - 1).to(values.dtype) / 2


def pearson(a: Float[Tensor, "*b p"], b: Float[Tensor, "*b p"]) -> Float[Tensor, "*b"]:
    """Correlation along the last axis; NaN where one side is constant, for it is undefined there."""
    a, b = (v - v.mean(-1, keepdim=True) for v in (a, b))
    return (a * b).sum(-1) / (a.square().sum(-1) * b.square().sum(-1)).sqrt()


def spearman(a: Float[Tensor, "*b p"], b: Float[Tensor, "*b p"]) -> Float[Tensor, "*b"]:
    """Rank correlation along the last axis, ties at their mean rank, in float64; NaN where one side is constant."""
    return pearson(average_ranks(a.double()), average_ranks(b.double()))
