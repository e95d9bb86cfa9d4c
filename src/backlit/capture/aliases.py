"""Views and writes in place: which tensors of a network share memory, and what a write to one makes of the others.

No write reaches memory that autograd or a rule has saved. Every one is computed out of place, and what else shows the same
memory is read anew when the network comes back to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(eq=False)
class Memory:
    """A piece of memory that tensors share: what stands for the whole of it, and how often it was written.

    The whole lives as long as a view does; one that no tensor of the network stands for is ``kept``.
    """

    whole: Callable  # of nothing, to the tensor or None
    writes: int = 0
    kept: Tensor | None = None


@dataclass(eq=False)
class Alias:
    """What a tensor shows of a memory: its elements at ``positions()``, counted along the whole; None is all of it.

    ``value`` is what it shows since the memory's ``writes``-th write; None is the tensor that it was made with. A ``cut`` alias
    has no gradient (``x.detach()``).
    """

    memory: Memory
    positions: Callable[[], Tensor] | None = None
    stride: tuple[int, ...] = ()
    cut: bool = False
    writes: int = 0
    value: Tensor | None = None

    def view(self, base: Tensor, shown: Tensor, *, cut: bool = False, writes: int = 0) -> Alias:
        """The alias of what ``shown`` shows of ``base``, a tensor of this alias, which lives as long as the view does."""
        shape, stride, offset = shown.shape, shown.stride(), shown.storage_offset() - base.storage_offset()

        def positions() -> Tensor:
            inner = torch.arange(base.numel(), device=base.device).view(base.shape)
            inner = inner if self.positions is None else self.positions()
            return inner.new_empty_strided(base.shape, base.stride()).copy_(inner).as_strided(shape, stride, offset)

        return Alias(self.memory, positions, stride, cut or self.cut, writes)


def read_view(whole: Tensor, positions: Tensor, stride: tuple[int, ...]) -> Tensor:
    """The elements of a memory's whole at the positions of a view."""
    return laid_out(whole.take(positions), stride)


def laid_out(value: Tensor, stride: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
    """The value with the strides that it has in the network, so that what reads it calls the same kernels."""
    value = value.to(dtype or value.dtype)
    if value.stride() == stride or 0 in stride:
        return value
    return value.new_empty_strided(value.shape, stride).copy_(value)
