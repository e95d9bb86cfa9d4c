"""A comparison of methods as one self-contained HTML page: data first, rendered last."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from backlit._files import make_folder, write_whole
from backlit.comparison import FILES_TO_READ, Comparison, MethodFacts
from backlit.report.chart import Chart, Style, chart, style
from backlit.report.gallery import Gallery, gallery
from backlit.report.numbers import NOT_SCORED, decimals, facts, known, number
from backlit.report.page import FIRST
from backlit.report.ranks import (
    Agreement,
    Frame,
    Pair,
    Ranked,
    Standing,
    agreement,
    by_pair,
    pairs,
    ranked,
    standing,
    verdict,
)

if TYPE_CHECKING:
    import polars as pl

Facts = tuple[tuple[str, str], ...]
_ENOUGH, _AT_FIRST, _FEW = (
    4,
    5,
    6,
)  # of those methods, to show no others; methods shown otherwise; so few that all are shown
_OTHER_THAN_FACTS = ("metric", "title", "source", "higher_is_better", "direction")  # of a protocol: said in the heading
# Bytes of the page beside its pictures, generously: of all, a point of a curve, a score, a pair of methods, a map's markup.
_TEXT, _POINT, _SCORE, _PAIR, _MARKUP = 150_000, 60, 60, 250, 400


@dataclass(frozen=True)
class Method:
    """One method: its look in drawings, whether it is shown at first, and what it cost and covered."""

    name: str
    title: str
    summary: str
    source: str
    style: Style
    at_first: bool
    seconds: str
    forwards: str
    coverage: Facts
    completeness: Facts
    options: Facts
    notes: Facts


@dataclass(frozen=True)
class Further:
    """A further number of a metric: its mean by method."""

    name: str
    means: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Metric:
    """One metric: who is ahead, by how much, and what exactly was measured."""

    name: str
    title: str
    direction: str
    source: str
    verdict: str
    ranking: tuple[Ranked, ...]
    pairs: tuple[tuple[Pair | None, ...], ...]
    chart: Chart | None
    further: tuple[Further, ...]
    protocol: Facts
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """All that the page shows."""

    title: str
    facts: Facts
    methods: tuple[Method, ...]
    metrics: tuple[Metric, ...]
    overview: tuple[tuple[Standing, ...], ...]
    agreement: tuple[tuple[Agreement, ...], ...]
    gallery: Gallery
    most_classes: int
    provenance: Facts
    files: tuple[str, ...]


def report(comparison: Comparison, files: Sequence[str] = ()) -> Report:
    """Return what the page shows of a comparison; ``files`` are those beside it that it links to."""
    comparison = replace(comparison, methods=_in_order(comparison.methods))
    at_first = _shown_at_first(comparison.methods)
    order = {m.name: i for i, m in enumerate(comparison.methods)}
    tables = _Tables(*(_by_metric(f) for f in (comparison.ranking, comparison.differences, comparison.curves)))
    scores = _by_metric(comparison.scores)
    metrics = tuple(
        _metric(name, protocol, tables, comparison, _further(scores.get(name, ()), comparison))
        for name, protocol in _protocols(comparison).items()
    )
    return Report(
        title=f"Attribution methods on {comparison.model}",
        facts=_header(comparison),
        methods=tuple(_method(i, m, at_first=i in at_first) for i, m in enumerate(comparison.methods)),
        metrics=metrics,
        overview=tuple(tuple(standing(m.ranking, i) for m in metrics) for i in range(len(order))),
        agreement=agreement(by_pair(comparison.agreement.iter_rows(named=True)), [m.name for m in metrics]),
        gallery=gallery(comparison, {m.name: m.title for m in metrics}, _text_bytes(comparison, len(metrics))),
        most_classes=max((len(i.classes) for i in comparison.images), default=0),
        provenance=facts(comparison.provenance),
        files=tuple(files),
    )


def _in_order(methods: Sequence[MethodFacts]) -> tuple[MethodFacts, ...]:
    """The methods in their order, but those of :data:`FIRST` before all others."""
    return tuple(sorted(methods, key=lambda m: FIRST.index(m.name) if m.name in FIRST else len(FIRST)))


def _shown_at_first(methods: Sequence[MethodFacts]) -> range:
    """Places of the methods whose maps and curves are shown until a reader asks for others."""
    if len(methods) <= _FEW:
        return range(len(methods))
    there = sum(m.name in FIRST for m in methods)
    return range(there if there >= _ENOUGH else _AT_FIRST)


def render(comparison: Comparison, files: Sequence[str] = ()) -> str:
    """The page as one HTML document that loads nothing from anywhere; it links to ``files``, which lie beside it."""
    environment = Environment(
        loader=PackageLoader("backlit.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    script = _script()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("comparison.html").render(
        report=report(comparison, files), script=Markup(script), script_hash=Markup(digest)
    )


def write_report(path: str | Path, comparison: Comparison) -> None:
    """Write the page; an existing one is replaced only by a whole one. It links to the comparison's tables, if they lie beside it.

    Raises:
        FileError: If it cannot be written.
    """
    make_folder(Path(path).parent)
    write_whole(path, render(comparison, tables_in(Path(path).parent)).encode(), "out")


def tables_in(folder: Path) -> list[str]:
    """The files with a comparison's numbers that a folder holds."""
    return [name for name in FILES_TO_READ if (folder / name).is_file()]


