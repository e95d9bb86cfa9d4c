"""Smooth masks of a given area, and images that are blurred as much as a mask says: what extremal perturbations are made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

from backlit.methods.images import blurred

COLDNESS = 20.0  # of the smooth maximum
_REACH = 1  # cells beyond sigma that still count


class SmoothMax(torch.autograd.Function):
    """The smooth maximum over a neighbourhood of cells, each weighted by its distance: a mask from a coarse grid.

    At a pixel with weights w_k to the cells k around it, which hold p_k: a_k = w_k p_k, and the mask is the sum of a_k softmax(T
    a)_k. Neighbours are gone through one by one, forward and back, so that no tensor is larger than the mask.
    """

    @staticmethod
    def forward(ctx: BackwardCFunction, grid: Tensor, weights: Tensor) -> Tensor:
        """Compute the mask (N, a, step, b, step) of a grid (N, a, b), for weights (r, r, step, 1, step)."""
        total = count = grid.new_zeros(())
        for value in _terms(grid, weights):
            power = (COLDNESS * value).exp()
            total, count = total + value * power, count + power
        mask = total / count
        ctx.save_for_backward(grid, weights, mask, count)
        return mask

    @staticmethod
    def backward(ctx: BackwardCFunction, *grads: Tensor) -> tuple[Tensor, None]:
        """Compute the gradient of the grid: of a_k it is softmax(T a)_k (1 + T (a_k - mask))."""
        grid, weights, mask, count = tuple(ctx.saved_tensors)
        scaled = grads[0] / count
        (rows, columns), r = grid.shape[1:], weights.shape[0]
        padded = grid.new_zeros(len(grid), rows + r - 1, columns + r - 1)
        for number, value in enumerate(_terms(grid, weights)):
            i, j = divmod(number, r)
            slope = (COLDNESS * value).exp() * (1 + COLDNESS * (value - mask))
            padded[:, i : i + rows, j : j + columns] += (scaled * slope * weights[i, j]).sum((2, 4))
        reach = r // 2
        return padded[:, reach : reach + rows, reach : reach + columns], None


def _terms(grid: Tensor, weights: Tensor) -> Iterator[Tensor]:
    """Yield a_k, (N, a, step, b, step), for each neighbour k; cells beyond the grid hold 0."""
    r, (rows, columns) = weights.shape[0], grid.shape[1:]
    reach = r // 2
    padded = torch.nn.functional.pad(grid, (reach,) * 4)
    for i in range(r):
        for j in range(r):
            yield padded[:, i : i + rows, None, j : j + columns, None] * weights[i, j]


@dataclass(frozen=True, eq=False)
class SmoothMasks:
    """A family of masks of h x w pixels, each from a grid of cells.

    Attributes:
        size: Height and width of a mask.
        cells: Rows and columns of a grid.
        weights: What a cell weighs at a pixel: by the cell's place beside the pixel's own, and the pixel's in it.
    """

    size: tuple[int, int]
    cells: tuple[int, int]
    weights: Tensor

    @classmethod
    def of(cls, size: tuple[int, int], step: int, sigma: float, x: Tensor) -> SmoothMasks:
        """Make the family for cells of ``step`` pixels, and a smoothness of ``sigma`` pixels.

        The weight at a distance of d pixels from a cell's centre is exp(-2 max(0, d / sigma - 1/2)^2).
        """
        reach = _REACH + ceil(sigma / step)
        cell = torch.arange(-reach, reach + 1, dtype=torch.float64) * step
        pixel = torch.arange(step, dtype=torch.float64) - (step - 1) / 2
        apart = (pixel - cell[:, None]).square()  # (r, step)
        distance = (apart[:, None, :, None, None] + apart[None, :, None, None, :]).sqrt()
        weights = torch.exp(-2 * (distance / sigma - 0.5).clamp(min=0).square())
        return cls(size, (ceil(size[0] / step), ceil(size[1] / step)), weights.to(x.device, x.dtype))

    def __call__(self, grids: Tensor) -> Tensor:
        """Return the masks (N, h, w) of grids (N, a, b)."""
        mask = SmoothMax.apply(grids, self.weights)
        return mask.flatten(3).flatten(1, 2)[:, : self.size[0], : self.size[1]]


def area_loss(masks: Tensor, areas: Tensor, order: Tensor) -> Tensor:
    """Return how far each mask (N, h, w) is from one of ones on its share of the image, and zeros: the ranked area loss (N,).

    The mean over pixels of the squared difference between the mask's values in rising order and as many zeros and ones.
    Pixels of equal value, as all are at first, rank as ``order`` (h * w,) has them: row by row, they would grow from below.
    """
    values = masks.flatten(1)[:, order].sort(dim=1, stable=True).values
    place = torch.arange(values.shape[1], device=values.device)
    wanted = place >= (values.shape[1] * (1 - areas)).floor()[:, None]
    return (values - wanted.to(values)).square().mean(1)


def pyramid(x: Tensor, sigma: float, levels: int) -> Tensor:
    """Return images (n, c, h, w) under Gaussians of ``sigma`` pixels down to none: (levels, n, c, h, w)."""
    return torch.stack([blurred(x, sigma * (1 - i / (levels - 1))) for i in range(levels - 1)] + [x])


def blurred_by(levels: Tensor, masks: Tensor) -> Tensor:
    """Return copies of the images, each pixel at the level of a pyramid (l, n, c, h, w) that masks (v, n, h, w) say.

    1 is the image itself, 0 the first level; between two levels it is interpolated. (v, n, c, h, w).
    """
    last = len(levels) - 1
    place = masks.clamp(0, 1) * last
    below = (
        place.detach().nan_to_num(0.0).floor().clamp(max=last - 1)
    )  # NaN is no level, and stays in what is interpolated
    index = below.long()[:, :, None].expand(-1, -1, levels.shape[2], -1, -1)
    low, high = levels.gather(0, index), levels.gather(0, index + 1)
    return torch.lerp(low, high, (place - below)[:, :, None].to(levels))
