"""What each kind of call becomes in the affine map that a network is at one input.

Every form gives back the recorded value at the recorded input; what differs is what it holds fixed:

* activations: slope and offset per element. Piecewise-linear ones use their own piece; smooth ones the secant from
  (0, f(0)) to (z, f(z)), whose limit at z = 0 is f'(0);
* max-pools and maxima: what they picked;
* norms: the standard deviation, not the mean;
* products of two signals: the factor that acts as a gate (a squashed or broadcast one); of two equals, each in turn,
  half and half;
* softmax: its value, so that attention is a fixed mixing of its values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from backlit._errors import UnsupportedOp
from backlit.capture.canonical import Call
from backlit.capture.record import Form

_PIECEWISE = frozenset(
    "leaky_relu rrelu prelu threshold hardtanh clamp hardshrink softshrink abs gate gated hardsigmoid".split()
)


@dataclass(frozen=True)
class Scaled:
    """``slope * z + offset`` per element; a ReLU's slope is its gate, kept as bool."""

    slope: Tensor
    offset: Tensor | None

    def __call__(self, z: Tensor) -> Tensor:
        scaled = z * self.slope
        return scaled if self.offset is None else scaled + self.offset


@dataclass(frozen=True)
class Switched:
    """A max-pool with its switches fixed: it reads the elements that it picked."""

    indices: Tensor
    spatial: int

    def __call__(self, z: Tensor) -> Tensor:
        if self.spatial == 2 and z.dim() == 4 and z.is_contiguous(memory_format=torch.channels_last):
            # Picked in the order of memory: flattening the plane would copy it.
            pixels, indices = z.permute(0, 2, 3, 1), self.indices.permute(0, 2, 3, 1)
            picked = pixels.reshape(z.shape[0], -1, z.shape[1]).gather(1, indices.reshape(z.shape[0], -1, z.shape[1]))
            return picked.view(indices.shape).permute(0, 3, 1, 2)
        picked = z.flatten(-self.spatial).gather(-1, self.indices.flatten(-self.spatial))
        return picked.view(self.indices.shape)


@dataclass(frozen=True)
class Weighted:
    """``sum_i weight_i * signal_i``, elementwise, then a sum over ``dims``: maxima and products with parts held."""

    weights: tuple[Tensor, ...]
    dims: tuple[int, ...] = ()
    keepdim: bool = True

    def __call__(self, *signals: Tensor) -> Tensor:
        total = sum((s * w for s, w in zip(signals[1:], self.weights[1:], strict=True)), signals[0] * self.weights[0])
        return total.sum(self.dims, keepdim=self.keepdim) if self.dims else total


@dataclass(frozen=True)
class Halved:
    """A bilinear call with each factor held in turn: half of ``f(a, b0)`` and half of ``f(a0, b)``."""

    call: Call
    held: tuple[Tensor, Tensor]

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        return (self.call.run(a, self.held[1]) + self.call.run(self.held[0], b)) / 2


@dataclass(frozen=True)
class Centred:
    """Layer, group and instance norm with the standard deviation held: the mean still follows the signal."""

    groups: int | None
    dims: int
    scale: Tensor
    shift: Tensor | None

    def __call__(self, z: Tensor) -> Tensor:
        if self.groups is None:
            centred = z - z.mean(tuple(range(-self.dims, 0)), keepdim=True)
        else:
            grouped = z.reshape(z.shape[0], self.groups, -1)
            centred = (grouped - grouped.mean(-1, keepdim=True)).reshape(z.shape)
        scaled = centred * self.scale
        return scaled if self.shift is None else scaled + self.shift


@dataclass(frozen=True)
class Held:
    """A value that stays what it was."""

    value: Tensor
    reads_signals = False

    def __call__(self) -> Tensor:
        return self.value


@dataclass(frozen=True)
class Mixed:
    """Attention with its weights held: a fixed mixing of the values."""

    weights: Tensor
    value_place: int

    def __call__(self, *signals: Tensor) -> Tensor:
        return self.weights @ signals[self.value_place]


def frozen_form(call: Call, signals: tuple[Tensor, ...], result: Any) -> Form:
    """The affine form of a call at the recorded signals.

    Raises:
        UnsupportedOp: If the primitive has none.
    """
    site = call.site
    if site.kind == "affine":
        return call.without_signals().run
    if site.kind == "activation":
        return _activation(call, signals, result)
    former = _FORMERS.get(site.primitive)
    if former is None:
        raise UnsupportedOp(
            f"{site} has no affine form, so the network cannot be frozen. Use a method that differentiates the network "
            "itself (GradientXInput, GuidedBackprop), or add a form in capture/forms.py."
        )
    return former(call, signals, result)


