"""Fold batch norm into the convolution or linear layer that feeds it, wherever the two stand.

The pair is found by dataflow: the batch norm reads a value that one convolution or linear layer made and that nothing
else reads. Each fold is checked on a probe in float64 before it is believed; a pair that fails stays two operations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backlit.capture.canonical import Call
from backlit.capture.geometry import Geometry
from backlit.capture.joins import Chains
from backlit.capture.primitives import Primitive
from backlit.capture.record import Recording, record
from backlit.capture.sites import Trace

Plan = dict[tuple[str, str], Callable[[Call], Call]]
"""What the call of each site (name, module) becomes."""


def folded(recording: Recording) -> Recording:
    """The recording with every batch norm that can be folded gone, its layer computing both."""
    nodes = list(recording.nodes)
    for layer, norm, call in _folds(recording):
        nodes[layer] = replace(nodes[layer], call=call, form=call.run, outputs=nodes[norm].outputs)
        nodes[norm] = replace(nodes[norm], outputs=())
    return replace(recording, nodes=tuple(node for node in nodes if node.outputs))


def fold_plan(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Plan, Trace]:
    """For each site (name, module) of a pair that folds, what its call becomes: the layer does both, the norm nothing.

    Also the recorded trace: the plan holds for runs that make the same calls.
    """
    recording, _ = record(model, inputs, lambda call, signals, result: call.without_signals().run)
    plan: Plan = {}
    for layer, norm, call in _folds(recording):
        site, absorbed = recording.nodes[layer].call.site, recording.nodes[norm].call.site
        changes = {"weight": call["weight"], "bias": call["bias"]}
        plan[site.name, site.module] = lambda c, changes=changes: replace(c, arguments={**c.arguments, **changes})
        plan[absorbed.name, absorbed.module] = _as_identity
    return plan, recording.trace


_IDENTITY = Primitive("identity", "affine", lambda input: input, "input", frozenset({"homogeneous"}))  # noqa: A006


def _as_identity(call: Call) -> Call:
    return replace(call, primitive=_IDENTITY, arguments={"input": call["input"]})


def _folds(recording: Recording) -> Iterator[tuple[int, int, Call]]:
    """The places of each layer and the batch norm that it can take in, and the call that computes both."""
    chains = Chains({})
    for i, node in enumerate(recording.nodes):
        norm = node.call.primitive.name == "batch_norm" and node.call.get("running_var") is not None
        link = chains.enter(node.call, node.sources, i, joins=norm)
        if link is not None:
            chains.leave(link, node.outputs[0])
    chains.read((recording.output, *recording.peeked))
    for chain in chains.all:
        call = _fold(*chain.calls[:2]) if chain.joined else None
        if call is not None:
            yield chain.places[0], chain.places[1], call


def _fold(layer: Call, norm: Call) -> Call | None:
    """The layer with the norm's scale and shift in its weight and bias; None if the probe disagrees."""
    weight, bias, eps = layer["weight"], layer.get("bias"), norm.get("eps", 1e-5)
    names = ("running_mean", "running_var", "weight", "bias")
    mean, var, scale, shift = (None if norm.get(name) is None else norm[name].double() for name in names)

    def normed(z: Tensor) -> Tensor:
        return F.batch_norm(z, mean, var, scale, shift, eps=eps)

    new_bias = normed((torch.zeros_like(norm["running_mean"]).double() if bias is None else bias.double())[None])[0]
    factor = (var + eps).rsqrt() if scale is None else (var + eps).rsqrt() * scale
    if layer.primitive.has("transposed"):
        groups = layer.get("groups", 1)
        grouped = weight.double().view(groups, -1, *weight.shape[1:])
        new_weight = (grouped * factor.view(groups, 1, -1, *[1] * (weight.dim() - 2))).view(weight.shape)
    else:
        new_weight = weight.double() * factor.view(-1, *[1] * (weight.dim() - 1))
    exact = replace(layer, arguments={**layer.arguments, "weight": new_weight, "bias": new_bias})
    if not _agrees(layer, normed, exact):
        return None
    changes = {"weight": new_weight.to(weight.dtype), "bias": new_bias.to(weight.dtype)}
    return replace(layer, arguments={**layer.arguments, **changes})


def _agrees(layer: Call, normed: Callable[[Tensor], Tensor], exact: Call) -> bool:
    weight = layer["weight"].double()
    bias = layer.get("bias")
    generator = torch.Generator().manual_seed(0)
    shape = layer.site.input_shapes[0][1:]
    if layer.primitive.has("convolution"):  # two windows along each side are enough
        shape = (shape[0], *(reach + 2 for reach in Geometry.of(layer).reach))
    probe = torch.randn((3, *shape), generator=generator, dtype=torch.float64).to(weight.device)
    z = layer.run(probe, weight=weight, bias=None if bias is None else bias.double())
    expected = normed(z)
    gap = (exact.run(probe) - expected).abs().max()
    return bool(gap <= 1e-9 * expected.abs().max())  # False for NaN, too
