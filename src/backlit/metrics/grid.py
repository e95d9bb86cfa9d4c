"""Mosaics of images of different classes: how much of the relevance lies in the cell that shows the target."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from backlit._errors import InputError, check_word
from backlit.methods.base import Method
from backlit.metrics.base import Case, Metric, Scores, to_numbers
from backlit.metrics.examples import Examples, inside
from backlit.metrics.localisation import positive_share


class GridPointingGame(Metric):
    """Grid pointing game (Boehle et al. 2021): in a mosaic of images of different classes, the share in the target's cell.

    Attributes:
        empty: What a map without positive relevance gets: "chance", the share of the cell's area, as a constant map does; or
            "zero", as in Rao et al.'s published code.
    """

    name = "grid_pointing_game"
    title = "Grid pointing game"
    summary = "share of the positive relevance in the mosaic's cell that shows the target; chance is the cell's area"
    source = "Boehle et al. 2021"
    higher_is_better = True
    range = (0.0, 1.0)
    needs = ("cells",)

    empty: Literal["chance", "zero"] = "chance"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_word("empty", self.empty, ("chance", "zero"))

    def maps(self, name: str, case: Case) -> Tensor:
        """Return the maps (n, 1, h, w) that are scored, of the method of that name."""
        return case.heat[name]

    def measure(self, case: Case) -> Scores:
        examples = case.examples
        area = cells_of(examples.cells, *examples.inputs.shape[-2:])
        values, counts = {}, {}
        for name in case.heat:
            heat = self.maps(name, case)[:, 0].double()
            share, empty = positive_share(heat, area)
            if self.empty == "zero":
                share = torch.where((heat > 0).flatten(1).any(1), share, 0)
            values[name] = to_numbers(share)
            as_what = "as a constant map is" if self.empty == "chance" else "0"
            counts[f"maps of {name} without positive relevance: scored {as_what}"] = empty
        return Scores(self, examples.names, values, counts=counts)


class DiFull(GridPointingGame):
    """DiFull (Rao et al. 2022, Sec. 3.1): the grid pointing game of a network that sees the target's cell of the mosaic alone.

    Whatever the method, nothing outside of the cell can have had an influence: relevance there is a fault of the method, where
    that of the grid pointing game may be the network's. Methods that lay a map of an inner layer over the image are refused:
    of a network that sees a cell, that map is the cell's, and its place in the mosaic would be a guess.
    """

    name = "difull"
    title = "DiFull"
    summary = "share of the positive relevance in the mosaic's only cell that the network sees"
    source = "Rao et al. 2022, Sec. 3.1"
    needs = ("cells", "methods")

    @property
    def forward_passes(self) -> str:
        return "those of the method"

    def maps(self, name: str, case: Case) -> Tensor:
        examples, method = case.examples, case.methods[name]
        _check_places(name, method)
        assert examples.cells is not None
        heat = torch.zeros_like(case.heat[name])
        cells, which = examples.cells.unique(dim=0, return_inverse=True)
        for i, cell in enumerate(cells):
            here = which == i
            some = Examples(examples.inputs[here], examples.target[here])
            with torch.enable_grad():
                maps = replace(method, model=_seeing(case.network, cell)).attribute(some.inputs, some.target)
            heat[here] = self.heatmap(name, maps, some)
        return heat


def cells_of(cells: Float[Tensor, "n 4"] | None, height: int, width: int) -> Bool[Tensor, "n h w"]:
    """Mark the pixels of each image's cell."""
    assert cells is not None
    return torch.stack([inside(cell[None], height, width) for cell in cells])


def _seeing(network: nn.Module, cell: Float[Tensor, " 4"]) -> nn.Module:
    """Return the network, with its modules and their paths, on one cell of its images."""
    x0, y0, x1, y1 = (round(float(edge)) for edge in cell)
    seeing = copy.copy(network)
    seeing.forward = lambda x: network.forward(x[:, :, y0:y1, x0:x1])
    return seeing


def _check_places(name: str, method: Method) -> None:
    if method.reads_map:
        raise InputError(
            f"methods[{name!r}] must not be {method.title} for DiFull: it lays a map of an inner layer over the image, and "
            "the network's inner layers see one cell. Score it by the grid pointing game."
        )
