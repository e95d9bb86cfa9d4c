"""What a forward pass called: sites, the trace that lists them, and the coverage of a method's rules over them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Literal

Kind = Literal["affine", "activation", "selection", "other"]
Trait = Literal[
    "layer",  # affine, and sums over weights; with two signals it is a product, of another name
    "dense",  # a layer whose weights are one matrix, and whose outputs stand in the last axis
    "convolution",
    "transposed",  # of a convolution: it spreads its input
    "accumulates",  # adds its argument ``input`` to a product
    "rectifier",  # passes what is large and stops, or damps, what is small
    "piecewise",  # made of straight pieces
    "homogeneous",  # f(z) = z f'(z): it adds nothing
    "signless",  # an activation whose value does not tell the sign of what it read
    "infinite",  # at zero
    "cancels",  # an activation that is a difference of larger values: it rounds as its input does, however small it is
    "gate",  # between 0 and 1, or 2
    "bounded",  # between -1 and 1
    "clipped",  # bounded by two numbers
    "elementwise",  # each output is made of one element of each signal, which may be broadcast, and of nothing else
    "stays",  # each output stands where one of its inputs stood, but others change it
    "adds",  # a sum or difference
    "blends",  # a weighted sum
    "multiplies",  # product or quotient with a constant
    "scales",  # of one signal: y = w x + c, element by element
    "carries",  # of one signal: only moves, scales or shifts values that another operation made
    "moves",  # puts values elsewhere, perhaps between them, perhaps beside others
    "views",  # moves that add nothing
    "copies",  # moves to the same place
    "stacks",  # moves several tensors into one
    "fills",  # moves values beside constants, or under a mask
    "masks",  # a tensor of its arguments may choose or gate elements
    "keeps",  # every value that it reads is in what it puts out
    "resamples",  # moves values between pixels
    "pool",
    "adaptive",  # of a pool: the windows follow from the sizes
    "averages",  # sums with weights that depend on nothing
    "gathers",  # reads values in windows or at given places
    "reduces",  # along some axes
    "least",  # a selection of the least
    "chooses",  # elementwise between two values
    "norm",
    "bilinear",  # linear in each of two signals
    "contracts",  # sums products of two signals
    "random",  # draws in training
]
"""A fact about an operation that rules and methods ask for."""


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
    traits: frozenset[Trait] = field(default=frozenset(), repr=False)

    def has(self, *traits: Trait) -> bool:
        """Tell whether the operation has any of these traits."""
        return not self.traits.isdisjoint(traits)

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
