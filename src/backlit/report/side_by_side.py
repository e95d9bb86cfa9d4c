"""Pictures of a comparison for a page on paper: curves with their bands, maps of all methods side by side, reset networks."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from backlit.comparison import Comparison, ImageFacts, Strip
from backlit.methods.base import Kind
from backlit.report.figure import limit
from backlit.report.kinds import PALETTES
from backlit.report.numbers import known

_INCH = 1.5  # of a map's side
_DPI = 110


def curves_of(comparisons: Sequence[Comparison], metric: str, titles: Mapping[str, str]) -> bytes | None:
    """Draw the mean curves of a metric with their 95 % bands, as a PNG file; None if there is none.

    Args:
        comparisons: Where the curves are.
        metric: The metric's name in them.
        titles: What the picture calls each method, in order.
    """
    figure = Figure(figsize=(6.4, 4.2), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    for name, title in titles.items():
        for comparison in comparisons:
            rows = comparison.curves.filter(metric=metric, method=name).sort("position")
            if not len(rows):
                continue
            x, mean, low, high = (rows[k].to_numpy() for k in ("position", "mean", "low", "high"))
            (line,) = axes.plot(100 * x, mean, label=f"{title} ({rows['images'][0]})")
            if known(*low, *high):
                axes.fill_between(100 * x, low, high, color=line.get_color(), alpha=0.12, linewidth=0)
    if not axes.lines:
        return None
    told = next(p for comparison in comparisons for p in comparison.protocols if p["metric"] == metric)
    axes.set(xlabel=f"{told['axes'][0]} (%)", ylabel=told["axes"][1], title=told["title"])
    axes.legend(fontsize="small", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return _png(figure)


def maps_of(comparison: Comparison, titles: Mapping[str, str], kinds: Mapping[str, Kind]) -> bytes:
    """Draw a row for each image and class: the photograph, then the map of each method in the colours of its kind, as PNG."""
    rows = [(image, label.index, label.label) for image in comparison.images for label in image.classes]
    figure = Figure(
        figsize=(_INCH * (1 + len(titles)), (_INCH + 0.25) * len(rows) + 0.3), dpi=_DPI, layout="constrained"
    )
    grid = figure.subplots(len(rows), 1 + len(titles), squeeze=False)
    for i, (image, index, label) in enumerate(rows):
        _photograph(grid[i, 0], image, label)
        for j, (name, title) in enumerate(titles.items(), 1):
            heat = comparison.maps.get((name, image.name, index))
            _map(grid[i, j], kinds[name], heat, title if i == 0 else "")
    return _png(figure)


def strips_of(strips: Sequence[Strip], kinds: Mapping[str, Kind]) -> bytes | None:
    """Draw the maps of networks that are drawn anew further and further, a row an image, as PNG; None if there are none."""
    if not strips:
        return None
    most = max(len(strip.maps) for strip in strips)
    figure = Figure(figsize=(_INCH * most, (_INCH + 0.35) * len(strips)), dpi=_DPI, layout="constrained")
    grid = figure.subplots(len(strips), most, squeeze=False)
    for i, strip in enumerate(strips):
        numbers = next(iter(strip.correlations.values()))
        for j in range(most):
            grid[i, j].axis("off")
            if j < len(strip.maps):
                _map(grid[i, j], kinds[strip.method], strip.maps[j], f"{_last(strip.labels[j])}\n{numbers[j]:.2f}")
    return _png(figure)


def _photograph(axes: Axes, image: ImageFacts, label: str) -> None:
    picture = image.picture.expand(3, -1, -1) if len(image.picture) == 1 else image.picture
    axes.imshow(picture.permute(1, 2, 0).clamp(0, 1).numpy())
    axes.set_title(label[:22], fontsize=7)
    axes.axis("off")


def _map(axes: Axes, kind: Kind, heat: Tensor | None, title: str) -> None:
    axes.axis("off")
    axes.set_title(title[:26], fontsize=8)
    if heat is None:
        axes.text(0.5, 0.5, "no map", ha="center", va="center", fontsize=8)
        return
    end, _ = limit(heat)
    strength = (heat / end if end > 0 else heat * 0).clamp(-1, 1)
    palette = PALETTES[kind]
    if not palette.two_sided and bool((heat < 0).any()):
        palette = PALETTES["signed"]
    axes.imshow(palette.colour(strength.numpy().astype(np.float64)))


def _last(label: str) -> str:
    return label if len(label) <= 14 else f"...{label[-11:]}"


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
