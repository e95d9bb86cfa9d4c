"""What a forward pass called: sites, the trace that lists them, and the coverage of a method's rules over them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal

Kind = Literal["affine", "activation", "selection", "other"]


@dataclass(frozen=True)
class Site:
    """One call of one operation in a forward pass, however it was spelled.

    ``index`` counts the calls of the same primitive from 0, so ``relu[6]`` is the seventh ReLU; ``module`` is
    the dotted path of the innermost module that made the call ("" for the model itself). ``depths`` counts, for each
    input, the layers with weights that it has behind it (the most on any path): 0 is the network's input or what was
    made of it without weights. ``makers`` names, for each input, the primitive that gave it its values, seen through what
    only moves, scales or shifts them ("input" for the network's own). ``constants`` says whether a tensor that is no signal
    stands among the arguments.
    """

    primitive: str
    index: int
    kind: Kind
    module: str
    spelling: str
    input_shapes: tuple[tuple[int, ...], ...]
    output_shape: tuple[int, ...]
    depths: tuple[int, ...] = ()
    makers: tuple[str, ...] = ()
    constants: bool = False

    @property
    def name(self) -> str:
        """``primitive[index]``, unique within a trace."""
        return f"{self.primitive}[{self.index}]"

    def __str__(self) -> str:
        return f"{self.name} at {self.module or '<model>'} ({self.spelling})"


@dataclass(frozen=True)
class Trace:
    """The sites of one forward pass, in the order of their calls."""

    sites: tuple[Site, ...]

    def __iter__(self) -> Iterator[Site]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    def __getitem__(self, name: str) -> Site:
        for site in self.sites:
            if site.name == name:
                return site
        raise KeyError(f"no site {name!r}; the trace has {', '.join(s.name for s in self.sites)}")

    def of_kind(self, *kinds: Kind) -> tuple[Site, ...]:
        """The sites of the given kinds."""
        return tuple(site for site in self.sites if site.kind in kinds)

    def __str__(self) -> str:
        width = max((len(s.name) for s in self.sites), default=0)
        return "\n".join(
            f"{s.name:<{width}}  {s.kind:<10}  {s.module or '<model>'}  {tuple(s.output_shape)}" for s in self.sites
        )


@dataclass(frozen=True)
class CoverageRow:
    """One site and the rule that it got."""

    site: str
    primitive: str
    kind: str
    module: str
    spelling: str
    rule: str


@dataclass(frozen=True)
class Coverage:
    """Which rule every site of an explanation got; the record that a map cannot hide behind."""

    rows: tuple[CoverageRow, ...] = ()

    def count(self) -> dict[str, int]:
        """Number of sites per rule name."""
        return dict(Counter(row.rule for row in self.rows))

    def to_json(self) -> list[dict[str, str]]:
        """Rows as plain dictionaries."""
        return [asdict(row) for row in self.rows]

    @classmethod
    def from_json(cls, rows: list[dict[str, str]]) -> Coverage:
        """The inverse of :meth:`to_json`."""
        return cls(tuple(CoverageRow(**row) for row in rows))

    def __str__(self) -> str:
        return ", ".join(f"{rule} x{n}" for rule, n in self.count().items())
