"""Blur IG: integrated gradients along the scale of a Gaussian blur, from no detail to all of it."""

from __future__ import annotations

import torch
from torch import Tensor

from backlit._errors import MOST_PIXELS, MOST_STEPS, check_positive, check_whole
from backlit._forward import forward
from backlit.methods.axes import ROWS
from backlit.methods.job import Job, Maps, scores_of
from backlit.methods.path import PathMethod

_TRUNCATE = 4.0  # standard deviations: where the authors' Gaussian, that of scipy, ends


class BlurIG(PathMethod):
    """Blur IG (Xu et al. 2020): gradients times the image's change with the scale, as a Gaussian blur goes from ``sigma`` to 0.

    No baseline is chosen: the path starts at the image without detail. The map sums to F(x) less F of the most blurred
    image, but for what the steps miss.

    Attributes:
        sigma: Standard deviation, in pixels, where the path starts. Outside of the image is zero, as in the authors' code.
        steps: Number of equal steps of the standard deviation.
        grad_step: Step of the finite difference that gives the image's change with the standard deviation.
    """

    axes = ROWS
    name = "blur_ig"
    title = "Blur IG"
    summary = "gradients on the way from the blurred image, times what each scale adds"
    source = "Xu et al. 2020"
    answers = "Which pixels made the score what it is, as detail came back into a blurred image?"

    sigma: float = 50.0
    steps: int = 100
    grad_step: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("sigma", self.sigma, high=MOST_PIXELS)
        check_whole("steps", self.steps, high=MOST_STEPS)
        check_positive("grad_step", self.grad_step, high=MOST_PIXELS)

    @property
    def forward_passes(self) -> float:
        return 3.0 * self.steps + 2

    def explain(self, job: Job) -> Maps:
        maps = self.clean(job)
        sigmas = torch.arange(self.steps, dtype=torch.float64) * self.sigma / self.steps
        most = tuple(gaussian(x, sigmas.new_tensor([self.sigma]))[0] for x in job.inputs)
        start = scores_of(forward(self.network, *most), maps.targets)

        def points(block: slice) -> tuple[Tensor, ...]:
            return tuple(gaussian(x, sigmas[block]) for x in job.inputs)

        def term(block: slice, grads: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            changes = (gaussian_change(x, sigmas[block], self.grad_step) for x in job.inputs)
            return tuple(torch.einsum("tvnchw,vnchw->tnchw", g, c.to(g)) for g, c in zip(grads, changes, strict=True))

        sums = self.summed(job, maps.targets, self.steps, points, term)
        width = self.sigma / self.steps  # against the path's direction
        return self.accounted(job, maps, tuple(-width * s for s in sums), start)


def gaussian(x: Tensor, sigmas: Tensor) -> Tensor:
    """Blur images (n, c, h, w) by each of v standard deviations, zero outside: (v, n, c, h, w)."""
    rows, columns = (_matrices(sigmas, size) for size in x.shape[-2:])
    return rows.to(x) @ x @ columns.to(x)


def gaussian_change(x: Tensor, sigmas: Tensor, step: float) -> Tensor:
    """Change of the blurred images with the standard deviation, a difference over ``step`` ahead: (v, n, c, h, w).

    The differences are those of the blurring matrices, in double precision: the difference of two blurred images is mostly
    rounding.
    """
    (rows, columns), (rows_on, columns_on) = (
        [_matrices(at, size) for size in x.shape[-2:]] for at in (sigmas, sigmas + step)
    )
    by_rows, by_columns = ((on - off).div(step).to(x) for on, off in ((rows_on, rows), (columns_on, columns)))
    return by_rows @ x @ columns_on.to(x) + rows.to(x) @ x @ by_columns


def _matrices(sigmas: Tensor, size: int) -> Tensor:
    """The matrices (v, 1, 1, size, size), symmetric, that blur a row of pixels by a Gaussian with zeros outside of it."""
    widths = sigmas.view(-1, 1, 1)
    radius = torch.floor(_TRUNCATE * widths + 0.5)
    places = torch.arange(size, dtype=sigmas.dtype)
    taps = torch.arange(-int(radius.max()), int(radius.max()) + 1, dtype=sigmas.dtype)

    def weights(offsets: Tensor) -> Tensor:
        bell = torch.exp(-0.5 * (offsets / widths.clamp(min=1e-9)) ** 2)
        return bell * (offsets.abs() <= radius)

    total = weights(taps[None, None]).sum(2, keepdim=True)
    return (weights((places[:, None] - places)[None]) / total)[:, None, None]