@cache
def _script() -> str:
    """The page's script, whose hash is the only one that the page allows to run."""
    return resources.files("backlit.report").joinpath("templates/comparison.js").read_text(encoding="utf-8")


def _protocols(comparison: Comparison) -> dict[str, Mapping[str, Any]]:
    """The metrics in the order of the protocols; those with scores alone come last."""
    found: dict[str, Mapping[str, Any]] = {str(p["metric"]): p for p in comparison.protocols}
    for r in comparison.ranking.iter_rows(named=True):
        found.setdefault(r["metric"], {})
    return found


def _header(comparison: Comparison) -> Facts:
    provenance = comparison.provenance
    images = provenance.get("images", len(comparison.images))
    few = f" ({len(comparison.images)} shown)" if len(comparison.images) != images else ""
    found = {
        "Model": comparison.model,
        "Images": f"{images}{few}",
        "Methods": len(comparison.methods),
        "Metrics": len(_protocols(comparison)),
    }
    found |= {name.capitalize(): provenance[name] for name in ("date", "device") if name in provenance}
    versions = provenance.get("versions")
    if isinstance(versions, Mapping):
        found |= {"Backlit" if k == "backlit" else k: v for k, v in versions.items()}
    return facts(found)


def _method(place: int, found: MethodFacts, *, at_first: bool) -> Method:
    return Method(
        name=found.name,
        title=found.title,
        summary=found.summary,
        source=found.source,
        style=style(place),
        at_first=at_first,
        seconds=number(found.seconds) if known(found.seconds) else "–",
        forwards=number(found.forward_equivalents) if known(found.forward_equivalents) else "–",
        coverage=facts(found.coverage),
        completeness=tuple((k.replace("_", " "), number(v)) for k, v in found.completeness.items()),
        options=facts(found.options),
        notes=facts(found.notes),
    )


@dataclass(frozen=True)
class _Tables:
    """Rows of the comparison's frames by metric."""

    ranking: Mapping[str, Frame]
    differences: Mapping[str, Frame]
    curves: Mapping[str, Frame]


def _by_metric(frame: pl.DataFrame) -> dict[str, Frame]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for r in frame.iter_rows(named=True):
        found.setdefault(r["metric"], []).append(r)
    return dict(found)


def _text_bytes(comparison: Comparison, metrics: int) -> int:
    methods, images = len(comparison.methods), len(comparison.images)
    maps = len(comparison.maps) + sum(len(s.maps) for s in comparison.strips)
    scores, pairs_ = metrics * methods * images, metrics * methods**2
    return _TEXT + _POINT * comparison.curves.height + _SCORE * scores + _PAIR * pairs_ + _MARKUP * maps


def _metric(
    name: str,
    protocol: Mapping[str, Any],
    tables: _Tables,
    comparison: Comparison,
    further: tuple[Further, ...],
) -> Metric:
    order = {m.name: i for i, m in enumerate(comparison.methods)}
    higher = protocol.get("higher_is_better")
    title = str(protocol.get("title", name))
    x_label, y_label = protocol.get("axes", ("position", "score"))
    ranking, differences, curves = (t.get(name, ()) for t in (tables.ranking, tables.differences, tables.curves))
    ranking_rows = ranked(ranking, differences, order, higher)
    return Metric(
        name=name,
        title=title,
        direction=protocol.get("direction", ""),
        source=str(protocol.get("source", "")),
        verdict=verdict(ranking_rows, [m.title for m in comparison.methods]),
        ranking=ranking_rows,
        pairs=pairs(list(order), differences, higher),
        chart=chart(title, x_label, y_label, curves, order),
        further=further,
        protocol=facts({k: v for k, v in _flat(protocol).items() if k not in _OTHER_THAN_FACTS}),
        notes=tuple(comparison.notes.get(name, ())),
    )


def _flat(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """A protocol with its options beside the rest, and its range in words."""
    found = {k: v for k, v in protocol.items() if k not in ("options", "axes")}
    if isinstance(found.get("range"), list | tuple):
        low, high = found["range"]
        found["range"] = f"{'−∞' if low is None else number(low)} to {'∞' if high is None else number(high)}"
    return found | {f"option {k}": v for k, v in protocol.get("options", {}).items()}


def _further(scores: Frame, comparison: Comparison) -> tuple[Further, ...]:
    """Means over the images of the numbers beside the score."""
    found = []
    for name in dict.fromkeys(r["extra"] for r in scores if r["extra"]):
        means = []
        for m in comparison.methods:
            rows = [r for r in scores if r["extra"] == name and r["method"] == m.name]
            values = [r["value"] for r in rows if known(r["value"])]
            means.append((m.title, fmean(values) if values else None))
        places = decimals(v for _, v in means)
        found.append(
            Further(name, tuple((t, NOT_SCORED if v is None else number(v, places)) for t, v in means)),
        )
    return tuple(found)
