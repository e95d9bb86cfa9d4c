"""Fold batch norm into the convolution or linear layer that feeds it, wherever the two stand.

The pair is found by dataflow: the batch norm reads a value that one convolution or linear layer made and that nothing
else reads. Each fold is checked on a probe in float64 before it is believed; a pair that fails stays two operations.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backlit.capture.canonical import Call
from backlit.capture.primitives import CONVOLUTIONS, Primitive
from backlit.capture.record import Recording, record
from backlit.capture.sites import Trace


def folded(recording: Recording) -> Recording:
    """The recording with every batch norm that can be folded gone, its layer computing both."""
    nodes = list(recording.nodes)
    for layer, norm in _pairs(recording):
        call = _fold(nodes[layer].call, nodes[norm].call)
        if call is not None:
            nodes[layer] = replace(nodes[layer], call=call, form=call.run, outputs=nodes[norm].outputs)
            nodes[norm] = replace(nodes[norm], outputs=())
    return replace(recording, nodes=tuple(node for node in nodes if node.outputs))


def fold_plan(
    model: nn.Module, inputs: tuple[Tensor, ...]
) -> tuple[dict[tuple[str, str], Callable[[Call], Call]], Trace]:
    """For each site (name, module) of a pair that folds, what its call becomes: the layer does both, the norm nothing.

    Also the recorded trace: the plan holds for runs that make the same calls.
    """
    recording, _ = record(model, inputs, lambda call, signals, result: call.without_signals().run)
    plan: dict[tuple[str, str], Callable[[Call], Call]] = {}
    for layer, norm in _pairs(recording):
        node, batch_norm = recording.nodes[layer], recording.nodes[norm]
        call = _fold(node.call, batch_norm.call)
        if call is not None:
            changes = {"weight": call["weight"], "bias": call["bias"]}
            plan[node.call.site.name, node.call.site.module] = lambda c, changes=changes: replace(
                c, arguments={**c.arguments, **changes}
            )
            plan[batch_norm.call.site.name, batch_norm.call.site.module] = _as_identity
    return plan, recording.trace


_IDENTITY = Primitive("identity", "affine", lambda input: input, "input")  # noqa: A006  torch's own name for it


def _as_identity(call: Call) -> Call:
    return replace(call, primitive=_IDENTITY, arguments={"input": call["input"]})


def _pairs(recording: Recording) -> list[tuple[int, int]]:
    made = {slot: i for i, node in enumerate(recording.nodes) for slot in node.outputs}
    reads = Counter(slot for node in recording.nodes for slot in node.sources)
    reads.update((recording.output, *recording.peeked))
    pairs = []
    for i, node in enumerate(recording.nodes):
        if node.call.primitive.name != "batch_norm" or node.call.get("running_var") is None:
            continue
        (slot,) = node.sources
        layer = made.get(slot)
        if layer is not None and reads[slot] == 1 and foldable(recording.nodes[layer].call):
            pairs.append((layer, i))
    return pairs


def foldable(call: Call) -> bool:
    """Whether a batch norm may be part of this layer."""
    # A linear layer's outputs are the norm's channels only where they stand in the second dimension.
    return call.primitive.name in CONVOLUTIONS or (
        call.primitive.name == "linear" and len(call.site.input_shapes[0]) == 2
    )


def _fold(layer: Call, norm: Call) -> Call | None:
    """The layer with the norm's scale and shift in its weight and bias; None if the probe disagrees."""
    weight = layer["weight"]
    mean, var = norm["running_mean"].double(), norm["running_var"].double()
    scale = (var + norm.get("eps", 1e-5)).rsqrt()
    if norm.get("weight") is not None:
        scale = scale * norm["weight"].double()
    bias = layer.get("bias")
    new_bias = ((0 if bias is None else bias.double()) - mean) * scale
    if norm.get("bias") is not None:
        new_bias = new_bias + norm["bias"].double()
    if "transpose" in layer.primitive.name:
        groups = layer.get("groups", 1)
        grouped = weight.double().view(groups, -1, *weight.shape[1:])
        new_weight = (grouped * scale.view(groups, 1, -1, *[1] * (weight.dim() - 2))).view(weight.shape)
    else:
        new_weight = weight.double() * scale.view(-1, *[1] * (weight.dim() - 1))
    exact = replace(layer, arguments={**layer.arguments, "weight": new_weight, "bias": new_bias})
    if not _agrees(layer, norm, exact):
        return None
    changes = {"weight": new_weight.to(weight.dtype), "bias": new_bias.to(weight.dtype)}
    return replace(layer, arguments={**layer.arguments, **changes})


def _agrees(layer: Call, norm: Call, exact: Call) -> bool:
    weight = layer["weight"].double()
    bias = layer.get("bias")
    generator = torch.Generator().manual_seed(0)
    shape = layer.site.input_shapes[0][1:]
    if layer.primitive.name != "linear":  # two windows along each side are enough
        dilation = layer.get("dilation", 1)
        dilations = (dilation,) * (weight.dim() - 2) if isinstance(dilation, int) else dilation
        shape = (shape[0], *(d * (k - 1) + 2 for d, k in zip(dilations, weight.shape[2:], strict=True)))
    probe = torch.randn((3, *shape), generator=generator, dtype=torch.float64).to(weight.device)
    z = layer.run(probe, weight=weight, bias=None if bias is None else bias.double())
    mean, var, scale, shift = (
        None if norm.get(k) is None else norm[k].double() for k in ("running_mean", "running_var", "weight", "bias")
    )
    expected = F.batch_norm(z, mean, var, scale, shift, eps=norm.get("eps", 1e-5))
    gap = (exact.run(probe) - expected).abs().max()
    return bool(gap <= 1e-9 * expected.abs().max())  # False for NaN, too
