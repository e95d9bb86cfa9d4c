"""One self-contained HTML page with maps side by side: data first, rendered last."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader
from torch import Tensor

from backlit._files import make_folder, write_whole
from backlit.attribution import Attribution
from backlit.report.figure import png, render_image, render_map, render_overlay, scale_text

_PERCENTILE = 99.5


@dataclass(frozen=True)
class Cell:
    """One map: as pictures, with its scale and the numbers that say how far to trust it."""

    method: str
    overlay: np.ndarray
    alone: np.ndarray
    scale: str
    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Row:
    """One image explained for one class by every method."""

    image: np.ndarray
    title: str
    subtitle: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Page:
    """A page: rows of equal length, one column a method, and what is to be said above and below."""

    title: str
    intro: str
    methods: tuple[tuple[str, str], ...]
    rows: tuple[Row, ...]
    footer: Mapping[str, Any]


def cell(method: str, explanation: Attribution, picture: Tensor) -> Cell:
    """The cell of a single image's explanation over its picture (c, h, w) in [0, 1]."""
    scale = explanation.scale(_PERCENTILE)
    heat = explanation.heatmap()[0]
    facts = [("logit", f"{float(explanation.output[0]):.3f}")]
    facts += [(name, f"{float(value[0]):.3g}") for name, value in explanation.completeness.items()]
    facts += [("sites", str(explanation.coverage)), ("seconds", str(explanation.provenance.get("seconds", "?")))]
    return Cell(
        method,
        render_overlay(picture, heat, scale=scale),
        render_map(heat, scale=scale),
        scale_text(scale, _PERCENTILE),
        tuple(facts),
    )


def row(picture: Tensor, title: str, subtitle: str, explanations: Mapping[str, Attribution]) -> Row:
    """The row of one image and class: its explanations by method."""
    return Row(render_image(picture), title, subtitle, tuple(cell(m, e, picture) for m, e in explanations.items()))


def render(page: Page) -> str:
    """The page as one HTML document that loads nothing from anywhere."""
    environment = Environment(
        loader=PackageLoader("backlit.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["data_uri"] = lambda p: "data:image/png;base64," + base64.b64encode(png(p)).decode()
    return environment.get_template("page.html").render(page=page)


def write_page(path: str | Path, page: Page) -> None:
    """Write the page; an existing one is replaced only by a whole one.

    Raises:
        FileError: If it cannot be written.
    """
    make_folder(Path(path).parent)
    write_whole(path, render(page).encode(), "out")
