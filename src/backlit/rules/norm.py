"""Rules of relevance propagation at norms: the deviation is held, the mean follows the signal, the shift is a bias."""

from __future__ import annotations

import torch
from torch import Tensor

from backlit.capture import Call, Shares, rule
from backlit.rules.layer import affine_of

Result = tuple[Tensor | None, ...]


@rule(joins=True)  # read by nothing but this norm, a layer's rule takes it as part of the layer
def batch_norm(g: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> Shares:
    """``m = scale g``, the shift is a bias; for those that are not part of a layer."""
    scale, shift = affine_of(call, g.dtype)
    along = (-1, *[1] * (inputs[0].dim() - 2))
    return Shares((g * scale.view(along),), g * shift.view(along))


def layer_norm(g: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> Shares:
    """``m = centred(g weight / sigma)``: the identity rule for the division (AttnLRP, Prop. 3.4), exact for the mean."""
    dims = tuple(range(-len(call["normalized_shape"]), 0))
    sigma = (inputs[0].var(dims, unbiased=False, keepdim=True) + call.get("eps", 1e-5)).sqrt()
    weight, bias = call.get("weight"), call.get("bias")
    scaled = (g if weight is None else g * weight) / sigma
    return Shares((scaled - scaled.mean(dims, keepdim=True),), None if bias is None else g * bias)


def group_norm(g: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> Shares:
    """The same within each group of channels; an instance norm has as many groups as channels."""
    x = inputs[0]
    groups = call.get("num_groups") or x.shape[1]
    along = (-1, *[1] * (x.dim() - 2))
    weight, bias = call.get("weight"), call.get("bias")
    scaled = (g if weight is None else g * weight.view(along)).reshape(x.shape[0], groups, -1)
    variance = x.reshape(x.shape[0], groups, -1).var(-1, unbiased=False, keepdim=True)
    scaled = scaled / (variance + call.get("eps", 1e-5)).sqrt()
    m = (scaled - scaled.mean(-1, keepdim=True)).reshape(x.shape)
    return Shares((m,), None if bias is None else g * bias.view(along))


def rms_norm(g: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> Result:
    """``m = g weight / rms``: the identity rule for the division, as in layer norm."""
    x, weight, eps = inputs[0], call.get("weight"), call.get("eps")
    dims = tuple(range(-len(call["normalized_shape"]), 0))
    square = x.square().mean(dims, keepdim=True) + (torch.finfo(x.dtype).eps if eps is None else eps)
    return ((g if weight is None else g * weight) * square.rsqrt(),)


def cosine_similarity(g: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> Result:
    """A scalar product whose lengths are held: all to the one signal, half to each of two."""
    dim, eps = call.get("dim", 1), call.get("eps", 1e-8)
    signals = [name for name, _ in call.places]
    given = dict(zip(signals, inputs, strict=True))
    a, b = torch.broadcast_tensors(*(given.get(name, call[name]) for name in ("x1", "x2")))
    size_a, size_b = (torch.linalg.vector_norm(v, dim=dim, keepdim=True).clamp(min=eps) for v in (a, b))
    s = g.unsqueeze(dim) / (size_a * size_b) / len(inputs)
    found = {"x1": s * b, "x2": s * a}
    return tuple(found[name].sum_to_size(given[name].shape) for name in signals)
