"""Tables and figures of a paper as values: their rows, their columns with the printed numbers, and what they claim."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from backlit.bench.chosen import Chosen, methods_and_metrics
from backlit.bench.setting import safe_name
from backlit.methods.base import NO_NETWORK, Method

EMBEDDED = "digits"
"""The network that every machine has, with scenes of two digits in the place of whatever images a table asks for."""
Drawn = Literal["table", "curves", "maps", "strips"]


@dataclass(frozen=True)
class MethodRow:
    """A method as a paper calls it.

    Attributes:
        title: The paper's name for it.
        method: The method in its setting, as the command line has it: "dmbp(variant=+)".
        note: What differs from the paper's, in a few words.
    """

    title: str
    method: str
    note: str = ""

    @cached_property
    def chosen(self) -> Chosen:
        """The method and its options, still without a network."""
        (one,), _ = methods_and_metrics(self.method, "sparseness", [], 0)
        return one

    @cached_property
    def bare(self) -> Method:
        """The method in its setting, without a network: what it costs, and what its maps say."""
        return self.chosen.method(NO_NETWORK, **self.chosen.options)


@dataclass(frozen=True)
class Column:
    """A metric on a network and images.

    Attributes:
        metric: The metric in its setting: "insertion".
        data: What the places call the images: "imagenet", "voc".
        network: What the places call the network: "resnet50".
        printed: The paper's number for each row, in their order, None where it has none; empty for a network that the paper
            does not have.
        unit: What a score is multiplied by to stand beside the printed numbers: 100 for per cent.
    """

    metric: str
    data: str
    network: str
    printed: tuple[float | None, ...] = ()
    unit: float = 1.0

    def on(self, network: str) -> Column:
        """Return the same column of another network, of which nothing is printed."""
        return replace(self, network=network, printed=())


@dataclass(frozen=True)
class PaperClaim:
    """A claim of a paper about its table: one row beats others by a metric, by more than ``margin``.

    The test is written down here, before anything is measured: the paired difference over the images that both rows have,
    with its 95 % bootstrap interval, against the margin.

    Attributes:
        text: The claim, in our words.
        metric: By which metric.
        better: The title of the row that is ahead.
        worse: The titles of the rows that it is ahead of, each tested by itself.
        margin: By how much, in the metric's own unit; below 0, "not worse by more than".
    """

    text: str
    metric: str
    better: str
    worse: tuple[str, ...]
    margin: float = 0.0


@dataclass(frozen=True)
class NeededFit:
    """A fit that a method needs first.

    Attributes:
        kind: What ``backlit fit --method`` calls it: "mip_in", "pattern".
        options: Options of the fit.
    """

    kind: str
    options: tuple[tuple[str, object], ...] = ()

    @property
    def name(self) -> str:
        """A name for its file."""
        return safe_name(self.kind, dict(self.options))


@dataclass(frozen=True)
class Exhibit:
    """A table or figure of a paper.

    Attributes:
        name: "table1", "figure5".
        caption: What it shows, in our words.
        rows: The methods.
        columns: Metric by images by network, with what is printed.
        claims: What the paper says of it.
        drawn: As a table, as curves of its metrics, as maps side by side, or as strips of reset networks.
        differs: What is not as in the paper, in a line.
        classes: Classes that are explained of each image, for maps.
        fits: What methods must learn first.
        together: The same images for all rows, whatever they cost: for metrics that are no mean over images.
    """

    name: str
    caption: str
    rows: tuple[MethodRow, ...]
    columns: tuple[Column, ...]
    claims: tuple[PaperClaim, ...] = ()
    drawn: Drawn = "table"
    differs: str = ""
    classes: int = 1
    fits: tuple[NeededFit, ...] = ()
    together: bool = False

    def __post_init__(self) -> None:
        titles = [row.title for row in self.rows]
        for column in self.columns:
            assert len(column.printed) in (0, len(titles)), (
                f"{self.name}: {column} prints {len(column.printed)} numbers"
            )
        for claim in self.claims:
            assert {claim.better, *claim.worse} <= set(titles), f"{self.name}: {claim.text} is of unknown rows"

    def on(self, networks: Iterable[str]) -> Exhibit:
        """Return it for these networks: the columns of those that the paper has, and for others the same metrics and images."""
        columns: list[Column] = []
        for network in networks:
            own = [column for column in self.columns if column.network == network]
            columns += own or self._columns_of(network)
        return replace(self, columns=tuple(columns))

    def _columns_of(self, network: str) -> list[Column]:
        """Columns of a network that the paper does not have; a metric once for the embedded one, whose images are the same."""
        columns = list(dict.fromkeys(column.on(network) for column in self.columns))
        return list({c.metric: c for c in reversed(columns)}.values())[::-1] if network == EMBEDDED else columns

    @property
    def networks(self) -> tuple[str, ...]:
        """The networks of its columns, in order."""
        return tuple(dict.fromkeys(column.network for column in self.columns))

    def metrics(self, network: str, data: str) -> tuple[str, ...]:
        """Return the metrics that are measured on a network and images."""
        return tuple(dict.fromkeys(c.metric for c in self.columns if (c.network, c.data) == (network, data)))


@dataclass(frozen=True)
class Paper:
    """A paper: its name on the command line, what it is, and its tables and figures.

    Attributes:
        name: "dmbp".
        title: Authors, title, year.
        exhibits: Its tables and figures that hold results.
        elsewhere: Tables and figures without results, or that another command makes, each with a line that says so.
    """

    name: str
    title: str
    exhibits: tuple[Exhibit, ...]
    elsewhere: tuple[tuple[str, str], ...] = ()
