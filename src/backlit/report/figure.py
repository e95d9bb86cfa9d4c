"""What pictures of maps have in common: the colour limit and its text, the image itself, PNG files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from backlit._files import write_whole
from backlit.attribution import Attribution

_SHOWN = 256  # pixels: smaller pictures are enlarged to about this side


def limit(heatmap: Tensor, percentile: float = 99.5) -> tuple[float, float]:
    """:meth:`Attribution.scale_used` of a bare heatmap (h, w): its colour limit, and the percentile that this is."""
    return Attribution(heatmap[None, None], torch.zeros(1, dtype=torch.int64), torch.zeros(1)).scale_used(percentile)


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
    """Return what a reader must know of the colours, from :meth:`Attribution.scale_used`."""
    if scale == 0:
        return "the map is zero everywhere: shown white"
    rule = "largest |map|" if percentile == 100 else f"{_ordinal(percentile)} percentile of |map|"
    return f"colour scale ±{scale:.3g} ({rule})"


def _ordinal(number: float) -> str:
    endings: dict[float, str] = {1: "st", 2: "nd", 3: "rd"}
    return f"{number:g}{'th' if number in (11, 12, 13) else endings.get(number % 10, 'th')}"
