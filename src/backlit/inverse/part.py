"""The inverted part of a network: the calls between its start and the logits, each with its inverse, from the top down."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from backlit._errors import InputError, UnsupportedOp
from backlit.capture.canonical import Call
from backlit.capture.fold import folded
from backlit.capture.record import Node, Recording, record
from backlit.capture.sites import Coverage, CoverageRow, Trace
from backlit.inverse import table
from backlit.inverse.closed import Moves
from backlit.inverse.heads import channels_before, why_mixed
from backlit.inverse.regressions import Channels, Dense, Regression, Transposed
from backlit.inverse.start import feature_site

INPUT = "input"


@dataclass(frozen=True)
class Values:
    """What one forward pass of the inverted part computed: its values by slot, and its calls by site."""

    slots: dict[int, Tensor]
    calls: dict[str, Call]
    output: Tensor
    n: int


@dataclass(frozen=True)
class Step:
    """One call on the way back; ``regression`` is None where the inverse is known without data."""

    name: str
    call: Call
    sources: tuple[int, ...]
    outputs: tuple[int, ...]
    regression: Regression | None
    diagonal: bool  # its output's signal is
    inside: tuple[bool, ...]  # whether each source belongs to the part


@dataclass(frozen=True)
class Join:
    """A value that several calls read, so that it is reconstructed several times."""

    name: str
    regression: Channels


@dataclass(frozen=True, eq=False)
class Part:
    """The inverted part, found on a first batch; later batches must make the same calls.

    Attributes:
        steps: The calls, the last one first.
        starts: The slots to reconstruct: the network's inputs, or one feature map.
        start: Their name, as the file keeps it.
        gated: Whether the reconstruction of the start itself is gated (Sec. 6.1.2: where it is a feature map).
        ungated: The slots whose signals are not gated: the logits, and the image wherever it is flattened, moved or scaled.
        joins: The slots that are reconstructed several times.
        output: The slot of the logits.
        classes: How many there are.
        channels: For each class, the channel of its logit where the first layer that mixes them made it.
        shapes: Of one image's value, by slot.
        trace: Every site of the network.
    """

    steps: tuple[Step, ...]
    starts: tuple[int, ...]
    start: str
    gated: bool
    ungated: frozenset[int]
    joins: dict[int, Join]
    output: int
    classes: int
    channels: tuple[int, ...]
    shapes: dict[int, tuple[int, ...]]
    trace: Trace
    made: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(repr=False)
    moves: dict[str, Moves] = field(default_factory=dict, repr=False)

    @property
    def regressions(self) -> dict[str, Regression]:
        """What must be learned, by name, in the order of the way back."""
        found: dict[str, Regression] = {}
        for step in self.steps:
            for slot in step.outputs:
                if slot in self.joins:
                    found[self.joins[slot].name] = self.joins[slot].regression
            if step.regression is not None:
                found[step.name] = step.regression
        for slot in self.starts:
            if slot in self.joins:
                found[self.joins[slot].name] = self.joins[slot].regression
        return found

    @property
    def bytes_at_once(self) -> int:
        """What a class takes at most: the moments that one pass over the data learns, and solving the largest of them."""
        known, passes = {self.output: 0}, Counter()  # by slot, the number of passes until its signal is known
        regressions = self.regressions

        def learned(name: str, after: int) -> int:
            passes[after] += regressions[name].sizes.bytes + 8 * regressions[name].row
            return after + 1

        def reached(slots: Sequence[int]) -> int:
            for slot in slots:
                if slot in self.joins and slot in known:
                    known[slot] = learned(self.joins[slot].name, known[slot])
            return max(known[slot] for slot in slots if slot in known)

        for step in self.steps:
            level = reached(step.outputs)
            if step.regression is not None:
                level = learned(step.name, level)
            for slot, inside in zip(step.sources, step.inside, strict=True):
                if inside:
                    known[slot] = max(level, known.get(slot, 0))
        if self.starts:
            reached(self.starts)
        return max(passes.values()) + 3 * max(r.sizes.bytes for r in regressions.values())

    def values(self, model: nn.Module, inputs: tuple[Tensor, ...]) -> Values:
        """Run the network and keep what the way back reads.

        Raises:
            UnsupportedOp: If it made other calls than on the first batch.
        """
        read = {*self.starts, *(slot for step in self.steps for slot in (*step.sources, *step.outputs))}
        wanted = {name for name, (_, outputs) in self.made.items() if read.intersection(outputs)}
        recording, slots, output = _recorded(model, inputs, wanted)
        calls = {node.call.site.name: node for node in recording.nodes}
        made = {name: (node.sources, node.outputs) for name, node in calls.items()}
        if made != self.made or tuple(slots[s].shape[1:] for s in self.starts) != tuple(
            self.shapes[s] for s in self.starts
        ):
            other = [name for name in {**made, **self.made} if made.get(name) != self.made.get(name)]
            raise UnsupportedOp(
                f"The network called other operations on these {len(inputs[0])} images than before, or on other sizes (the "
                f"first difference: {other[0] if other else 'the size of the images'}). The inverted part must be the same "
                "for every image."
            )
        return Values(slots, {name: node.call for name, node in calls.items()}, output, len(inputs[0]))

    def move(self, step: Step, values: Values) -> Moves:
        """Where the elements of a moving call come from."""
        if step.name not in self.moves:
            self.moves[step.name] = Moves(values.calls[step.name], [values.slots[s] for s in step.sources])
        return self.moves[step.name]

    def coverage(self) -> Coverage:
        """The inverse that every site of the network got."""
        rules = {step.name: table.name_of(step.call) for step in self.steps}
        return Coverage(
            tuple(
                CoverageRow(s.name, s.primitive, s.kind, s.module, s.spelling, rules.get(s.name, self._outside(s.name)))
                for s in self.trace
            )
        )

    def _outside(self, name: str) -> str:
        """A batch norm that was folded belongs to the part, though it is no step of its own."""
        inside = {s for step in self.steps for s in step.outputs}
        return "folded" if inside.intersection(self.made.get(name, ((), ()))[1]) else "not inverted"


def find_part(model: nn.Module, inputs: tuple[Tensor, ...], start: str | None) -> Part:
    """The part of a network from ``start`` to the logits, by its calls on ``inputs``.

    Raises:
        UnsupportedOp: If a call in it has no inverse; lists all of them.
        InputError: If ``start`` names nothing.
    """
    recording, slots, output = _recorded(model, inputs, None)
    lean = folded(recording).pruned()
    classes = int(output.shape[1])
    if start == INPUT:
        starts, name = lean.inputs, INPUT
    else:
        made = {node.call.site.name: node.outputs[:1] for node in recording.nodes if node.outputs}
        site = feature_site(model, inputs, lean.trace, start, lambda s: s.name in made)
        starts, name = made[site.name], site.name
    if not {slot for node in lean.nodes for slot in node.sources}.issuperset(starts):
        lean = recording  # the start itself would be folded away
    shapes = {slot: tuple(value.shape[1:]) for slot, value in slots.items()}
    chosen = _between(lean, starts)
    if not chosen:
        raise InputError(
            f"start must be a value that the logits depend on through operations, but is {start!r} ({name}). Name an earlier "
            "module."
        )
    steps, channels = _steps(chosen, starts, output, lean.output, shapes)
    made = {node.call.site.name: (node.sources, node.outputs) for node in recording.nodes}
    return Part(
        steps=steps,
        starts=starts,
        start=name,
        gated=start != INPUT,
        ungated=frozenset({lean.output, *_images(steps, starts if start == INPUT else ())}),
        joins=_joins(steps, shapes),
        output=lean.output,
        classes=classes,
        channels=channels,
        shapes=shapes,
        trace=lean.trace,
        made=made,
    )


def find_layers(model: nn.Module, inputs: tuple[Tensor, ...], wanted: Callable[[Call], bool]) -> Part:
    """The calls that are ``wanted`` among all of a network, batch norm folded, as a part that is only looked at.

    Raises:
        UnsupportedOp: If there is none.
    """
    recording, slots, output = _recorded(model, inputs, None)
    lean = folded(recording).pruned()
    nodes = [node for node in lean.nodes if wanted(node.call)]
    if all(len(node.sources) > 1 for node in nodes):
        raise UnsupportedOp(
            "The network has no layer to learn from: no linear layer and no convolution reads the input."
        )
    return Part(
        steps=tuple(
            Step(n.call.site.name, n.call, n.sources, n.outputs, None, False, (True,) * len(n.sources)) for n in nodes
        ),
        starts=lean.inputs,
        start=INPUT,
        gated=False,
        ungated=frozenset(),
        joins={},
        output=lean.output,
        classes=int(output.shape[1]),
        channels=tuple(range(int(output.shape[1]))),
        shapes={slot: tuple(value.shape[1:]) for slot, value in slots.items()},
        trace=lean.trace,
        made={node.call.site.name: (node.sources, node.outputs) for node in recording.nodes},
    )


def _between(recording: Recording, starts: Sequence[int]) -> list[Node]:
    """The nodes that depend on the start, in the order of their calls; all of them reach the output."""
    inside, found = set(starts), []
    for node in recording.nodes:
        if inside.intersection(node.sources) and not set(node.outputs) & set(starts):
            inside.update(node.outputs)
            found.append(node)
    return found if recording.output in inside else []


def _steps(
    nodes: list[Node], starts: tuple[int, ...], output: Tensor, last: int, shapes: dict[int, tuple[int, ...]]
) -> tuple[tuple[Step, ...], tuple[int, ...]]:
    """The steps; and the channels of the classes, where the signals that hold each in one of its own end."""
    n, classes = output.shape
    inside = {*starts, *(slot for node in nodes for slot in node.outputs)}
    reads = Counter(slot for node in nodes for slot in node.sources)
    diagonal, steps, refused = {last}, [], []
    channels: list[int] | None = list(range(classes))
    for node in reversed(nodes):
        call = node.call
        is_diagonal = bool(diagonal.intersection(node.outputs))
        reason = table.why_not(call) or (why_mixed(node, classes, shapes, reads) if is_diagonal else None)
        regression = None if reason else _regression(node, shapes, 1 if is_diagonal else None)
        if is_diagonal and reason is None and regression is None:
            diagonal.update(node.sources)
            channels = channels_before(node, (n, *shapes[node.sources[0]]), output.device, channels)
            reason = None if channels else "it mixes the classes, or leaves some out"
        if reason is not None or channels is None:
            refused.append(f"{call.site}: {reason}")
            channels = channels or list(range(classes))
            continue
        within = tuple(slot in inside for slot in node.sources)
        steps.append(Step(call.site.name, call, node.sources, node.outputs, regression, is_diagonal, within))
    if refused:
        raise UnsupportedOp(
            f"The part to be inverted holds {len(refused)} operation{'s' * (len(refused) > 1)} without an inverse: "
            + "; ".join(reversed(refused))
            + ". Begin behind them (start='a module path', or 'features' for the last feature map), or explain the network without "
            "them, such as a softmax at its end."
        )
    return tuple(steps), tuple(channels or ())


def _regression(node: Node, shapes: dict[int, tuple[int, ...]], channels: int | None) -> Regression | None:
    call, name = node.call, node.call.primitive.name
    source, output = shapes[node.sources[0]], shapes[node.outputs[0]]
    if name in table.DENSE:
        positions = 1
        for side in source[:-1]:
            positions *= side
        return Dense(source[-1], channels or output[-1], positions)
    if name in table.CONVOLUTIONS:
        return Transposed.of(call, channels or output[0])
    if name in table.SUMS and len(node.sources) > 1:
        return Channels(output, 1, len(node.sources))
    return None


def _images(steps: tuple[Step, ...], inputs: tuple[int, ...]) -> set[int]:
    """The inputs, and the values that are still nothing but these images."""
    found = set(inputs)
    for step in reversed(steps):
        read = {slot for slot, inside in zip(step.sources, step.inside, strict=True) if inside}
        if step.regression is None and step.call.primitive.name in table.KEEPS_AN_IMAGE and read <= found:
            found.update(step.outputs)
    return found


def _joins(steps: tuple[Step, ...], shapes: dict[int, tuple[int, ...]]) -> dict[int, Join]:
    reads = Counter(slot for step in steps for slot, inside in zip(step.sources, step.inside, strict=True) if inside)
    makers = {slot: (step, i) for step in steps for i, slot in enumerate(step.outputs)}

    def name(slot: int) -> str:
        if slot not in makers:
            return f"join {INPUT}" if slot == 0 else f"join slot {slot}"
        step, i = makers[slot]
        return f"join {step.name}" if len(step.outputs) == 1 else f"join {step.name} output {i}"

    joins = {
        slot: Join(name(slot), Channels(shapes[slot], count, 1)) for slot, count in reads.items() if count > 1
    }  # none holds the classes apart: why_mixed refuses what is read twice there
    assert len({join.name for join in joins.values()}) == len(joins), "one regression each"
    return joins


@dataclass(frozen=True)
class _Seen:
    """The form of a recorded call: its results, and how often their memory had been written by then."""

    call: Call
    results: tuple[Tensor, ...]
    versions: tuple[int, ...]

    def __call__(self, *signals: Tensor) -> Any:
        return self.call.run(*signals)


def _recorded(
    model: nn.Module, inputs: tuple[Tensor, ...], wanted: set[str] | None, copy: bool = False
) -> tuple[Recording, dict[int, Tensor], Tensor]:
    """A recording with the values of its slots; those of the sites in ``wanted`` alone, if it is given."""

    def seen(call: Call, signals: tuple[Tensor, ...], result: Any) -> _Seen:
        results = (result,) if isinstance(result, Tensor) else tuple(r for r in result if r.is_floating_point())
        if wanted is not None and call.site.name not in wanted:
            results = ()
        results = tuple(r.clone() for r in results) if copy else results
        return _Seen(call.without_signals(), results, tuple(r._version for r in results))

    recording, output = record(model, inputs, seen)
    slots = {slot: x.detach() for slot, x in zip(recording.inputs, inputs, strict=True)}
    for node in recording.nodes:
        form: Any = node.form
        if any(r._version != v for r, v in zip(form.results, form.versions, strict=True)):
            # Written over through another view of its memory: keep what it was.
            return _recorded(model, inputs, wanted, copy=True)
        slots.update(zip(node.outputs, form.results, strict=False))
    return recording, slots, output
