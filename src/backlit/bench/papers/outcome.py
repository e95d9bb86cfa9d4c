"""From the tables of finished comparisons to the cells of a paper's table, and a verdict on each of its claims."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from backlit.bench.papers.exhibit import Column, Exhibit, MethodRow, PaperClaim
from backlit.bench.setting import read_setting
from backlit.comparison import Comparison
from backlit.metrics.lookup import find_metric
from backlit.metrics.statistics import FEWEST, Estimate, difference

Verdict = Literal["holds", "does not hold", "these images cannot tell", "not measured"]


@dataclass(frozen=True)
class TableCell:
    """A number that stands in a table beside the paper's.

    Attributes:
        printed: The paper's; None if it has none.
        measured: Ours, with its interval, in the paper's unit; None if it could not be had.
        seconds: Of one map of one image.
        why: Why there is no number.
    """

    printed: float | None
    measured: Estimate | None
    seconds: float = float("nan")
    why: str = ""


@dataclass(frozen=True)
class Tested:
    """A claim put to the test: one row against another, on a network and images.

    Attributes:
        claim: The claim.
        network: The network.
        data: The images.
        worse: The row that the better one was compared with.
        verdict: What the paired test says.
        difference: By how much the better row is ahead, above 0, in the metric's own unit.
    """

    claim: PaperClaim
    network: str
    data: str
    worse: str
    verdict: Verdict
    difference: Estimate


@dataclass(frozen=True, eq=False)
class Reproduced:
    """A table or figure as it was measured.

    Attributes:
        exhibit: The table, for the networks that were asked for.
        cells: By row title and column.
        tested: Its claims.
        comparisons: The runs that it is made of, by network and images.
    """

    exhibit: Exhibit
    cells: Mapping[tuple[str, Column], TableCell]
    tested: Sequence[Tested]
    comparisons: Mapping[tuple[str, str], Sequence[Comparison]]


def metric_name(setting: str) -> str:
    """Return what the rows of a comparison call a metric in a setting."""
    one = read_setting(setting, "metric")
    return one.name(find_metric(one.of).name)


def outcome(
    exhibit: Exhibit, done: Mapping[tuple[str, str], Sequence[Comparison]], missing: Mapping[tuple[str, str], str]
) -> Reproduced:
    """Read the cells and test the claims.

    Args:
        exhibit: The table.
        done: The comparisons of each network and images: one, or one for the rows of each cost.
        missing: Why a network and images have none.
    """
    cells = {
        (row.title, column): _cell(exhibit, row, column, done, missing)
        for column in exhibit.columns
        for row in exhibit.rows
    }
    return Reproduced(exhibit, cells, tuple(_tested(exhibit, done)), done)


def _cell(
    exhibit: Exhibit,
    row: MethodRow,
    column: Column,
    done: Mapping[tuple[str, str], Sequence[Comparison]],
    missing: Mapping[tuple[str, str], str],
) -> TableCell:
    printed = column.printed[exhibit.rows.index(row)] if column.printed else None
    where, name = (column.network, column.data), metric_name(column.metric)
    for comparison in done.get(where, ()):
        for ranked in comparison.ranking.filter(metric=name, method=row.chosen.name).iter_rows(named=True):
            measured = _estimate(ranked, "value", column.unit)
            if np.isfinite(measured.value):
                return TableCell(printed, measured, ranked["seconds"])
    return TableCell(printed, None, why=missing.get(where, "not scored"))


def _tested(exhibit: Exhibit, done: Mapping[tuple[str, str], Sequence[Comparison]]) -> Iterator[Tested]:
    rows = {row.title: row for row in exhibit.rows}
    for claim in exhibit.claims:
        wanted = metric_name(claim.metric)
        for column in exhibit.columns:
            if metric_name(column.metric) != wanted:
                continue
            comparisons = done.get((column.network, column.data), ())
            for worse in claim.worse:
                ahead_by = ahead(comparisons, wanted, rows[claim.better].chosen.name, rows[worse].chosen.name)
                yield Tested(claim, column.network, column.data, worse, verdict(ahead_by, claim.margin), ahead_by)


def verdict(ahead_by: Estimate, margin: float) -> Verdict:
    """Judge a claim by the interval of the paired difference: on one side of the margin, or around it."""
    if not np.isfinite(ahead_by.value):
        return "not measured"
    if ahead_by.images < FEWEST or not np.isfinite(ahead_by.low):
        return "these images cannot tell"
    if ahead_by.low > margin:
        return "holds"
    return "does not hold" if ahead_by.high < margin else "these images cannot tell"


def ahead(comparisons: Sequence[Comparison], metric: str, better: str, worse: str) -> Estimate:
    """Estimate by how much one method is ahead of another, paired over the images that both have; above 0 is ahead."""
    sign = _sign(comparisons, metric)
    for comparison in comparisons:
        rows = comparison.differences.filter(metric=metric)
        for one, other, turn in ((better, worse, 1), (worse, better, -1)):
            for row in rows.filter(method=one, other=other).iter_rows(named=True):
                return _estimate(row, "difference", sign * turn)
    one, other = (_scores(comparisons, metric, method) for method in (better, worse))
    both = sorted(set(one) & set(other))
    if not both:
        return Estimate(np.nan, np.nan, np.nan, 0)
    first, second = (sign * np.array([of[image] for image in both]) for of in (one, other))
    return difference(first, second)


def _estimate(row: Mapping[str, float | None], name: str, factor: float) -> Estimate:
    """Read a number with its interval from a row of a table, times a factor, which may turn it around."""
    value, low, high = (factor * (np.nan if row[k] is None else row[k]) for k in (name, "low", "high"))  # type: ignore[operator]
    return Estimate(value, min(low, high), max(low, high), int(row["images"] or 0))


def _sign(comparisons: Sequence[Comparison], metric: str) -> int:
    told = (p for comparison in comparisons for p in comparison.protocols if p["metric"] == metric)
    return 1 if next(told, {"higher_is_better": True})["higher_is_better"] else -1


def _scores(comparisons: Sequence[Comparison], metric: str, method: str) -> dict[str, float]:
    """A method's score of each image that it scored, by the image's name."""
    scores = {}
    for comparison in comparisons:
        for row in comparison.scores.filter(metric=metric, method=method, extra="").iter_rows(named=True):
            if row["value"] is not None:
                scores[row["image"]] = row["value"]
    return scores
