"""AggAtt (Rao et al. 2022, Sec. 3.3): what the maps of many mosaics look like, from the best localised to the worst."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from backlit._errors import InputError, check, check_type, is_number, is_several, is_whole, shown
from backlit.attribution import Attribution, Reduce
from backlit.metrics.examples import Examples, inside
from backlit.metrics.localisation import positive_share

EDGES = (0.0, 0.02, 0.05, 0.5, 0.95, 0.98, 1.0)


@dataclass(frozen=True, eq=False)
class AggAtt:
    """Mean maps of bins of images, sorted by how well the target's cell is localised, best first.

    Attributes:
        maps: The mean positive relevance of each bin, (b, h, w).
        edges: Where the bins begin and end, as shares of the images (b + 1,).
        scores: The mean share in the cell of each bin (b,).
        images: Number of images of each bin (b,).
        cell: The cell that shows the target, as a box.
    """

    maps: Float[Tensor, "b h w"]
    edges: tuple[float, ...]
    scores: tuple[float, ...]
    images: tuple[int, ...]
    cell: tuple[float, ...]


def aggregated(
    maps: Attribution | Float[Tensor, "n c h w"],
    examples: Examples,
    *,
    cell: int = 0,
    edges: Sequence[float] = EDGES,
    reduce: Reduce = "sum",
) -> AggAtt:
    """Average the maps of mosaics whose target is in the same cell, in bins from the best localised to the worst.

    Args:
        maps: One map for each example, at the images' size.
        examples: Mosaics (``mosaics(...).examples``).
        cell: Which of the cells that hold a target, in reading order.
        edges: Shares of the images at which bins begin and end, ascending from 0 to 1.
        reduce: How channels become one number a pixel.

    Raises:
        InputError: If the examples are no mosaics, an argument is out of range, or a bin would hold no image.
    """
    check_type("examples", examples, Examples, "backlit.Examples")
    check_type("maps", maps, (Attribution, Tensor), "an Attribution or a tensor (n, c, h, w)")
    if examples.cells is None:
        raise InputError(
            "examples must be mosaics with the target's cells (backlit.data.mosaics), but these have none."
        )
    at = list(edges) if is_several(edges) else []
    check(all(is_number(edge) for edge in at), "edges", edges, "numbers that ascend from 0 to 1")
    if len(at) < 2 or at[0] != 0 or at[-1] != 1 or any(b <= a for a, b in pairwise(at)):
        raise InputError(f"edges must ascend from 0 to 1, but are {at}.")
    places = sorted({(y0, x0, y1, x1) for x0, y0, x1, y1 in examples.cells.tolist()})
    there = is_whole(cell) and 0 <= cell < len(places)
    check(there, "cell", cell, f"from 0 to {len(places) - 1}, the cells that hold a target")
    y0, x0, y1, x1 = places[cell]
    box = examples.cells.new_tensor([x0, y0, x1, y1])
    here = (examples.cells == box).all(1)
    values = maps.values if isinstance(maps, Attribution) else maps
    if values.dim() != 4 or values.is_meta or len(values) != len(examples):
        raise InputError(
            f"maps must be (n, c, h, w), one for each of {len(examples)} examples, but are {shown(values)}."
        )
    some = values[here.to(values.device)]
    heat = Attribution(some, examples.target[here], examples.target[here].float()).heatmap(reduce)[:, 0].double()
    return _binned(heat, box.to(heat.device), at)


def _binned(heat: Float[Tensor, "n h w"], box: Float[Tensor, " 4"], edges: list[float]) -> AggAtt:
    n, positive = len(heat), heat.clamp(min=0)
    area = inside(box[None], *heat.shape[-2:]).expand_as(heat)
    share, _ = positive_share(heat, area)
    # Of equal shares, as all are that lie in the cell, the one with more relevance there comes first.
    order = (positive * area).sum((1, 2)).argsort(descending=True, stable=True)
    order = order[share[order].argsort(descending=True, stable=True)]
    bounds = [round(edge * n) for edge in edges]
    if any(start == stop for start, stop in pairwise(bounds)):
        smallest = min(b - a for a, b in pairwise(edges))
        raise InputError(
            f"edges leave a bin without an image: {n} mosaics have their target in this cell, and the smallest bin holds "
            f"{smallest:.1%} of them. Give about {round(1 / smallest)} for each cell, or fewer edges, such as (0, 0.25, 0.75, 1)."
        )
    bins = [order[start:stop] for start, stop in pairwise(bounds)]
    return AggAtt(
        maps=torch.stack([positive[some].mean(0) for some in bins]),
        edges=tuple(edges),
        scores=tuple(share[some].mean().item() for some in bins),
        images=tuple(len(some) for some in bins),
        cell=tuple(box.tolist()),
    )
