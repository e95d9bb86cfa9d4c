"""Rules of layer-wise relevance propagation at layers with weights.

What flows is not the relevance R but the multiplier m = R / value (DeepLIFT's word). Then adds, concatenations, means,
pools and whatever else is linear need no rule: their true derivative shares R in proportion to each contribution, is
exact for signed and vanishing sums, and costs nothing. A rule computes, from the multiplier g of the output z,

    m_i = sum_j q_ij / x_i * s_j        s_j = g_j z_j / sum_i q_ij

with its own q: what input i contributes to output j. As every q here but those of the last section has the factor x_i, no
rule divides by a value. b is the bias, w+ and w- the positive and negative parts, P and N the positive and the negative
contributions: P = x+ w+ + x- w-, N = x+ w- + x- w+.

Sources: Bach et al. 2015 (epsilon, alpha-beta), Montavon et al. 2017 (z+, w-square, z-box), Montavon et al. 2019 (gamma),
Lapuschkin et al. 2019 (flat).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from backlit._errors import InputError
from backlit.capture import Call, Shares
from backlit.rules.exact import exact
from backlit.rules.layer import Layer, difference, half

_TINY = 1e-30
"""A sum of contributions below this is none: float32 holds 1e-38."""


class LayerRule:
    """The formula of a rule at a layer with weights: :meth:`through` says what its input and its bias get."""

    @property
    def __name__(self) -> str:
        return self.name

    name = "layer rule"

    def __call__(self, g: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> Shares:
        layer = Layer.of(call, inputs)
        if layer is None:
            return self.without_weights(g, inputs, output, call)
        m, taken = self.through(g, output, layer)
        return Shares((m,), taken)

    def without_weights(self, g: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> Shares:
        """The true derivative of an affine call with no single tensor of weights, and what its constants take."""
        grads = exact(g, inputs, output, call)
        return Shares(grads, difference(g, output, inputs, grads))

    def through(self, g: Tensor, z: Tensor, layer: Layer) -> tuple[Tensor, Tensor | None]:
        """The multiplier of the layer's input, and what its bias takes."""
        raise NotImplementedError


@dataclass(frozen=True)
class Epsilon(LayerRule):
    """``q = x w`` over ``z + eps sign(z)`` (Bach et al. 2015, Eq. 58): the gradient, damped by ``|z| / (|z| + eps)``.

    It needs the output only, no second forward pass. ``eps`` is ``epsilon`` times the mean |z| of the image's map, or of the
    token's features, so
    that it means the same in every network (where activations are far below it, an absolute 1e-6 takes nearly all the
    relevance); ``relative=False`` takes it as it is, as other libraries do, whose usual value is 1e-6. What it takes is lost.
    """

    epsilon: float = 1e-7
    relative: bool = True
    name = "epsilon"

    def __post_init__(self) -> None:
        _positive_number("epsilon", self.epsilon)

    def through(self, g: Tensor, z: Tensor, layer: Layer) -> tuple[Tensor, Tensor | None]:
        s = g * self.damping(z, layer)
        return layer.transposed(s, layer.weight), layer.taken(s, layer.bias_along)

    def damping(self, z: Tensor, layer: Layer) -> Tensor:
        """``|z| / (|z| + eps)``."""
        size = z.abs()
        epsilon: float | Tensor = self.epsilon
        if self.relative:
            around = layer.of_one
            mean = size.mean(around, keepdim=True) if around else size
            epsilon = (epsilon * mean).clamp(min=torch.finfo(z.dtype).tiny)
        return size.div_(size + epsilon)


