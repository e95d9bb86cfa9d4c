"""Record a forward pass as a list of nodes: which call made which value from which."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from backlit._forward import unchanged
from backlit.capture.canonical import Call
from backlit.capture.refuse import check_model
from backlit.capture.sites import Trace
from backlit.capture.tensors import ByTensor
from backlit.capture.watch import Watch, floats

Form = Callable[..., Any]
"""``form(*signals)``: what a node computes from its signals."""
Former = Callable[[Call, tuple[Tensor, ...], Any], Form]
"""``former(call, signals, result)``: the form that a recorded call gets."""


@dataclass(frozen=True)
class Node:
    """One recorded call: the slots of its signals and of its results, and what it computes.

    Slots number the values of the pass. A node without sources is a constant of the recorded input.
    """

    call: Call
    sources: tuple[int, ...]
    outputs: tuple[int, ...]
    form: Form = field(repr=False)

    def evaluate(self, values: dict[int, Tensor]) -> None:
        """Compute the node's outputs from ``values`` and add them."""
        results = floats(self.form(*(values[s] for s in self.sources)))
        values.update(zip(self.outputs, results, strict=True))


@dataclass(frozen=True)
class Recording:
    """The nodes of one forward pass in order, the slots of its inputs, of its output, and of values read on the side."""

    nodes: tuple[Node, ...]
    inputs: tuple[int, ...]
    output: int
    trace: Trace
    peeked: frozenset[int]

    def pruned(self) -> Recording:
        """Without the nodes that the output does not need."""
        needed, kept = {self.output}, []
        for node in reversed(self.nodes):
            if needed.intersection(node.outputs):
                needed.update(node.sources)
                kept.append(node)
        return replace(self, nodes=tuple(reversed(kept)))

    def last_uses(self) -> dict[int, tuple[int, ...]]:
        """For each node's position, the slots that nothing after it reads."""
        last = {slot: i for i, node in enumerate(self.nodes) for slot in (*node.outputs, *node.sources)}
        done: dict[int, tuple[int, ...]] = {}
        for slot, i in last.items():
            if slot != self.output:
                done[i] = (*done.get(i, ()), slot)
        return done


def record(model: nn.Module, inputs: Any, former: Former, change: Any = None) -> tuple[Recording, Tensor]:
    """Run ``model`` once and record its calls; ``former`` says what each node computes. Returns the output, too.

    ``change(call)`` is what runs in place of a call.

    Raises:
        UnsupportedOp: Where an operation cannot be seen.
    """
    check_model(model, inputs)
    with torch.enable_grad():
        # The inputs need gradients only so that values from unseen code betray themselves by their history.
        signals = tuple(x.detach().requires_grad_().clone() for x in inputs)
    run = _Record(model, signals, former, change)
    with unchanged(model, inputs):
        output = run.follow(model, signals)
    first = tuple(range(len(inputs)))
    recording = Recording(tuple(run.nodes), first, run.slots[output], Trace(tuple(run.sites)), frozenset(run.peeked))
    return recording.pruned(), output.detach()


class _Record(Watch):
    def __init__(self, model: nn.Module, inputs: tuple[Tensor, ...], former: Former, change: Any) -> None:
        super().__init__(model, inputs)
        self._former, self._change = former, change
        self.slots: ByTensor[int] = ByTensor()
        self._numbers = count()
        self.nodes: list[Node] = []
        self.peeked: set[int] = set()
        for tensor in inputs:
            self._assign(tensor)

    def _assign(self, tensor: Tensor) -> int:
        self.slots[tensor] = slot = next(self._numbers)
        return slot

    def peek(self, signals: Iterable[Tensor]) -> None:
        self.peeked.update(self.slots[t] for t in signals if t in self.slots)

    def visit(self, call: Call) -> Any:
        call = self._change(call) if self._change is not None else call
        sources = tuple(self.slots[s] for s in call.signals)
        signals = tuple(s.detach() for s in call.signals)
        result = call.spelled()
        detached = result.detach() if isinstance(result, Tensor) else tuple(t.detach() for t in result)
        with torch.no_grad():
            form = self._former(call, signals, detached)
        outputs = tuple(self._assign(t) for t in floats(result))
        sources = sources if getattr(form, "reads_signals", True) else ()
        self.nodes.append(Node(call.without_signals(), sources, outputs, form))
        return result
