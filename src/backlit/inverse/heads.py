"""What stands between the layer that makes the logits and the logits: each class must stay apart, wherever it is moved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from backlit.capture.record import Node
from backlit.inverse import table


def why_mixed(node: Node, classes: int, shapes: Mapping[int, tuple[int, ...]], reads: Counter[int]) -> str | None:
    """Why the shapes of a call behind the last layer do not keep the classes apart; None if they may."""
    name = node.call.primitive.name
    if name in table.DENSE:
        return None if len(shapes[node.outputs[0]]) == 1 else "its output has more than the classes' dimension"
    if name in table.CONVOLUTIONS:
        return None if node.call.get("groups", 1) == 1 else "it makes the classes' maps in groups"
    source = shapes[node.sources[0]]
    apart = (
        len(node.sources) == 1 and len(node.outputs) == 1 and source[:1] == (classes,) == shapes[node.outputs[0]][:1]
    )
    if not apart or reads[node.sources[0]] > 1:
        return "it makes the logits out of several values, or mixes the classes"
    return None


def channels_before(
    node: Node, shape: Sequence[int], device: torch.device, channels: Sequence[int]
) -> list[int] | None:
    """The channel of a call's input (``shape``) that each class has, whose channel of its output ``channels`` names.

    Found by differentiating the call with one irregular weight for each channel of its output: an element that one channel
    alone reads gets that channel's weight, times what it gets with weights of 1. None if a channel is read by several, or a
    class by none.
    """
    if node.call.site.kind == "activation":
        return list(channels)  # elementwise
    k, generator = len(channels), torch.Generator().manual_seed(0)
    order = torch.randperm(k, generator=generator)
    weights = 1 + (order + torch.rand(k, generator=generator, dtype=torch.float64) / 2) / k
    leaf = torch.randn(tuple(shape), generator=generator, dtype=torch.float64).to(device)
    call = replace(node.call, arguments={name: _doubled(value) for name, value in node.call.arguments.items()})
    with torch.enable_grad():
        leaf.requires_grad_()
        y = call.run(leaf)
        y = y if isinstance(y, Tensor) else next(t for t in y if t.is_floating_point())
    weighted = weights.to(y).view(-1, *[1] * (y.dim() - 2)).expand_as(y)
    once = torch.autograd.grad(y, leaf, torch.ones_like(y), retain_graph=True)[0].transpose(0, 1).flatten(1).cpu()
    found = torch.autograd.grad(y, leaf, weighted)[0].transpose(0, 1).flatten(1).cpu()
    largest = once.abs().argmax(1, keepdim=True)
    ratio = (found / torch.where(once == 0, 1, once)).gather(1, largest)[:, 0]
    behind = order.argsort()[((ratio - 1) * k).long().clamp(0, k - 1)]
    alone = (found - weights[behind][:, None] * once).abs().amax(1) <= 1e-6 * once.abs().amax(1)
    if not bool(alone.all()) or behind.unique().numel() < k or bool((once == 0).all(1).any()):
        return None
    before = behind.argsort().tolist()
    return [before[channel] for channel in channels]


def _doubled(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
