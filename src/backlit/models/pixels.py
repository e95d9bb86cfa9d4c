"""Any picture to plain pixels: RGB from every Pillow mode and from arrays, nothing clipped or wrapped in silence."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from backlit._errors import InputError

_WAYS_OUT = "Give uint8 (0..255), uint16 (0..65535) or floats in [0, 1]."
_WITH_ALPHA = {"RGBA", "RGBa", "LA", "PA"}
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")


def open_image(source: Path | bytes) -> Image.Image:
    """Return a file's picture, or that of its bytes, still to be decoded.

    Only the formats of `FORMATS` are tried, whatever the file is called: others of Pillow's start programs (PostScript)
    or read further files.

    Raises:
        PIL.UnidentifiedImageError: It has none of these formats.
        PIL.Image.DecompressionBombError: It has more than twice ``PIL.Image.MAX_IMAGE_PIXELS`` pixels.
    """
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)


def to_rgb(image: Image.Image) -> Image.Image:
    """Return ``image`` as 8-bit RGB: transparency composited on white, 16-bit grey scaled by 65535.

    Raises:
        InputError: integers beyond 16 bits, or floats outside [0, 1], whose scale cannot be known.

    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_grey(image)
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _deep_grey(image: Image.Image) -> Image.Image:
    """Scale the modes I;16* and I (16 bits), or F (floats in [0, 1]), to 8 bits; Pillow's own convert clips them."""
    values = np.asarray(image)
    if values.dtype.kind in "iu":
        if values.size and (values.min() < 0 or values.max() > 65535):
            raise InputError(
                f"image: mode {image.mode!r} with values {values.min()}..{values.max()}; integers must fit 16 bits "
                "(0..65535). Convert it to an 8-bit or 16-bit image."
            )
        values = values.astype(np.uint16)
    return to_image(values)


def to_image(array: np.ndarray | Tensor) -> Image.Image:
    """Return one picture, an array or tensor (h, w), (h, w, c) or (c, h, w) with c in 1, 3, 4, as 8-bit RGB.

    uint8 counts as 0..255, uint16 as 0..65535, floats as [0, 1]; a fourth channel is alpha, composited on white.
    Where both ends could be channels, an array is read as (h, w, c) and a tensor as (c, h, w).

    Raises:
        InputError: another shape or type, no pixels, NaN, Inf, or floats outside [0, 1].

    """
    planes = to_planes(array)
    if planes.dtype != np.uint8:
        planes = np.rint(planes * 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(np.broadcast_to(planes, (*planes.shape[:2], 3))))


def to_planes(array: np.ndarray | Tensor) -> np.ndarray:
    """Return one picture as (h, w, c) with c in 1, 3: uint8 if it was, else float32 in [0, 1]; see `to_image`."""
    channels_first = isinstance(array, Tensor)
    values = _as_numpy(array)
    values = _channels_last(values, channels_first)
    if values.size == 0:
        raise InputError(f"image: has no pixels, found shape {tuple(values.shape)}.")
    values = _in_unit_range(values)
    return _without_alpha(values) if values.shape[2] == 4 else values


def _as_numpy(array: np.ndarray | Tensor) -> np.ndarray:
    if isinstance(array, Tensor):
        if array.is_meta or array.layout != torch.strided:
            raise InputError("image: must be a dense tensor that holds values. Use x.to_dense(), or load the image.")
        array = array.detach().cpu()
        return (array.float() if array.dtype == torch.bfloat16 else array).numpy()
    if isinstance(array, np.ndarray):
        return array
    raise InputError(f"image: must be a Pillow image, a numpy array or a tensor, found {type(array).__name__}.")


def _channels_last(values: np.ndarray, prefer_first: bool) -> np.ndarray:
    if values.ndim == 2:
        return values[:, :, None]
    if values.ndim == 3:
        first, last = values.shape[0] in (1, 3, 4), values.shape[2] in (1, 3, 4)
        if first and (prefer_first or not last):
            return values.transpose(1, 2, 0)
        if last:
            return values
    hint = " Pass the images of a batch one by one." if values.ndim == 4 else ""
    raise InputError(
        f"image: must be (h, w), (h, w, c) or (c, h, w) with c in 1, 3, 4, found shape {tuple(values.shape)}.{hint}"
    )


def _in_unit_range(values: np.ndarray) -> np.ndarray:
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:  # either byte order
        return values.astype(np.float32) / 65535
    if values.dtype.kind != "f":
        raise InputError(f"image: pixels of type {values.dtype} have no known scale. {_WAYS_OUT}")
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        bad = int((~np.isfinite(values)).sum())
        raise InputError(f"image: {bad} of {values.size} values are NaN or Inf.")
    if low < 0 or high > 1:
        raise InputError(
            f"image: floats must lie in [0, 1], found {low:.4g}..{high:.4g}. {_WAYS_OUT} "
            "A tensor that is already normalised goes straight to the method."
        )
    return values.astype(np.float32)


def _without_alpha(values: np.ndarray) -> np.ndarray:
    if values.dtype == np.uint8:
        return np.asarray(to_rgb(Image.fromarray(np.ascontiguousarray(values))))
    alpha = values[:, :, 3:]
    return values[:, :, :3] * alpha + (1 - alpha)
