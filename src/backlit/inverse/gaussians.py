"""A Gaussian of small patches of the data, for each channel: what a window may hold, given what is around it.

One pass over the data takes patches at random places of each image. Only sums are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from backlit._errors import MOST_PIXELS, InputError, check_whole
from backlit._forward import forward
from backlit._json import JsonObject
from backlit._random import stable_seed
from backlit.capture.refuse import check_output
from backlit.inverse.artefact import Fitted
from backlit.inverse.data import Data
from backlit.inverse.fitting import FitStep, Fitting
from backlit.inverse.part import INPUT

KIND = "pda"
_WINDOW, _PADDING = 10, 2  # pixels, where the image is large enough
_MOST_PATCHES = 1_000_000
"""Of an image: more than it has places, and still what fits into memory."""
_SHARE = 7  # windows side by side in a small image


class PatchGaussians(Fitted):
    """An artefact of the Gaussians of each input's patches; :func:`fit_gaussians` makes them.

    ``layers["input 0"]`` holds, for c channels and patches of q x q pixels, "mean" (c, q * q), "covariance" (c, q * q,
    q * q), and the lowest and highest value of each pixel, "low" and "high" (c, h, w).
    """


@dataclass(frozen=True)
class GaussianOptions:
    """A choice of the patches.

    Attributes:
        window: Pixels a side of the window that is drawn anew; None for 10, or a seventh of a smaller image's shorter side.
        padding: Pixels around the window that it depends on; None for 2, or as many as fit.
        patches: How many patches to take from each image.
        seed: Seed of their places.
    """

    window: int | None = None
    padding: int | None = None
    patches: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        check_whole("window", self.window, high=MOST_PIXELS, none=True)
        check_whole("padding", self.padding, low=0, high=MOST_PIXELS, none=True)
        check_whole("patches", self.patches, high=_MOST_PATCHES)
        check_whole("seed", self.seed, low=0)

    def sizes(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Return the window and the padding for images of shape (c, h, w).

        Raises:
            InputError: If the images are smaller than both.
        """
        side = min(shape[-2:])
        window = self.window or max(1, min(_WINDOW, round(side / _SHARE)))
        padding = min(_PADDING, (side - window) // 2) if self.padding is None else self.padding
        if window + 2 * max(0, padding) > side:
            raise InputError(
                f"window must leave room for its padding all around in images of {shape[-2]}x{shape[-1]}, but is {window} with a "
                f"padding of {padding}. Use smaller ones, or None for both."
            )
        return window, padding


@dataclass
class _Sums:
    """The sums over patches of one input, in float64, and its pixels' bounds."""

    count: int = 0
    totals: list[Tensor] = field(default_factory=list)
    bounds: list[Tensor] = field(default_factory=list)

    def add(self, patches: Tensor, images: Tensor) -> None:
        """Add patches (c, r, q * q) of images (n, c, h, w)."""
        x = patches.double()
        new = [x.sum(1), x.mT @ x]
        self.totals = [a + b for a, b in zip(self.totals, new, strict=True)] if self.totals else new
        low, high = images.amin(0), images.amax(0)
        self.bounds = (
            [torch.minimum(self.bounds[0], low), torch.maximum(self.bounds[1], high)] if self.bounds else [low, high]
        )
        self.count += x.shape[1]

    def gaussian(self) -> dict[str, Tensor]:
        """Return mean and covariance for each channel, and the bounds."""
        mean = self.totals[0] / self.count
        covariance = (self.totals[1] - self.count * mean[:, :, None] * mean[:, None, :]) / max(1, self.count - 1)
        return {"mean": mean, "covariance": covariance, "low": self.bounds[0], "high": self.bounds[1]}


def fit_gaussians(
    model: nn.Module,
    data: Data,
    options: GaussianOptions,
    *,
    out: str | Path | None = None,
    description: str = "",
    progress: Callable[[FitStep], None] = lambda step: None,
) -> PatchGaussians:
    """Fit the Gaussians of the patches of each input's images.

    Args:
        model: The network, in eval mode: it tells the number of classes, and the file belongs to it.
        data: An iterable of batches, images (n, c, h, w) or (images, class indices), that can be gone through again.
        options: The patches.
        out: A file for the result.
        description: Of the data, for the record.
        progress: Called after each batch.

    Raises:
        InputError: If an argument or a batch cannot be used, or the images are smaller than a patch.
        FileError: If ``out`` cannot be written or is anything but an earlier fit of this kind.
    """
    job = Fitting(KIND, model, data, out, progress)
    output = forward(model, *job.sample)
    check_output(output, len(job.sample[0]))
    shapes = [options.sizes(tuple(x.shape[1:])) for x in job.sample]
    window, padding = min(w for w, _ in shapes), min(p for _, p in shapes)
    facts: JsonObject = {"window": window, "padding": padding, "patches": options.patches, "seed": options.seed}
    side = window + 2 * padding
    with job.begun(facts):
        sums = {f"input {i}": _Sums() for i in range(len(shapes))}
        seen = 0
        for batch in job.batches(sums):
            for of, images in zip(sums.values(), batch.inputs, strict=True):
                of.add(_patches(images, side, options, seen), images)
            seen += len(batch.inputs[0])
        told = {**facts, "start": INPUT, "description": description, "taken": sums["input 0"].count}
        layers = {name: {key: t.cpu() for key, t in of.gaussian().items()} for name, of in sums.items()}
        return job.result(PatchGaussians, layers, tuple(range(output.shape[1])), told)


def _patches(images: Tensor, side: int, options: GaussianOptions, seen: int) -> Tensor:
    """Return patches (c, r, side * side) at places that follow from the seed and each image's number in the data."""
    room = torch.tensor([s - side + 1 for s in images.shape[-2:]])
    taken = []
    for number, image in enumerate(images, seen):
        generator = torch.Generator().manual_seed(stable_seed("pda", options.seed, number))
        rows, columns = (
            (torch.rand(options.patches, 2, generator=generator, dtype=torch.float64) * room).long().unbind(1)
        )
        windows = image.unfold(1, side, 1).unfold(2, side, 1)  # (c, places down, places across, side, side)
        taken.append(windows[:, rows.to(image.device), columns.to(image.device)].flatten(2))
    return torch.cat(taken, 1)
