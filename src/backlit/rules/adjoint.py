"""The true vector-Jacobian product of a convolution, written so that differentiating it again is cheap.

The product is linear in the gradient, and its transpose is the convolution itself without its bias. Autograd does not
know that: it differentiates the backward pass of a depthwise convolution group by group.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from backlit.capture import Call
from backlit.rules.exact import exact


def adjoint(g: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> tuple[Tensor | None, ...]:
    """``Wᵀ g``; its derivative is ``W v``."""
    if isinstance(call.get("padding", 0), str) or len(inputs) != 1:  # "same" pads unevenly: left to autograd
        return exact(g, inputs, output, call)
    return (_Adjoint.apply(g, inputs[0].detach(), call),)


adjoint.reads_output = False  # type: ignore[attr-defined]


class _Adjoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, call: Call) -> Tensor:
        ctx.call, ctx.unbatched = call, x.dim() == call["weight"].dim() - 1
        if ctx.unbatched:
            g, x = g[None], x[None]
        sizes = _sizes(call)
        dx, _, _ = torch.ops.aten.convolution_backward(g, x, call["weight"], None, *sizes, [True, False, False])
        return dx[0] if ctx.unbatched else dx

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return ctx.call.run(v, bias=None), None, None


def _sizes(call: Call) -> tuple[list[int], list[int], list[int], bool, list[int], int]:
    """Stride, padding, dilation, transposed, output padding and groups, as torch's kernel takes them."""
    spatial = call["weight"].dim() - 2

    def listed(name: str, default: int) -> list[int]:
        value = call.get(name, default)
        value = [value] if isinstance(value, int) else list(value)
        return value * spatial if len(value) == 1 else value

    return (
        listed("stride", 1),
        listed("padding", 0),
        listed("dilation", 1),
        "transpose" in call.primitive.name,
        listed("output_padding", 0),
        call.get("groups", 1),
    )
