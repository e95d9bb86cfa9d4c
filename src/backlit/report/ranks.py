"""Scores as tables of text: ranked with intervals, pair by pair, and all metrics beside each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backlit.report.numbers import NOT_SCORED, TOO_FEW, decimals, interval, known, number

Frame = Sequence[Mapping[str, Any]]
_BAR = 120.0  # width of the drawing of an interval


@dataclass(frozen=True)
class Bar:
    """An interval as a drawing of 120 by 12; ``low`` and ``high`` are None without one, ``zero`` where 0 is far off."""

    at: float
    low: float | None
    high: float | None
    zero: float | None


@dataclass(frozen=True)
class Pair:
    """One method less another: the verdict is "better", "worse", "n.s.", or why there is none."""

    difference: str
    interval: str
    verdict: str


@dataclass(frozen=True)
class Ranked:
    """One row of a ranking; ``against_best`` is None for the best itself, and where a comparison is missing."""

    rank: str
    method: int
    value: str
    interval: str
    bar: Bar | None
    images: int
    against_best: Pair | None
    best: bool


@dataclass(frozen=True)
class Standing:
    """A method's cell in the overview: its value, and whether it is the best or not told apart from it."""

    value: str
    mark: str


@dataclass(frozen=True)
class Agreement:
    """A cell of the matrix of metrics, how far two order the methods alike: tau as text, and its colour's share, -1 to 1."""

    tau: str
    share: float


def by_pair(rows: Iterable[Mapping[str, Any]]) -> dict[frozenset[str], float | None]:
    """Return tau by the two metrics' names."""
    return {frozenset((row["metric"], row["other"])): row["tau"] for row in rows}


def agreement(taus: Mapping[frozenset[str], float | None], metrics: Sequence[str]) -> tuple[tuple[Agreement, ...], ...]:
    """Return a row a metric with a cell for each metric; none where no pair has a tau."""
    if not any(known(tau) for tau in taus.values()):
        return ()
    return tuple(tuple(_agreement(1.0 if a == b else taus.get(frozenset((a, b)))) for b in metrics) for a in metrics)


def _agreement(tau: float | None) -> Agreement:
    return Agreement("–", 0.0) if tau is None or not known(tau) else Agreement(number(tau, 2), round(tau, 2))


def ranked(ranking: Frame, differences: Frame, order: Mapping[str, int], higher: bool | None) -> tuple[Ranked, ...]:
    """One metric's rows, in their order."""
    rows = [r for r in ranking if r["method"] in order]
    ends = [r[k] for r in rows for k in ("value", "low", "high")]
    places = decimals(ends)
    best = next((r["method"] for r in rows if known(r["value"])), None)
    return tuple(
        Ranked(
            rank=str(r["rank"]) if known(r["value"]) else "–",
            method=order[r["method"]],
            value=number(r["value"], places) if known(r["value"]) else NOT_SCORED,
            interval=interval(r["low"], r["high"], places) if known(r["value"]) else "",
            bar=_bar(r, ends),
            images=r["images"],
            against_best=None if r["method"] == best else pair(r["method"], best, differences, higher, places),
            best=r["method"] == best,
        )
        for r in rows
    )


def verdict(rows: Sequence[Ranked], titles: Sequence[str]) -> str:
    """One sentence on who is best in a metric, and who cannot be told from it; empty where no method has a score."""
    scored = [r for r in rows if r.rank != "–"]
    best = next((r for r in scored if r.best), None)
    if best is None:
        return ""
    name, images = titles[best.method], f"{best.images} image{'s' * (best.images != 1)}"
    if len(scored) == 1:
        return f"Only {name} has a score."
    against = {r.method: r.against_best.verdict for r in scored if r.against_best is not None}
    tied = [titles[m] for m, word in against.items() if word == "n.s."]
    if TOO_FEW in against.values():
        return f"{name} has the best mean; {images} are too few to tell whether others differ from it."
    if tied:
        return f"{name} is best; {_listed(tied)} cannot be told from it on these {images}."
    return f"{name} is best, and these {images} tell it from every other method."


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def pair(method: str, other: str | None, differences: Frame, higher: bool | None, places: int | None) -> Pair | None:
    """The paired difference of two methods, in either order of the table, with more digits where it needs them."""
    for r in differences:
        if {r["method"], r["other"]} == {method, other} and known(r["difference"]):
            sign = 1 if r["method"] == method else -1
            ends = [sign * r[k] for k in ("low", "high") if known(r[k])]
            low, high = (min(ends), max(ends)) if len(ends) == 2 else (None, None)
            value = sign * r["difference"]
            if places is None or round(value, places) == 0:
                places = decimals([value, low, high, 0.0])
            verdict = TOO_FEW if low is None else _verdict(value, bool(r["significant"]), higher)
            return Pair(number(value, places, sign=True), "" if low is None else interval(low, high, places), verdict)
    return None


def _verdict(value: float, significant: bool, higher: bool | None) -> str:
    if not significant:
        return "n.s."
    if higher is None:
        return "differs"
    return "better" if (value > 0) == higher else "worse"


def pairs(methods: Sequence[str], differences: Frame, higher: bool | None) -> tuple[tuple[Pair | None, ...], ...]:
    """The row's method less the column's; None on the diagonal, and all of it empty if there is nothing to compare."""
    if not differences:
        return ()
    places = decimals([0.0, *(abs(r["difference"]) for r in differences if known(r["difference"]))])
    return tuple(tuple(pair(a, b, differences, higher, places) if a != b else None for b in methods) for a in methods)


def standing(rows: Sequence[Ranked], method: int) -> Standing:
    """Return what the overview says of a method in one metric."""
    row = next((r for r in rows if r.method == method), None)
    if row is None:
        return Standing(NOT_SCORED, "")
    tied = row.against_best is not None and row.against_best.verdict == "n.s."
    return Standing(row.value, "best" if row.best and len(rows) > 1 else "tied" if tied else "")


def _bar(row: Mapping[str, Any], ends: Sequence[float | None]) -> Bar | None:
    there = [v for v in ends if v is not None and known(v)]
    if not known(row["value"]) or len(there) < 2 or min(there) == max(there):
        return None
    low, high = min(there), max(there)

    def at(value: float) -> float:
        return round(6 + (value - low) / (high - low) * (_BAR - 12), 1)

    has = known(row["low"], row["high"])
    return Bar(
        at(row["value"]),
        at(row["low"]) if has else None,
        at(row["high"]) if has else None,
        at(0) if low < 0 < high else None,
    )
