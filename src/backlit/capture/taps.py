"""Further leaves along the way: what is read off the gradient of a site's output, as the gradient of another input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from backlit.capture.canonical import Call
from backlit.capture.sites import Site


@dataclass(frozen=True)
class Tap:
    """Turns the gradient of a site's output into gradients of extra inputs of the network, such as a bias.

    ``read`` gives the gradient of each of ``inputs``.
    """

    inputs: tuple[Tensor, ...]
    read: Callable[[Tensor], tuple[Tensor, ...]] = field(repr=False)


Reader = Callable[[Call, Tensor], Tap | None]
"""``reader(call, output)``: the tap at a site's output, if it gets one."""


@dataclass(frozen=True)
class Tapped:
    """A tapped site: its output as it left the operation, and the tap's inputs, as leaves to differentiate to."""

    site: Site
    output: Tensor
    inputs: tuple[Tensor, ...]


def tapped(call: Call, output: Any, reader: Reader) -> tuple[Any, Tapped | None]:
    """The output with its tap behind it, and the tapped site; the output as it is where the reader puts no tap."""
    if not isinstance(output, Tensor) or not output.is_floating_point():
        return output, None
    with torch.no_grad():
        tap = reader(call.with_signals(tuple(s.detach() for s in call.signals)), output.detach())
    if tap is None:
        return output, None
    leaves = tuple(x.detach().requires_grad_() for x in tap.inputs)
    site = replace(call.site, output_shape=tuple(output.shape))
    return _Tap.apply(output, tap.read, *leaves), Tapped(site, output, leaves)


class _Tap(torch.autograd.Function):
    """The identity, whose backward pass also reads the gradient for the tap's inputs."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, read: Any, *inputs: Tensor) -> Tensor:
        ctx.read = read
        return output.detach() if output._base is None else output.view_as(output)  # a view stays one

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        return (grad, None, *ctx.read(grad))
