"""Options as JSON can hold them, for the record of what was run."""

from __future__ import annotations

from typing import Any

from torch import Tensor

_WRITTEN_OUT = 64
"""Numbers of a tensor that are written; of a larger one, its shape."""


def plain(value: Any) -> Any:
    """An option's value as JSON can hold it: numbers and text as they are, what has a name by its name."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, Tensor):
        return value.tolist() if value.numel() <= _WRITTEN_OUT else f"tensor of shape {tuple(value.shape)}"
    name = getattr(value, "__name__", None) or getattr(value, "name", None)
    return name if isinstance(name, str) else str(value)
