"""What a score reads: a backward pass of true and false, in which nothing cancels and no rectifier is closed.

A gradient of zero says that a value does not matter here and now; this pass says whether it is read at all. A class token
that alone feeds the head reads no other token, and a score of one head nothing of another head's branch.

It goes back through the calls of one recorded forward pass. A *mask* says which elements of a value are read, with size 1
along axes on which nothing of this changes: a convolution reads all channels of a place or none, so that its mask costs one
channel, and what is read whole costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from backlit.capture.canonical import Call
from backlit.capture.watch import floats

Mask = Tensor
"""Bool, with as many axes as its value; see the module's text."""


@dataclass(frozen=True, eq=False)
class Step:
    """A call as this pass needs it.

    ``call`` has no signals, and indices of its own, which the network cannot write to. ``signals`` and ``outputs`` are zeros
    that take no memory, as only their shapes matter, but for the signals of a pool. ``parents`` are the names of the values
    that the signals are, ``names`` those of the call's own outputs.
    """

    call: Call
    signals: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    parents: tuple[str, ...]
    names: tuple[str, ...]


def step_of(call: Call, outputs: Sequence[Tensor], parents: Sequence[str], names: Sequence[str]) -> Step:
    """The step of a call that put out ``outputs``."""
    pool = call.primitive.has("pool")
    signals = tuple(s.detach() if pool else _like(s) for s in call.signals)
    bare = call.without_signals()
    bare = replace(bare, arguments={name: _fixed(value) for name, value in bare.arguments.items()})
    return Step(bare, signals, tuple(map(_like, outputs)), tuple(parents), tuple(names))


def reach(steps: Sequence[Step], output: str, mask: Mask, until: str | None = None) -> dict[str, Mask]:
    """The masks of all values that are read where the named output is read as the mask says.

    Args:
        steps: The calls of a forward pass, in order.
        output: Name of the value to begin at.
        mask: What is read of it.
        until: Stop where this value's mask is known; of earlier ones it is not.
    """
    masks = {output: mask}
    for step in reversed(steps):
        if until in step.names:
            break
        own = [masks.get(name) for name in step.names]
        if all(m is None for m in own):
            continue
        for parent, read in zip(step.parents, _read_by(step, own), strict=True):
            if read is not None:
                masks[parent] = masks[parent] | read if parent in masks else read
    return masks


Masks = Sequence[Mask | None]
Rule = Callable[[Step, Mask], Masks]


def _read_by(step: Step, own: list[Mask | None]) -> Masks:
    """The masks of a call's signals, from those of its outputs, by its role; what has no rule may read all of its input."""
    primitive = step.call.primitive
    elementwise = primitive.has("elementwise")
    if primitive.has("pool", "moves", "gathers", "averages") and not elementwise:  # their derivatives are masks already
        # Who reads all of what they put out reads all that they took.
        whole = primitive.has("keeps") and all(m is not None and m.numel() == 1 and bool(m) for m in own)
        return _all(step, own) if whole else _true(step, own)
    if len(own) != 1 or own[0] is None:
        return _all(step, own)
    if elementwise:
        return _elementwise(step, own[0])
    factors = _factors if primitive.has("layer", "contracts") else _every
    return _OWN.get(primitive.name, factors)(step, own[0])


def _fixed(value: Any) -> Any:
    """The value with copies of the indices and conditions in it."""
    if isinstance(value, Tensor):
        return value if value.is_floating_point() else value.clone()
    return type(value)(map(_fixed, value)) if type(value) in (list, tuple) else value


def _like(value: Tensor) -> Tensor:
    return value.detach().new_zeros(()).expand(value.shape)


def _all(step: Step, own: Masks) -> Masks:
    """Any element that is read reads all of the input."""
    read = torch.stack([m.any() for m in own if m is not None]).any()
    return [read.view([1] * s.dim()) for s in step.signals]


def _every(step: Step, mask: Mask) -> Masks:
    return _all(step, [mask])


def _true(step: Step, own: Masks) -> Masks:
    """The call's own derivative."""
    pool = step.call.primitive.has("pool")
    with torch.enable_grad():
        leaves = tuple(
            (s.detach() if pool else torch.zeros_like(s.contiguous())).requires_grad_() for s in step.signals
        )
        results = floats(step.call.run(*leaves))
        pairs = [(r, m.expand(r.shape).to(r.dtype)) for r, m in zip(results, own, strict=True) if m is not None]
        grads = torch.autograd.grad([r for r, _ in pairs], leaves, [m for _, m in pairs], allow_unused=True)
    return [None if g is None else _lean(g != 0) for g in grads]


