"""`backlit reproduce`: the papers' tables and figures measured again, a page for each paper."""

from __future__ import annotations

import os
from pathlib import Path
from typing import get_args

from rich.console import Console
from rich.table import Table

from backlit._errors import InputError
from backlit._files import write_whole
from backlit.bench.papers import PAPERS, find
from backlit.bench.papers.exhibit import EMBEDDED, Exhibit, Paper
from backlit.bench.papers.outcome import Reproduced, Verdict
from backlit.bench.papers.places import Places, read_places
from backlit.bench.papers.record import RECORD, write_record
from backlit.bench.papers.run import Amount, reproduce
from backlit.bench.run import How
from backlit.cli.compare import KEPT, progress_shown
from backlit.cli.console import console, shown
from backlit.cli.settings import fastest_device
from backlit.cli.stopping import said_when_stopped
from backlit.report.paper import as_html, as_markdown, page_of


def listing() -> None:
    """Print every table and figure of the papers, and what it shows."""
    into = console()
    table = Table("name", "shows", "networks of the paper")
    for paper in PAPERS:
        for one in paper.exhibits:
            table.add_row(f"{paper.name}.{one.name}", one.caption, ", ".join(one.networks))
        for name, why in paper.elsewhere:
            table.add_row(f"{paper.name}.{name}", f"not here: {why}", "")
    into.print(table)


def command(
    what: str,
    places: Path | None,
    networks: str | None,
    images: int | None,
    scale: str,
    out: Path,
    how: How,
    device: str,
) -> int:
    """Measure what is asked for, and write the paper's page; returns the number of tables without any number.

    Raises:
        InputError: If there is no such paper, table or network, or an argument cannot be used.
        FileError: If a file is missing, or the folder cannot be used.
    """
    paper, exhibits = find(what)
    amount, there = Amount.of(scale, images), Places() if places is None else read_places(places)
    asked = [exhibit.on(_networks(exhibit, networks, there)) for exhibit in exhibits]
    on = fastest_device("float32") if device == "auto" else device
    into, empty = console(), 0
    for exhibit in asked:
        home = out / f"{paper.name}.{exhibit.name}"
        with said_when_stopped(lambda: KEPT), progress_shown(into) as (progress, _):
            done = reproduce(exhibit, there, home, amount, how, device=on, progress=progress, say=into.print)
        write_record(done, home)
        empty += _say(done, into)
    page = write_page(paper, out)
    into.print(f"open {shown(os.path.relpath(page))}")
    return empty


def write_page(paper: Paper, out: Path) -> Path:
    """Write the page of all that was measured of a paper in this folder, as HTML and as Markdown; returns the former.

    Raises:
        FileError: If one cannot be written.
    """
    folders = {exhibit.name: out / f"{paper.name}.{exhibit.name}" for exhibit in paper.exhibits}
    there = [folder for folder in folders.values() if (folder / RECORD).is_file()]
    pending = [name for name, folder in folders.items() if folder not in there]
    page = page_of(paper.name, paper.title, there, paper.elsewhere, pending, RECORD)
    write_whole(out / f"{paper.name}.html", as_html(page).encode())
    write_whole(out / f"{paper.name}.md", as_markdown(page).encode())
    return out / f"{paper.name}.html"


def _networks(exhibit: Exhibit, asked: str | None, places: Places) -> list[str]:
    """The networks that are asked for; else the paper's, then those of the places.

    Raises:
        InputError: If one is neither the paper's, nor in the places, nor the embedded one.
    """
    known = list(dict.fromkeys([*exhibit.networks, *places.networks, EMBEDDED]))
    if asked is None:
        return [name for name in known if name != EMBEDDED]
    names = [name.strip() for name in asked.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise InputError(
                f"networks must be of {', '.join(known)}, but hold {name!r}. Name it in a [[networks]] of --places FILE."
            )
    if not names:
        raise InputError(f"networks must name at least one, by comma, but is {asked!r}.")
    return names


def _say(done: Reproduced, into: Console) -> bool:
    """Print the verdicts; returns whether nothing was measured."""
    counts = {verdict: sum(t.verdict == verdict for t in done.tested) for verdict in get_args(Verdict)}
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    measured = sum(cell.measured is not None for cell in done.cells.values())
    into.print(f"{done.exhibit.name}: {measured} of {len(done.cells)} numbers measured; claims: {told or 'none'}")
    whys = dict.fromkeys(f"{c.network}, {c.data}: {cell.why}" for (_, c), cell in done.cells.items() if cell.why)
    for why in whys:
        into.print(f"  {why}")
    return not measured