@dataclass(frozen=True)
class ZPlus(LayerRule):
    """``q = P`` over ``P + b+``: only what speaks for the output counts (Montavon et al. 2017, Eq. 13, for inputs >= 0 and b = 0).

    ``bias=False`` leaves b+ out: deep Taylor decomposition and excitation backprop. An output that nothing speaks for would
    lose its relevance; it gives it to its inputs by the epsilon rule, and to its bias where all of its inputs are zero.
    """

    bias: bool = True
    name = "z_plus"

    def through(self, g: Tensor, z: Tensor, layer: Layer) -> tuple[Tensor, Tensor | None]:
        along = layer.bias_along
        bias = along.clamp(min=0) if self.bias and along is not None else None
        s, none = self.shares(g, z, layer, bias)
        m, taken = through_part(layer, s, 1), layer.taken(s, bias)
        if none is None or _is_zero(g * none):
            return m, taken
        without, size = (z, z.abs()) if along is None else (z - along, z.abs() + along.abs())
        lost = none & (without.abs() > 100 * torch.finfo(z.dtype).eps * size)  # more than rounding
        m = m.add_(layer.transposed(g * torch.where(lost, over(z, without), 0), layer.weight))
        if along is None:
            return m, None
        alone = layer.taken(torch.where(none & ~lost, g * z, 0), torch.ones_like(along))  # the bias is all there is
        return m, alone if taken is None else taken + alone  # type: ignore[operator]

    def shares(self, g: Tensor, z: Tensor, layer: Layer, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """``R / (P + b+)``, and where nothing speaks for the output."""
        part = Part.of(layer, 1, bias)
        return per_unit(g * z, part.z, part.none), part.none


@dataclass(frozen=True)
class ClassContrast(LayerRule):
    """``P / sum P - N / sum N``: a class against the unit with its weights negated (Zhang et al. 2016, Sec. 3.3).

    For the last layer of excitation backprop, both shares of the class's own relevance; they sum to zero.
    """

    name = "contrast"

    def through(self, g: Tensor, z: Tensor, layer: Layer) -> tuple[Tensor, Tensor | None]:
        up, down = Part.of(layer, 1), Part.of(layer, -1)
        return up.transposed(g * over(z, up.z)) - down.transposed(g * over(z, down.z)), None


@dataclass(frozen=True)
class AlphaBeta(LayerRule):
    """``alpha P / (P + b+) - beta N / (N + b-)``, alpha - beta = 1 (Bach et al. 2015, Eq. 60).

    An output with contributions of one sign only gives its relevance to those, as if the other side's parameter were 0:
    the formula taken literally (``balanced=False``) would then make relevance out of nothing.
    """

    alpha: float = 2.0
    beta: float = 1.0
    balanced: bool = True
    name = "alpha_beta"

    def __post_init__(self) -> None:
        ok = isinstance(self.alpha, (int, float)) and isinstance(self.beta, (int, float))
        if not ok or not (abs(self.alpha - self.beta - 1) <= 1e-9 and 0 <= self.beta < float("inf")):
            raise InputError(
                f"alpha and beta must be numbers with alpha - beta = 1 and beta >= 0, but are {self.alpha!r} and "
                f"{self.beta!r}; otherwise relevance is not conserved. Use alpha=2, beta=1 or alpha=1, beta=0."
            )

    def through(self, g: Tensor, z: Tensor, layer: Layer) -> tuple[Tensor, Tensor | None]:
        bias = layer.bias_along
        above, below = (None, None) if bias is None else (bias.clamp(min=0), bias.clamp(max=0))
        s_up, s_down = self.shares(g, z, layer, above, below)
        m = through_part(layer, s_up, 1).add_(through_part(layer, s_down, -1))
        taken, given = layer.taken(s_up, above), layer.taken(s_down, below)
        return m, None if taken is None else taken + given  # type: ignore[operator]

    def shares(
        self, g: Tensor, z: Tensor, layer: Layer, above: Tensor | None, below: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """``alpha R / (P + b+)`` and ``-beta R / (N + b-)``."""
        up = Part.of(layer, 1, above)
        down = (up.rest(z) if _is_exact(z) else None) or Part.of(layer, -1, below)
        alpha: float | Tensor = self.alpha
        beta: float | Tensor = self.beta
        if self.balanced and down.none is not None:
            alpha, beta = torch.where(down.none, 1.0, alpha).to(z.dtype), torch.where(down.none, 0.0, beta).to(z.dtype)
        if self.balanced and up.none is not None:
            alpha, beta = torch.where(up.none, 0.0, alpha).to(z.dtype), torch.where(up.none, -1.0, beta).to(z.dtype)
        relevance = g * z
        return per_unit(alpha * relevance, up.z, up.none), per_unit(-beta * relevance, down.z, down.none)


@dataclass(frozen=True)
class Gamma(LayerRule):
    """``q = x w + gamma P`` where z > 0, ``x w + gamma N`` where z < 0 (Montavon et al. 2019, Sec. 10.2.3).

    The form for signed inputs and outputs; for inputs >= 0 and z > 0 it is the paper's ``x (w + gamma w+)``. The
    denominator ``z + gamma P`` has z's own sign, so nothing is divided by a sum that may vanish.
    """

    gamma: float = 0.25
    name = "gamma"

    def __post_init__(self) -> None:
        if not isinstance(self.gamma, (int, float)) or not 0 <= self.gamma < float("inf"):
            raise InputError(f"gamma must be a number of at least 0, but is {self.gamma!r}. The usual one is 0.25.")

    def through(self, g: Tensor, z: Tensor, layer: Layer) -> tuple[Tensor, Tensor | None]:
        s, bias = g * self.damping(z, layer), layer.bias_along
        s_up = torch.ops.aten.threshold_backward(s, z, 0)  # s where z > 0; torch.where takes many times as long
        s_down = s.sub_(s_up)
        m = through_part(layer, s_up, 1, layer.weight, self.gamma)
        taken = None if bias is None else layer.taken(s_up, bias + self.gamma * bias.clamp(min=0))
        if _is_zero(s_down):  # behind a ReLU
            return m, taken
        m = m.add_(through_part(layer, s_down, -1, layer.weight, self.gamma))
        if bias is None:
            return m, None
        return m, taken + layer.taken(s_down, bias + self.gamma * bias.clamp(max=0))  # type: ignore[operator]

    def damping(self, z: Tensor, layer: Layer) -> Tensor:
        """``z`` over ``z + gamma P`` or, below zero, ``z + gamma N``."""
        bias = layer.bias_along
        up = Part.of(layer, 1, None if bias is None else bias.clamp(min=0))
        size = z.abs()
        total = torch.add(size, up.z + (-z).relu(), alpha=self.gamma)  # P where z > 0, |N| = P - z where z < 0
        return size.div_(total.clamp(min=torch.finfo(z.dtype).tiny))


class PixelRule(LayerRule):
    """A rule that gives relevance to inputs that are zero: for layers that read the network's input, and for no other.

    It returns relevance instead of multipliers.
    """

    def without_weights(self, g: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> Shares:
        shares = super().without_weights(g, inputs, output, call)
        pairs = zip(shares.grads, inputs, strict=True)
        return replace(shares, grads=tuple(m if m is None else m * x for m, x in pairs))


@dataclass(frozen=True)
class Flat(PixelRule):
    """``q = 1`` for every weight: an output shares its relevance evenly (Lapuschkin et al. 2019)."""

    name = "flat"

    def through(self, g: Tensor, z: Tensor, layer: Layer) -> tuple[Tensor, Tensor | None]:
        return _evenly(g * z, layer, torch.ones_like(layer.weight)), None


@dataclass(frozen=True)
class WSquare(PixelRule):
    """``q = w^2`` (Montavon et al. 2017, Eq. 12): for inputs without bounds."""

    name = "w_square"

    def through(self, g: Tensor, z: Tensor, layer: Layer) -> tuple[Tensor, Tensor | None]:
        return _evenly(g * z, layer, layer.weight**2), None


Bound = float | Sequence[float] | Tensor


@dataclass(frozen=True)
class ZBox(PixelRule):
    """``q = x w - low w+ - high w-`` (Montavon et al. 2017, Eq. 14), for inputs between ``low`` and ``high``.

    A bound is a number, one a channel (the pixel values 0 and 1 after the network's normalisation), or a tensor that
    broadcasts with the input. None stands for the image's own least and largest value in each channel.
    Of an input far outside, the bounds are wrong, and it is refused; unless ``strict`` is False, as for images with noise.
    """

    low: Bound | None = None
    high: Bound | None = None
    strict: bool = True
    name = "z_box"

    def through(self, g: Tensor, z: Tensor, layer: Layer) -> tuple[Tensor, Tensor | None]:
        low, high = self.bounds(layer.x)
        above, below = layer.x - low, layer.x - high
        up, down = layer.weight.clamp(min=0), layer.weight.clamp(max=0)
        total = layer.linear(above, up) + layer.linear(below, down)
        s = g * z * over(1, total)
        return above * layer.transposed(s, up) + below * layer.transposed(s, down), None

    def bounds(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The bounds, shaped to broadcast with ``x``; a value outside, as after added noise, is its own bound.

        Raises:
            InputError: If there are as many as no dimension of ``x`` has; if strict, if the input lies outside by a tenth of
                the box.
        """
        own = tuple(range(2, x.dim())) or (1,)
        low = x.amin(own, keepdim=True) if self.low is None else bound_of("low", self.low, x)
        high = x.amax(own, keepdim=True) if self.high is None else bound_of("high", self.high, x)
        slack = 0.1 * (high - low).abs()
        if self.strict and not bool(((low - slack <= x) & (x <= high + slack)).all()):
            raise InputError(
                f"low and high must bound the input, but it reaches from {float(x.detach().min()):.4g} to "
                f"{float(x.detach().max()):.4g} and they are "
                f"{_shown(self.low)} and {_shown(self.high)}. For pixels in [0, 1] they are "
                "-mean / std and (1 - mean) / std of the network's normalisation: LoadedModel.preprocess.bounds."
            )
        return torch.minimum(low, x), torch.maximum(high, x)


@dataclass(frozen=True)
class Part:
    """The positive (sign 1) or negative (-1) contributions of a layer, with a bias if given, and their transpose.

    Inputs of one sign, as after a ReLU, need one convolution; others two.
    """

    layer: Layer
    sign: int
    z: Tensor
    none: Tensor | None  # where nothing of that sign contributes; None if that is nowhere

    @classmethod
    def of(cls, layer: Layer, sign: int, bias: Tensor | None = None) -> Part:
        """Compute the contributions of that sign."""
        x = layer.x
        if layer.nonnegative:
            z = _halves(layer, x, sign, bias)
        else:
            z = _halves(layer, x.clamp(min=0), sign, bias) + _halves(layer, x.clamp(max=0), -sign, None)
        if z.numel() == 0 or bool((z.amin() if sign > 0 else -z.amax()) > _TINY):
            return cls(layer, sign, z, None)
        return cls(layer, sign, z, sign * z <= _TINY)

    def rest(self, z: Tensor) -> Part | None:
        """The negative contributions to the output z: what the positive ones leave of it; None where that is rounding."""
        left = z - self.z
        beyond = torch.add(left, self.z, alpha=2**12 * torch.finfo(z.dtype).eps)
        return None if z.numel() and bool(beyond.amax() >= 0) else Part(self.layer, -self.sign, left, None)

    def transposed(self, s: Tensor) -> Tensor:
        """The multipliers ``q / x`` for this part as ``q``."""
        return through_part(self.layer, s, self.sign)


def through_part(layer: Layer, s: Tensor, sign: int, base: Tensor | None = None, factor: float = 1.0) -> Tensor:
    """The multipliers ``q / x`` for ``q = factor *`` the part of that sign, plus ``base`` weights where given."""
    m = _halves_transposed(layer, s, sign, base, factor)
    if layer.nonnegative:
        return m
    return torch.where(layer.x < 0, _halves_transposed(layer, s, -sign, base, factor), m)


_AT_ONCE = 2**21
"""Weights of a linear layer that are rectified at once: what a processor's cache still holds when they are read."""


def _is_exact(z: Tensor) -> bool:
    """Whether a difference of two outputs of a layer is more than rounding: not with TF32 or in half precision."""
    single = z.dtype in (torch.float32, torch.float64)
    return z.device.type == "cpu" and single and torch.get_float32_matmul_precision() == "highest"


def _is_zero(s: Tensor) -> bool:
    """Whether a tensor is known to be zero everywhere; not where it is differentiated again."""
    if torch.is_grad_enabled():
        return False
    try:
        return not bool(s.any())
    except RuntimeError:  # under vmap it stands for several tensors
        return False


def _halves(layer: Layer, x: Tensor, sign: int, bias: Tensor | None) -> Tensor:
    """The layer with its weights of one sign."""
    if not _is_large(layer):
        return layer.linear(x, layer.half(sign), bias)
    y = torch.cat([x @ half(rows, sign).mT for rows in _rows(layer.weight)], -1)
    return y if bias is None else y + bias


def _halves_transposed(layer: Layer, s: Tensor, sign: int, base: Tensor | None, factor: float) -> Tensor:
    """Its transpose; with other weights, ``base`` and ``factor`` times these, where given."""
    if base is None and _is_large(layer):
        parts = zip(s.split(_AT_ONCE // layer.weight.shape[1], -1), _rows(layer.weight), strict=True)
        return sum((p @ half(rows, sign) for p, rows in parts), s.new_zeros(()))
    weight = layer.half(sign)
    return layer.transposed(s, weight if base is None else base + factor * weight)


def _is_large(layer: Layer) -> bool:
    return layer.call.primitive.name == "linear" and layer.weight.numel() > _AT_ONCE >= layer.weight.shape[1]


def _rows(weight: Tensor) -> tuple[Tensor, ...]:
    return weight.split(_AT_ONCE // weight.shape[1])


def per_unit(relevance: Tensor, total: Tensor, none: Tensor | None) -> Tensor:
    """Relevance for each unit of contribution, ``relevance / total``; zero where there is none. Writes over ``relevance``."""
    return relevance.div_(total if none is None else total.masked_fill(none, torch.inf))


def over(a: Any, b: Tensor) -> Tensor:
    """``a / b``, and zero where b is."""
    none = b.abs() <= _TINY
    return a / (b.masked_fill(none, torch.inf) if bool(none.any()) else b)


def _evenly(relevance: Tensor, layer: Layer, weight: Tensor) -> Tensor:
    """Relevance shared by fixed weights, whatever the input."""
    ones = torch.ones_like(layer.x[:1] if layer.has_batch else layer.x)
    return layer.transposed(relevance * over(1, layer.linear(ones, weight)), weight)


def bound_of(name: str, value: Bound, x: Tensor) -> Tensor:
    """A bound as a tensor that broadcasts with ``x``.

    Raises:
        InputError: If it does not.
    """
    bound = torch.as_tensor(value, dtype=x.dtype, device=x.device)
    if bound.dim() == 1 and len(bound) > 1 and x.dim() > 1:
        bound = bound.view(-1, *[1] * (x.dim() - 2))
    try:
        fits = torch.broadcast_shapes(bound.shape, x.shape) == x.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise InputError(
            f"{name} must be a number, one for each channel, or a tensor that broadcasts with the input "
            f"{tuple(x.shape)}, but has shape {tuple(bound.shape)}."
        )
    return bound


def _shown(bound: Bound | None) -> str:
    if not isinstance(bound, Tensor) or bound.numel() == 0:
        return repr(bound)
    return f"a tensor from {float(bound.min()):.4g} to {float(bound.max()):.4g}"


def _positive_number(name: str, value: Any) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise InputError(
            f"{name} must be a positive number, but is {value!r}. A usual one is 1e-7; larger ones keep fewer, stronger "
            "contributions."
        )
