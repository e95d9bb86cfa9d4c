"""Images beside the image: baselines that stand for "nothing there", blurred and enlarged ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from backlit._errors import InputError, shown
from backlit.methods.job import Job

Baseline = str | Tensor | tuple[Tensor, ...] | Callable[[Tensor], Tensor]
"""What an image is compared with: a name of :data:`BASELINE_IMAGES`, images, or a function from images to them."""

References = Tensor | tuple[Tensor, ...] | None
"""Images (r, c, h, w) to come from or compare with, a tuple of as many for each input, or None for each image's own baselines."""

BLUR = 10.0  # pixels, standard deviation: what the insertion protocol hides pixels with


def enlarged(maps: Tensor, size: Any, *, corners: bool = False) -> Tensor:
    """Maps (t, n, c, h, w) at this height and width, bilinearly; ``corners`` aligns the corner pixels' centres."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps.flatten(0, 1), size, mode="bilinear", align_corners=corners).unflatten(0, maps.shape[:2])


def blurred(x: Tensor, sigma: float = BLUR) -> Tensor:
    """Images (n, c, h, w) under a Gaussian of ``sigma`` pixels, cut at three of them; edges mirrored as far as they reach."""
    for dim in (-2, -1):
        radius = min(int(3 * sigma), x.shape[dim] - 1)
        offsets = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
        kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
        pad = (0, 0, radius, radius) if dim == -2 else (radius, radius, 0, 0)
        rows = F.pad(x, pad, mode="reflect")
        shape = (1, 1, -1, 1) if dim == -2 else (1, 1, 1, -1)
        weight = (kernel / kernel.sum()).view(shape).expand(x.shape[1], -1, -1, -1)
        x = F.conv2d(rows, weight, groups=x.shape[1])
    return x


BASELINE_IMAGES: dict[str, Callable[[Tensor], Tensor]] = {
    "zero": torch.zeros_like,
    "blur": blurred,
    "mean": lambda x: x.mean((2, 3), keepdim=True).expand_as(x),
}
"""The baselines by name: zero, the mean colour of the training set where the input is normalised; the image blurred by a Gaussian
of 10 pixels; its own mean colour."""


def check_baseline(name: str, given: Any) -> None:
    """Refuse what is no :data:`Baseline`.

    Raises:
        InputError: With what the option must be.
    """
    known = (
        given in BASELINE_IMAGES if isinstance(given, str) else isinstance(given, (Tensor, tuple)) or callable(given)
    )
    require(
        known,
        name,
        given,
        f"one of {', '.join(BASELINE_IMAGES)}, a tensor (c, h, w) or (n, c, h, w), or a function from images to {name}s",
    )


def baselines_of(job: Job, given: Baseline, name: str = "baseline") -> tuple[Tensor, ...]:
    """One baseline for each image of each input, as constants; ``name`` is what the option is called.

    Raises:
        InputError: If a baseline is not shaped as the images, or not finite.
    """
    inputs = job.inputs
    if isinstance(given, str):
        return tuple(BASELINE_IMAGES[given](x) for x in inputs)
    several = given if isinstance(given, tuple) else (given,)
    made = tuple(given(x) for x in inputs) if callable(given) else several
    if len(made) != len(inputs):
        raise InputError(f"{name} must be one tensor for each of {len(inputs)} inputs, but has {len(made)}.")
    return tuple(_fitting(b, x, job, name, function=callable(given)) for b, x in zip(made, inputs, strict=True))


def _fitting(baseline: Any, x: Tensor, job: Job, name: str, *, function: bool) -> Tensor:
    """A baseline for each image: the same, or those of a function, or this chunk's of one for each image of the batch."""
    shape, one = content(baseline), tuple(x.shape[1:])
    here = len(x) // job.copies
    n = len(x) if function else job.images or here
    if shape not in (one, (1, *one), (n, *one)):
        way_out = (
            f"A function is called with a chunk of the images; for fixed {name}s give the tensor itself."
            if function
            else f"For several {name}s an image use a method that averages over them, such as DeepSHAP or ExpectedGradients."
        )
        raise InputError(
            f"{name} must be shaped as one image, {one}, or be one for each, {(n, *one)}, but is {shape}. {way_out}"
        )
    baseline = finite(name, baseline).to(x)
    if shape == (n, *one) and not function:
        baseline = baseline[job.first :][:here].repeat(job.copies, 1, 1, 1)
    return baseline.expand_as(x)


def image_sets(job: Job, sets: tuple[Tensor, ...], name: str) -> list[Tensor]:
    """The images of sets (r, c, h, w), one set for each input or one for all, for each image of the chunk: (n, r, c, h, w).

    Raises:
        InputError: If a set is not shaped as the images, or not finite; ``name`` is what the option is called.
    """
    if len(sets) == 1:
        sets = sets * len(job.inputs)
    if len(sets) != len(job.inputs):
        raise InputError(f"{name} must be one set for each of {len(job.inputs)} inputs, but has {len(sets)}.")
    return [_set_for(s, x, name) for s, x in zip(sets, job.inputs, strict=True)]


def _set_for(images: Tensor, x: Tensor, name: str) -> Tensor:
    if images.shape[1:] != x.shape[1:]:
        raise InputError(
            f"{name} must be shaped as the images, (r, {', '.join(map(str, x.shape[1:]))}), but have shape "
            f"{tuple(images.shape)}. For inputs of several shapes give a tuple, a set for each."
        )
    return finite(name, images).to(x)[None].expand(len(x), *images.shape)


def sets_of(references: References) -> tuple[Tensor, ...]:
    """Return the sets of references that were given, one for each input or one for all; none for None."""
    return () if references is None else references if isinstance(references, tuple) else (references,)


def check_references(references: References) -> None:
    """Refuse what is no set of images.

    Raises:
        InputError: With what ``references`` must be.
    """
    sets = sets_of(references)
    good = all(isinstance(s, Tensor) and s.dim() == 4 and len(s) == len(sets[0]) > 0 for s in sets)
    must = "images (r, c, h, w), or a tuple of as many for each input"
    require(good and (bool(sets) or references is None), "references", references, must)


def reference_sets(job: Job, references: References) -> list[Tensor]:
    """References of each image, (n, r, c, h, w) for each input: those given, or its zero, blurred and mean reference."""
    sets = sets_of(references)
    if not sets:
        return [torch.stack([make(x) for make in BASELINE_IMAGES.values()], 1) for x in job.inputs]
    return image_sets(job, sets, "references")


def finite(name: str, given: Tensor) -> Tensor:
    """A tensor without its graph.

    Raises:
        InputError: If it holds NaN or Inf.
    """
    if not bool(given.isfinite().all()):
        raise InputError(f"{name} must be finite, but {'hold' if name.endswith('s') else 'holds'} NaN or Inf.")
    return given.detach()


def content(given: Any) -> Any:
    """Describe what was given, for a message: never a tensor's values."""
    if isinstance(given, Tensor):
        return tuple(given.shape)
    if isinstance(given, (tuple, list)):
        return f"a {type(given).__name__} of {', '.join(str(content(g)) for g in given) or 'nothing'}"
    return shown(given) if isinstance(given, (str, int, float)) else type(given).__name__


def require(holds: bool, name: str, given: Any, must_be: str) -> None:
    """Refuse an option that may be a tensor, whose values no message tells.

    Raises:
        InputError: Unless ``holds``.
    """
    if not holds:
        raise InputError(f"{name} must be {must_be}, but is {content(given)}.")
