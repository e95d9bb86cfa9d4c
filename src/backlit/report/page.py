"""One self-contained HTML page with maps side by side: data first, rendered last."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader
from matplotlib.colors import to_hex
from PIL import Image
from torch import Tensor

from backlit._errors import FileError, InputError
from backlit._files import make_folder, write_whole
from backlit.attribution import Attribution
from backlit.report.figure import png, render_image, scale_text
from backlit.report.kinds import PALETTES
from backlit.report.panels import Panels
from backlit.report.trust import trust

FIRST = ("dmbp", "lpr", "tr_gbp", "mip_in", "grad_cam")
"""Methods that come first, and are shown at first."""
_MARK, _HEAD = b'<meta name="generator" content="Backlit">', 2048
"""What tells our pages from others, and in how many of their first bytes."""
_COARSE = 128  # pixels: up to this side a picture is shown as squares, above it smoothly
_SIDE = 256  # pixels of a map's picture over a photograph
_SMALL, _LARGE, _WINDOW = (
    10,
    24,
    56,
)  # letters' widths: of a map at least and at most, and of all that a wide window shows


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
    """The place of a map that there is not, and why."""

    method: str
    why: str = "not asked for"


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

    ``methods`` are names and summaries, in the order of each row's cells, of which the first ``at_first`` are shown until
    others are asked for; a value of ``footer`` may be a mapping, which becomes a list of its own, such as the seconds of each
    method. ``ramped``: one bar of colours says what all maps say.
    """

    title: str
    intro: str
    methods: tuple[tuple[str, str], ...]
    rows: tuple[Row, ...]
    footer: Mapping[str, Any]
    ramped: bool = True
    at_first: int = len(FIRST)

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
    def side(self) -> int:
        """Side of a map, in the browser's letters: what a wide window has for the columns that are shown at first."""
        columns = min(len(self.methods), self.at_first)
        return max(_SMALL, min(_LARGE, _WINDOW // max(columns, 1)))

    @property
    def groups(self) -> tuple[tuple[Row, ...], ...]:
        """The rows, those of one image (for several classes) together."""
        return tuple(tuple(rows) for _, rows in groupby(self.rows, lambda r: _source(r.image)))


def cell(method: str, explanation: Attribution, picture: Tensor) -> Cell:
    """The cell of a single image's explanation over its picture (c, h, w) in [0, 1]."""
    if len(explanation) != 1:
        raise InputError(f"explanation must be of one image, but is of {len(explanation)}. Take explanation[i].")
    verdict = trust(explanation)
    panels = Panels(explanation, picture, faintness=verdict.faintness)
    scale, percentile = panels.own
    facts = [("logit", f"{float(explanation.output[0]):.3f}")]
    facts += [(name, f"{float(value[0]):.3g}") for name, value in explanation.completeness.items()]
    facts += [("colours", panels.palette.legend), ("rules", str(explanation.coverage) or "not recorded")]
    if "seconds" in explanation.provenance:  # of the call, which may have explained other images, too
        facts.append(("seconds, whole batch", f"{explanation.provenance['seconds']:.3g}"))
    text = scale_text(scale, percentile) if panels.strength is not None else "the map holds NaN or infinity"
    text = text if panels.palette.two_sided else text.replace("±", "0 to ")
    text = ". ".join((text, " ".join(verdict.reasons))) if verdict.reasons else text
    coarse = max(picture.shape[1:]) <= _COARSE
    overlay, alone = (shown if coarse else _small(shown) for shown in (panels.overlay(), panels.map()))
    return Cell(method, overlay, alone, text, tuple(facts))


def _small(pixels: np.ndarray) -> bytes:
    """A picture over a photograph as a small JPEG file."""
    picture, buffer = Image.fromarray(pixels), io.BytesIO()
    picture.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    picture.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def row(picture: Tensor, title: str, subtitle: str, explanations: Mapping[str, Attribution | str]) -> Row:
    """The row of one image (c, h, w) in [0, 1] and one class: its explanations, each of this image alone, by method.

    Where a method has none, a text says why.
    """
    cells = tuple(
        NoCell(method, made) if isinstance(made, str) else cell(method, made, picture)
        for method, made in explanations.items()
    )
    shown, small = render_image(picture), max(picture.shape[1:]) <= _COARSE
    return Row(shown if small else _small(shown), title, subtitle, cells, coarse=small)


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
    return ", ".join(to_hex(c) for c in PALETTES["signed"].colour(np.linspace(-1, 1, stops)))


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
