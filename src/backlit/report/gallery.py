"""The maps of a comparison as a gallery: each image once, each map once, and what is said of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from torch import Tensor

from backlit.comparison import ClassFacts, Comparison, ImageFacts, Strip
from backlit.report.figure import scale_text
from backlit.report.inks import Ink, ink, palette_for
from backlit.report.kinds import Palette
from backlit.report.levels import SIDE, Heat, coarse, data_uri, heat_of, photo, pictures
from backlit.report.numbers import NOT_SCORED, decimals, known, number
from backlit.report.trust import LEAST_PROBABILITY

BUDGET = 9.6e6  # bytes of a page, at most, for
USUAL = 320  # maps of 227 x 227 pixels (20 images, 8 methods, 2 classes) or fewer; beyond that it grows with the maps
_STRIP_SIDE = 96  # pixels: the maps of reset checks are looked at small
_BASE64 = 4 / 3


@dataclass(frozen=True)
class Choice:
    """A class that an image is explained for; ``unseen`` where the network does not see it, whatever its maps show."""

    label: str
    detail: str
    unseen: bool


@dataclass(frozen=True)
class Shown:
    """One map; ``source`` is None, and ``scale`` says why, where there is nothing to show.

    ``ink`` is the kind of map that it is coloured as; ``smooth`` where it is a picture of few pixels to be filled in.
    """

    source: str | None
    scale: str
    note: str
    ink: str = ""
    smooth: bool = False


@dataclass(frozen=True)
class Cell:
    """One method's maps of an image, by class."""

    method: int
    title: str
    maps: tuple[Shown, ...]


@dataclass(frozen=True)
class ScoreRow:
    """One method's scores of one image."""

    method: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Shot:
    """One image with every method's maps, and the scores of its first class."""

    name: str
    photo: str
    size: tuple[int, int]
    coarse: bool
    classes: tuple[Choice, ...]
    cells: tuple[Cell, ...]
    metrics: tuple[str, ...]
    scores: tuple[ScoreRow, ...]


@dataclass(frozen=True)
class Stage:
    """One map of a reset check, with its correlations in words."""

    shown: Shown
    correlations: tuple[str, ...]


@dataclass(frozen=True)
class StripRow:
    """One method's maps while the network is reset."""

    method: str
    stages: tuple[Stage, ...]


@dataclass(frozen=True)
class StripTable:
    """One image's reset check by several methods."""

    metric: str
    image: str
    measures: tuple[str, ...]
    labels: tuple[str, ...]
    rows: tuple[StripRow, ...]
    undefined: bool
    """Some correlation is, for a map is constant."""


@dataclass(frozen=True)
class Gallery:
    """All pictures of a report, drawn in so many levels, and the colours that they are shown in."""

    shots: tuple[Shot, ...]
    strips: tuple[StripTable, ...]
    inks: tuple[Ink, ...]
    levels: str
    averaged: bool


def gallery(comparison: Comparison, metrics: Mapping[str, str], text: int) -> Gallery:
    """Every picture of the report, drawn as finely as fits beside ``text`` bytes of everything else.

    Args:
        comparison: What was found.
        metrics: Titles of the metrics by name.
        text: Bytes of the page without its pictures, about.
    """
    keys = [(m.name, i.name, c.index) for i in comparison.images for m in comparison.methods for c in i.classes]
    keys = [k for k in dict.fromkeys(keys) if k in comparison.maps]
    heats = [heat_of(comparison.maps[k]) for k in keys]
    small = [heat_of(m, _STRIP_SIDE) for s in comparison.strips for m in s.maps]
    photos = [photo(i.picture) for i in comparison.images]
    budget = BUDGET * max(1, len(heats) / USUAL)
    files, levels = pictures(heats + small, (budget - text - sum(map(len, photos))) / _BASE64)
    titles = {m.name: m.title for m in comparison.methods}
    palettes = {
        name: palette_for(titles.get(name, name), [h for k, h in zip(keys, heats, strict=True) if k[0] == name])
        for name in (*titles, *(s.method for s in comparison.strips))
    }
    inks = {name: p.name for name, p in palettes.items()}
    maps = {k: _shown(h, f, inks[k[0]]) for k, h, f in zip(keys, heats, files, strict=False)}
    by = [s.method for s in comparison.strips for _ in s.maps]
    staged = iter([_shown(h, f, inks[m]) for m, h, f in zip(by, small, files[len(heats) :], strict=True)])
    scores = _scores(comparison)
    return Gallery(
        shots=tuple(
            _shot(comparison, i, p, maps, metrics, scores) for i, p in zip(comparison.images, photos, strict=True)
        ),
        strips=_strip_tables(comparison, metrics, [[next(staged) for _ in s.maps] for s in comparison.strips]),
        levels=str(levels[0]) if levels[0] == levels[1] else f"{levels[0]} to {levels[1]}",
        inks=_inks(comparison, palettes),
        averaged=any(_larger(comparison.maps[k], h) for k, h in zip(keys, heats, strict=True)),
    )


