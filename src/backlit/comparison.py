"""What a comparison of methods found, as data: the report, the tables and the notebook all read it here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from backlit._json import JsonObject

if TYPE_CHECKING:
    import polars as pl


TABLES = ("scores", "curves", "ranking", "differences", "agreement")
"""The data frames of a :class:`Comparison`, by attribute."""
FILES_TO_READ = tuple(f"{table}.{ending}" for table in TABLES for ending in ("csv", "parquet"))
"""The numbers for other programs, each table as CSV and as parquet."""


@dataclass(frozen=True)
class MethodFacts:
    """One method of a comparison.

    ``seconds`` are of one image and class, ``forward_equivalents`` the same over one forward pass of one image in the
    same run, ``megabytes`` the most memory that a block of images took beside what was taken before (NaN if not known);
    ``coverage`` counts the sites by rule, ``completeness`` holds the mean over images of each number that the
    method reports, ``options`` and ``notes`` are plain JSON values.
    """

    name: str
    title: str
    summary: str
    source: str
    options: JsonObject
    seconds: float
    forward_equivalents: float
    coverage: Mapping[str, int]
    completeness: Mapping[str, float]
    megabytes: float = float("nan")
    notes: JsonObject = field(default_factory=dict)


@dataclass(frozen=True)
class ClassFacts:
    """One class that an image was explained for."""

    index: int
    label: str
    logit: float
    probability: float


@dataclass(frozen=True, eq=False)
class ImageFacts:
    """One image: its pixels (c, h, w) in [0, 1], and its classes, the one that is scored first."""

    name: str
    picture: Tensor
    classes: tuple[ClassFacts, ...]


@dataclass(frozen=True, eq=False)
class Strip:
    """A reset check of one method on one image: the map (h, w) of the network as it is, then of one reset further and further.

    ``labels`` name the maps, "trained" first; ``correlations`` are with the first map, by name of the measure (one number a map).
    """

    method: str
    image: str
    metric: str
    labels: tuple[str, ...]
    maps: tuple[Tensor, ...]
    correlations: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True, eq=False)
class Comparison:
    """Methods beside each other on the same images.

    Attributes:
        model: The network's name.
        methods: The methods, in the order in which they were asked for.
        images: The images.
        maps: The heatmap (h, w) by method name, image name and class index.
        scores: One row an image, method and metric: ``metric, method, image, target, value`` (null: not scored), and
            ``extra``, the further number's name ("" for the score itself).
        curves: One row a point: ``metric, method, position, mean, low, high, images`` (95 % interval of the mean).
        ranking: One row a metric and method, best first: ``metric, rank, method, value, low, high, images``; rank counts from 1.
            ``seconds``, ``forward_equivalents`` and ``megabytes`` are the method's, as in :class:`MethodFacts`.
            MoRF and LeRF also have ``median`` and ``ratio_of_means``, each with its ``_low`` and ``_high``: of ratios, the
            mean is carried by images whose own logit is small.
        differences: One row a metric and pair of methods: ``metric, method, other, difference, low, high, images,
            significant`` (the paired 95 % interval excludes 0).
        agreement: One row a pair of metrics: ``metric, other, tau, methods``: Kendall's tau-b between their orders of the methods
            that both score; null for fewer than three.
        protocols: For each metric what exactly was measured, as plain JSON values (see ``metrics.Protocol``).
        strips: Reset checks to look at.
        notes: For each metric what a reader must know.
        provenance: Number of images, fingerprint of the network, device, versions, date, seconds: plain JSON values.
    """

    model: str
    methods: tuple[MethodFacts, ...]
    images: tuple[ImageFacts, ...]
    maps: Mapping[tuple[str, str, int], Tensor]
    scores: pl.DataFrame
    curves: pl.DataFrame
    ranking: pl.DataFrame
    differences: pl.DataFrame
    agreement: pl.DataFrame
    protocols: tuple[JsonObject, ...]
    strips: tuple[Strip, ...] = ()
    notes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    provenance: JsonObject = field(default_factory=dict)
