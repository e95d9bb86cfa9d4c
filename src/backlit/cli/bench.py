"""`backlit bench`: a plan of many comparisons, run by one process or many; how far it is; shards joined."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from backlit._errors import FileError
from backlit.bench.asked import plan_of
from backlit.bench.folder import REPORT
from backlit.bench.overview import write_overview
from backlit.bench.run import How
from backlit.bench.run import merge as joined
from backlit.bench.run import run as done
from backlit.bench.setting import read_part
from backlit.bench.state import FolderState, asked_in, comparisons_in, state_of
from backlit.bench.suite import read_plan
from backlit.cli.compare import KEPT, progress_shown, say_compared
from backlit.cli.console import console, counted, say_failed, shown
from backlit.cli.progress import duration
from backlit.cli.settings import fastest_device
from backlit.cli.stopping import one_failure, said_when_stopped


def run(path: Path, out: Path, words: tuple[int, int | None, str | None, str | None, bool], device: str | None) -> int:
    """Check a plan and run it; returns the number of images and pieces that failed.

    Args:
        path: The TOML file.
        out: The folder.
        words: Workers, threads, Ray's address, shard and force, as the command line has them.
        device: In the place of the plan's.

    Raises:
        InputError: If the plan cannot be, or a worker would compute something else.
        FileError: If a file is missing, or the folder cannot be used.
    """
    workers, threads, ray, shard, force = words
    into, how = console(), How(workers, threads, ray, None if shard is None else read_part("shard", shard), force)
    suite = read_plan(path)
    device = suite.device if device is None else device
    suite = replace(suite, device=fastest_device(suite.dtype) if device == "auto" else device)
    suite.check()
    failed = 0
    for name, asked in suite.comparisons().items():
        if name:
            into.print(f"{name}:")
        with said_when_stopped(lambda: KEPT), progress_shown(into) as (progress, step):
            plan, failures = plan_of(asked, guard=one_failure, step=step)
            for failure in failures:
                say_failed(into, "left out", failure.image, failure.error)
            plan.check()
            comparison = done(asked, plan, out / name, how, progress)
        failed += len(failures) + _say_failed(into, out / name)
        if comparison is not None:
            say_compared(comparison, into)
    if how.shard is None:
        _say_where(into, out)
    return failed


def status(folder: Path) -> int:
    """Say how far each comparison of a folder is, who works on it, and what failed; reads only.

    Raises:
        FileError: If there is none.
    """
    into = console()
    table = Table("comparison", "done", "of", "failed", "seconds of work", "in use by")
    for name, path in _comparisons(folder):
        one = state_of(path)
        table.add_row(name or ".", str(one.done), str(one.pieces), str(one.failed), duration(one.seconds), one.holder)
    into.print(table)
    return 0


def merge(folder: Path) -> int:
    """Join what shards have done, and write tables and reports of it; returns the number of pieces that are missing or failed.

    Raises:
        FileError: If a shard is of another comparison, or there is none.
    """
    into, missing = console(), 0
    for name, path in _comparisons(folder):
        asked = asked_in(path)
        plan, _ = plan_of(asked, guard=one_failure)
        plan.check()
        comparison, left = joined(plan, asked, path)
        if left:
            into.print(f"{name or '.'}: {counted(left, 'piece')} of work missing; run its shards, or the plan, again")
        missing += left
        say_compared(comparison, into)
    _say_where(into, folder)
    return missing


def _comparisons(folder: Path) -> list[tuple[str, Path]]:
    several = comparisons_in(folder)
    if not several:
        raise FileError(
            f"folder: {str(folder)!r} holds no comparison. Give the folder that `backlit bench --out` named."
        )
    return [(path.relative_to(folder).as_posix() if path != folder else "", path) for path in several]


def _say_failed(into: Console, path: Path) -> int:
    one: FolderState = state_of(path)
    for text in one.errors:
        into.print(f"failed: {text}")
    return one.failed


def _say_where(into: Console, out: Path) -> None:
    page = write_overview(out) if len(comparisons_in(out)) > 1 else out / REPORT
    into.print(f"open {shown(os.path.relpath(page))}")
