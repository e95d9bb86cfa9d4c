"""What each kind of call becomes in the affine map that a network is at one input.

Every form gives back the recorded value at the recorded input; what differs is what it holds fixed:

* activations: slope and offset per element. Piecewise-linear ones use their own piece; smooth ones the secant from
  (0, f(0)) to (z, f(z)), whose limit at z = 0 is f'(0);
* max-pools and maxima: what they picked;
* norms: the standard deviation, not the mean;
* products of signals: the factor that acts as a gate (a squashed or broadcast one); of equals, each in turn, in equal
  shares;
* softmax: its value, so that attention is a fixed mixing of its values;
* all else: the derivative, so that it is its own tangent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from backlit.capture.canonical import Call
from backlit.capture.primitives import named
from backlit.capture.record import Form
from backlit.capture.watch import floats


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
class Shared:
    """A call linear in each signal, with all but one held, for each of ``places`` in turn: of two, the mean of both."""

    call: Call
    held: tuple[Tensor, ...]
    places: tuple[int, ...]

    def __call__(self, *signals: Tensor) -> Tensor:
        terms = (self.call.run(*self.held[:i], signals[i], *self.held[i + 1 :]) for i in self.places)
        return reduce(torch.add, terms) / len(self.places)


@dataclass(frozen=True)
class Tangent:
    """``f(z0) + J (z - z0)``: what any operation is near the recorded signals."""

    call: Call
    at: tuple[Tensor, ...]
    value: tuple[Tensor, ...]

    def __call__(self, *signals: Tensor) -> tuple[Tensor, ...]:
        changes = tuple(s - z for s, z in zip(signals, self.at, strict=True))
        return tuple(v + d for v, d in zip(self.value, derivative_along(self.call, self.at, changes), strict=True))


@dataclass(frozen=True)
class Centred:
    """Layer, group and instance norm with the standard deviation held: the mean still follows the signal.

    The mean is that of all dimensions behind the first ``lead``, in ``groups`` if it has any.
    """

    lead: int
    groups: tuple[int, ...]
    scale: Tensor
    shift: Tensor | None

    def __call__(self, z: Tensor) -> Tensor:
        flat = z.reshape(*z.shape[: self.lead], *self.groups, -1)
        scaled = (flat - flat.mean(-1, keepdim=True)).reshape(z.shape) * self.scale
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
    """The affine form of a call at the recorded signals."""
    if call.site.kind == "affine":
        return call.without_signals().run
    former = _activation if call.site.kind == "activation" else _FORMERS.get(call.site.primitive, _tangent)
    return former(call, signals, result)


def _slopes(call: Call, signals: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Derivative of the sum of a call's output to each signal: per element for elementwise calls."""
    with torch.enable_grad():
        leaves = tuple(s.detach().requires_grad_() for s in signals)
        result = call.run(*leaves)
        result = result if isinstance(result, Tensor) else result[0]
        return torch.autograd.grad(result.sum(), leaves)


def derivative_along(call: Call, at: tuple[Tensor, ...], along: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """J v for each output, J the derivative of a call at signals z and v a change of them.

    It is the derivative of u -> J^T u along v: no state is shared with other threads, as forward mode's level is.
    """
    with torch.enable_grad():
        leaves = tuple(z.detach().requires_grad_() for z in at)
        outputs = floats(call.run(*leaves))
        u = tuple(torch.zeros_like(y, requires_grad=True) for y in outputs)
        back = torch.autograd.grad(outputs, leaves, u, create_graph=True)
        return torch.autograd.grad(
            back, u, along, create_graph=any(v.requires_grad for v in along), materialize_grads=True
        )


def _tangent(call: Call, signals: tuple[Tensor, ...], result: Any) -> Form:
    return Tangent(call.without_signals(), signals, tuple(floats(result)))


def _activation(call: Call, signals: tuple[Tensor, ...], y: Tensor) -> Form:
    z = signals[0]
    if call.primitive.name == "relu":
        return Scaled(z > 0, None)
    if len(signals) > 1 or z.shape != y.shape:  # torch.where(x > 0, f(x), g(x)): affine once the condition is fixed
        return call.without_signals().run if call.primitive.name == "gated" else _tangent(call, signals, y)
    if call.primitive.has("piecewise", "infinite"):
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
    indices = result[1] if call.get("return_indices") else call.run(*signals, return_indices=True)[1]
    return Switched(indices, call.primitive.spatial)


def _held(call: Call, signals: tuple[Tensor, ...], result: Any) -> Form:
    places = tuple(range(len(signals)))
    if call.primitive.name == "quotient":  # the divisor
        places = places[:-1]
    elif call.primitive.name == "product" and signals[0].shape != signals[1].shape:
        places = (int(signals[0].numel() < signals[1].numel()),)
    return Shared(call.without_signals(), signals, places) if places else Held(result)


def _norm(call: Call, signals: tuple[Tensor, ...], result: Tensor) -> Form:
    z, of_layer = signals[0], call.primitive.name == "layer_norm"
    lead = z.dim() - len(call["normalized_shape"]) if of_layer else 1
    groups: tuple[int, ...] = () if of_layer else (call.get("num_groups") or z.shape[1],)
    affine = (call.get("weight"), call.get("bias"))
    weight, shift = (v if v is None or of_layer else v.view(-1, *[1] * (z.dim() - 2)) for v in affine)
    flat = z.reshape(*z.shape[:lead], *groups, -1)
    scale = (flat.var(-1, unbiased=False) + call.get("eps", 1e-5)).rsqrt()
    scale = scale.repeat_interleave(z.shape[1] // groups[0], 1) if groups else scale
    scale = scale.reshape(*scale.shape, *[1] * (z.dim() - scale.dim()))
    return Centred(lead, groups, scale if weight is None else scale * weight, shift)


def _attention(call: Call, signals: tuple[Tensor, ...], result: Tensor) -> Form:
    names = [n for n, _ in call.places]
    if "value" not in names:
        return Held(result)
    if call.get("enable_gqa"):
        return Shared(call.without_signals(), signals, (names.index("value"),))
    query, key, value = call["query"], call["key"], call["value"]
    # Attention of the unit vectors is the attention matrix itself, with every option as the network set it.
    eye = torch.eye(value.shape[-2], dtype=value.dtype, device=value.device).expand(*value.shape[:-2], -1, -1)
    weights = replace(call, places=()).run(query=query.detach(), key=key.detach(), value=eye)
    return Mixed(weights, names.index("value"))


_FORMERS: dict[str, Callable[[Call, tuple[Tensor, ...], Any], Form]] = {
    **dict.fromkeys(named("pool", kind="selection"), _max_pool),
    **dict.fromkeys(("product", "quotient", "matrix_product", "einsum_product"), _held),
    "softmax": lambda call, s, y: Held(y),
    "log_softmax": lambda call, s, y: Scaled(torch.ones_like(y[:1]), y - s[0]),
    **dict.fromkeys(
        ("local_response_norm", "rms_norm"), lambda call, s, y: Scaled(torch.where(s[0] == 0, 0, y / s[0]), None)
    ),
    **dict.fromkeys(("layer_norm", "group_norm", "instance_norm"), _norm),
    "attention": _attention,
}
