"""A white picture to put pictures and text on: matplotlib's own fonts, so that every machine draws the same bytes."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

INK = (28, 32, 38)
SOFT = (104, 112, 122)
WARNING = (150, 72, 0)
WARNING_GROUND = (255, 237, 213)
RULE = (222, 226, 231)
_DOTS = "…"


class Canvas:
    """A picture that grows from the top: whoever draws says where, in pixels from the upper left corner."""

    def __init__(self, width: int, height: int) -> None:
        self._picture = Image.new("RGB", (width, height), "white")
        self._draw = ImageDraw.Draw(self._picture)

    def put(self, pixels: np.ndarray, left: int, top: int) -> None:
        """Put a uint8 picture (h, w, 3)."""
        self._picture.paste(Image.fromarray(pixels), (left, top))

    def box(self, left: int, top: int, width: int, height: int, colour: tuple[int, int, int]) -> None:
        """Fill a rectangle."""
        self._draw.rectangle((left, top, left + width - 1, top + height - 1), fill=colour)

    def frame(self, left: int, top: int, width: int, height: int) -> None:
        """Draw a thin line around a rectangle."""
        self._draw.rectangle((left - 1, top - 1, left + width, top + height), outline=RULE)

    def text(
        self,
        line: str,
        left: int,
        top: int,
        size: int,
        *,
        bold: bool = False,
        colour: tuple[int, int, int] = INK,
        align: str = "left",
    ) -> None:
        """Write one line whose top is at ``top``; ``left`` is its left end, its middle or its right end, as ``align`` says."""
        anchor = {"left": "la", "middle": "ma", "right": "ra"}[align]
        self._draw.text((left, top), line, fill=colour, font=font(size, bold), anchor=anchor)

    def pixels(self, height: int) -> np.ndarray:
        """The upper ``height`` rows, uint8 (height, w, 3)."""
        return np.asarray(self._picture)[:height].copy()


@cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans as it comes with matplotlib; no font of the system is looked for."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


def line_height(size: int) -> int:
    """Pixels from one line to the next."""
    return round(size * 1.4)


def width_of(line: str, size: int, *, bold: bool = False) -> int:
    """Pixels that a line takes."""
    return round(font(size, bold).getlength(line))


def fitted(line: str, size: int, room: int, *, bold: bool = False) -> str:
    """The line, on one row; of one that takes more than ``room`` pixels, as much as there is room for, and dots."""
    line = plain(line)
    if width_of(line, size, bold=bold) <= room:
        return line
    low, high = 0, len(line)
    while low < high:
        middle = (low + high + 1) // 2
        if width_of(line[:middle].rstrip() + _DOTS, size, bold=bold) <= room:
            low = middle
        else:
            high = middle - 1
    return line[:low].rstrip() + _DOTS


def wrapped(text: str, size: int, room: int, *, bold: bool = False, most: int = 3) -> list[str]:
    """The text as at most ``most`` lines of ``room`` pixels; what is left over is cut off with dots."""
    lines: list[str] = [""]
    words = plain(text).split(" ")
    for i, word in enumerate(words):
        longer = f"{lines[-1]} {word}".strip()
        if width_of(longer, size, bold=bold) <= room or not lines[-1]:
            lines[-1] = longer
        elif len(lines) == most:
            lines[-1] = " ".join([lines[-1], *words[i:]])
            break
        else:
            lines.append(word)
    return [fitted(line, size, room, bold=bold) for line in lines]


def plain(text: str) -> str:
    """The text on one line, without characters that move what is written; a very long one is cut before it is measured."""
    kept = "".join(c if c.isprintable() else " " for c in text[:2000])
    return " ".join(kept.split())
