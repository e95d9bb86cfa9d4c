"""Signals and volumes as images: what a method that treats every number of the input alike explains in their place."""

from __future__ import annotations

from math import prod

from torch import Tensor

IMAGES = (4,)
"""Axes of what a method explains that looks at the neighbourhood of a pixel: images (n, c, h, w)."""
ROWS = (3, 4)
"""The same, where one row of pixels is enough: signals (n, c, t) as well."""
ANY = (3, 4, 5)
"""Axes of what a method explains that treats every number of the input alike: volumes (n, c, d, h, w) as well."""

Shape = tuple[int, ...]
"""Of one image, signal or volume: its channels, then its other axes."""


def as_images(x: Tensor) -> Tensor:
    """Signals (n, c, t) as images of one row (n, c, 1, t), volumes (n, c, d, h, w) as images of d * h rows (n, c, d * h, w)."""
    return x.reshape(*x.shape[:2], prod(x.shape[2:-1]), x.shape[-1])


def as_they_were(values: Tensor, shape: Shape) -> Tensor:
    """Images (..., c, h, w), of whatever number of channels, with the other axes of ``shape`` again."""
    return values.reshape(*values.shape[:-2], *shape[1:])


def shapes_of(inputs: tuple[Tensor, ...]) -> tuple[Shape, ...]:
    """The shapes of inputs that are no images; none if all are."""
    return () if all(x.dim() == 4 for x in inputs) else tuple(tuple(x.shape[1:]) for x in inputs)
