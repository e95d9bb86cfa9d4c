"""Rules of relevance propagation at max-pools. Winner-takes-all is the pool's true derivative and needs no rule."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from backlit.capture import Call
from backlit.rules.exact import exact


def proportional(g: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> tuple[Tensor | None, ...]:
    """A window's relevance to its inputs in proportion to their values above zero; all to the winner where none is.

    ``m_i = sum_j g_j y_j / sum_i x_i+`` for x_i > 0 (Bach et al. 2015, Sec. 2.4, a pool as a sum over its window).
    """
    x, y = inputs[0], output if isinstance(output, Tensor) else output[0]
    g = g if isinstance(g, Tensor) else g[0]
    winner = exact(g, inputs, y, _values_only(call))[0]
    if call.primitive.name.startswith("adaptive") or x.dim() != y.dim() or _of(call, "dilation", 1) != (1,):
        return (winner,)
    d = int(call.primitive.name[-2])
    size = call["kernel_size"]
    options = {"stride": call.get("stride") or size, "padding": call.get("padding", 0), "divisor_override": 1}
    options["ceil_mode"] = call.get("ceil_mode", False)
    pool = {2: F.avg_pool2d, 3: F.avg_pool3d}.get(d)
    if pool is None:
        return (winner,)
    second = torch.is_grad_enabled()
    with torch.enable_grad():
        above = x.clamp(min=0)
        leaf = above if second and above.requires_grad else above.detach().requires_grad_()
        total = pool(leaf, size, **options)
        some = (total > 0) & (y > 0)
        s = torch.where(some, g * y / torch.where(some, total, 1), 0)
        (m,) = torch.autograd.grad(total, leaf, s, create_graph=second)
    (rest,) = exact(torch.where(some, 0, g), inputs, y, _values_only(call))
    shared = torch.where(x > 0, m, 0)
    return (shared if rest is None else shared + rest,)


def _of(call: Call, name: str, default: int) -> tuple[int, ...]:
    value = call.get(name, default)
    return (value,) if isinstance(value, int) else tuple(set(value))


def _values_only(call: Call) -> Call:
    return replace(call, arguments={**call.arguments, "return_indices": False})
