"""Linear imputation: missing pixels as weighted means of their neighbours, all systems solved at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

_TOLERANCE = 1e-5  # largest residual of a pixel, over the range of its image; errors were below 15 times that
_MOST = 200  # steps; 10 to 15 are usual
_DAMPING = 0.9  # of a Jacobi step
_CACHED = 2**19  # numbers of the images that are solved at once on a CPU: of more, its caches hold too little
_COARSEST = 8  # pixels a side where the hierarchy of grids ends
_LAST_STEPS = 8  # Jacobi steps there


@dataclass(frozen=True, eq=False)
class _Grid:
    """The matrices of s systems at one resolution: 12 times what a pixel differs from its neighbours' weighted mean.

    Attributes:
        unknown: 1 where a pixel is to be found, else 0 (s, 1, h, w).
        weight: What a pixel itself weighs (1, 1, h, w), beside the sum of :func:`_window`: less at the border.
        step: A damped Jacobi step for each unit of the residual (s, 1, h, w), 0 where a pixel is known.
    """

    unknown: Tensor
    weight: Tensor
    step: Tensor

    @classmethod
    def of(cls, unknown: Tensor) -> _Grid:
        """Make the matrices of systems whose unknown pixels are 1."""
        weight = _window(torch.ones_like(unknown[:1]))
        return cls(unknown, weight, unknown * (_DAMPING / (weight - 4)))

    def less(self, v: Tensor) -> Tensor:
        """Return minus the product of the matrix with values that are 0 at known pixels; at known pixels it is of no use."""
        return _window(v).addcmul_(self.weight, v, value=-1)

    def __getitem__(self, index: Tensor) -> _Grid:
        """Return some systems alone."""
        return _Grid(self.unknown[index], self.weight, self.step[index])


def imputed(x: Float[Tensor, "s c h w"], missing: Bool[Tensor, "s 1 h w"]) -> Float[Tensor, "s c h w"]:
    """Replace missing pixels by the weighted mean of their neighbours (Rong et al. 2022, Sec. 5.2), which may be missing, too.

    The eight neighbours weigh 1/6 beside and 1/12 across; at the border there are fewer, and their weights are divided by
    their sum. So each image is a linear system, one matrix for all its channels. Conjugate gradients solve all at once (on a CPU a
    few, then the next), preconditioned by a cycle over coarser grids, as in multigrid methods. A system that is solved drops out,
    so that none depends on the others.

    Args:
        x: Images; half precision is solved in single.
        missing: Which pixels are missing; one of each image at least must not be.
    """
    full = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    at_once = max(1, _CACHED // x[0].numel()) if x.device.type == "cpu" else len(x)
    made = [_imputed(*block) for block in zip(full.split(at_once), missing.split(at_once), strict=True)]
    return torch.cat(made).to(x.dtype)


def _imputed(full: Tensor, missing: Tensor) -> Tensor:
    grids = _hierarchy(missing.to(full))
    known = full * ~missing
    start = known.sum((2, 3), keepdim=True) / (~missing).sum((2, 3), keepdim=True) * missing
    residual = (_window(known) + grids[0].less(start)) * missing
    span = full.amax((1, 2, 3)) - full.amin((1, 2, 3))
    return known + _solved(start, residual, grids, 12 * _TOLERANCE * span)


def _window(v: Float[Tensor, "*b h w"]) -> Float[Tensor, "*b h w"]:
    """Sum each pixel's neighbours, 2 for those beside it, 1 for those across and 4 for itself; 0 outside the border."""
    # These are (1, 2, 1) by (1, 2, 1): sums of shifted images cost less than a convolution.
    padded = F.pad(v, (1, 1, 1, 1))
    rows = (padded[..., :-2] + padded[..., 2:]).add_(padded[..., 1:-1], alpha=2)
    return (rows[..., :-2, :] + rows[..., 2:, :]).add_(rows[..., 1:-1, :], alpha=2)


def _hierarchy(unknown: Tensor) -> list[_Grid]:
    """The grids, finest first; a coarse pixel is unknown where all that it covers are."""
    grids = [_Grid.of(unknown)]
    while min(unknown.shape[-2:]) >= _COARSEST:
        unknown = 1 - F.max_pool2d(1 - unknown, 2, ceil_mode=True)
        grids.append(_Grid.of(unknown))
    return grids


def _solved(start: Tensor, residual: Tensor, grids: list[_Grid], tolerance: Tensor) -> Tensor:
    """Take steps of preconditioned conjugate gradients until the residual of every system is within its tolerance."""
    solution, current, systems = torch.empty_like(start), start, torch.arange(len(start), device=start.device)
    direction, last = torch.zeros_like(residual), residual.new_ones(*residual.shape[:2], 1, 1)
    tiny = torch.finfo(residual.dtype).tiny
    for _ in range(_MOST):
        open_ = residual.abs().amax((1, 2, 3)) > tolerance
        if not bool(open_.all()):
            solution[systems[~open_]] = current[~open_]
            kept = (v[open_] for v in (systems, current, residual, direction, last, tolerance))
            systems, current, residual, direction, last, tolerance = kept
            grids = [grid[open_] for grid in grids]
        if not len(systems):
            break
        better = _cycle(residual, grids)
        now = _dot(residual, better)
        direction = better.addcmul_(direction, now / last)
        change = grids[0].less(direction).mul_(grids[0].unknown)
        step = now / -_dot(direction, change).clamp(max=-tiny)  # 0 by 0 in a channel that is solved
        current = current.addcmul(direction, step)
        residual = residual.addcmul(change, step)
        last = now.clamp(min=tiny)
    solution[systems] = current
    return solution


def _cycle(residual: Tensor, grids: list[_Grid]) -> Tensor:
    """Return an approximate solution: a step here, what is left on the coarser grids, and a step again."""
    grid, coarser = grids[0], grids[1:]
    v = residual * grid.step
    if coarser:
        left = _halved(grid.less(v).add_(residual)).mul_(coarser[0].unknown)
        v.addcmul_(_doubled(_cycle(left, coarser), v), grid.unknown)
    for _ in range(1 if coarser else _LAST_STEPS):
        v.addcmul_(grid.less(v).add_(residual), grid.step)
    return v


def _halved(v: Tensor) -> Tensor:
    """Sum each four pixels, fewer at an odd border: a small part of what pooling takes on a CPU."""
    height, width = v.shape[-2:]
    even = F.pad(v, (0, width % 2, 0, height % 2)) if height % 2 or width % 2 else v
    rows = even[..., ::2, :] + even[..., 1::2, :]
    return rows[..., ::2] + rows[..., 1::2]


def _doubled(v: Tensor, like: Tensor) -> Tensor:
    """Repeat each pixel four times, to the size of ``like``."""
    height, width = like.shape[-2:]
    large = torch.empty_like(like)
    large[..., ::2, ::2] = v
    large[..., ::2, 1::2] = v[..., : width // 2]
    large[..., 1::2, :] = large[..., : height - height % 2 : 2, :]
    return large


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((2, 3), keepdim=True)