def _inks(comparison: Comparison, palettes: Mapping[str, Palette]) -> tuple[Ink, ...]:
    """The palettes in the order in which they are met, each with the titles of its methods."""
    known_titles = {m.name: m.title for m in comparison.methods}
    titles: dict[str, list[str]] = {}
    for method, palette in palettes.items():
        titles.setdefault(palette.name, []).append(known_titles.get(method, method))
    named = {p.name: p for p in palettes.values()}
    return tuple(ink(named[name], tuple(found)) for name, found in titles.items())


def _larger(heatmap: Tensor, heat: Heat) -> bool:
    return heat.strength is not None and max(heatmap.shape) > SIDE


def _shown(heat: Heat, file: bytes | None, kind: str) -> Shown:
    if file is None:
        return Shown(None, "no map", "it holds NaN or infinity")
    if heat.scale == 0:
        return Shown(data_uri(file), "zero everywhere", scale_text(0, heat.percentile), kind)
    note = scale_text(heat.scale, heat.percentile)
    return Shown(data_uri(file), f"±{number(heat.scale)}", note, kind, heat.smooth)


_MISSING = Shown(None, "no map", "the comparison holds none")


def _shot(
    comparison: Comparison,
    image: ImageFacts,
    source: str,
    maps: Mapping[tuple[str, str, int], Shown],
    metrics: Mapping[str, str],
    scores: Mapping[tuple[str, str, str], float | None],
) -> Shot:
    cells = (
        Cell(i, m.title, tuple(maps.get((m.name, image.name, c.index), _MISSING) for c in image.classes))
        for i, m in enumerate(comparison.methods)
    )
    scored = [name for name in metrics if any((name, m.name, image.name) in scores for m in comparison.methods)]
    columns = []
    for name in scored:
        values = [scores.get((name, m.name, image.name)) for m in comparison.methods]
        places = decimals(values)
        columns.append([number(v, places) if v is not None and known(v) else NOT_SCORED for v in values])
    height, width = image.picture.shape[-2:]
    return Shot(
        name=image.name,
        photo=source,
        size=(width, height),
        coarse=coarse(image.picture),
        classes=tuple(_choice(c) for c in image.classes),
        cells=tuple(cells),
        metrics=tuple(metrics[name] for name in scored),
        scores=tuple(
            ScoreRow(m.title, tuple(column[i] for column in columns))
            for i, m in enumerate(comparison.methods if scored else ())
        ),
    )


def _choice(found: ClassFacts) -> Choice:
    unseen = found.probability < LEAST_PROBABILITY
    why = ": the network does not see this class, so its maps are drawn faint" if unseen else ""
    return Choice(found.label, f"probability {number(found.probability)}, logit {number(found.logit)}{why}", unseen)


def _scores(comparison: Comparison) -> dict[tuple[str, str, str], Any]:
    rows = comparison.scores.iter_rows(named=True)
    return {(r["metric"], r["method"], r["image"]): r["value"] for r in rows if not r["extra"]}


def _strip_tables(
    comparison: Comparison, metrics: Mapping[str, str], shown: Sequence[Sequence[Shown]]
) -> tuple[StripTable, ...]:
    """The strips of one metric and image under each other, whatever order they come in."""
    titles = {m.name: m.title for m in comparison.methods}
    place = {i.name: n for n, i in enumerate(comparison.images)}

    def table(item: tuple[Strip, Sequence[Shown]]) -> tuple[int, int, tuple[str, ...], tuple[str, ...]]:
        s = item[0]
        known_metric = list(metrics).index(s.metric) if s.metric in metrics else len(metrics)
        return known_metric, place.get(s.image, len(place)), s.labels, tuple(s.correlations)

    found = []
    for (_, _, labels, measures), items in groupby(
        sorted(zip(comparison.strips, shown, strict=True), key=table), table
    ):
        strips = list(items)
        first = strips[0][0]
        rows = tuple(StripRow(titles.get(s.method, s.method), _stages(s, row)) for s, row in strips)
        undefined = any("–" in stage.correlations for row in rows for stage in row.stages)
        found.append(
            StripTable(metrics.get(first.metric, first.metric), first.image, measures, labels, rows, undefined)
        )
    return tuple(found)


def _stages(strip: Strip, shown: Sequence[Shown]) -> tuple[Stage, ...]:
    """Correlations that are not defined, for a map is constant, are shown as a dash."""
    stages = []
    for i, one in enumerate(shown):
        numbers = [values[i] if i < len(values) else None for values in strip.correlations.values()]
        texts = tuple(number(v, 2) if v is not None and known(v) else "–" for v in numbers)
        stages.append(Stage(one, texts))
    return tuple(stages)
