"""Curves with their bands as the geometry of a drawing; told apart by colour, dashes and markers together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backlit.report.numbers import known, number

COLOURS, DASHES, MARKERS = 8, 5, 7  # as many as the style sheet and _SHAPES have
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 494, 36, 262
_MARKS = 6  # markers along a line
_SIZE = 4.2  # of a marker, from its centre

_PLUS = (
    *((-0.45, -1.4), (0.45, -1.4), (0.45, -0.45), (1.4, -0.45), (1.4, 0.45), (0.45, 0.45)),
    *((0.45, 1.4), (-0.45, 1.4), (-0.45, 0.45), (-1.4, 0.45), (-1.4, -0.45), (-0.45, -0.45)),
)
# Each around (0, 0), as vertices; None is a circle.
_SHAPES: tuple[tuple[tuple[float, float], ...] | None, ...] = (
    None,
    ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    ((0, -1.2), (1.1, 0.8), (-1.1, 0.8)),
    ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)),
    ((0, 1.2), (1.1, -0.8), (-1.1, -0.8)),
    _PLUS,
    tuple((0.75 * (a - b), 0.75 * (a + b)) for a, b in _PLUS),
)


@dataclass(frozen=True)
class Style:
    """How a method is drawn wherever it appears."""

    colour: int
    dash: int
    marker: int
    sample: str
    """The marker alone, in the middle of a sample 36 by 12."""


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: where in the drawing, and what it says."""

    at: float
    text: str


@dataclass(frozen=True)
class Line:
    """One method's curve as SVG paths; ``band`` is empty where there are too few images for one."""

    method: int
    path: str
    band: str
    marks: str


@dataclass(frozen=True)
class Chart:
    """A drawing of 520 by 310 with its axes and lines."""

    title: str
    x_label: str
    y_label: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]
    banded: bool
    left: int = _LEFT
    right: int = _RIGHT
    top: int = _TOP
    bottom: int = _BOTTOM


def style(method: int) -> Style:
    """Look of the method at that place; 40 are different, and the first eight in their colour alone."""
    turn = method + method // COLOURS
    marker = turn % MARKERS
    return Style(method % COLOURS, turn % DASHES, marker, _mark(18, 6, marker))


def chart(
    title: str, x_label: str, y_label: str, rows: Sequence[Mapping[str, Any]], order: Mapping[str, int]
) -> Chart | None:
    """The chart of one metric from its rows of ``Comparison.curves``; None if no point of it is known."""
    rows = [r for r in rows if r["method"] in order and known(r["position"])]
    drawn = [r for r in rows if known(r["mean"])]
    if not drawn:
        return None
    ends = [r[k] for r in drawn for k in ("mean", "low", "high") if known(r[k])]
    y_values = ticks(min(ends), max(ends))
    x_values = ticks(min(r["position"] for r in drawn), max(r["position"] for r in drawn))
    x = _axis(x_values[0], x_values[-1], _LEFT, _RIGHT)
    y = _axis(y_values[0], y_values[-1], _BOTTOM, _TOP)
    lines = []
    for method, place in sorted(order.items(), key=lambda item: item[1]):
        own = sorted((r for r in rows if r["method"] == method), key=lambda r: r["position"])
        if any(known(r["mean"]) for r in own):
            lines.append(_line(own, place, x, y))
    places = _places(y_values)
    return Chart(
        title=title,
        x_label=x_label,
        y_label=y_label,
        x_ticks=tuple(Tick(round(x(v), 1), f"{v * 100:.4g}%") for v in x_values),
        y_ticks=tuple(Tick(round(y(v), 1), number(v, places)) for v in y_values),
        lines=tuple(lines),
        banded=any(line.band for line in lines),
    )


def ticks(low: float, high: float) -> list[float]:
    """About five round numbers whose first and last enclose the range."""
    if high - low < 1e-9 * max(abs(low), abs(high), 1e-9):
        margin = abs(low) / 2 or 0.5
        low, high = low - margin, high + margin
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-6), math.ceil(high / step - 1e-6)
    return [round(i * step, 12) + 0.0 for i in range(first, last + 1)]


def _places(values: Sequence[float]) -> int | None:
    """Decimal places that tell the ticks apart and show each exactly."""
    if max(abs(v) for v in values) >= 1e5:
        return None
    return next((p for p in range(7) if all(abs(round(v, p) - v) < 1e-9 for v in values)), None)


def _axis(low: float, high: float, start: float, end: float) -> Any:
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _line(rows: Sequence[Mapping[str, Any]], method: int, x: Any, y: Any) -> Line:
    """The curve, interrupted where a point is unknown."""
    path, before = [], False
    for r in rows:
        here = known(r["mean"])
        if here:
            path.append(f"{'L' if before else 'M'}{x(r['position']):.1f} {y(r['mean']):.1f}")
        before = here
    banded = [r for r in rows if known(r["low"], r["high"])]
    edge = [(r["position"], r["high"]) for r in banded] + [(r["position"], r["low"]) for r in reversed(banded)]
    band = "M" + "L".join(f"{x(p):.1f} {y(v):.1f}" for p, v in edge) + "Z" if len(banded) > 1 else ""
    there = [r for r in rows if known(r["mean"])]
    gap = max(1, len(there) // _MARKS)
    start = (method * gap // 3) % gap  # staggered, so that markers of lines that meet do not cover each other
    shape = style(method).marker
    marks = "".join(_mark(x(r["position"]), y(r["mean"]), shape) for r in there[start::gap])
    return Line(method, "".join(path), band, marks)


def _mark(x: float, y: float, shape: int) -> str:
    corners = _SHAPES[shape]
    if corners is None:
        r = _SIZE
        return f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0Z"
    return "M" + "L".join(f"{x + a * _SIZE:.1f} {y + b * _SIZE:.1f}" for a, b in corners) + "Z"
