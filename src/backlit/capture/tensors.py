"""What is known of a tensor, for as long as it lives: by identity, and written nowhere on the tensor."""

from __future__ import annotations

import weakref
from typing import Generic, TypeVar

from torch import Tensor

Value = TypeVar("Value")


class ByTensor(Generic[Value]):
    """A dictionary by the identity of tensors, which it does not keep alive."""

    def __init__(self) -> None:
        self._entries: dict[int, tuple[weakref.ref[Tensor], Value]] = {}

    def __setitem__(self, tensor: Tensor, value: Value) -> None:
        key, entries = id(tensor), self._entries
        entries[key] = weakref.ref(tensor, lambda _: entries.pop(key, None)), value

    def get(self, tensor: Tensor, default: Value) -> Value:
        """The tensor's value, or ``default``."""
        entry = self._entries.get(id(tensor))
        return entry[1] if entry is not None and entry[0]() is tensor else default

    def __contains__(self, tensor: Tensor) -> bool:
        entry = self._entries.get(id(tensor))
        return entry is not None and entry[0]() is tensor

    def __getitem__(self, tensor: Tensor) -> Value:
        if tensor not in self:
            raise KeyError("nothing is known of this tensor")
        return self._entries[id(tensor)][1]
