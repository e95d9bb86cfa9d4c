"""A layer with weights as its rules see it: one signal, its weights, its bias, and the batch norm that is part of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from backlit.capture import Call
from backlit.capture.geometry import Geometry


@dataclass(frozen=True)
class Layer:
    """``y = linear(x, weight) + bias``; :meth:`transposed` is the transpose of the linear map."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    call: Call
    place: str  # the name of the weight among the call's arguments
    halves: dict[int, Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, call: Call, inputs: tuple[Tensor, ...]) -> Layer | None:
        """The layer of a call on one signal; None where no single tensor of weights meets it."""
        place = _weight_place(call)
        if place is None or len(inputs) != 1:
            return None
        bias = call["input"] * call.get("beta", 1) if call.primitive.name == "addmm" else call.get("bias")
        weight = call[place] * call.get("alpha", 1) if call.primitive.name == "addmm" else call[place]
        for norm in call.joined:
            if norm.primitive.name != "batch_norm":
                break
            scale, shift = affine_of(norm, weight.dtype)
            bias = shift if bias is None else bias * scale + shift
            weight = weight * _along_outputs(scale, weight, call)
        return cls(inputs[0], weight, bias, call, place)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The layer on other values, with other weights and another bias or none, shaped as ``bias_along``."""
        name = self.call.primitive.name
        if self.is_convolution or name == "linear":
            return self.call.run(x, **{self.place: weight, "bias": None if bias is None else bias.flatten()})
        if name == "addmm" and self.place == "mat1":
            return _plus(weight @ x, bias)
        return _plus(x @ weight if name == "addmm" else self.call.run(x, **{self.place: weight}), bias)

    def transposed(self, s: Tensor, weight: Tensor) -> Tensor:
        """Return what ``linear`` reads from each input, weighted by ``s``."""
        x, name = self.x, self.call.primitive.name
        if name == "linear":
            return s @ weight if weight.dim() > 1 else s[..., None] * weight
        if self.is_convolution and x.dim() == weight.dim() and not Geometry.of(self.call).uneven:
            return convolution_back(s, x, weight, self.call)
        second = torch.is_grad_enabled()
        with torch.enable_grad():
            leaf = torch.zeros_like(x).requires_grad_()
            return torch.autograd.grad(self.linear(leaf, weight), leaf, s, create_graph=second)[0]

    @property
    def is_convolution(self) -> bool:
        """Tell whether the layer is a convolution."""
        return self.call.primitive.has("convolution")

    def half(self, sign: int) -> Tensor:
        """The weights of one sign; computed once."""
        if sign not in self.halves:
            self.halves[sign] = half(self.weight, sign)
        return self.halves[sign]

    @cached_property
    def nonnegative(self) -> bool:
        """Tell whether no input is below zero, as behind a ReLU."""
        return self.x.numel() == 0 or not bool(self.x.amin() < 0)

    @property
    def bias_along(self) -> Tensor | None:
        """The bias, shaped to be added to the output."""
        if self.bias is None or not self.is_convolution:
            return self.bias
        return self.bias.view(-1, *[1] * (self.weight.dim() - 2))

    @property
    def of_one(self) -> tuple[int, ...]:
        """The output's dimensions that belong to one image for certain: its features, and its map; none if it has no such."""
        if self.is_convolution:
            return tuple(range(1 - self.weight.dim(), 0))
        if self.call.primitive.name == "einsum":
            return _features_of_einsum(self.call, self.place)
        if self.weight.dim() < 2:  # one number for each row
            return ()
        left = self.place in ("input", "mat1")  # w @ x, with the features above the images
        return (-2,) if left and self.x.dim() > 1 else (-1,)

    def taken(self, s: Tensor, bias: Tensor | None) -> Tensor | None:
        """``s * bias``, the relevance of a bias shaped to be added to the output, summed over what is one image's."""
        if bias is None:
            return None
        if self.is_convolution:
            s = s.sum(tuple(range(2 - self.weight.dim(), 0)))
            return (s * bias.flatten()).sum(-1)
        dims = self.of_one
        return (s * bias).sum(dims) if dims else s * bias

    @property
    def has_batch(self) -> bool:
        """Tell whether the input's first dimension is no feature: the network may call a layer for one image, without it."""
        features = self.weight.dim() - 1 if self.is_convolution else 1
        return self.place == "weight" and self.x.dim() > features


