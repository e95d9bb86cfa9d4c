"""One self-contained HTML page with maps side by side: data first, rendered last."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader
from matplotlib.colors import to_hex
from torch import Tensor

from backlit._errors import FileError, InputError
from backlit._files import make_folder, write_whole
from backlit.attribution import Attribution
from backlit.report.figure import COLOURS, png, render_image, render_map, render_overlay, scale_text

_PERCENTILE = 99.5
_MARK, _HEAD = b'<meta name="generator" content="Backlit">', 2048
"""What tells our pages from others, and in how many of their first bytes."""
_COARSE = 128  # pixels: up to this side a picture is shown as squares, above it smoothly


Picture = np.ndarray | bytes
"""A uint8 picture (H, W, 3), or the bytes of a JPEG file."""


@dataclass(frozen=True)
class Cell:
    """One map: as pictures, with its scale and the numbers that say how far to trust it; ``file`` is a larger picture of it."""

    method: str
    overlay: Picture
    alone: Picture
    scale: str
    facts: tuple[tuple[str, str], ...]
    file: str | None = None


@dataclass(frozen=True)
class NoCell:
    """The place of a map that there is not."""

    method: str


@dataclass(frozen=True)
class Row:
    """One image explained for one class by every method; ``coarse`` where its pixels are so few that each is to be seen."""

    image: Picture
    title: str
    subtitle: str
    cells: tuple[Cell | NoCell, ...]
    coarse: bool = False


@dataclass(frozen=True)
class Page:
    """A page: rows with one cell a method, and what is to be said above and below.

    ``methods`` are names and summaries, in the order of each row's cells; a value of ``footer`` may be a mapping, which
    becomes a list of its own, such as the seconds of each method. ``ramped``: one bar of colours says what all maps say.
    """

    title: str
    intro: str
    methods: tuple[tuple[str, str], ...]
    rows: tuple[Row, ...]
    footer: Mapping[str, Any]
    ramped: bool = True

    def __post_init__(self) -> None:
        names = [name for name, _ in self.methods]
        for explained in self.rows:
            found = [cell.method for cell in explained.cells]
            if found != names:
                raise InputError(
                    f"rows must have one cell for each of the methods {names}, in this order, "
                    f"but {explained.title!r} has {found}."
                )

    @property
    def groups(self) -> tuple[tuple[Row, ...], ...]:
        """The rows, those of one image (for several classes) together."""
        return tuple(tuple(rows) for _, rows in groupby(self.rows, lambda r: _source(r.image)))


def cell(method: str, explanation: Attribution, picture: Tensor) -> Cell:
    """The cell of a single image's explanation over its picture (c, h, w) in [0, 1]."""
    if len(explanation) != 1:
        raise InputError(f"explanation must be of one image, but is of {len(explanation)}. Take explanation[i].")
    scale, percentile = explanation.scale_used(_PERCENTILE)
    heat = explanation.heatmap()[0]
    facts = [("logit", f"{float(explanation.output[0]):.3f}")]
    facts += [(name, f"{float(value[0]):.3g}") for name, value in explanation.completeness.items()]
    facts += [("rules", str(explanation.coverage) or "not recorded")]
    if "seconds" in explanation.provenance:  # of the call, which may have explained other images, too
        facts.append(("seconds, whole batch", f"{explanation.provenance['seconds']:.3g}"))
    return Cell(
        method,
        render_overlay(picture, heat, scale=scale),
        render_map(heat, scale=scale),
        scale_text(scale, percentile),
        tuple(facts),
    )


def row(picture: Tensor, title: str, subtitle: str, explanations: Mapping[str, Attribution]) -> Row:
    """The row of one image (c, h, w) in [0, 1] and one class: its explanations, each of this image alone, by method."""
    cells = tuple(cell(method, explanation, picture) for method, explanation in explanations.items())
    return Row(render_image(picture), title, subtitle, cells, coarse=max(picture.shape[1:]) <= _COARSE)


def render(page: Page) -> str:
    """The page as one HTML document that loads nothing from anywhere."""
    environment = Environment(
        loader=PackageLoader("backlit.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["data_uri"] = _source
    environment.tests["missing"] = lambda value: isinstance(value, NoCell)
    environment.tests["mapping"] = lambda value: isinstance(value, Mapping)
    return environment.get_template("page.html").render(page=page, ramp=ramp())


def _source(picture: Picture) -> str:
    """A picture as the source of an image in a page."""
    kind, data = ("jpeg", picture) if isinstance(picture, bytes) else ("png", png(picture))
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def ramp(stops: int = 9) -> str:
    """The maps' own colours from blue to red, as a list for a CSS gradient."""
    return ", ".join(to_hex(COLOURS(i / (stops - 1))) for i in range(stops))


def check_page(path: str | Path) -> None:
    """See that a page can be written to this place, and make its folder.

    Raises:
        FileError: If it cannot, or another program's file is there.
    """
    path = Path(path)
    make_folder(path.parent)
    try:
        if not path.exists():
            return
        ours = False
        if path.is_file():
            with path.open("rb") as file:
                ours = _MARK in file.read(_HEAD)
    except OSError as error:
        raise FileError(
            f"out: cannot write {str(path)!r} ({error.strerror or error}). Choose another folder."
        ) from error
    if not ours:
        raise FileError(
            f"out: {str(path)!r} is a file that Backlit did not write, so it stays. Move it away, or choose another folder."
        )


def write_page(path: str | Path, page: Page) -> None:
    """Write the page; an existing one of Backlit is replaced, only by a whole one.

    Raises:
        FileError: If it cannot be written, or another program's file is there.
    """
    check_page(path)
    write_whole(path, render(page).encode(), "out")
