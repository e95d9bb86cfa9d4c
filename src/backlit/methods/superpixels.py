"""Superpixels: labels that say which pixels a surrogate hides together."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

import torch
from torch import Tensor

from backlit._errors import InputError
from backlit.methods.images import content
from backlit.methods.job import Job

_COMPACTNESS = 10.0  # scikit-image's own; colours are measured in CIELAB, from 0 to 100


@dataclass(frozen=True, eq=False)
class Superpixels:
    """Superpixels of n images, numbered from 0 in each.

    Attributes:
        labels: The number of each pixel's superpixel (n, h, w).
        counts: How many each image has.
    """

    labels: Tensor
    counts: tuple[int, ...]

    @property
    def sizes(self) -> Tensor:
        """Number of pixels of each superpixel (n, m), 1 where an image has fewer than m of them."""
        ones = torch.ones_like(self.labels.flatten(1))
        sizes = ones.new_zeros(len(ones), max(self.counts)).scatter_add_(1, self.labels.flatten(1), ones)
        return sizes.clamp(min=1)

    def pixels(self, values: Tensor) -> Tensor:
        """Give each pixel the value of its superpixel: (t, n, m) to (t, n, h, w)."""
        t, (n, h, w) = len(values), self.labels.shape
        return values.gather(2, self.labels.flatten(1).expand(t, n, h * w)).view(t, n, h, w)


def superpixels(job: Job, segments: int, labels: tuple[Tensor, ...]) -> list[Superpixels]:
    """Return the superpixels of each input: those that were given, or SLIC's.

    Args:
        job: The images of a chunk.
        segments: About how many superpixels of an image SLIC is asked for.
        labels: Labels (h, w) or (n, h, w) for each input; empty for SLIC.

    Raises:
        InputError: If labels do not fit the images, or there are fewer pixels than superpixels.
    """
    if not labels:
        return [_numbered(_slic(x, segments)) for x in job.inputs]
    if len(labels) != len(job.inputs):
        raise InputError(f"labels must be one tensor for each of {len(job.inputs)} inputs, but has {len(labels)}.")
    return [_numbered(_given(given, x, job)) for given, x in zip(labels, job.inputs, strict=True)]


def _given(labels: Tensor, x: Tensor, job: Job) -> Tensor:
    """Labels of this chunk's images (n, h, w)."""
    here, one = len(x) // job.copies, tuple(x.shape[-2:])
    n = job.images or here
    if tuple(labels.shape) not in (one, (n, *one)):
        raise InputError(
            f"labels must have one number for each pixel, {one} for all images or {(n, *one)}, but have shape "
            f"{content(labels)}. Make them from images of the size that the network takes."
        )
    if labels.dim() == 3:
        labels = labels[job.first :][:here].repeat(job.copies, 1, 1)
    return labels.to(x.device, torch.int64).expand(len(x), *one)


def _numbered(labels: Tensor) -> Superpixels:
    """The labels of each image numbered from 0, in their order, without gaps."""
    flat = labels.flatten(1)
    ordered, order = flat.sort(1)
    steps = (ordered.diff(dim=1, prepend=ordered[:, :1]) != 0).long().cumsum(1)
    numbers = torch.empty_like(steps).scatter_(1, order, steps)
    return Superpixels(numbers.view_as(labels), tuple((steps[:, -1] + 1).tolist()))


def _slic(x: Tensor, segments: int) -> Tensor:
    """SLIC's superpixels of images (n, c, h, w), each scaled to its own range (Achanta et al. 2012)."""
    h, w = x.shape[-2:]
    if segments > h * w:
        raise InputError(
            f"segments must be at most {h * w}, the pixels of an image of {h}x{w}, but is {segments}. Ask for fewer, or give "
            "labels."
        )
    try:
        slic = import_module("skimage.segmentation").slic
    except ImportError as error:
        raise InputError(
            "segments: superpixels need scikit-image, which is not installed: pip install backlit[surrogates]. Or give labels."
        ) from error
    images = x.detach().float().cpu()
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    scaled = ((images - low) / (high - low).clamp(min=1e-12)).permute(0, 2, 3, 1).double()
    colours = x.shape[1] == 3  # others are taken as they are, on the scale of CIELAB's lightness
    made = [
        slic((image if colours else 100 * image).numpy(), segments, _COMPACTNESS, start_label=0, channel_axis=-1)
        for image in scaled
    ]
    return torch.stack([torch.from_numpy(labels) for labels in made]).to(x.device, torch.int64)
