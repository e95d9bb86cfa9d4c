"""`backlit compare`: images in, one report with maps, curves, ranks and protocols out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn
from rich.table import Table

from backlit._errors import InputError
from backlit._options import option_names
from backlit._store import reopen
from backlit.bench.compare import compare
from backlit.bench.folder import COMPARISON, REPORT
from backlit.bench.source import READERS, Source, read
from backlit.cli.console import console, say_failed, shown
from backlit.cli.culprit import culprit_named
from backlit.cli.progress import Description, bars
from backlit.cli.settings import Chosen, Compute
from backlit.cli.stopping import one_failure, said_when_stopped
from backlit.comparison import Comparison
from backlit.data.listing import Failure
from backlit.metrics import Examples, Metric
from backlit.models import LoadedModel
from backlit.report.comparison import render, tables_in

_KEPT = "what is done is kept, and the same command goes on from there"


def from_words(images: Sequence[Path], data: str | None, read: str | None) -> tuple[list[Path], str]:
    """The paths, and how to read them, from IMAGE, --data and --read; --data also takes what --read does, as it once did.

    Raises:
        InputError: If they say two things.
    """
    kinds = ("images", *READERS)
    if data in kinds and read is None and not (Path(data).exists() and not images):
        return list(images), data
    if data is not None and images:
        raise InputError(
            f"data must be the data set's folder, in the place of IMAGE, but is {data!r} beside {shown(images[0])!r}. Give one of "
            f"them; how to read it is for --read: {', '.join(kinds)}."
        )
    return ([Path(data)] if data is not None else list(images)), read or "images"


def run(
    source: Source,
    loaded: LoadedModel,
    methods: Sequence[Chosen],
    metrics: Mapping[str, Metric],
    out: Path,
    compute: Compute,
    *,
    classes: int,
    force: bool,
) -> list[Failure]:
    """Compare the methods on the images and write the report; returns the images that could not be read.

    Raises:
        InputError: If a metric needs what the images lack, or an argument cannot be used.
        FileError: If there is no image, or ``out`` holds something else.
    """
    into = console()
    examples, target, failures = read(source, loaded, one_failure)
    for failure in failures:
        say_failed(into, "left out", failure.image, failure.error)
    with (
        said_when_stopped(lambda: _KEPT),
        culprit_named(loaded, lambda: zip(examples.names, examples.inputs, strict=True)),
        _progress(into) as (progress, step),
    ):
        found = compare(
            loaded,
            _placed(examples, loaded),
            {c.name: c.method(loaded.network, **c.options, **_stepped(c, step)) for c in methods},
            metrics,
            out=out,
            classes=classes,
            target=target,
            force=force,
            progress=progress,
        )
    page = out / REPORT
    with reopen(out, COMPARISON) as store:
        store.write(REPORT, render(found, tables_in(out)).encode())
    _print(found, into)
    into.print(f"open {shown(os.path.relpath(page))}")
    if failures:
        into.print(f"{len(failures)} of {len(failures) + len(examples)} images were left out, as said above")
    return failures


def _placed(examples: Examples, loaded: LoadedModel) -> Examples:
    like = loaded.placed(examples.inputs[:1])
    return examples.to(like.device, like.dtype)


def _print(found: Comparison, into: Console) -> None:
    """The ranking, a row a metric: the three best, and how sure the first place is."""
    table = Table("metric", "best", "second", "third", "first over second")
    for protocol in found.protocols:
        rows = [r for r in found.ranking.iter_rows(named=True) if r["metric"] == protocol["metric"]]
        cells = [f"{r['method']} {_number(r['value'])}" for r in rows[:3]]
        table.add_row(protocol["title"], *cells, *[""] * (3 - len(cells)), _certainty(found, protocol["metric"], rows))
    into.print(table)
    for protocol in found.protocols:
        rows = [r for r in found.ranking.iter_rows(named=True) if r["metric"] == protocol["metric"]]
        if any(r["median"] is not None for r in rows):
            beside = [f"{r['method']} {_number(r['median'])} ({_number(r['ratio_of_means'])})" for r in rows]
            into.print(shown(f"{protocol['title']}, median (ratio of means): {', '.join(beside)}"))


def _certainty(found: Comparison, metric: str, rows: list[dict]) -> str:
    if len(rows) < 2:
        return ""
    pair = {rows[0]["method"], rows[1]["method"]}
    for row in found.differences.iter_rows(named=True):
        if row["metric"] == metric and {row["method"], row["other"]} == pair:
            if row["low"] is None:
                return "too few images to tell"
            return "significant" if row["significant"] else "not significant"
    return ""


def _number(value: float | None) -> str:
    return "not scored" if value is None else f"{value:.3f}"


def _stepped(chosen: Chosen, step: Callable[[Any], None]) -> dict[str, Any]:
    """The bar's callback, for a method that takes many steps."""
    return {"callback": step} if "callback" in option_names(chosen.method) else {}


@contextmanager
def _progress(into: Console) -> Iterator[tuple[Callable[[int, int, str], None], Callable[[Any], None]]]:
    """What to call before each piece of work, and after each step of a method that takes many."""
    with bars(into, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), Description()) as bar:
        task = bar.add_task("", step="")
        yield (
            lambda done, of, what: bar.update(task, completed=done, total=of, description=what, step=""),
            lambda s: bar.update(task, step=f", step {s.index} of {s.steps}"),
        )
