"""A network inside another module that leaves its paths and weights as they are, with all bound to it that is not explained."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import TypeGuard

from torch import Tensor, nn

from backlit._errors import InputError
from backlit.methods.axes import Shape, as_they_were
from backlit.methods.cut import Cut, Replaced

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


@dataclass(frozen=True, eq=False)
class Context:
    """A batch of n images as far as the network needs them beside what is explained.

    Attributes:
        arguments: What the network takes after the images. A tensor of n rows belongs to the images, row by row; anything
            else is as it is.
        cut: Where the network is cut, if what is explained is the output of an inner layer.
        images: The images then, a tensor for each input.
        shapes: Of signals and volumes, which the methods see as images: what they are for the network.
    """

    arguments: tuple[object, ...] = ()
    cut: Cut | None = None
    images: tuple[Tensor, ...] = ()
    shapes: tuple[Shape, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.arguments) or self.cut is not None or bool(self.shapes)

    def of(self, rows: slice | Tensor, n: int) -> Context:
        """The context of some of the n images."""
        arguments = tuple(a[rows] if _has_rows(a, n) else a for a in self.arguments)
        return replace(self, arguments=arguments, images=tuple(x[rows] for x in self.images))

    def bound(self, network: nn.Module, n: int) -> nn.Module:
        """The network as a function of what is explained of these n images; itself, where nothing is beside that."""
        return Bound(network, self, n) if self else network


class Bound(Around):
    """A network that takes what is explained alone; everything else of the n images of a chunk is fixed.

    A batch of several copies of them all, one copy after the other, gets it repeated.
    """

    def __init__(self, network: nn.Module, context: Context, n: int) -> None:
        super().__init__(network)
        self.context, self.n = context, n

    def forward(self, *explained: Tensor) -> Tensor:
        """Return what the network makes of it.

        Raises:
            InputError: If the batch holds other images than all of the chunk's, some times over.
        """
        explained = tuple(map(as_they_were, explained, self.context.shapes)) or explained
        if not self.context.arguments and self.context.cut is None:
            return self.network(*explained)
        count, rest = divmod(len(explained[0]), self.n)
        if rest or not count:
            raise InputError(
                f"additional_forward_args and at go with all of {self.n} images, but {len(explained[0])} of them run alone here. "
                "Make the method with chunk=1."
            )
        cut, n = self.context.cut, self.n
        arguments = tuple(_repeated(a, count) if _has_rows(a, n) else a for a in self.context.arguments)
        if cut is None:
            return self.network(*explained, *arguments)
        images = tuple(_repeated(x, count) for x in self.context.images)  # before calls are counted
        with Replaced(self.network, cut, explained[0]):
            return self.network(*images, *arguments)


def further_arguments(given: object) -> tuple[object, ...]:
    """Return what follows the images as a tuple, tensors without their graph; None is none, another single value is the first."""
    several = () if given is None else given if isinstance(given, tuple) else (given,)
    return tuple(a.detach() if isinstance(a, Tensor) else a for a in several)


def _has_rows(argument: object, n: int) -> TypeGuard[Tensor]:
    return isinstance(argument, Tensor) and argument.dim() > 0 and len(argument) == n


def _repeated(values: Tensor, count: int) -> Tensor:
    return values if count == 1 else values.repeat(count, *(1,) * (values.dim() - 1))
