"""A layer and what only it feeds: which norms and activations can be part of it, told by dataflow.

A chain begins with a layer. A call joins it that wants to (a batch norm; for some rules an activation, which ends it) and that
reads what the last member put out; it counts only if nothing else reads that. Folding asks this of a recording, where values are
numbered slots, and the rules' backward pass of the tensors themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from torch import Tensor

from backlit.capture.canonical import Call

Value = Any
"""A tensor, or the slot of a recorded one."""


@dataclass(eq=False)
class Chain:
    """A layer's call and those that want to be joined to it, in order: where each stands, what it put out, who reads it."""

    calls: list[Call] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    outputs: list[tuple[Tensor, ...]] = field(default_factory=list)
    readers: list[int] = field(default_factory=list)

    @property
    def joined(self) -> int:
        """Tell how many are joined: each must be the only reader of the one before."""
        alone = (i for i, count in enumerate(self.readers) if count != 1 or i + 1 == len(self.calls))
        return next(alone, 0)

    @property
    def ended(self) -> bool:
        """Tell whether the last member is an activation, which ends a layer."""
        return self.calls[-1].site.kind != "affine"


@dataclass(frozen=True, eq=False)
class Link:
    """A member of a chain, by its position."""

    chain: Chain
    position: int

    @property
    def passes(self) -> bool:
        """Tell whether the layer's rule does this call's part."""
        return 0 < self.position <= self.chain.joined

    def whole(self, call: Call) -> tuple[Call, tuple[Tensor, ...]]:
        """The call with those that are joined to it, and what the last of them put out."""
        joined = self.chain.joined if self.position == 0 else 0
        joined_calls = self.chain.calls[self.position + 1 : self.position + 1 + joined]
        return replace(call, joined=tuple(joined_calls)), self.chain.outputs[self.position + joined]


class Links(Protocol):
    """What :class:`Chains` asks of a dictionary from values to links."""

    def get(self, value: Value, default: None, /) -> Link | None:
        """The link of a value; None if it has none."""
        ...

    def __setitem__(self, value: Value, link: Link, /) -> None: ...


class Chains:
    """The chains of a forward pass; ``links`` is an empty dictionary for values of its kind."""

    def __init__(self, links: Links) -> None:
        self._links = links
        self.all: list[Chain] = []

    def read(self, values: Iterable[Value]) -> list[Link]:
        """Count a reader of each of these values; the links of those that have one."""
        links = [link for value in values if (link := self._links.get(value, None)) is not None]
        for link in links:
            link.chain.readers[link.position] += 1
        return links

    def enter(self, call: Call, values: Sequence[Value], place: int, *, joins: bool) -> Link | None:
        """Hear of a call that reads these values; its place in a chain, if it begins or wants to join one."""
        before = self.read(values)
        if joins and len(before) == len(values) == 1:
            chain = before[0].chain
            if before[0].position + 1 < len(chain.calls) or chain.ended:
                return None  # another call is joined there
        elif foldable(call):
            chain = Chain()
            self.all.append(chain)
        else:
            return None
        chain.calls.append(call.without_signals())
        chain.places.append(place)
        chain.readers.append(0)
        return Link(chain, len(chain.calls) - 1)

    def leave(self, link: Link, value: Value) -> None:
        """Hear what a member puts out."""
        self._links[value] = link


def foldable(call: Call) -> bool:
    """Tell whether a batch norm may be part of this layer."""
    # A linear layer's outputs are the norm's channels only where they stand in the second dimension.
    return call.primitive.has("convolution") or (
        call.primitive.name == "linear" and len(call.site.input_shapes[0]) == 2
    )
