"""Rules at activations, each a line of maths beside its name.

g is the gradient of the output, z the input, f the activation, [.] one where true and zero elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from backlit.capture import Call, Shares
from backlit.rules.exact import exact

_SQRT_2PI = math.sqrt(2 * math.pi)
_SELU_SCALE, _SELU_ALPHA = 1.0507009873554805, 1.6732632423543772


def _elu_slope(z: Tensor, alpha: float, scale: float = 1.0) -> Tensor:
    return scale * torch.where(z > 0, 1, alpha * z.clamp(max=0).exp())


def _gelu_slope(z: Tensor, approximate: str) -> Tensor:
    if approximate == "tanh":
        k = math.sqrt(2 / math.pi)
        t = torch.tanh(k * (z + 0.044715 * z**3))
        return 0.5 * (1 + t) + 0.5 * z * (1 - t**2) * k * (1 + 3 * 0.044715 * z**2)
    return 0.5 * (1 + torch.erf(z / math.sqrt(2))) + z * torch.exp(-(z**2) / 2) / _SQRT_2PI


def _mish_slope(z: Tensor) -> Tensor:
    t = torch.tanh(F.softplus(z))
    return t + z * (1 - t**2) * torch.sigmoid(z)


# f'(z) of every activation whose derivative is more than a call of its own; the others go through `exact`.
DERIVATIVES: dict[str, Callable[[Tensor, Call], Tensor]] = {
    "relu": lambda z, c: (z > 0).to(z.dtype),
    "leaky_relu": lambda z, c: torch.where(z > 0, z.new_ones(()), c.get("negative_slope", 0.01)),
    "elu": lambda z, c: _elu_slope(z, c.get("alpha", 1.0)),
    "celu": lambda z, c: torch.where(z > 0, 1, (z.clamp(max=0) / c.get("alpha", 1.0)).exp()),
    "selu": lambda z, c: _elu_slope(z, _SELU_ALPHA, _SELU_SCALE),
    "gelu": lambda z, c: _gelu_slope(z, c.get("approximate", "none")),
    "silu": lambda z, c: torch.sigmoid(z) * (1 + z * torch.sigmoid(-z)),
    "mish": lambda z, c: _mish_slope(z),
    "sigmoid": lambda z, c: torch.sigmoid(z) * torch.sigmoid(-z),
    "tanh": lambda z, c: 1 - torch.tanh(z) ** 2,
    "tanhshrink": lambda z, c: torch.tanh(z) ** 2,
    "softsign": lambda z, c: (1 + z.abs()) ** -2,
    "logsigmoid": lambda z, c: torch.sigmoid(-z),
}


def derivative(g: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> tuple[Tensor | None, ...]:
    """``g f'(z)``: the true derivative."""
    slope = DERIVATIVES.get(call.primitive.name)
    return exact(g, inputs, output, call) if slope is None else (g * slope(inputs[0], call),)


def guided(g: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> tuple[Tensor | None, ...]:
    """``[g > 0] g f'(z)``: guided back-propagation (Springenberg et al. 2015, Sec. 3.4); f' is the ReLU's gate there."""
    if call.primitive.name == "relu":  # one pass less over memory than the product
        return (torch.ops.aten.threshold_backward(g, inputs[0], 0).clamp_(min=0),)
    return derivative(g.clamp(min=0), inputs, output, call)


def deconvnet(g: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> tuple[Tensor | None, ...]:
    """``[g > 0] g``: deconvnet (Zeiler and Fergus 2014, Sec. 2.1), which rectifies the gradient and forgets the gate."""
    return tuple(g.clamp(min=0) if x.shape == g.shape else None for x in inputs)


def secant(g: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> Shares:
    """``g (f(z) - f(0)) / z``, f'(0) at z = 0: the relevance passes; f(0), where it is not zero, takes its own as a bias."""
    z = inputs[0]
    if len(inputs) > 1 or z.shape != output.shape:
        return Shares(exact(g, inputs, output, call))
    zero = torch.zeros_like(z[:1]) if not call.site.constants else torch.zeros_like(z)
    start = call.run(zero)
    if not bool(start.isfinite().all()):  # 1 / z and its like: as a quotient, all of it is a constant's
        return Shares((None,), g * output)
    near = z.abs() < (torch.finfo(z.dtype).eps ** 0.5 if bool((start != 0).any()) else torch.finfo(z.dtype).tiny)
    rise = output - start if bool((start != 0).any()) else output
    slope = rise / torch.where(near, 1, z)
    if bool(near.any()):
        (limit,) = derivative(torch.ones_like(start), (zero,), start, call)
        slope = torch.where(near, limit.nan_to_num(0, 0, 0), slope)  # type: ignore[union-attr]
    return Shares((g * slope,), g * start if bool((start != 0).any()) else None)
