"""The calls that a network makes on a first batch, and the values of later batches that make the same ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from backlit._errors import UnsupportedOp
from backlit.capture.canonical import Call
from backlit.capture.fold import folded
from backlit.capture.record import Recording, record
from backlit.capture.watch import floats

Slots = tuple[int, ...]
"""The numbers that a recording gives to values."""


@dataclass(frozen=True)
class Values:
    """A forward pass: its values by slot, its calls by site, and the logits."""

    slots: dict[int, Tensor]
    calls: dict[str, Call]
    output: Tensor


@dataclass(frozen=True, eq=False)
class Calls:
    """A list of the calls that a network makes on a first batch.

    Attributes:
        whole: All of them.
        lean: Those that the logits need, batch norm folded where it can be.
        shapes: The shape of each value of the first batch, by slot.
        logits: Those of the first batch.
        made: The slots that each site reads and makes.
    """

    whole: Recording
    lean: Recording
    shapes: dict[int, tuple[int, ...]]
    logits: Tensor
    made: dict[str, tuple[Slots, Slots]]

    @classmethod
    def of(cls, model: nn.Module, inputs: tuple[Tensor, ...]) -> Calls:
        """Run the network on a first batch."""
        recording, values = _recorded(model, inputs, None)
        shapes = {slot: tuple(value.shape) for slot, value in values.slots.items()}
        return cls(recording, folded(recording).pruned(), shapes, values.output, _made(recording))

    def shape(self, slot: int) -> tuple[int, ...]:
        """Return the shape of one image's value."""
        return self.shapes[slot][1:]

    def blank(self, slot: int) -> Tensor:
        """Return zeros in the place of a value of the first batch."""
        return self.logits.new_zeros(self.shapes[slot])

    def values(self, model: nn.Module, inputs: tuple[Tensor, ...], wanted: Iterable[int]) -> Values:
        """Run the network, and keep the values of these slots.

        Raises:
            UnsupportedOp: If it made other calls than on the first batch, or on images of another size.
        """
        chosen = set(wanted)
        sites = {name for name, (_, outputs) in self.made.items() if chosen.intersection(outputs)}
        recording, values = _recorded(model, inputs, sites)
        made = _made(recording)
        other = [name for name in {**made, **self.made} if made.get(name) != self.made.get(name)]
        if not other and all(tuple(v.shape[1:]) == self.shape(slot) for slot, v in values.slots.items()):
            return values
        raise UnsupportedOp(
            f"The network called other operations on these {len(inputs[0])} images than before, or on other sizes (the "
            f"first difference: {other[0] if other else 'the size of the images'}). The inverted part must be the same "
            "for every image."
        )


def _made(recording: Recording) -> dict[str, tuple[Slots, Slots]]:
    return {node.call.site.name: (node.sources, node.outputs) for node in recording.nodes}


@dataclass(frozen=True)
class _Seen:
    """A form of a recorded call: its results, and how often their memory had been written by then."""

    call: Call
    results: tuple[Tensor, ...]
    versions: tuple[int, ...]

    def __call__(self, *signals: Tensor) -> object:
        return self.call.run(*signals)


def _recorded(
    model: nn.Module, inputs: tuple[Tensor, ...], wanted: set[str] | None, *, copy: bool = False
) -> tuple[Recording, Values]:
    """Record a pass with the values of its slots; those of the sites in ``wanted`` alone, if it is given."""

    def seen(call: Call, signals: tuple[Tensor, ...], result: object) -> _Seen:
        kept = floats(result) if wanted is None or call.site.name in wanted else []
        results = tuple(r.clone() if copy else r for r in kept)
        return _Seen(call.without_signals(), results, tuple(r._version for r in results))

    recording, output = record(model, inputs, seen)
    slots = {slot: x.detach() for slot, x in zip(recording.inputs, inputs, strict=True)}
    for node in recording.nodes:
        form: Any = node.form
        if any(r._version != v for r, v in zip(form.results, form.versions, strict=True)):
            # Written over through another view of its memory: keep what it was.
            return _recorded(model, inputs, wanted, copy=True)
        slots.update(zip(node.outputs, form.results, strict=False))
    return recording, Values(slots, {node.call.site.name: node.call for node in recording.nodes}, output)
