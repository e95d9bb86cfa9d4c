"""The network as the affine map that it is at x: gates, slopes and offsets, switches and gating factors fixed.

A ReLU network is affine around each input; here that map is an object. It computes forwards what a back-propagation
through the network computes backwards, biases included, and lets each activation be scaled on the way (DMBP's masks).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from backlit.capture.canonical import Call
from backlit.capture.fold import folded
from backlit.capture.forms import Scaled, frozen_form
from backlit.capture.record import Node, Recording, record
from backlit.capture.sites import Site, Trace

Activate = Callable[[Site, Scaled, Tensor], Tensor]
"""``activate(site, form, z)``: what an activation gives for ``z``; ``form(z)`` is the frozen activation itself."""


class FrozenNetwork:
    """The affine map of a network at the input it was frozen at.

    ``activations`` are the elementwise activations on the way to the output, in order. ``output`` is the network's own
    at the recorded input, ``recording`` the nodes that compute the map.
    """

    def __init__(self, recording: Recording, output: Tensor, constants: dict[int, Tensor] | None = None) -> None:
        self.recording = recording
        self._constants = constants or {}
        self._last = recording.last_uses()
        self.output = output

    @property
    def trace(self) -> Trace:
        """The sites of the recorded pass."""
        return self.recording.trace

    @property
    def activations(self) -> tuple[tuple[Site, Scaled], ...]:
        """Site and frozen form of every elementwise activation that the output depends on."""
        return tuple((n.call.site, n.form) for n in self.recording.nodes if _is_activation(n))  # type: ignore[misc]

    def __call__(self, *inputs: Tensor, activate: Activate | None = None) -> Tensor:
        """The affine map at ``inputs`` (shaped as the recorded ones); ``activate`` may scale the activations."""
        values = dict(self._constants)
        values.update(zip(self.recording.inputs, inputs, strict=bool(self.recording.inputs)))
        for i, node in enumerate(self.recording.nodes):
            if activate is not None and _is_activation(node):
                values[node.outputs[0]] = activate(node.call.site, node.form, values[node.sources[0]])  # type: ignore[arg-type]
            else:
                node.evaluate(values)
            for slot in self._last.get(i, ()):
                values.pop(slot, None)
        return values[self.recording.output]

    def at(self, *inputs: Tensor, scaled: Collection[str]) -> FrozenNetwork:
        """The map with its inputs fixed, of which only what follows the sites named in ``scaled`` is left to run."""
        values = dict(self._constants)
        values.update(zip(self.recording.inputs, inputs, strict=True))
        moving: set[int] = set()
        left: list[Node] = []
        for node in self.recording.nodes:
            if node.call.site.name in scaled or moving.intersection(node.sources):
                moving.update(node.outputs)
                left.append(node)
            else:
                node.evaluate(values)
        recording = replace(self.recording, nodes=tuple(left), inputs=())
        read = {slot for node in left for slot in node.sources} | {recording.output}
        return FrozenNetwork(recording, self.output, {k: v for k, v in values.items() if k in read})

    def to(self, *, dtype: torch.dtype | None = None, memory_format: torch.memory_format | None = None) -> Self:
        """The same map with its weights, slopes and constants in another precision or memory format."""

        def convert(tensor: Tensor) -> Tensor:
            if dtype is not None and tensor.is_floating_point():
                tensor = tensor.to(dtype)
            if memory_format is not None and tensor.dim() == 4:
                tensor = tensor.contiguous(memory_format=memory_format)
            return tensor

        return self.mapped(lambda node: (_converted(node, convert),), convert)

    def mapped(self, change: Callable[[Node], Sequence[Node]], convert: Callable[[Tensor], Tensor]) -> Self:
        """The map with other nodes in the place of each, and its fixed values and its output converted."""
        nodes = tuple(new for node in self.recording.nodes for new in change(node))
        constants = {k: convert(v) for k, v in self._constants.items()}
        return type(self)(replace(self.recording, nodes=nodes), convert(self.output), constants)


def freeze(model: nn.Module, *inputs: Tensor, fold: bool = True) -> FrozenNetwork:
    """Freeze ``model`` at ``inputs``: run it once and keep the affine map that it is there.

    Args:
        model: Any network of plain PyTorch operations, in eval mode. It is not changed.
        *inputs: Images (n, c, h, w) and whatever else its forward takes.
        fold: Fold batch norm by dataflow into the layer that feeds it.

    Raises:
        UnsupportedOp: If an operation cannot be seen or has no affine form.
    """
    recording, output = record(model, inputs, frozen_form)
    return FrozenNetwork(folded(recording).pruned() if fold else recording, output)


def _is_activation(node: Node) -> bool:
    return node.call.site.kind == "activation" and isinstance(node.form, Scaled)


def _converted(node: Node, convert: Callable[[Tensor], Tensor]) -> Node:
    arguments = {k: convert(v) if isinstance(v, Tensor) else v for k, v in node.call.arguments.items()}
    call = replace(node.call, arguments=arguments)

    def one(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(one(v) for v in value)
        return convert(value) if isinstance(value, Tensor) else call if isinstance(value, Call) else value

    form: Any = node.form
    changes = {f.name: one(getattr(form, f.name)) for f in fields(form)} if is_dataclass(form) else {}
    return replace(node, call=call, form=replace(form, **changes) if changes else call.run)  # type: ignore[type-var]
