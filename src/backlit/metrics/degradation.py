"""Ways to make a good map worse, by any amount from 0 (as it is) to 1."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from backlit._random import stable_seed
from backlit.methods.images import blurred

Maps = Float[Tensor, "n c h w"]
Degradation = Callable[[Maps, float, Int64[Tensor, "n p"], int], Maps]
"""``(maps, amount, order, seed)``; ``order`` is one of each image's pixels, drawn once: a larger amount changes more of them."""
_BLUR = 0.25  # of the shorter side: the largest standard deviation


def noisy(maps: Maps, amount: float, order: Int64[Tensor, "n p"], seed: int) -> Maps:
    """Mix the map with normal noise of its own standard deviation, until nothing but noise is left."""
    noise = torch.stack(
        [
            torch.randn(
                one.shape, generator=torch.Generator().manual_seed(stable_seed("noise", seed, *places[:8].tolist()))
            )
            for one, places in zip(maps, order.cpu(), strict=True)
        ]
    ).to(maps)
    spread = maps.flatten(1).std(1, correction=0).view(-1, 1, 1, 1)
    return (1 - amount) * maps + amount * spread * noise


def smeared(maps: Maps, amount: float, order: Int64[Tensor, "n p"], seed: int) -> Maps:
    """Blur the map by a Gaussian of up to a quarter of its shorter side."""
    return blurred(maps, amount * _BLUR * min(maps.shape[-2:])) if amount > 0 else maps


def shuffled(maps: Maps, amount: float, order: Int64[Tensor, "n p"], seed: int) -> Maps:
    """Give a share of the pixels each other's values: each that of the next one in the drawn order."""
    n, c, flat = len(maps), maps.shape[1], maps.flatten(2)
    to = order[:, : round(amount * order.shape[1])]
    moved = flat.gather(2, to.roll(-1, 1)[:, None].expand(n, c, -1))
    return flat.scatter(2, to[:, None].expand(n, c, -1), moved).view_as(maps)


def turned(maps: Maps, amount: float, order: Int64[Tensor, "n p"], seed: int) -> Maps:
    """Turn the sign of a share of the pixels; with all of them the map is its opposite."""
    sign = torch.ones(len(maps), order.shape[1], dtype=maps.dtype, device=maps.device)
    sign.scatter_(1, order[:, : round(amount * order.shape[1])], -1)
    return maps * sign.view(len(maps), 1, *maps.shape[-2:])


DEGRADATIONS: dict[str, Degradation] = {"noise": noisy, "blur": smeared, "shuffle": shuffled, "sign": turned}
