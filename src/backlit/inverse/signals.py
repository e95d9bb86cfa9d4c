"""Which class each source signal is for.

A signal of the inverted part has shape (k, n, ...): k signals for each of n images. While the way back from the logits
has only passed operations that keep the classes apart (a pool over each class's map, a flatten), one signal of the
network's own shape, (1, n, classes, ...), holds them all, each class in its channel: it is *diagonal*. The first layer
that mixes channels takes each class's channel out of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True)
class Who:
    """A class for each signal: ``ids`` (k, n) are places in ``classes`` (c,), the class indices that are fitted."""

    ids: Int[Tensor, "k n"]
    classes: Int[Tensor, " c"]

    @cached_property
    def uniform(self) -> bool:
        """True if each of the k signals is of one class for all images."""
        return bool((self.ids == self.ids[:, :1]).all())

    def channels(self, diagonal: Tensor, channels: Sequence[int]) -> Tensor:
        """Take each signal's own class out of a diagonal one, by the classes' channels: (1, n, classes, ...) to (k, n, 1, ...)."""
        images = torch.arange(self.ids.shape[1], device=diagonal.device)
        own = torch.tensor(channels, device=diagonal.device)[self.classes]
        return diagonal[0, images[None], own[self.ids]].unsqueeze(2)

    def for_learning(self, images: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield classes (k,) and blocks (r,) of r <= size of the images whose signals are one stack each: the same k classes."""
        if self.uniform:
            for block in images.split(size):
                yield self.ids[:, 0], block
            return
        (ids,) = self.ids  # own samples: one signal an image
        for one in ids[images].unique():
            for block in images[ids[images] == one].split(size):
                yield one[None], block

    def each_class(self) -> Iterator[tuple[int, Tensor]]:
        """Yield every class that is asked for, and where (k, n)."""
        for one in self.ids.unique().tolist():
            yield one, self.ids == one
