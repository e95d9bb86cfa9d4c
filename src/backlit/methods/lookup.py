"""Methods by name, and the one-function form that other tools expect."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from backlit._errors import InputError, nearest
from backlit.methods.base import Method

_IGNORED = str.maketrans("", "", "-_ ")


def find_method(name: str, methods: tuple[type[Method], ...]) -> type[Method]:
    """The method of that name or class name, whatever its case, dashes, underscores and spaces.

    Raises:
        InputError: If there is none; names the nearest.
    """
    for method in methods if isinstance(name, str) else ():
        if same_name(name, method.name) or same_name(name, method.__name__):
            return method
    known = [m.name for m in methods]
    raise InputError(f"method must be one of {', '.join(known)}, but is {name!r}.{nearest(str(name), known)}")


def same_name(one: str, other: str) -> bool:
    """Whether the names agree but for case, dashes, underscores and spaces; any other sign counts."""
    return _key(one) == _key(other)


def _key(name: str) -> str:
    return name.lower().translate(_IGNORED)


def explain_with(
    methods: tuple[type[Method], ...],
    model: nn.Module,
    inputs: np.ndarray | Tensor,
    targets: np.ndarray | Tensor | int | None,
    method: str,
    device: str | torch.device | None,
    options: dict[str, Any],
) -> np.ndarray:
    """The map as an array shaped as ``inputs``; see :func:`backlit.explain_func`."""
    parameter = next(model.parameters(), None)
    where = device or (parameter.device if parameter is not None else "cpu")
    x = torch.as_tensor(inputs).to(where)
    if parameter is not None and x.is_floating_point():
        x = x.to(parameter.dtype)
    target = targets if targets is None or isinstance(targets, int) else torch.as_tensor(targets).long()
    maps = find_method(method, methods)(model, **options).attribute(x, target)
    return maps.float().cpu().numpy() if maps.dtype == torch.bfloat16 else maps.cpu().numpy()
