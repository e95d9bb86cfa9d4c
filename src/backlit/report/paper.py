"""A page for a paper, in HTML and in Markdown: its numbers beside ours, a verdict on each claim, the figures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader

from backlit._json import JsonObject
from backlit.report.numbers import number

_SHORT = {"holds": "holds", "does not hold": "does not hold", "these images cannot tell": "cannot tell"}


@dataclass(frozen=True)
class PaperPage:
    """All that a page shows.

    Attributes:
        name: The paper, as the command line has it.
        title: What it is.
        exhibits: The records of its tables and figures, each with the folder of its pictures.
        elsewhere: What is not among them, and why.
        pending: Tables and figures that were not measured yet.
    """

    name: str
    title: str
    exhibits: tuple[JsonObject, ...]
    elsewhere: tuple[tuple[str, str], ...]
    pending: tuple[str, ...]


def page_of(
    name: str,
    title: str,
    folders: Sequence[Path],
    elsewhere: Sequence[tuple[str, str]],
    pending: Sequence[str],
    record: str,
) -> PaperPage:
    """Read the records in these folders."""
    exhibits = []
    for folder in folders:
        told = json.loads((folder / record).read_text(encoding="utf-8"))
        exhibits.append({**told, "folder": folder.name})
    return PaperPage(name, title, tuple(exhibits), tuple(elsewhere), tuple(pending))


def as_html(page: PaperPage) -> str:
    """Return the page as HTML; its pictures stand beside it, in the folders of the tables."""
    return _environment(autoescape=True).get_template("paper.html").render(page=page)


def as_markdown(page: PaperPage, pictures: str = "") -> str:
    """Return the page as Markdown; ``pictures`` stands before the names of pictures, in the place of their folders."""
    return _environment(autoescape=False).get_template("paper.md").render(page=page, pictures=pictures)


def _environment(autoescape: bool) -> Environment:
    made = Environment(
        loader=PackageLoader("backlit.report"), autoescape=autoescape, trim_blocks=True, lstrip_blocks=True
    )
    made.filters.update(printed=_printed, measured=_measured, verdicts=_verdicts, seconds=_seconds)
    return made


def _printed(cell: JsonObject) -> str:
    return "–" if cell["printed"] is None else number(cell["printed"], _places(cell["printed"]))


def _places(value: float) -> int:
    return 1 if abs(value) > 2 else 2


def _measured(cell: JsonObject) -> str:
    value = cell.get("value")
    if value is None:
        return str(cell["why"])
    places = 1 if max(abs(value), abs(cell["printed"] or 0)) > 2 else 3
    if cell["low"] is None:
        return f"{number(value, places)} ({cell['images']} images: no interval)"
    return f"{number(value, places)} [{number(cell['low'], places)}, {number(cell['high'], places)}] ({cell['images']})"


def _verdicts(place: JsonObject) -> str:
    """The verdicts of a claim on one network in a line: which rows it holds against, and by how much."""
    told = []
    for verdict, short in _SHORT.items():
        against = [_against(test) for test in place["tests"] if test["verdict"] == verdict]
        if against:
            told.append(f"{short}: {', '.join(against)}")
    return "; ".join(told)


def _against(test: JsonObject) -> str:
    if test["value"] is None:
        return str(test["worse"])
    ends = "" if test["low"] is None else f" [{number(test['low'], 3)}, {number(test['high'], 3)}]"
    return f"{test['worse']} {number(test['value'], 3, sign=True)}{ends}"


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