def _slopes(call: Call, signals: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Derivative of the sum of a call's output to each signal: per element for elementwise calls."""
    with torch.enable_grad():
        leaves = tuple(s.detach().requires_grad_() for s in signals)
        result = call.run(*leaves)
        result = result if isinstance(result, Tensor) else result[0]
        return torch.autograd.grad(result.sum(), leaves)


def _activation(call: Call, signals: tuple[Tensor, ...], y: Tensor) -> Form:
    z = signals[0]
    if call.primitive.name == "relu":
        return Scaled(z > 0, None)
    if len(signals) > 1 or z.shape != y.shape:  # torch.where(x > 0, f(x), g(x)): affine once the condition is fixed
        if call.primitive.name == "gated":
            return call.without_signals().run
        raise UnsupportedOp(f"{call.site} has no affine form: its output's shape is not its input's.")
    if call.primitive.name in _PIECEWISE:
        (slope,) = _slopes(call, signals)
        return Scaled(slope, _offset(y, slope, z))
    zero = z.new_zeros(1)
    at_zero = call.run(zero)
    (limit,) = _slopes(call, (zero,))
    slope = torch.where(z.abs() > torch.finfo(z.dtype).eps, (y - at_zero) / z, limit)
    slope = torch.where(slope.isfinite(), slope, 0)
    return Scaled(slope, _offset(y, slope, z))


def _offset(y: Tensor, slope: Tensor, z: Tensor) -> Tensor | None:
    """What the slope leaves of the value, or None where that is rounding: then it is left out, as the formula has none."""
    offset = y - slope * z
    negligible = 8 * torch.finfo(y.dtype).eps * y.abs().max() if y.numel() else 0
    return offset if bool((offset.abs() > negligible).any()) else None


def _max_pool(call: Call, signals: tuple[Tensor, ...], result: Any) -> Form:
    spatial = int(call.primitive.name[-2])
    indices = result[1] if call.get("return_indices") else call.run(*signals, return_indices=True)[1]
    return Switched(indices, spatial)


def _extreme(call: Call, signals: tuple[Tensor, ...], result: Any) -> Form:
    dims = call.get("dim", ())
    dims = (dims,) if isinstance(dims, int) else tuple(dims) or tuple(range(signals[0].dim()))
    return Weighted(_slopes(call, signals), dims, bool(call.get("keepdim", False)))


def _product(call: Call, signals: tuple[Tensor, ...], result: Any) -> Form:
    a, b = signals
    if a.shape == b.shape:
        return Halved(call.without_signals(), (a, b))
    small = int(a.numel() >= b.numel())
    return _OneOf(1 - small, call.without_signals(), signals[small])


@dataclass(frozen=True)
class _OneOf:
    """A product of which one factor is held as a gate."""

    place: int
    call: Call
    gate: Tensor

    def __call__(self, *signals: Tensor) -> Tensor:
        return self.call.run(*((signals[0], self.gate) if self.place == 0 else (self.gate, signals[1])))


def _quotient(call: Call, signals: tuple[Tensor, ...], result: Tensor) -> Form:
    if len(signals) == 1:
        return Held(result)
    return _OneOf(0, call.without_signals(), signals[1])


def _norm_scale(call: Call, variance: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor | None]:
    rstd = (variance + call.get("eps", 1e-5)).rsqrt()
    weight, bias = call.get("weight"), call.get("bias")
    scale = rstd if weight is None else rstd * weight.view(shape)
    return scale, None if bias is None else bias.view(shape)


def _layer_norm(call: Call, signals: tuple[Tensor, ...], result: Tensor) -> Form:
    shape = tuple(call["normalized_shape"])
    variance = signals[0].var(tuple(range(-len(shape), 0)), unbiased=False, keepdim=True)
    return Centred(None, len(shape), *_norm_scale(call, variance, shape))


def _group_norm(call: Call, signals: tuple[Tensor, ...], result: Tensor) -> Form:
    z = signals[0]
    groups = call.get("num_groups") or z.shape[1]
    grouped = z.reshape(z.shape[0], groups, -1)
    variance = grouped.var(-1, unbiased=False, keepdim=True)
    per_channel = variance.expand(-1, -1, z.shape[1] // groups).reshape(z.shape[0], z.shape[1], *[1] * (z.dim() - 2))
    return Centred(groups, 0, *_norm_scale(call, per_channel, (-1, *[1] * (z.dim() - 2))))


def _attention(call: Call, signals: tuple[Tensor, ...], result: Tensor) -> Form:
    names = [n for n, _ in call.places]
    if "value" not in names:
        return Held(result)
    if call.get("enable_gqa"):
        raise UnsupportedOp(f"{call.site} has no affine form: grouped-query attention is not supported.")
    query, key, value = call["query"], call["key"], call["value"]
    # Attention of the unit vectors is the attention matrix itself, with every option as the network set it.
    eye = torch.eye(value.shape[-2], dtype=value.dtype, device=value.device).expand(*value.shape[:-2], -1, -1)
    weights = replace(call, places=()).run(query=query.detach(), key=key.detach(), value=eye)
    return Mixed(weights, names.index("value"))


_FORMERS: dict[str, Callable[[Call, tuple[Tensor, ...], Any], Form]] = {
    **{f"{kind}max_pool{d}d": _max_pool for kind in ("", "adaptive_") for d in (1, 2, 3)},
    **dict.fromkeys(("amax", "amin", "max", "min"), _extreme),
    **dict.fromkeys(("maximum", "minimum"), lambda call, s, y: Weighted(_slopes(call, s))),
    "product": _product,
    "quotient": _quotient,
    **dict.fromkeys(
        ("matrix_product", "einsum_product"), lambda call, s, y: Halved(call.without_signals(), (s[0], s[1]))
    ),
    "softmax": lambda call, s, y: Held(y),
    "log_softmax": lambda call, s, y: Scaled(torch.ones_like(y[:1]), y - s[0]),
    "local_response_norm": lambda call, s, y: Scaled(torch.where(s[0] == 0, 0, y / s[0]), None),
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
    "instance_norm": _group_norm,
    "attention": _attention,
}
