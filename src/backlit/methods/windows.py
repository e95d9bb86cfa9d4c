"""Windows that slide over an image, as two small matrices: which rows, and which columns, each position covers."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from backlit._errors import InputError


@dataclass(frozen=True, eq=False)
class Windows:
    """A grid of windows over an image of h x w pixels.

    Attributes:
        rows: 1 where a window's row of the grid covers a row of the image, (a, h).
        columns: The same of columns, (b, w).
    """

    rows: Tensor
    columns: Tensor

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)

    def masks(self, block: slice) -> Tensor:
        """Return windows ``block``, counted row by row, as masks (v, h, w): True inside."""
        number = torch.arange(block.start, block.stop, device=self.rows.device)
        inside = self.rows[number // len(self.columns)].bool()
        return inside[:, :, None] & self.columns[number % len(self.columns)].bool()[:, None, :]

    def mean(self, values: Tensor) -> Tensor:
        """Return, for each pixel, the mean value of the windows that cover it: (t, windows, n) to (t, n, h, w)."""
        grid = values.transpose(1, 2).unflatten(2, (len(self.rows), len(self.columns)))
        rows, columns = self.rows.to(values), self.columns.to(values)
        return (rows.mT @ grid @ columns) / (rows.sum(0)[:, None] * columns.sum(0))


def sliding(size: tuple[int, int], window: tuple[int, int], stride: tuple[int, int], x: Tensor) -> Windows:
    """Return the windows at multiples of a stride, the last of which may reach over the border and is cut there.

    Args:
        size: Height and width of the image.
        window: Height and width of a window, no larger.
        stride: Pixels between two windows, down and across, no larger than the window.
        x: A tensor on the device.
    """
    sides = (
        _covered(torch.arange(ceil((side - w) / s) + 1) * s, w, side)
        for side, w, s in zip(size, window, stride, strict=True)
    )
    return Windows(*(side.to(x.device) for side in sides))


def whole_windows(size: tuple[int, int], window: int, stride: int, x: Tensor) -> tuple[Windows, Tensor, Tensor]:
    """Return the windows at multiples of a stride that lie inside the image, and one at each far border if the last does not.

    Returns:
        The windows, and the first row and column of each row and column of the grid, (a,) and (b,).
    """
    starts = [torch.arange(ceil((side - window) / stride) + 1) * stride for side in size]
    firsts = [s.clamp(max=side - window) for s, side in zip(starts, size, strict=True)]
    rows, columns = (_covered(f, window, side).to(x.device) for f, side in zip(firsts, size, strict=True))
    return Windows(rows, columns), firsts[0].to(x.device), firsts[1].to(x.device)


def _covered(firsts: Tensor, window: int, side: int) -> Tensor:
    """Return which of ``side`` pixels each window covers that starts at ``firsts``, (a, side), as numbers."""
    pixel = torch.arange(side)
    return ((pixel >= firsts[:, None]) & (pixel < firsts[:, None] + window)).float()


def check_window(window: int, size: tuple[int, int]) -> None:
    """Refuse a window that is larger than the image; along the shorter side of one it is cut.

    Raises:
        InputError: With both sizes.
    """
    if window > max(size):
        raise InputError(
            f"window must be at most {max(size)} pixels for images of {size[0]}x{size[1]}, but is {window}. Use a smaller window; "
            "None is a seventh of each side."
        )
