"""Where a learned method acts, by dataflow: beside the identities of residual sums, behind layers, between convolutions."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch
from torch import Tensor

from backlit.capture import FrozenNetwork, Site
from backlit.capture.forms import Scaled
from backlit.capture.record import Node, Recording
from backlit.methods.inputs import alike


def behind_sums(frozen: FrozenNetwork) -> frozenset[str]:
    """Names of the sites that read a sum of two signals, with at most moves, scales or shifts between.

    Such an activation of a residual network stands on the identity: each later block's identity crosses it, while what a
    norm or a layer separates from the sum stands on the next branch.
    """
    makers = {slot: node for node in frozen.recording.nodes for slot in node.outputs}
    return frozenset(
        node.call.site.name
        for node in frozen.recording.nodes
        if len(node.sources) == 1 and _is_sum(makers.get(node.sources[0]), makers)
    )


def _is_sum(node: Node | None, makers: dict[int, Node]) -> bool:
    while node is not None:
        primitive = node.call.primitive
        if len(node.sources) > 1 and primitive.has("adds", "blends"):
            return True
        reduced = primitive.has("averages") and primitive.has("reduces")
        if not (reduced or primitive.has("carries")) or not node.sources:
            return False
        node = makers.get(node.sources[0])
        if reduced:  # a sum of signals that were stacked for it
            return node is not None and len(node.sources) > 1 and node.call.primitive.has("stacks")
    return False


def with_layers(frozen: FrozenNetwork, masked: Collection[str]) -> FrozenNetwork:
    """The same map with an activation of slope 1 behind each layer that still needs a mask.

    That is each layer with weights, whose output none of the activations named in ``masked``
    reads, with at most moves, scales and shifts between, and behind which another layer follows: the last one computes the
    logits. Its site is the layer's.
    """
    covered: set[int] = set()  # values that a masked activation reads
    inner: set[int] = set()  # values that a later layer depends on
    for node in reversed(frozen.recording.nodes):
        primitive = node.call.primitive
        if _is_layer(node) or inner.intersection(node.outputs):
            inner.update(node.sources)
        moves = primitive.has("moves") and not primitive.has("elementwise")
        carries = primitive.has("carries") and (moves or len(node.sources) == 1)
        if node.call.site.name in masked or (carries and covered.intersection(node.outputs)):
            # Of what else a move reads, such as the shape of view_as, no value goes on.
            covered.update(node.sources if primitive.name == "setitem" or not carries else node.sources[:1])

    def change(node: Node) -> tuple[Node, ...]:
        (output,) = node.outputs if len(node.outputs) == 1 else (-1,)
        if not _is_layer(node) or output not in inner or output in covered:
            return (node,)
        site = replace(frozen.trace[node.call.site.name], kind="activation")
        ones = torch.ones(site.output_shape, dtype=torch.bool, device=frozen.output.device)
        gate = Node(
            replace(node.call, site=site), (~output,), node.outputs, Scaled(ones, None)
        )  # recorded slots are >= 0
        return replace(node, outputs=(~output,)), gate

    return frozen.mapped(change, lambda value: value)


@torch.no_grad()
def images_apart(frozen: FrozenNetwork, inputs: tuple[Tensor, ...]) -> frozenset[str]:
    """Names of the layers behind which ``with_layers`` put an activation, and whose output has the images first.

    The network has each image twice. Others, such as layers between tokens that come before the images, cannot be masked
    image by image.
    """
    apart: set[str] = set()

    def activate(site: Site, form: Scaled, z: Tensor) -> Tensor:
        images_first = site.has("layer") and z.dim() > 0 and z.shape[0] % (2 * len(inputs[0])) == 0
        if images_first and alike(*z.chunk(2)):
            apart.add(site.name)
        return form(z)

    dtype = frozen.output.dtype
    frozen(*(torch.cat([x, x]).to(dtype) for x in inputs), activate=activate)
    return frozenset(apart)


def _is_layer(node: Node) -> bool:
    return node.call.primitive.has("layer") and len(node.sources) == 1


def between_convolutions(recording: Recording) -> frozenset[str]:
    """Names of the activations that have a convolution before them and one behind them, by dataflow."""
    before: set[int] = set()
    behind: set[int] = set()
    for nodes, reached, come, go in (
        (recording.nodes, before, "sources", "outputs"),
        (reversed(recording.nodes), behind, "outputs", "sources"),
    ):
        for node in nodes:
            if node.call.primitive.has("convolution") or reached.intersection(getattr(node, come)):
                reached.update(getattr(node, go))
    return frozenset(
        node.call.site.name
        for node in recording.nodes
        if node.call.site.kind == "activation"
        and before.intersection(node.sources)
        and behind.intersection(node.outputs)
    )
