"""The page of a folder of maps: every image once for each of its classes, the methods side by side."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby

import numpy as np
from PIL import Image

from backlit._json import JsonObject
from backlit._version import __version__
from backlit.attribution import Attribution
from backlit.methods.lookup import title_named
from backlit.report.card import probability_text
from backlit.report.kinds import PALETTES
from backlit.report.page import Cell, NoCell, Page, Row, render
from backlit.report.panels import Panels
from backlit.report.trust import Trust, trust

_SIDE, _QUALITY = 320, 88  # pixels of a picture's longer side; of JPEG
_COARSE = 64  # pixels of an image that is shown as squares
_MOST = 6_000_000  # bytes of pictures: a third more in the page, which stays under 10 MB
_INTRO = (
    "Which pixels made the network say that? Each row is one image for one class, each column a method. Every map has a card "
    "beside this page, which says what its colours claim and how far it adds up."
)


def folder_page(rows: Sequence[JsonObject], load: Callable[[JsonObject], Attribution]) -> bytes:
    """Return the page, which holds the images that fit into 10 MB, the first ones first.

    Args:
        rows: What the folder's record says of each map.
        load: What reads the map of a row.
    """
    methods = list(dict.fromkeys(row["asked"]["method"] for row in rows))
    kinds = {row["asked"]["method"]: row["summary"]["provenance"].get("kind") for row in rows}
    images = {stem: list(of) for stem, of in groupby(sorted(rows, key=_order(rows)), lambda row: row["stem"])}
    shown: list[Row] = []
    size = told = 0
    for of in images.values():
        of_image = list(_rows(of, methods, load))
        size += sum(_bytes(row) for row in of_image)
        if shown and size > _MOST:
            break
        shown += of_image
        told += 1
    rest = (
        ""
        if told == len(images)
        else f" These are the first {told} of {len(images)} images; the cards of all are beside it."
    )
    title = f"Why {rows[0]['summary']['model']} said that" if rows else "No maps"
    columns = tuple((title_named(name), PALETTES[kinds[name]].legend) for name in methods)
    footer = {"Backlit": __version__, "maps": len(rows)}
    return render(Page(title, _INTRO + rest, columns, tuple(shown), footer, ramped=False)).encode()


def _order(rows: Sequence[JsonObject]) -> Callable[[JsonObject], int]:
    """What sorts rows by image, in the order in which the images came."""
    place = {stem: i for i, stem in enumerate(dict.fromkeys(row["stem"] for row in rows))}
    return lambda row: place[row["stem"]]


def _rows(of: Sequence[JsonObject], methods: Sequence[str], load: Callable[[JsonObject], Attribution]) -> Iterable[Row]:
    """The rows of one image, one a class."""
    for target in dict.fromkeys(_target(row) for row in of):  # two classes may have one name
        maps = {row["asked"]["method"]: row for row in of if _target(row) == target}
        drawn = {method: _drawn(row, load(row)) for method, row in maps.items()}
        photo, coarse = next((photo, coarse) for _, photo, coarse in drawn.values())
        cells = tuple(drawn[method][0] if method in drawn else NoCell(title_named(method)) for method in methods)
        known = next(iter(maps.values()))["summary"]
        chance = known.get("probability")
        said = "" if chance is None else f", probability {probability_text(chance)}"
        yield Row(photo, known["label"], f"{known['image'].rpartition('/')[2]}{said}", cells, coarse=coarse)


def _target(row: JsonObject) -> tuple[int, int | None]:
    """The class that a map is of, and the one whose logit was subtracted."""
    return row["summary"]["target"], row["summary"].get("less")


def _drawn(row: JsonObject, explanation: Attribution) -> tuple[Cell, bytes, bool]:
    """The cell of one map, its photograph, and whether that is so small that its pixels are to be seen."""
    summary, verdict = row["summary"], trust(explanation)
    panels = Panels(explanation, None, summary["colour_scale"], verdict.faintness)
    photo = panels.map() if panels.photo is None else np.rint(panels.photo * 255).astype(np.uint8)
    cell = Cell(
        title_named(row["asked"]["method"]),
        _jpeg(panels.overlay()),
        _jpeg(panels.map()),
        f"{verdict.word} Colours end at {'±' * panels.palette.two_sided}{summary['colour_scale']:.3g}.",
        _facts(summary, verdict),
        summary["picture"],
    )
    return cell, _jpeg(photo), max(explanation.values.shape[-2:]) <= _COARSE


def _facts(summary: JsonObject, verdict: Trust) -> tuple[tuple[str, str], ...]:
    numbers = [("logit", summary["logit"]), *summary["completeness"].items()]
    return (*((name, f"{value:.3g}") for name, value in numbers), ("in words", " ".join(verdict.lines)))


def _jpeg(picture: np.ndarray) -> bytes:
    image = Image.fromarray(picture)
    image.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def _bytes(row: Row) -> int:
    pictures = [row.image, *(p for cell in row.cells if isinstance(cell, Cell) for p in (cell.overlay, cell.alone))]
    return sum(len(picture) for picture in pictures)
