"""XRAI: regions of the image by the density of integrated gradients in them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from backlit._errors import InputError, check, check_whole, is_number
from backlit.methods.account import wide
from backlit.methods.axes import IMAGES
from backlit.methods.job import Job, Maps
from backlit.methods.path import MOST_NODES, PathMethod, nodes_of
from backlit.methods.relevance import is_bound
from backlit.rules.linear import Bound, bound_of

_SMOOTHING = 0.8  # standard deviation, in pixels, of the blur before the segmentation
_SMALLEST = 150  # pixels of a segment, at the side below
_SIDE = 224  # pixels: the size at which an image is segmented
_LEAST_ADDED = 50  # pixels that a region must add to those that are there
_TOGETHER = 64  # segments that are widened at once


class XRAI(PathMethod):
    """XRAI (Kapishnikov et al. 2019): regions, by the mean attribution of what each adds to those that are there.

    The attribution is the mean of integrated gradients from a black and from a white image, the largest channel of each
    pixel. Regions are Felzenszwalb's segments at six scales, each widened by ``dilation`` pixels, so that they overlap; the
    one that adds the densest attribution is taken next, and gives that density to what it adds. Needs scikit-image.

    Attributes:
        steps: Number of points on each line, from black and from white (up to 1,000).
        scales: Scales of Felzenszwalb's segmentation: the larger, the larger the segments.
        dilation: Pixels by which each segment is widened, so that its edges are in it; None for none.
        low: What black is in the network's input, a number or one a channel. None for what a loaded model's preprocessing
            says, or for each image's least value in each channel.
        high: What white is.
    """

    axes = IMAGES
    name = "xrai"
    title = "XRAI"
    summary = "regions of the image by the density of integrated gradients in them"
    source = "Kapishnikov et al. 2019"
    answers = "Which regions of the picture made the score differ from that of a black and of a white image?"
    needs = "gradients, scikit-image"
    explains_inside = False

    steps: int = 100
    scales: tuple[int, ...] = (50, 100, 150, 250, 500, 1200)
    dilation: int | None = 5
    low: Bound | None = None
    high: Bound | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("steps", self.steps, high=MOST_NODES)
        good = isinstance(self.scales, (tuple, list)) and len(self.scales) > 0 and all(map(is_number, self.scales))
        check(good and min(self.scales) > 0, "scales", self.scales, "positive numbers, (100, 500) for example")
        check_whole("dilation", self.dilation, high=_SIDE, none=True)
        for name in ("low", "high"):
            check(is_bound(getattr(self, name)), name, getattr(self, name), "a number, one for each channel, or None")

    @property
    def forward_passes(self) -> float:
        return 6.0 * self.steps + 1

    def explain(self, job: Job) -> Maps:
        skimage = _skimage()
        maps = self.clean(job)
        ends = [self._ends(x) for x in job.inputs]
        nodes = nodes_of("gauss_legendre", self.steps)
        black, white = (self.straight(job, maps.targets, starts, nodes) for starts in zip(*ends, strict=True))
        values = [
            self._by_regions((one + other).div(2).amax(2), self._picture(x), skimage)
            for one, other, x in zip(black, white, job.inputs, strict=True)
        ]
        return self.with_values(job, maps, tuple(values))

    @property
    def _bounds(self) -> tuple[Bound | None, Bound | None]:
        """What black and white are, where it is known."""
        known = (None, None) if self.loaded is None else self.loaded.preprocess.bounds
        return known[0] if self.low is None else self.low, known[1] if self.high is None else self.high

    def _ends(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """A black and a white image for each of x."""
        low, high = self._bounds
        black = x.amin((2, 3), keepdim=True) if low is None else bound_of("low", low, x)
        white = x.amax((2, 3), keepdim=True) if high is None else bound_of("high", high, x)
        return black.expand_as(x), white.expand_as(x)

    def _picture(self, x: Tensor) -> Tensor:
        """The colours of x between black and white, where those are known."""
        if any(bound is None for bound in self._bounds):
            return x
        low, high = self._ends(x)
        return (x - low) / torch.where(high == low, 1, high - low)

    def _by_regions(self, attributions: Tensor, pictures: Tensor, skimage: ModuleType) -> Tensor:
        """Maps (t, n, 1, h, w) from attributions (t, n, h, w) and the pictures (n, c, h, w) that are segmented."""
        columns = []
        for i, picture in enumerate(pictures):
            masks = widened(segments(picture, self.scales, skimage), self.dilation).flatten(1)
            columns.append(torch.stack([by_density(a.flatten(), masks).view_as(a) for a in attributions[:, i].cpu()]))
        return torch.stack(columns, 1)[:, :, None].to(attributions)


def segments(picture: Tensor, scales: Sequence[float], skimage: ModuleType) -> Tensor:
    """Segment a picture (c, h, w), scaled to its own range, at each scale: masks (m, h, w) on the CPU."""
    image = wide(picture).cpu().double().permute(1, 2, 0).numpy()
    size = tuple(image.shape[:2])
    spread = image.max() - image.min()
    image = 2 * (image - image.min()) / (spread if spread > 0 else 1) - 1
    resize, felzenszwalb = skimage.transform.resize, skimage.segmentation.felzenszwalb
    image = resize(image, (_SIDE, _SIDE), order=3, mode="constant", preserve_range=True, anti_aliasing=True)
    masks = []
    for scale in scales:
        labels = felzenszwalb(image, scale=scale, sigma=_SMOOTHING, min_size=_SMALLEST, channel_axis=-1)
        labels = resize(labels, size, order=0, mode="constant", preserve_range=True, anti_aliasing=False).astype(int)
        masks.append(labels[None] == np.arange(labels.min(), labels.max() + 1)[:, None, None])
    return torch.from_numpy(np.concatenate(masks))


def widened(masks: Tensor, radius: int | None) -> Tensor:
    """Masks (m, h, w), each grown by a disk of this many pixels."""
    if radius is None:
        return masks
    places = torch.arange(-radius, radius + 1)
    disk = (places[:, None] ** 2 + places[None] ** 2 <= radius**2).float()[None, None]
    grown = (F.conv2d(some[:, None].float(), disk, padding=radius)[:, 0] > 0.5 for some in masks.split(_TOGETHER))
    return torch.cat(list(grown))


def by_density(attribution: Tensor, masks: Tensor) -> Tensor:
    """Give each pixel (p,) the mean attribution of what its region added, regions (m, p) by the density that they add.

    What no region adds, for those that are left would add fewer than 50 pixels, has its own mean.
    """
    values = attribution.double()
    added = torch.full_like(values, torch.nan)
    sums, counts = masks.double() @ values, masks.sum(1)
    while bool((usable := counts >= _LEAST_ADDED).any()):
        best = int(torch.where(usable, sums / counts.clamp(min=1), -torch.inf).argmax())
        new = masks[best] & added.isnan()
        density = values[new].mean()
        gone = masks[:, new]
        sums, counts = sums - gone.double() @ values[new], counts - gone.sum(1)
        added[new] = density
    rest = added.isnan()
    if bool(rest.any()):
        added[rest] = values[rest].mean()
    return added


def _skimage() -> ModuleType:
    """Import what segments images, an optional dependency.

    Raises:
        InputError: If it is not installed; says how.
    """
    try:
        for part in ("segmentation", "transform"):
            import_module(f"skimage.{part}")
        return import_module("skimage")
    except ImportError as error:
        raise InputError("XRAI needs scikit-image, which is not installed: pip install 'backlit[regions]'.") from error
