"""Methods by name, and the one-function form that other tools expect."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from backlit._errors import InputError, nearest
from backlit.methods.base import Method


def find_method(name: str, methods: tuple[type[Method], ...]) -> type[Method]:
    """The method of that name or class name, whatever its case, dashes and underscores.

    Raises:
        InputError: If there is none; names the nearest.
    """
    for method in methods:
        if same_name(name, method.name) or same_name(name, method.__name__):
            return method
    known = [m.name for m in methods]
    raise InputError(f"method must be one of {', '.join(known)}, but is {name!r}.{nearest(name, known)}")


def same_name(one: str, other: str) -> bool:
    """The names agree but for case, dashes and underscores."""
    return _key(one) == _key(other)


def _key(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


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
