"""An inner layer in the place of the images: a network is cut at one operation, and goes on from what it is given there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from backlit._draws import module_path
from backlit._errors import InputError, UnsupportedOp, is_word, nearest, shown
from backlit._forward import of_image, unchanged


@dataclass(frozen=True)
class Cut:
    """The operation whose output is explained in the place of the images: the last one inside a module.

    Attributes:
        layer: The module's path.
        call: How many operations on tensors run before it.
        shape: The output's shape behind the images' axis.
        as_it_is: Whether it is a signal or a volume.
    """

    layer: str
    call: int
    shape: tuple[int, ...]
    as_it_is: bool = False

    def shown(self, output: Tensor) -> Tensor:
        """The output as a map (n, c, h, w): of tokens (n, t, c) as (n, c, t, 1), of a vector (n, c) as (n, c, 1, 1).

        Of a network of signals or volumes it is one, too, and stays as it is.
        """
        if self.as_it_is:
            return output
        return output if output.dim() == 4 else output[..., None, None] if output.dim() == 2 else output.mT[..., None]

    def given(self, shown: Tensor) -> Tensor:
        """The map as the output that it was."""
        if self.as_it_is:
            return shown
        dims = len(self.shape) + 1
        return shown if dims == 4 else shown[..., 0, 0] if dims == 2 else shown[..., 0].mT


def cut_at(network: nn.Module, layer: str, inputs: tuple[Tensor, ...]) -> Cut:
    """Find the last operation inside a module; of one that is called twice, of its last call.

    Raises:
        InputError: If no module has that path, or it puts out nothing that can be explained.
    """
    check_layer(network, layer, "at")

    def found_in(some: tuple[Tensor, ...], _: int) -> Cut | None:
        listed = _Listed(network, layer)
        _run(network, some, listed)
        return listed.last

    cut = of_image(found_in, inputs)
    dims = {x.dim() for x in inputs}
    if cut is not None and dims != {4} and len(cut.shape) + 1 in dims:
        return replace(cut, as_it_is=True)
    if cut is None or len(cut.shape) not in (1, 2, 3):
        shape = "nothing" if cut is None else f"{('n', *cut.shape)}"
        raise InputError(
            f"at must name a module that puts out a map (n, c, h, w), tokens (n, t, c) or a vector (n, c), but {layer!r} puts out "
            f"{shape}. Name another one."
        )
    return cut


def output_at(network: nn.Module, cut: Cut, inputs: tuple[Tensor, ...]) -> Tensor:
    """Return what the network puts out where it is cut, as a map (n, c, h, w), without a graph."""
    kept = _OutputAt(network, cut)
    _run(network, inputs, kept)
    return cut.shown(kept.output)


def _run(network: nn.Module, inputs: tuple[Tensor, ...], mode: _Counted) -> None:
    """Run the network as a method does that propagates: with gradients, on copies, which are made outside of what is counted."""
    copies = tuple(x.clone() for x in inputs)
    with torch.enable_grad(), unchanged(network, inputs), mode:
        network(*copies)


def check_layer(network: nn.Module, layer: str, name: str) -> None:
    """Refuse what is no module's path; ``name`` is what the argument is called.

    Raises:
        InputError: With the nearest path.
    """
    paths = [path for path, _ in network.named_modules()]
    if not is_word(layer, paths):
        hint = nearest(layer, paths) if isinstance(layer, str) else ""
        raise InputError(f"{name} must be the path of a module, but is {shown(layer)}.{hint}")


class _Counted(TorchFunctionMode):
    """A function mode that counts the calls that make a floating-point tensor with an axis beside the images'."""

    def __init__(self, network: nn.Module, layer: str) -> None:
        super().__init__()
        self.paths = {id(module): name for name, module in network.named_modules()}
        self.layer, self.calls = layer, 0

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.is_floating_point() and result.dim() > 1:
            result = self.take(result)
            self.calls += 1
        return result

    def take(self, result: Tensor) -> Tensor:
        """Hear of a result, and return what the network goes on with."""
        return result

    @property
    def inside(self) -> bool:
        """Tell whether the call is one of the layer's."""
        path = module_path(self.paths)
        return path == self.layer or path.startswith(f"{self.layer}.")


class _Listed(_Counted):
    last: Cut | None = None

    def take(self, result: Tensor) -> Tensor:
        if self.inside:
            self.last = Cut(self.layer, self.calls, tuple(result.shape[1:]))
        return result


class LastOutput(_Counted):
    """A function mode that keeps a copy of the last tensor that the layer, or a module inside it, made."""

    last: Tensor | None = None

    def take(self, result: Tensor) -> Tensor:
        if self.inside:
            self.last = result.clone()  # what follows may write into it
        return result


class _OutputAt(_Counted):
    """A function mode that keeps the output of the operation at which a network is cut."""

    def __init__(self, network: nn.Module, cut: Cut) -> None:
        super().__init__(network, cut.layer)
        self.cut, self.output = cut, torch.empty(0)

    def take(self, result: Tensor) -> Tensor:
        if self.calls == self.cut.call:
            self.output = result.detach().clone()  # what follows may write into it
        return result


class Replaced(_Counted):
    """A function mode that puts what is explained in the place of that output."""

    def __init__(self, network: nn.Module, cut: Cut, shown: Tensor) -> None:
        super().__init__(network, cut.layer)
        self.cut, self.shown = cut, shown

    def take(self, result: Tensor) -> Tensor:
        if self.calls != self.cut.call:
            return result
        if not self.inside or tuple(result.shape[1:]) != self.cut.shape:
            raise UnsupportedOp(
                f"at={self.layer!r}: the network runs other operations here than when the layer was looked for, as a fast path of "
                "an attention without gradients does. Name another module, or use a method that propagates."
            )
        return self.cut.given(self.shown)
