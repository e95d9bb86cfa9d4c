"""What a network wants done to a picture: scale, crop, normalise; and how to undo the last for display."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Real
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from backlit._errors import InputError, is_word, nearest, shown
from backlit.models.files import load_image
from backlit.models.pixels import to_planes, to_rgb

Picture: TypeAlias = "Image.Image | np.ndarray | Tensor | str | Path"
Interpolation: TypeAlias = Literal["bilinear", "bicubic"]
Crop: TypeAlias = Literal["center", "stretch"]

_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_CROPS = ("center", "stretch")
_MOST_INPUT = 1 << 26
"""Pixels of an input, 8192 x 8192: a wrong number must not make us ask for all memory."""
_MOST_SCALED = 1 << 28
"""Pixels of a picture that is scaled before its centre is cut out: a thin one is scaled to a very long one."""
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601, as Pillow's convert("L")


@dataclass(frozen=True)
class Preprocess:
    """From a picture to a network's normalised input.

    Attributes:
        size: height and width of the network's input, pixels.
        mean: what is subtracted from each channel in [0, 1].
        std: what each channel is divided by afterwards.
        channels: 3 (RGB) or 1 (grey).
        resize: the short side is scaled to this many pixels before the crop; None: scaled so that the picture just
            covers ``size``. A picture is always scaled up to cover ``size``, never padded.
        interpolation: "bilinear" or "bicubic", both with antialiasing.
        crop: "center" keeps the aspect and cuts the centre; "stretch" scales each side on its own and cuts nothing.

    """

    size: tuple[int, int]
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    channels: int = 3
    resize: int | None = None
    interpolation: Interpolation = "bilinear"
    crop: Crop = "center"

    def __post_init__(self) -> None:
        if not _listed(self.size) or len(self.size) != 2 or not all(_whole(side) for side in self.size):
            raise InputError(f"size: must be two positive numbers of pixels (height, width), found {shown(self.size)}.")
        if self.size[0] * self.size[1] > _MOST_INPUT:
            raise InputError(
                f"size: must be at most {_MOST_INPUT} pixels (8192 x 8192), found {self.size[0]} x {self.size[1]}. Give the side "
                "of the network's input."
            )
        if self.resize is not None and not _whole(self.resize):
            raise InputError(f"resize: must be a positive number of pixels or None, found {shown(self.resize)}.")
        _check_channels(self.channels)
        for name, values in (("mean", self.mean), ("std", self.std)):
            if not _listed(values) or len(values) != self.channels or not all(_finite(value) for value in values):
                raise InputError(
                    f"{name}: must be {self.channels} finite number(s), one a channel, found {shown(values)}."
                )
        if min(self.std) <= 0:
            raise InputError(f"std: must be positive, found {self.std}.")
        if not is_word(self.interpolation, _RESAMPLING):  # what a file says may be no key
            raise InputError(
                f"interpolation: must be one of {', '.join(_RESAMPLING)}, found {shown(self.interpolation)}."
            )
        if not is_word(self.crop, _CROPS):
            raise InputError(f"crop: must be one of {', '.join(_CROPS)}, found {shown(self.crop)}.")

    def __call__(self, image: Picture) -> Float[Tensor, "c h w"]:
        """Return ``image`` (a file, Pillow's of any mode, an array or tensor as `to_image` reads them) normalised, float32.

        Raises:
            InputError: the picture cannot be read without a guess (see `to_image`).
            FileError: the file cannot be read.

        """
        pixels = self._pixels(image)
        mean, std = self._statistics(pixels)
        return (pixels - mean) / std

    def picture(self, image: Picture, *, times: int = 1) -> Float[Tensor, "c h w"]:
        """Return what the network sees of ``image`` as pixels in [0, 1], with ``times`` as many on each side, for display.

        Enlarged, it is cut from the picture itself, and is as sharp as that is.

        Raises:
            InputError: as a call does; ``times`` is no whole number from 1.
            FileError: the file cannot be read.

        """
        if not _whole(times):
            raise InputError(f"times: must be a whole number from 1, found {times!r}.")
        height, width = self.size
        resize = None if self.resize is None else self.resize * times
        return replace(self, size=(height * times, width * times), resize=resize)._pixels(image)

    def _pixels(self, image: Picture) -> Float[Tensor, "c h w"]:
        """Scale and crop; pixels in [0, 1]."""
        if isinstance(image, str | Path):
            image = load_image(image)
        planes = np.asarray(to_rgb(image)) if isinstance(image, Image.Image) else to_planes(image)
        planes = self._with_channels(planes)
        fitted = np.stack([self._fit(Image.fromarray(np.ascontiguousarray(p))) for p in planes.transpose(2, 0, 1)])
        pixels = torch.from_numpy(fitted.astype(np.float32))
        # Bicubic overshoots; on 8 bits Pillow clips it itself.
        return pixels / 255 if fitted.dtype == np.uint8 else pixels.clamp(0, 1)

    def batch(self, images: Iterable[Picture]) -> Float[Tensor, "n c h w"]:
        """Return several pictures, of any sizes, as one normalised batch."""
        if not isinstance(images, Iterable) or (isinstance(images, Tensor) and not images.dim()):
            raise InputError(f"images: must be a list of pictures, but is {shown(images)}.")
        tensors = [self(image) for image in images]
        if not tensors:
            raise InputError("images: need at least one, found none.")
        return torch.stack(tensors)

    def restore(self, x: Float[Tensor, "*n c h w"]) -> Float[Tensor, "*n c h w"]:
        """Return normalised inputs as pixels in [0, 1], for display."""
        if x.ndim < 3 or x.shape[-3] != self.channels:
            raise InputError(f"x: must be (..., {self.channels}, h, w), found shape {tuple(x.shape)}.")
        mean, std = self._statistics(x)
        return (x.detach() * std + mean).clamp(0, 1)

    @property
    def bounds(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return what black and white pixels become, one number a channel each: the box that z-box and deep Taylor take."""
        low = tuple(-mean / std for mean, std in zip(self.mean, self.std, strict=True))
        return low, tuple((1 - mean) / std for mean, std in zip(self.mean, self.std, strict=True))

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean = torch.tensor(self.mean, dtype=like.dtype, device=like.device)
        std = torch.tensor(self.std, dtype=like.dtype, device=like.device)
        return mean[:, None, None], std[:, None, None]

    def _with_channels(self, planes: np.ndarray) -> np.ndarray:
        found = planes.shape[2]
        if found == self.channels:
            return planes
        if self.channels == 3:
            return np.repeat(planes, 3, axis=2)
        if planes.dtype == np.uint8:
            return np.asarray(Image.fromarray(planes).convert("L"))[:, :, None]
        return (planes @ _LUMA)[:, :, None]

    def _fit(self, plane: Image.Image) -> np.ndarray:
        """Scale one channel and cut the centre, with the rounding of torchvision's Resize and CenterCrop."""
        height, width = self.size
        scaled = (height, width) if self.crop == "stretch" else self._scaled(plane.height, plane.width)
        if scaled[0] * scaled[1] > _MOST_SCALED:
            raise InputError(
                f"image: a picture of {plane.width} x {plane.height} pixels would be scaled to {scaled[1]} x {scaled[0]} before "
                f"the {width} x {height} in its centre are cut out, which is more than {_MOST_SCALED} pixels. Crop it first, to a "
                'shape nearer to a square, or use crop="stretch".'
            )
        if scaled != (plane.height, plane.width):
            plane = plane.resize((scaled[1], scaled[0]), _RESAMPLING[self.interpolation])
        top, left = round((scaled[0] - height) / 2), round((scaled[1] - width) / 2)
        return np.asarray(plane.crop((left, top, left + width, top + height)))

    def _scaled(self, height: int, width: int) -> tuple[int, int]:
        short = min(height, width)
        if self.resize is not None:
            scaled = (self.resize * height // short, self.resize * width // short)
            if scaled[0] >= self.size[0] and scaled[1] >= self.size[1]:
                return scaled
        cover = max(self.size[0] / height, self.size[1] / width)
        return max(self.size[0], round(height * cover)), max(self.size[1], round(width * cover))


@dataclass(frozen=True)
class PreprocessOptions:
    """What to change of a network's own preprocessing; None leaves a field as it is.

    One number stands for both sides of ``size`` and for every channel of ``mean`` and ``std``. A new ``size`` without a
    ``resize`` scales pictures to just cover it, because the old one belonged to the old size.
    """

    size: int | Sequence[int] | None = None
    mean: float | Sequence[float] | None = None
    std: float | Sequence[float] | None = None
    channels: int | None = None
    resize: int | None = None
    interpolation: Interpolation | None = None
    crop: Crop | None = None

    @classmethod
    def of(cls, **values: Any) -> PreprocessOptions:
        """Return the options of these names; an unknown name is an InputError with the nearest known one."""
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise InputError(
                    f"{name}: not a preprocessing option; they are {', '.join(known)}.{nearest(name, known)}"
                )
        return cls(**values)

    def apply(self, base: Preprocess) -> Preprocess:
        """Return ``base`` with these changes."""
        changes = {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}
        channels = changes.get("channels", base.channels)
        _check_channels(channels)
        if "size" in changes:
            changes["size"] = _several("size", changes["size"], 2)
            changes.setdefault("resize", None)
        for name in ("mean", "std"):
            if name in changes:
                changes[name] = _several(name, changes[name], channels)
        return replace(base, **changes)


def _check_channels(value: object) -> None:
    if not _whole(value) or value not in (1, 3):
        raise InputError(f"channels: must be 3 (RGB) or 1 (grey), found {shown(value)}.")


def _listed(value: object) -> bool:
    """Whether it is a list of numbers; an array or a text is none."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _finite(value: object) -> bool:
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False


def _several(name: str, value: object, count: int) -> tuple[Any, ...]:
    if isinstance(value, int | float):
        return (value,) * count
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return tuple(value)
    raise InputError(f"{name}: must be a number or a list of {count} numbers, found {shown(value)}.")
