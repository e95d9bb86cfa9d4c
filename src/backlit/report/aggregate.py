"""AggAtt as a picture: a row for each method, a column for each bin of images."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from backlit.metrics.aggregate import AggAtt
from backlit.report.canvas import INK, SOFT, Canvas, fitted, line_height
from backlit.report.kinds import PALETTES
from backlit.report.panels import as_bytes, resized

_SIDE, _GAP, _TEXT, _MARGIN = 160, 12, 13, 16
_PERCENTILE = 0.995
_CELL = (22, 104, 214)


def aggatt(rows: Mapping[str, AggAtt]) -> np.ndarray:
    """Draw mean maps by bin, uint8 (h, w, 3); all bins of a row share one colour scale, whose end is its 99.5th percentile.

    Args:
        rows: By title, what :func:`backlit.metrics.aggregate.aggregated` gives; all of the same edges.
    """
    first = next(iter(rows.values()))
    width = 2 * _MARGIN + len(first.images) * (_SIDE + _GAP) - _GAP
    row = _SIDE + 3 * line_height(_TEXT) + _GAP
    canvas = Canvas(width, 2 * _MARGIN + len(rows) * row)
    for i, (title, one) in enumerate(rows.items()):
        top = _MARGIN + i * row
        canvas.text(fitted(title, _TEXT, width - 2 * _MARGIN, bold=True), _MARGIN, top, _TEXT, bold=True)
        _draw_row(canvas, one, top + line_height(_TEXT))
    return canvas.pixels(2 * _MARGIN + len(rows) * row)


def _draw_row(canvas: Canvas, one: AggAtt, top: int) -> None:
    limit = max(
        torch.quantile(one.maps.float().flatten()[:: max(1, one.maps.numel() // 2**20)], _PERCENTILE).item(), 1e-30
    )
    height, width = one.maps.shape[-2:]
    for j, (plane, score) in enumerate(zip(one.maps, one.scores, strict=True)):
        left = _MARGIN + j * (_SIDE + _GAP)
        strength = resized((plane / limit).float().cpu()[None], (_SIDE, _SIDE), coarse=False)[0].clamp(0, 1)
        canvas.put(as_bytes(PALETTES["one-sided"].colour(strength.numpy())), left, top)
        canvas.frame(left, top, _SIDE, _SIDE)
        x0, y0, x1, y1 = (round(v * _SIDE / size) for v, size in zip(one.cell, (width, height) * 2, strict=True))
        for x, y, w, h in (
            (x0, y0, x1 - x0, 2),
            (x0, y1 - 2, x1 - x0, 2),
            (x0, y0, 2, y1 - y0),
            (x1 - 2, y0, 2, y1 - y0),
        ):
            canvas.box(left + x, top + y, w, h, _CELL)
        middle, under = left + _SIDE // 2, top + _SIDE + 2
        canvas.text(f"{one.edges[j]:.0%} to {one.edges[j + 1]:.0%}", middle, under, _TEXT, colour=INK, align="middle")
        below = under + line_height(_TEXT) - 2
        canvas.text(f"{score:.2f} in the cell", middle, below, _TEXT, colour=SOFT, align="middle")
