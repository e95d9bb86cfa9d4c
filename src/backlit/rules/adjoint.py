"""The true vector-Jacobian product of a convolution, written so that differentiating it again is cheap.

The product is linear in the gradient, and its transpose is the convolution itself without its bias. Autograd does not
know that: it differentiates the backward pass of a depthwise convolution group by group.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from backlit.capture import Call, rule
from backlit.capture.geometry import Geometry
from backlit.rules.exact import exact
from backlit.rules.layer import convolution_back


@rule(reads_output=False)
def adjoint(g: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> tuple[Tensor | None, ...]:
    """``Wᵀ g``; its derivative is ``W v``."""
    if len(inputs) != 1 or Geometry.of(call).uneven:
        return exact(g, inputs, output, call)
    return (_Adjoint.apply(g, inputs[0].detach(), call),)


class _Adjoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, call: Call) -> Tensor:
        ctx.call, ctx.unbatched = call, x.dim() == call["weight"].dim() - 1
        if ctx.unbatched:
            g, x = g[None], x[None]
        dx = convolution_back(g, x, call["weight"], call)
        return dx[0] if ctx.unbatched else dx

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return ctx.call.run(v, bias=None), None, None
