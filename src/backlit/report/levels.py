"""Maps as small pictures: few signed levels, transparent where the map is weak, so that one picture serves all views."""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from backlit.report.figure import COLOURS, grey_of, limit

LEVELS = (31, 23, 15, 11, 9, 7, 5, 3)  # of a map, signed, 0 among them: as many as there is room for
SIDE = 256  # pixels: larger maps are shown as means of their pixels
COARSE = 128  # pixels: up to this side a picture is shown as squares, above it smoothly
_PHOTO_SIDE = 512
_PERCENTILE = 99.5
_SAMPLE = 7  # every seventh map, which is no multiple of the usual numbers of methods and classes
_CARE = 0.97  # for what a sample cannot know


@dataclass(frozen=True, eq=False)
class Heat:
    """A map (h, w) as it is to be shown: over its scale, from -1 to 1; None if it holds NaN or infinity."""

    strength: np.ndarray | None
    scale: float = 0.0
    percentile: float = _PERCENTILE

    @property
    def size(self) -> int:
        """Number of pixels that are shown."""
        return 0 if self.strength is None else self.strength.size


def heat_of(heatmap: Tensor, side: int = SIDE) -> Heat:
    """The map (h, w), averaged down to ``side``, over its own 99.5 percentile; the scale is of the averaged map."""
    values = smaller(heatmap.detach().cpu().double()[None], side)[0]
    if not bool(values.isfinite().all()):
        return Heat(None)
    scale, percentile = limit(values, _PERCENTILE)
    strength = (values / scale).clamp(-1, 1) if scale > 0 else torch.zeros_like(values)
    return Heat(strength.numpy(), scale, percentile)


def smaller(picture: Tensor, side: int) -> Tensor:
    """A picture (c, h, w) as means of its pixels, ``side`` pixels on its longer side; as it is if it is not larger."""
    height, width = picture.shape[-2:]
    factor = side / max(height, width)
    if factor >= 1:
        return picture
    return F.adaptive_avg_pool2d(picture, (max(1, round(height * factor)), max(1, round(width * factor))))


def pictures(maps: Sequence[Heat], room: float) -> tuple[list[bytes | None], tuple[int, int]]:
    """PNG files of the maps, and their fewest and most levels: the most for which all fit into ``room`` bytes, if any do.

    Smooth maps take little, and show steps first: those below their share of the room keep all levels, and only the
    others are drawn in fewer, all alike.
    """
    found = _drawn(maps, LEVELS[0])
    if _total(found) <= room:
        return found, (LEVELS[0], LEVELS[0])
    share = room / sum(m.size for m in maps)
    large = [i for i, (m, f) in enumerate(zip(maps, found, strict=True)) if f and len(f) > share * m.size]
    rest = room - _total([f for i, f in enumerate(found) if i not in set(large)])
    levels = _fitting([maps[i] for i in large], rest)
    for i, file in zip(large, _drawn([maps[i] for i in large], levels), strict=True):
        found[i] = file
    return found, (levels, levels if len(large) == len(maps) else LEVELS[0])


def _fitting(maps: Sequence[Heat], room: float) -> int:
    """The most levels below the first for which the maps fit, by a sample, lest everything be drawn many times."""
    sample = maps[::_SAMPLE]
    share = room * sum(m.size for m in sample) / sum(m.size for m in maps) * _CARE
    return next((levels for levels in LEVELS[1:] if _total(_drawn(sample, levels)) <= share), LEVELS[-1])


def _drawn(maps: Sequence[Heat], levels: int) -> list[bytes | None]:
    return [None if m.strength is None else picture(m.strength, levels) for m in maps]


def _total(files: Sequence[bytes | None]) -> int:
    return sum(len(f) for f in files if f is not None)


def picture(strength: np.ndarray, levels: int) -> bytes:
    """A map from -1 to 1 as a palette PNG. The levels stand evenly on the square root, so that weak parts stay visible."""
    half = levels // 2
    root = np.sign(strength) * np.sqrt(np.abs(strength))
    image = Image.fromarray((np.rint(root * half) + half).astype(np.uint8))
    colours, alpha = palette(levels)
    # more than 16 entries, for Pillow would else pack two pixels into a byte, which compresses worse
    image.putpalette(colours.tobytes() + bytes(3 * max(0, 17 - levels)))
    # noise holds no repetitions: looking for them makes its file a tenth larger than counting its levels
    return min((_png(image, alpha, kind) for kind in (zlib.Z_DEFAULT_STRATEGY, zlib.Z_HUFFMAN_ONLY)), key=len)


def _png(image: Image.Image, alpha: np.ndarray, strategy: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=alpha.tobytes(), compress_level=9, compress_type=strategy)
    return buffer.getvalue()


def palette(levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Colours (levels, 3) and opacities (levels,), uint8.

    The opacity is the root of the strength. The colours are such that over white each level has exactly the colour of
    ``figure.COLOURS``: the map alone is the figure's map, and over an image the image shows where the map is weak.
    """
    root = np.linspace(-1, 1, levels)
    alpha = np.abs(root)[:, None]
    wanted = np.asarray(COLOURS(np.sign(root) * root**2 / 2 + 0.5))[:, :3]
    ink = (wanted - (1 - alpha)) / np.where(alpha > 0, alpha, 1)
    return tuple((np.clip(part, 0, 1) * 255).round().astype(np.uint8) for part in (ink, alpha[:, 0]))  # type: ignore[return-value]


def photo(image: Tensor) -> str:
    """An image (c, h, w) in [0, 1] as a data URI: a JPEG, or a PNG where single pixels are to be seen."""
    shown = smaller(image.detach().float().cpu().clamp(0, 1), _PHOTO_SIDE)
    pixels = shown.permute(1, 2, 0).numpy() if len(shown) == 3 else grey_of(shown)
    buffer = io.BytesIO()
    kind, options = ("png", {}) if coarse(image) else ("jpeg", {"quality": 85})
    Image.fromarray((pixels * 255).round().astype(np.uint8)).save(buffer, kind, optimize=True, **options)
    return data_uri(buffer.getvalue(), kind)


def coarse(image: Tensor) -> bool:
    """The picture has so few pixels that each is to be seen."""
    return max(image.shape[-2:]) <= COARSE


def data_uri(data: bytes, kind: str = "png") -> str:
    """The file as an address that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
