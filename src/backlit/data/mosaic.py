"""Mosaics: ground truth for a map by construction, without boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from backlit._errors import InputError, check, check_type, is_whole, is_word
from backlit.data.compose import Box, Mosaics, Targets, assembled, cells_of, check_options, draw, shown
from backlit.data.confident import Known, confident, probabilities
from backlit.data.examples import prepared
from backlit.data.sample import Sample
from backlit.models.preprocess import Preprocess

_GRIDS = (2, 3)


def mosaics(
    network: nn.Module,
    dataset: Sequence[Sample],
    preprocess: Preprocess,
    *,
    grid: int = 2,
    count: int,
    seed: int = 0,
    confidence: float = 0.9,
    size: Literal["same"] | None = None,
    targets: Targets = "one",
    batch: int = 32,
) -> Mosaics:
    """Mosaics of ``grid`` x ``grid`` confidently classified pictures of different classes, for the grid pointing game.

    Boehle et al. 2021, Sec. 4.1. The network need not have seen a mosaic: each cell's class is known, so a map of the
    target should lie in the target's cell.

    Args:
        network: In eval mode, on any device. It must take images ``grid`` times as large, unless ``size`` is "same".
        dataset: Samples; all pictures of it are classified once.
        preprocess: The network's; each cell is what it makes of one picture.
        grid: 2 or 3 cells a side.
        count: How many mosaics. The same seed gives the same ones; a larger count begins with those of a smaller one.
        seed: Of the draw.
        confidence: The probability of the right class must be above it.
        size: None: cells have the network's input size, the mosaic is ``grid`` times as large, as in the paper. "same":
            cells are scaled down (bilinear, antialiased) so that the mosaic has the network's input size.
        targets: "one": the target of mosaic i is cell i modulo ``grid`` squared, so all positions occur equally often.
            "all": an image for each cell, which makes ``count * grid**2`` images.
        batch: Images at once.

    Returns:
        Normalised float32 images on the CPU.

    Raises:
        InputError: Too few confident pictures of different classes (says how many were found), an option out of range, a
            class that the network does not have, or a network that does not take the mosaic's size.
        ModelStateError: The network is in train mode.
    """
    check(is_whole(grid) and grid in _GRIDS, "grid", grid, f"one of {_GRIDS}")
    known = size is None or is_word(size, ("same",))
    check(known, "size", size, "None (grid times as large) or 'same' (the network's input size)")
    check_options(count, targets, seed)
    check_type("preprocess", preprocess, Preprocess, "a Preprocess")
    height, width = (side if size == "same" else side * grid for side in preprocess.size)
    if min(height, width) < grid:
        raise InputError(f"size: 'same' leaves no pixel for {grid} x {grid} cells in an input of {preprocess.size}.")
    cells = cells_of(grid, grid, height, width)
    known, classes = confident(network, dataset, preprocess, confidence, batch)
    drawn = list(draw(known, len(cells), count, seed, confidence))
    images = [_mosaic(dataset, preprocess, chosen, cells, (height, width)) for chosen in drawn]
    probabilities(network, images[0][None])  # a network of one size only is found here, not in a metric hours later
    wanted = shown(count, len(cells), targets)
    return assembled("mosaic", images, drawn, [cells] * count, wanted, classes, len(known))


def _mosaic(
    dataset: Sequence[Sample],
    preprocess: Preprocess,
    chosen: Sequence[Known],
    cells: Sequence[Box],
    size: tuple[int, int],
) -> Float[Tensor, "c h w"]:
    image = torch.zeros(preprocess.channels, *size)
    for each, (x0, y0, x1, y1) in zip(chosen, cells, strict=True):
        picture = prepared(dataset[each.index], preprocess)
        if picture.shape[1:] != (y1 - y0, x1 - x0):
            picture = F.interpolate(
                picture[None], (y1 - y0, x1 - x0), mode="bilinear", align_corners=False, antialias=True
            )[0]
        image[:, y0:y1, x0:x1] = picture
    return image
