"""Maps as small grey pictures that the page colours: smooth ones in few pixels, rough ones in as many levels as fit."""

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

from backlit.report.figure import grey_of, limit
from backlit.report.panels import as_rgb

# of a rough map, signed, 0 among them: as many as there is room for
LEVELS = (255, 127, 63, 31, 23, 15, 11, 9, 7, 5, 3)
ZERO, FULL = 128, 127  # the grey value of 0, and how far from it ±1 are
SIDE = 256  # pixels: larger maps are shown as means of their pixels
COARSE = 128  # pixels: up to this side a picture is shown as squares, above it smoothly
_REDUCED = (8, 6, 4, 3, 2)  # pixels of a smooth map that one pixel of its picture stands for
_ALIKE, _ALIKE_ANYWHERE = 0.006, 0.05  # of the scale: how far a reduced map may be off, on average and at any pixel
_PHOTO_SIDE = 512
_PERCENTILE = 99.5
_SAMPLE = 7  # every seventh map, which is no multiple of the usual numbers of methods and classes
_CARE = 0.97  # for what a sample cannot know


@dataclass(frozen=True, eq=False)
class Heat:
    """A map as it is to be shown, over its scale, from -1 to 1.

    Attributes:
        strength: The values (h, w), of a smooth map fewer than it has pixels; None of a map with NaN or infinity.
        scale: What 1 stands for; 0 of a map of zeros.
        percentile: Of the map's magnitude, which the scale is.
        smooth: Whether what lies between these values can be filled in, as a browser does.
    """

    strength: np.ndarray | None
    scale: float = 0.0
    percentile: float = _PERCENTILE
    smooth: bool = False

    @property
    def size(self) -> int:
        """Number of values."""
        return 0 if self.strength is None else self.strength.size


def heat_of(heatmap: Tensor, side: int = SIDE) -> Heat:
    """The map (h, w), averaged down to ``side``, over its own 99.5 percentile; the scale is of the averaged map."""
    values = smaller(heatmap.detach().cpu().double()[None], side)[0]
    if not bool(values.isfinite().all()):
        return Heat(None)
    scale, percentile = limit(values, _PERCENTILE)
    strength = (values / scale).clamp(-1, 1) if scale > 0 else torch.zeros_like(values)
    reduced = _reduced(strength) if max(strength.shape) > COARSE else None
    shown = strength if reduced is None else reduced
    return Heat(shown.numpy(), scale, percentile, smooth=reduced is not None)


def _reduced(strength: Tensor) -> Tensor | None:
    """The map in the fewest pixels from which it can be filled in again; None of a map that loses by it."""
    for factor in _REDUCED:
        size = [max(2, -(-side // factor)) for side in strength.shape]
        small = F.interpolate(strength[None, None], size, mode="bilinear", antialias=True)
        off = (F.interpolate(small, strength.shape, mode="bilinear")[0, 0] - strength).abs()
        if off.mean() <= _ALIKE and off.max() <= _ALIKE_ANYWHERE:
            return small[0, 0].clamp(-1, 1)
    return None


def smaller(picture: Tensor, side: int) -> Tensor:
    """A picture (c, h, w) as means of its pixels, ``side`` pixels on its longer side; as it is if it is not larger."""
    height, width = picture.shape[-2:]
    factor = side / max(height, width)
    if factor >= 1:
        return picture
    return F.adaptive_avg_pool2d(picture, (max(1, round(height * factor)), max(1, round(width * factor))))


def pictures(maps: Sequence[Heat], room: float) -> tuple[list[bytes | None], tuple[int, int]]:
    """PNG files of the maps, and their fewest and most levels: the most for which all fit into ``room`` bytes, if any do.

    What takes little would show steps first: maps below their share of the room keep all levels, and only the others are
    drawn in fewer, all alike, where noise hides the steps.
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
    """A map from -1 to 1 as a grey PNG. The levels stand evenly on the square root, so that weak parts stay visible.

    The grey values are the same for any number of levels, which divide their range: :data:`ZERO` is 0, and :data:`FULL` above
    and below it are 1 and -1.
    """
    half = levels // 2
    steps = np.rint(np.sign(strength) * np.sqrt(np.abs(strength)) * half).astype(int) + half
    values = (np.rint((np.arange(levels) - half) / half * FULL) + ZERO).astype(np.uint8)
    numbered = Image.fromarray(steps.astype(np.uint8), "P")
    # more than 16 entries, for Pillow would else pack two pixels into a byte, which compresses worse
    numbered.putpalette(values.repeat(3).tobytes() + bytes(3 * max(0, 17 - levels)))
    # a smooth map is short as differences of its pixels, which a palette has none of; noise holds no repetitions: looking for
    # them makes its file a tenth larger than counting its levels
    drawn = ((Image.fromarray(values[steps]), zlib.Z_DEFAULT_STRATEGY), (numbered, zlib.Z_HUFFMAN_ONLY))
    return min((_png(image, strategy) for image, strategy in (*drawn, (numbered, zlib.Z_DEFAULT_STRATEGY))), key=len)


def _png(image: Image.Image, strategy: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=9, compress_type=strategy)
    return buffer.getvalue()


def photo(image: Tensor) -> str:
    """An image (c, h, w) in [0, 1] as a data URI: a JPEG, or a PNG where single pixels are to be seen."""
    shown = smaller(image.detach().float().cpu().clamp(0, 1), _PHOTO_SIDE)
    pixels = as_rgb(shown).permute(1, 2, 0).numpy() if len(shown) in (3, 4) else grey_of(shown)
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
