"""From a map to an order of its pixels, whatever the memory layout."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from backlit._random import image_bytes, stable_seed


def drawn_orders(images: Float[Tensor, "n c h w"], seed: int) -> Int64[Tensor, "n p"]:
    """Draw an order of the pixels for each image, from the seed and from the image itself.

    So it is the same for every map of the image, differs from image to image, and does not depend on the batch. The
    images' bytes are read on the host, once.
    """
    p = images.shape[-2] * images.shape[-1]
    seeds = [stable_seed("order", seed, image_bytes(image)) for image in images]
    orders = [torch.randperm(p, generator=torch.Generator().manual_seed(s)) for s in seeds]
    return torch.stack(orders).to(images.device)


def pixel_ranks(
    heat: Float[Tensor, "n p"], drawn: Int64[Tensor, "n p"], *, ascending: bool = False
) -> Int64[Tensor, "n p"]:
    """Return the place of each pixel in the order of the map's values, 0 first: the largest value first, or the smallest.

    Equal pixels come in the drawn order, so that a constant map is a random one, not one of the memory's layout.
    """
    order = drawn.gather(-1, heat.gather(-1, drawn).argsort(dim=-1, descending=not ascending, stable=True))
    places = torch.arange(heat.shape[-1], device=heat.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places)


def average_ranks(values: Float[Tensor, "*b p"]) -> Float[Tensor, "*b p"]:
    """Return ranks from 0, smallest first; equal values share the mean of their ranks."""
    ordered = values.sort(-1).values.contiguous()
    values = values.contiguous()
    below, upto = (torch.searchsorted(ordered, values, right=right) for right in (False, True))
    return (below + upto - 1).to(values.dtype) / 2


def pearson(a: Float[Tensor, "*b p"], b: Float[Tensor, "*b p"]) -> Float[Tensor, "*b"]:
    """Compute the correlation along the last axis; NaN where one side is constant, for it is undefined there."""
    a, b = (v - v.mean(-1, keepdim=True) for v in (a, b))
    return (a * b).sum(-1) / (a.square().sum(-1) * b.square().sum(-1)).sqrt()


def spearman(a: Float[Tensor, "*b p"], b: Float[Tensor, "*b p"]) -> Float[Tensor, "*b"]:
    """Compute the rank correlation along the last axis, ties at their mean rank, in float64; NaN where one side is constant."""
    return pearson(average_ranks(a.double()), average_ranks(b.double()))