def _elementwise(step: Step, mask: Mask) -> Masks:
    (out,), signals = step.outputs, step.signals
    if any(torch.broadcast_shapes(s.shape, out.shape) != out.shape for s in signals):
        return _every(step, mask)
    return [_reduced(mask, s.shape) for s in signals]


def _reduced(mask: Mask, shape: Sequence[int]) -> Mask:
    """The mask of what was broadcast: read where any of its copies is."""
    if mask.dim() > len(shape):
        mask = mask.flatten(0, mask.dim() - len(shape) - 1).any(0)
    for axis, size in enumerate(shape):
        if size == 1 and mask.shape[axis] != 1:
            mask = mask.any(axis, keepdim=True)
    return mask


def _factors(step: Step, mask: Mask) -> Masks:
    """The derivative of the layer or product with ones for its weights and for its other factor."""
    call = step.call
    if call.primitive.name == "linear" and mask.dim() == step.signals[0].dim():
        return [mask.any(-1, keepdim=True)]
    if call.primitive.has("convolution") and not call.primitive.has("transposed"):
        return [_convolution(step, mask)]
    places = {name for name, _ in call.places}
    ones: dict[str, Any] = {
        k: torch.ones_like(v)
        for k, v in call.arguments.items()
        if isinstance(v, Tensor) and v.is_floating_point() and k not in places
    }
    with torch.enable_grad():
        leaves = tuple(torch.ones_like(s.contiguous()).requires_grad_() for s in step.signals)
        result = call.run(*leaves, **ones)
        grads = torch.autograd.grad(result, leaves, mask.expand(result.shape).to(result.dtype), allow_unused=True)
    return [None if g is None else _lean(g != 0) for g in grads]


def _convolution(step: Step, mask: Mask) -> Mask:
    """Of one channel for each group, as all channels of a group are read alike; of one, if the mask does not tell them apart."""
    call, (x,), (out,) = step.call, step.signals, step.outputs
    weight, groups = call["weight"], call.get("groups", 1)
    channel = 1 - weight.dim()
    places = out.shape[channel + 1 :]
    mask = mask.expand(*mask.shape[: channel + 1 or None], *places)
    mask = mask.unflatten(channel, (groups, -1)).any(channel) if mask.shape[channel] > 1 else mask
    count = mask.shape[channel]
    with torch.enable_grad():
        leaf = torch.zeros(*mask.shape[: channel + 1], *x.shape[channel + 1 :], device=x.device, dtype=torch.float32)
        ones = torch.ones(count, 1, *weight.shape[2:], device=x.device, dtype=torch.float32)
        result = call.run(leaf.requires_grad_(), weight=ones, bias=None, groups=count)
        (grad,) = torch.autograd.grad(result, leaf, mask.float())
    read = grad != 0
    return read if count == 1 else read.repeat_interleave(x.shape[channel] // count, channel)


def _lean(mask: Mask) -> Mask:
    """One element, if all are read or none is."""
    some = mask.flatten()[:1]
    return some.view([1] * mask.dim()) if mask.numel() and bool((mask == some).all()) else mask


def _along(dims: Callable[[Call, Tensor], tuple[int, ...]]) -> Rule:
    """The rule of a call in which an element reads its whole row along some axes."""

    def rule(step: Step, mask: Mask) -> Masks:
        return [mask.any(dims(step.call, s), keepdim=True) for s in step.signals]

    return rule


def _attention(step: Step, mask: Mask) -> Masks:
    rows = mask.any(-1, keepdim=True)
    heads = rows.any(-2, keepdim=True)
    lead = step.outputs[0].shape[:-2]
    found: list[Mask] = []
    for (name, _), s in zip(step.call.places, step.signals, strict=True):
        found.append(rows if name == "query" else heads if lead == s.shape[:-2] else heads.any().view([1] * s.dim()))
    return found


def _glu(step: Step, mask: Mask) -> Masks:
    dim = step.call.get("dim", -1)
    return [mask if mask.shape[dim] == 1 else torch.cat([mask] * 2, dim)]


def _normalised(call: Call, x: Tensor) -> tuple[int, ...]:
    shape = call["normalized_shape"]
    return tuple(range(-(1 if isinstance(shape, int) else len(shape)), 0))


def _one_dim(call: Call, x: Tensor) -> tuple[int, ...]:
    return tuple(range(x.dim())) if call.get("dim") is None else (call["dim"],)


_OWN: dict[str, Rule] = {
    "layer_norm": _along(_normalised),
    "rms_norm": _along(_normalised),
    "softmax": _along(_one_dim),
    "log_softmax": _along(_one_dim),
    "attention": _attention,
    "glu": _glu,
}