def half(weight: Tensor, sign: int) -> Tensor:
    """Weights of one sign, zero elsewhere."""
    return weight.clamp(min=0) if sign > 0 else weight.clamp(max=0)


def _plus(y: Tensor, bias: Tensor | None) -> Tensor:
    return y if bias is None else y + bias


def affine_of(norm: Call, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Scale and shift (c,) of a batch norm on its running statistics."""
    mean, variance = norm["running_mean"].double(), norm["running_var"].double()
    scale = (variance + norm.get("eps", 1e-5)).rsqrt()
    if norm.get("weight") is not None:
        scale = scale * norm["weight"].double()
    shift = -mean * scale
    if norm.get("bias") is not None:
        shift = shift + norm["bias"].double()
    return scale.to(dtype), shift.to(dtype)


def difference(g: Tensor, output: Tensor, inputs: tuple[Tensor, ...], grads: tuple[Tensor | None, ...]) -> Tensor:
    """``sum g output - sum m_i x_i``: what a call's constants take, apart by the dimensions that all its tensors share."""
    pairs = [(g, finite(output)), *((-m, finite(x)) for m, x in zip(grads, inputs, strict=True) if m is not None)]
    kept = 0
    while kept < 2 and all(y.dim() > kept and y.shape[kept] == output.shape[kept] for _, y in pairs):
        kept += 1
    sums = [(m * y).sum(tuple(range(kept, y.dim()))) if y.dim() > kept else m * y for m, y in pairs]
    return torch.stack(sums).sum(0)


def finite(values: Tensor) -> Tensor:
    """The values, zero where they are infinite: a mask before a softmax, whose multipliers are zero."""
    return values if bool(values.isfinite().all()) else torch.where(values.isinf(), 0, values)


def _weight_place(call: Call) -> str | None:
    name, signals = call.primitive.name, {place for place, _ in call.places}
    if call.primitive.has("convolution") or name == "linear":
        return "weight"
    if name == "matmul":
        return "other" if "input" in signals else "input"
    if name == "addmm":
        return None if "input" in signals else "mat2" if "mat1" in signals else "mat1"
    if name == "einsum":
        constants = [k for k, v in call.arguments.items() if isinstance(v, Tensor) and k not in signals]
        return constants[0] if len(constants) == 1 else None
    return None


def _features_of_einsum(call: Call, place: str) -> tuple[int, ...]:
    """The output's dimensions that only the weights have."""
    equation = call["#0"]
    if not isinstance(equation, str):
        return ()
    terms, arrow, output = equation.replace(" ", "").replace("...", ".").partition("->")
    own = terms.split(",")[int(place[1:]) - 1]
    others = terms.replace(own, "", 1)
    if not arrow:
        output = "." * ("." in terms) + "".join(sorted(x for x in terms if x.isalpha() and terms.count(x) == 1))
    found = [i for i, label in enumerate(output) if label in own and label not in others]
    after = output.find(".")  # an ellipsis is any number of dimensions: what follows it is counted from the end
    return tuple(i if i < after else i - len(output) for i in found)


def _along_outputs(scale: Tensor, weight: Tensor, call: Call) -> Tensor:
    """One number an output channel, shaped to multiply the weights of a convolution or a linear layer."""
    if not call.primitive.has("transposed"):
        return scale.view(-1, *[1] * (weight.dim() - 1))
    groups = call.get("groups", 1)  # a transposed convolution's weights are (in, out / groups, ...)
    per_group = scale.view(groups, 1, -1).expand(-1, weight.shape[0] // groups, -1)
    return per_group.reshape(*weight.shape[:2], *[1] * (weight.dim() - 2))


def convolution_back(s: Tensor, x: Tensor, weight: Tensor, call: Call) -> Tensor:
    """The transpose of a convolution, with a weight of its own, for an input shaped as ``x`` (n, c, ...)."""
    g = Geometry.of(call)
    sizes = (g.stride, g.padding, g.dilation, g.transposed, g.output_padding, call.get("groups", 1))
    backward: Callable[..., tuple[Tensor, ...]] = torch.ops.aten.convolution_backward.default
    return backward(s, x, weight, None, *sizes, [True, False, False])[0]
