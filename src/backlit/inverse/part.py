"""The inverted part of a network: the calls between its start and the logits, each with its inverse, from the top down."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from backlit._errors import InputError, UnsupportedOp
from backlit.capture.canonical import Call
from backlit.capture.record import Node, Recording
from backlit.capture.sites import Coverage, CoverageRow
from backlit.capture.watch import floats
from backlit.inverse import table
from backlit.inverse.calls import Calls, Slots, Values
from backlit.inverse.closed import stays_apart
from backlit.inverse.regressions import Dense, PerChannel, Regression, Transposed
from backlit.inverse.start import feature_site

INPUT = "input"


@dataclass(frozen=True)
class StepBack:
    """A step of the way back, from the values in ``outputs`` to those in ``sources``.

    Attributes:
        name: Its call's site, or "join ..." where it makes one of several reconstructions of a value.
        call: What is inverted; None for a join.
        regression: None where the inverse is known without data.
        diagonal: Its output's signal holds each class in a channel of its own.
    """

    name: str
    call: Call | None
    sources: Slots
    outputs: Slots
    regression: Regression | None
    diagonal: bool


@dataclass(frozen=True, eq=False)
class InvertedPart:
    """An inverted part of a network.

    Attributes:
        calls: All calls of the network.
        steps: The way back from the logits.
        starts: The slots to reconstruct: the network's inputs, or one feature map.
        start: Their name, as the file keeps it.
        gated: Whether the reconstruction of the start itself is gated (Sec. 6.1.2: where it is a feature map).
        inside: The slots that belong to the part.
        ungated: The slots whose signals are not gated: the logits, and the image wherever it is flattened, moved or scaled.
        output: The slot of the logits.
        channels: For each class, the channel of its logit where the first layer that mixes them made it.
    """

    calls: Calls
    steps: tuple[StepBack, ...]
    starts: Slots
    start: str
    gated: bool
    inside: frozenset[int]
    ungated: frozenset[int]
    output: int
    channels: tuple[int, ...]

    @property
    def classes(self) -> int:
        """The number of logits."""
        return self.calls.logits.shape[1]

    @property
    def regressions(self) -> dict[str, Regression]:
        """The regressions that must be learned, by name, in the order of the way back."""
        return {step.name: step.regression for step in self.steps if step.regression is not None}

    @property
    def bytes_at_once(self) -> int:
        """The bytes that a class takes at most: the moments that one pass over the data learns, and solving the largest of them."""
        known, passes = {self.output: 0}, Counter[int]()  # by slot, the number of passes until its signal is known
        for step in self.steps:
            level = max(known[slot] for slot in step.outputs if slot in known)
            if step.regression is not None:
                passes[level] += step.regression.sizes.bytes + 8 * step.regression.row
                level += 1
            for slot in self.inside.intersection(step.sources):
                known[slot] = max(level, known.get(slot, 0))
        return max(passes.values()) + 3 * max(r.sizes.bytes for r in self.regressions.values())

    def values(self, model: nn.Module, inputs: tuple[Tensor, ...]) -> Values:
        """Run the network and keep what the way back reads; see :meth:`Calls.values`."""
        read = {slot for step in self.steps for slot in (*step.sources, *step.outputs)}
        return self.calls.values(model, inputs, read.union(self.starts))

    def coverage(self) -> Coverage:
        """Return the inverse that every site of the network got; a folded batch norm has none of its own."""
        rules = {step.name: table.name_of(step.call) for step in self.steps if step.call is not None}
        inside = {slot for step in self.steps if step.call is not None for slot in step.outputs}
        for name, (_, outputs) in self.calls.made.items():
            rules.setdefault(name, "folded" if inside.intersection(outputs) else "not inverted")
        trace = self.calls.lean.trace
        return Coverage(
            tuple(
                CoverageRow(s.name, s.primitive, s.kind, s.module, s.spelling, rules.get(s.name, "not inverted"))
                for s in trace
            )
        )


def find_part(model: nn.Module, inputs: tuple[Tensor, ...], start: str | None) -> InvertedPart:
    """Return the part of a network from ``start`` to the logits, by its calls on ``inputs``.

    Raises:
        UnsupportedOp: If a call in it has no inverse; lists all of them.
        InputError: If ``start`` names nothing.
    """
    calls = Calls.of(model, inputs)
    starts, name = calls.lean.inputs, INPUT
    if start != INPUT:
        made = {site: outputs[:1] for site, (_, outputs) in calls.made.items() if outputs}
        site = feature_site(model, inputs, calls.lean.trace, start, lambda s: s.name in made)
        starts, name = made[site.name], site.name
    folded_away = not {slot for node in calls.lean.nodes for slot in node.sources}.issuperset(starts)
    lean = calls.whole if folded_away else calls.lean
    nodes = _between(lean, starts)
    if not nodes:
        raise InputError(
            f"start must be a value that the logits depend on through operations, but is {start!r} ({name}). Name an earlier "
            "module."
        )
    way = _Search(calls, starts, lean.output, nodes)
    images = _images(way.steps, starts, way.inside) if start == INPUT else ()
    return InvertedPart(
        calls=calls,
        steps=tuple(way.steps),
        starts=starts,
        start=name,
        gated=start != INPUT,
        inside=way.inside,
        ungated=frozenset({lean.output, *images}),
        output=lean.output,
        channels=tuple(way.channels),
    )


def _between(recording: Recording, starts: Sequence[int]) -> list[Node]:
    """Return the nodes that depend on the start, in the order of their calls; all of them reach the output."""
    inside, nodes = set(starts), []
    for node in recording.nodes:
        if inside.intersection(node.sources) and not set(node.outputs) & set(starts):
            inside.update(node.outputs)
            nodes.append(node)
    return nodes if recording.output in inside else []


def _images(steps: Sequence[StepBack], inputs: Slots, inside: frozenset[int]) -> set[int]:
    """Return the inputs, and the values that are still nothing but these images."""
    images = set(inputs)
    for step in reversed(steps):
        moved = step.call is not None and step.regression is None and step.call.primitive.name in table.KEEPS_AN_IMAGE
        if moved and images.issuperset(inside.intersection(step.sources)):
            images.update(step.outputs)
    return images


class _Search:
    """A search for the steps from the logits to the start, and for the channels of the classes where they are last apart.

    Raises:
        UnsupportedOp: If a call has no inverse; lists all of them.
    """

    def __init__(self, calls: Calls, starts: Slots, output: int, nodes: list[Node]) -> None:
        self.calls, self.classes = calls, calls.logits.shape[1]
        self.inside = frozenset({*starts, *(slot for node in nodes for slot in node.outputs)})
        self.reads = Counter(slot for node in nodes for slot in node.sources)
        self.diagonal, self.channels = {output}, list(range(self.classes))
        self.steps: list[StepBack] = []
        refused: list[str] = []
        for node in reversed(nodes):
            is_diagonal = not self.diagonal.isdisjoint(node.outputs)
            reason = self._why_not(node, is_diagonal)
            if reason is None:
                self.steps += self._joins(node.outputs, node.call.site.name)
                regression = self._regression(node, is_diagonal)
                step = StepBack(node.call.site.name, node.call, node.sources, node.outputs, regression, is_diagonal)
                self.steps.append(step)
            else:
                refused.append(f"{node.call.site}: {reason}")
        for slot in starts:
            self.steps += self._joins((slot,), f"slot {slot}" if slot else INPUT)
        if refused:
            raise UnsupportedOp(
                f"The part to be inverted holds {len(refused)} operation{'s' * (len(refused) > 1)} without an inverse: "
                + "; ".join(reversed(refused))
                + ". Begin behind them (start='a module path', or 'features' for the last feature map), or explain the network "
                "without them, such as a softmax at its end."
            )

    def _joins(self, slots: Slots, maker: str) -> Iterator[StepBack]:
        """Yield a step for each value that several calls read, so that it is reconstructed several times."""
        for i, slot in enumerate(slots):
            if self.reads[slot] > 1:
                name = f"join {maker}" + f" output {i}" * (len(slots) > 1)
                regression = PerChannel(self.calls.shape(slot), self.reads[slot], 1)
                yield StepBack(name, None, (slot,), (slot,), regression, False)

    def _regression(self, node: Node, is_diagonal: bool) -> Regression | None:
        name, channels = node.call.primitive.name, 1 if is_diagonal else None
        source, output = self.calls.shape(node.sources[0]), self.calls.shape(node.outputs[0])
        if name in table.DENSE:
            return Dense(source, channels or output[-1])
        if name in table.CONVOLUTIONS:
            return Transposed.of(node.call, channels or output[0])
        return PerChannel(output, 1, len(node.sources)) if table.is_split(node.call) else None

    def _why_not(self, node: Node, is_diagonal: bool) -> str | None:
        """Say why a node has no inverse; None if it has one."""
        moves = node.call.primitive.name in table.MOVES
        reason = table.why_not(node.call)
        if reason is None and moves and not stays_apart(node.call, [self.calls.blank(slot) for slot in node.sources]):
            reason = "it moves values between the images of a batch"
        return self._why_mixed(node) if is_diagonal and reason is None else reason

    def _why_mixed(self, node: Node) -> str | None:
        """Say why a node does not keep the classes apart; None if it does, and ``channels`` are then those of its source."""
        if node.call.primitive.name in (*table.DENSE, *table.CONVOLUTIONS):
            return _why_mixed_by_layer(node.call, self.calls.shape(node.outputs[0]))
        if any(len(slots) > 1 for slots in (node.sources, node.outputs)) or self.reads[node.sources[0]] > 1:
            return "it makes the logits out of several values, or mixes the classes"
        self.diagonal.update(node.sources)
        if node.call.primitive.kind != "activation":
            before = channels_before(node.call, self.calls.blank(node.sources[0]), self.classes)
            if before is None:
                return "it mixes the classes, or leaves some out"
            self.channels = [before[channel] for channel in self.channels]
        return None


def _why_mixed_by_layer(call: Call, output: tuple[int, ...]) -> str | None:
    """Say why the layer that makes the classes does not make each in a channel of its own."""
    if call.primitive.name in table.DENSE:
        return None if len(output) == 1 else "its output has more than the classes' dimension"
    return None if call.get("groups", 1) == 1 else "it makes the classes' maps in groups"


def channels_before(call: Call, x: Tensor, classes: int) -> list[int] | None:
    """Return which channel of its input each channel of a call's output reads; None if one reads none or several.

    NaN goes wherever a value goes: for each bit of the channels' numbers, the call runs with NaN in the channels that have it,
    and once with NaN in the others. An output that reads one channel is NaN in one of the two.
    """
    numbers = torch.arange(classes, device=x.device)
    if x.dim() < 2 or x.shape[1] != classes:
        return None
    before = torch.zeros_like(numbers)
    for bit in range(max(1, (classes - 1).bit_length())):
        has = (numbers >> bit & 1).bool().view(-1, *[1] * (x.dim() - 2))
        with_it, without = (floats(call.run(x.masked_fill(m, torch.nan)))[0].isnan() for m in (has, ~has))
        if with_it.shape[1] != classes:
            return None
        with_it, without = (reads.transpose(0, 1).flatten(1).any(1) for reads in (with_it, without))
        if not bool((with_it ^ without).all()):
            return None
        before += with_it.long() << bit
    return before.tolist() if bool((before.sort().values == numbers).all()) else None
