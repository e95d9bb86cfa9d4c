"""Rules of relevance propagation at max-pools. Winner-takes-all is the pool's true derivative and needs no rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from backlit.capture import Call
from backlit.capture.geometry import Geometry
from backlit.rules.exact import exact


def proportional(g: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> tuple[Tensor | None, ...]:
    """A window's relevance to its inputs in proportion to their values above zero; all to the winner where none is.

    ``m_i = sum_j g_j y_j / sum_i x_i+`` for x_i > 0 (Bach et al. 2015, Sec. 2.4, a pool as a sum over its window). An adaptive
    pool whose windows differ in size gives all to the winners.
    """
    x, y = inputs[0], output if isinstance(output, Tensor) else output[0]
    g = g if isinstance(g, Tensor) else g[0]
    (winner,) = exact(g, inputs, y, _values_only(call))
    window = _window(call, x, y)
    if window is None:
        return (winner,)
    second = torch.is_grad_enabled()
    with torch.enable_grad():
        above = x.clamp(min=0)
        leaf = above if second and above.requires_grad else above.detach().requires_grad_()
        total = _sums(leaf, y, window)
        some = (total > 0) & (y > 0)
        s = torch.where(some, g * y / torch.where(some, total, 1), 0)
        (m,) = torch.autograd.grad(total, leaf, s, create_graph=second)
    (rest,) = exact(torch.where(some, 0, g), inputs, y, _values_only(call))
    shared = torch.where(x > 0, m, 0)
    return (shared if rest is None else shared + rest,)


def _window(call: Call, x: Tensor, y: Tensor) -> Geometry | None:
    """The windows of a pool; None where they differ in size."""
    if not call.primitive.has("adaptive"):
        return Geometry.of(call)
    d = call.primitive.spatial
    sizes = tuple(zip(x.shape[-d:], y.shape[-d:], strict=True))
    if any(a % b for a, b in sizes):
        return None
    kernel = tuple(a // b for a, b in sizes)
    return Geometry(kernel, kernel, padding=(0,) * d, dilation=(1,) * d, output_padding=(0,) * d)


def _sums(x: Tensor, y: Tensor, window: Geometry) -> Tensor:
    """The sum of x over each window of y."""
    d = len(window.kernel)
    convolution: Callable[..., Tensor] = getattr(F, f"conv{d}d")
    padded = F.pad(x, window.margins(x.shape[-d:], y.shape[-d:]))
    planes = padded.reshape(-1, 1, *padded.shape[-d:])
    ones = x.new_ones(1, 1, *window.kernel)
    return convolution(planes, ones, stride=window.stride, dilation=window.dilation).reshape(y.shape)


def _values_only(call: Call) -> Call:
    return replace(call, arguments={**call.arguments, "return_indices": False})
