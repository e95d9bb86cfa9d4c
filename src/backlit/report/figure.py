"""Maps as pictures: red speaks for the class, blue against it, white says nothing; the scale is always printed."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from backlit._errors import InputError
from backlit._files import write_whole
from backlit.attribution import Attribution

COLOURS = matplotlib.colormaps["RdBu_r"].resampled(257)  # odd: 0 has a colour of its own, and ±v are as far from it
_SHOWN = 256  # pixels: smaller pictures are enlarged to about this side


def colour(heatmap: Tensor, scale: float) -> np.ndarray:
    """The heatmap (1, h, w) in red and blue, symmetric about 0, as uint8 (h, w, 3); white where ``scale`` is 0."""
    relative = _strength(heatmap, scale) / 2 + 0.5
    return (COLOURS(relative)[..., :3] * 255).round().astype(np.uint8)


def _strength(heatmap: Tensor, scale: float) -> np.ndarray:
    """The heatmap over its scale, cut at ±1, in float64 so that the smallest maps are shown, too."""
    values = heatmap[0].detach().cpu().double().numpy()
    return np.clip(values / scale, -1, 1) if scale > 0 else np.zeros_like(values)


def limit(heatmap: Tensor, percentile: float = 99.5) -> tuple[float, float]:
    """:meth:`Attribution.scale_used` of a bare heatmap (h, w): its colour limit, and the percentile that this is."""
    return Attribution(heatmap[None, None], torch.zeros(1, dtype=torch.int64), torch.zeros(1)).scale_used(percentile)


def render_map(heatmap: Tensor, *, scale: float) -> np.ndarray:
    """The map alone, enlarged if it is small: uint8 (H, W, 3)."""
    return _enlarged(colour(heatmap, scale))


def render_overlay(image: Tensor, heatmap: Tensor, *, scale: float, opacity: float = 0.85) -> np.ndarray:
    """The map over the grey image, as uint8 (H, W, 3), enlarged if it is small.

    The stronger the map at a pixel, the more of the map shows, up to ``opacity``: weak pixels leave the image readable.

    Args:
        image: (c, h, w) in [0, 1].
        heatmap: (1, h, w).
        scale: Colour limit, ``Attribution.scale()``.
        opacity: Of the map at full strength, from 0 to 1.

    Raises:
        InputError: If image and heatmap differ in size, or the opacity is out of range.
    """
    if not 0 <= opacity <= 1:
        raise InputError(f"opacity must be from 0 to 1, but is {opacity!r}.")
    if image.shape[1:] != heatmap.shape[1:]:
        raise InputError(
            f"image must be as large as the map {tuple(heatmap.shape[1:])}, but is {tuple(image.shape[1:])}."
        )
    grey = grey_of(image)[..., None] * 0.4 + 0.55  # light and flat, so that both colours stand out
    alpha = opacity * np.sqrt(np.abs(_strength(heatmap, scale)))[..., None]
    mixed = grey * 255 * (1 - alpha) + colour(heatmap, scale) * alpha
    return _enlarged(mixed.round().astype(np.uint8))


def grey_of(image: Tensor) -> np.ndarray:
    """Luminance (h, w) in [0, 1] of an image (c, h, w), c = 1 or 3 (the mean of channels otherwise)."""
    pixels = image.detach().float().cpu().clamp(0, 1)
    weights = torch.tensor([0.299, 0.587, 0.114]) if len(pixels) == 3 else torch.full((len(pixels),), 1 / len(pixels))
    return torch.tensordot(weights, pixels, 1).numpy()


def render_image(image: Tensor) -> np.ndarray:
    """The image (c, h, w) in [0, 1] itself, as uint8 (H, W, 3), enlarged if it is small."""
    pixels = image if len(image) == 3 else torch.from_numpy(grey_of(image))[None].expand(3, -1, -1)
    return _enlarged((pixels.detach().float().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())


def _enlarged(picture: np.ndarray) -> np.ndarray:
    factor = max(1, _SHOWN // max(picture.shape[:2]))
    return picture.repeat(factor, 0).repeat(factor, 1)


def save_png(path: str | Path, picture: np.ndarray) -> None:
    """Write a uint8 picture (H, W, 3) as PNG.

    Raises:
        FileError: If it cannot be written.
    """
    write_whole(path, png(picture))


def png(picture: np.ndarray) -> bytes:
    """A uint8 picture (H, W, 3) as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def scale_text(scale: float, percentile: float) -> str:
    """What a reader must know of the colours, from :meth:`Attribution.scale_used`."""
    if scale == 0:
        return "the map is zero everywhere: shown white"
    rule = "largest |map|" if percentile == 100 else f"{_ordinal(percentile)} percentile of |map|"
    return f"colour scale ±{scale:.3g} ({rule})"


def _ordinal(number: float) -> str:
    endings: dict[float, str] = {1: "st", 2: "nd", 3: "rd"}
    return f"{number:g}{'th' if number in (11, 12, 13) else endings.get(number % 10, 'th')}"
