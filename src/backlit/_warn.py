"""Warnings that point at the caller's line."""

from __future__ import annotations

import contextlib
import sys
import warnings
from pathlib import Path

from torch.utils import _contextlib as torch_contextlib

_HERE = (str(Path(__file__).parent), contextlib.__file__, torch_contextlib.__file__)
"""Where a caller is not: in Backlit, or in what enters a context for it."""


def warn(text: str, category: type[Warning] = UserWarning) -> None:
    """Warn as if the first line outside of Backlit on the stack had done it."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_HERE):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, category, stacklevel=level)


class Once:
    """A mark of what is to be said once only, however often a method is called."""

    def __init__(self) -> None:
        self._said = False

    def first(self) -> bool:
        """Return True the first time, False from then on."""
        said, self._said = self._said, True
        return not said
