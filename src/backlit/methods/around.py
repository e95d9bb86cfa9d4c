"""A network inside another module that leaves its paths and weights as they are, and further arguments bound to it."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeGuard

import torch
from torch import Tensor, nn

from backlit._errors import InputError

OUTSIDE = "<score>"
"""The module path of the operations that are not the network's own."""


class Around(nn.Module):
    """A network with something in front of it or behind it; its modules have the paths that they have in the network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.training = network.training

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Generator[tuple[str, nn.Module], None, None]:
        """Yield the network's modules by their paths there, and this one beside them."""
        yield from self.network.named_modules(memo, prefix, remove_duplicate)
        yield OUTSIDE, self

    def get_submodule(self, target: str) -> nn.Module:
        """Return the module of a path in the network."""
        return self if target == OUTSIDE else self.network.get_submodule(target)


class Bound(Around):
    """A network whose further arguments are fixed: it takes the images alone.

    Args:
        network: The network, called as ``network(*images, *arguments)``.
        arguments: What follows the images. A tensor of n rows belongs to the n images of a chunk, row by row, and is
            repeated for a batch of several copies of them all, one copy after the other; anything else is as it is.
        n: Number of images in the chunk.
    """

    def __init__(self, network: nn.Module, arguments: tuple[object, ...], n: int) -> None:
        super().__init__(network)
        self.arguments, self.n = arguments, n

    def forward(self, *images: Tensor) -> Tensor:
        """Return what the network makes of the images and its further arguments.

        Raises:
            InputError: If the batch holds other images than all of the chunk's, some times over.
        """
        count, rest = divmod(len(images[0]), self.n)
        if rest or not count:
            raise InputError(
                f"additional_forward_args hold a row for each of {self.n} images, but {len(images[0])} of them run alone here. "
                "Make the method with chunk=1."
            )
        copied = (a.repeat(count, *(1,) * (a.dim() - 1)) if is_row(a, self.n) else a for a in self.arguments)
        return self.network(*images, *copied)


def bound(network: nn.Module, arguments: tuple[object, ...], rows: slice | Tensor, n: int) -> nn.Module:
    """The network for these rows of n images, with its further arguments bound to it; the network itself where there are none."""
    if not arguments:
        return network
    count = len(range(n)[rows]) if isinstance(rows, slice) else len(rows)
    return Bound(network, rows_of(arguments, rows, n), count)


def is_row(argument: object, n: int) -> TypeGuard[Tensor]:
    """Tell whether an argument has a row for each of n images."""
    return isinstance(argument, Tensor) and argument.dim() > 0 and len(argument) == n


def rows_of(arguments: tuple[object, ...], rows: slice | Tensor, n: int) -> tuple[object, ...]:
    """The arguments of some of n images: their rows of what has a row for each image."""
    return tuple(a[rows] if is_row(a, n) else a for a in arguments)


def further_arguments(given: object) -> tuple[object, ...]:
    """Return what follows the images as a tuple, tensors without their graph; None is none, another single value is the first."""
    several = () if given is None else given if isinstance(given, tuple) else (given,)
    return tuple(a.detach() if isinstance(a, torch.Tensor) else a for a in several)
