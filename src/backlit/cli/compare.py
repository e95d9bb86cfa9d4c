"""`backlit compare`: images in, one report with maps, curves, ranks and protocols out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn
from rich.table import Table

from backlit._errors import InputError
from backlit.bench.asked import Asked, plan_of
from backlit.bench.folder import REPORT
from backlit.bench.run import How
from backlit.bench.run import run as done
from backlit.bench.source import READERS, Source
from backlit.cli.console import console, say_failed, shown
from backlit.cli.culprit import culprit_named
from backlit.cli.images import warn_of_photographs
from backlit.cli.progress import Description, bars
from backlit.cli.settings import Compute, load, preprocessing
from backlit.cli.stopping import one_failure, said_when_stopped
from backlit.comparison import Comparison
from backlit.models import LoadedModel

KEPT = "what is done is kept, and the same command goes on from there"


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


def command(
    *,
    images: list[Path] | None,
    model: str | None,
    weights: str | None,
    download: bool,
    method: str,
    metric: str,
    data: str | None,
    read: str | None,
    target: str,
    class_index: Path | None,
    annotations: Path | None,
    scaled: bool,
    limit: int | None,
    mosaic: int,
    classes: int,
    option: list[str] | None,
    fitted: list[Path] | None,
    out: Path,
    force: bool,
    workers: int,
    threads: int | None,
    ray: str | None,
    size: int | None,
    mean: str | None,
    std: str | None,
    crop: str | None,
    device: str,
    dtype: str,
    seed: int,
) -> int:
    """Do what the command asks, by the names that its options have; returns the number of failures."""
    compute = Compute(device, dtype, seed)
    paths, kind = from_words(images or [], data, read)
    changes = preprocessing(size, mean, std, crop)
    asked = Asked(
        model=model or "digits",
        source=Source(paths, kind, target, class_index, annotations, limit, mosaic, seed, scaled),
        methods=method,
        metrics=metric,
        options=tuple(option or ()),
        fitted=tuple(map(str, fitted or ())),
        weights=weights,
        preprocessing=changes,
        seed=seed,
        classes=classes,
        device=compute.device,
        dtype=dtype,
    )
    asked.chosen()  # a wrong word is said before the network is loaded
    if model is None and kind == "images" and paths:
        warn_of_photographs(paths)
    loaded = load(asked.model, weights, compute, changes, download=download)
    return run(asked, loaded, out, How(workers, threads, ray, force=force, raising=not (workers or ray)))


def run(asked: Asked, loaded: LoadedModel, out: Path, how: How) -> int:
    """Compare the methods on the images and write the report; returns the number of images and pieces that failed.

    Raises:
        InputError: If a metric needs what the images lack, or an argument cannot be used.
        FileError: If there is no image, or ``out`` holds something else.
    """
    into = console()
    with said_when_stopped(lambda: KEPT), progress_shown(into) as (progress, step):
        plan, failures = plan_of(asked, loaded, guard=one_failure, step=step)
        for failure in failures:
            say_failed(into, "left out", failure.image, failure.error)
        examples = plan.examples
        with culprit_named(loaded, lambda: zip(examples.names, examples.inputs, strict=True)):
            plan.check()
            comparison = done(asked, plan, out, how, progress)
    if comparison is None:
        into.print(f"shard {how.shard} is done: {shown(os.path.relpath(how.home(out)))}")
        return len(failures)
    say_compared(comparison, into)
    into.print(f"open {shown(os.path.relpath(out / REPORT))}")
    if failures:
        into.print(f"{len(failures)} of {len(failures) + len(examples)} images were left out, as said above")
    return len(failures)


def say_compared(found: Comparison, into: Console) -> None:
    """Print the ranking, a row a metric: the three best, and how sure the first place is."""
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


@contextmanager
def progress_shown(into: Console) -> Iterator[tuple[Callable[[int, int, str], None], Callable[[Any], None]]]:
    """What to call before each piece of work, and after each step of a method that takes many."""
    with bars(into, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), Description()) as bar:
        task = bar.add_task("", step="")
        yield (
            lambda done, of, what: bar.update(task, completed=done, total=of, description=what, step=""),
            lambda s: bar.update(task, step=f", step {s.index} of {s.steps}"),
        )
