"""A comparison in a folder, from its plan to its report, by one process or many, whole or in shards."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from backlit._claim import differences, plan_identity, read_plan
from backlit._errors import FileError, InputError
from backlit._store import Store, claim, reopen
from backlit.bench.asked import Asked, pack_inputs, plan_of
from backlit.bench.execute import Progress
from backlit.bench.executor import Serial
from backlit.bench.folder import COMPARISON, INPUTS, REPORT, REQUEST, SHARDS, shards_of
from backlit.bench.gather import gathered, write_tables
from backlit.bench.overview import write_overview
from backlit.bench.plan import Plan
from backlit.bench.pool import Pool
from backlit.bench.processes import Processes, threads_of
from backlit.bench.ray_workers import RayWorkers, ray_core
from backlit.bench.record import Finished, Task
from backlit.bench.suite import Suite
from backlit.comparison import Comparison
from backlit.report.comparison import render, tables_in

_OFTEN = 60.0  # seconds between two reports of an unfinished run, at least
_WORTH = 20  # times as long as it takes, no other report is made


@dataclass(frozen=True)
class How:
    """How a comparison is done.

    Attributes:
        workers: Number of worker processes; 0 for none: this process does it all.
        threads: Threads of each worker; None shares out the cores of this machine, and gives one to each actor of Ray.
        ray: Where actors of Ray are the workers: a cluster's address, or "local"; of no number of workers, as many as it has
            room for. None for processes.
        shard: Which share of the tasks this run does, (i, n) from 1 to n; None for all.
        force: Begin anew in a folder that holds another comparison.
        raising: Without workers: raise the first failure.
    """

    workers: int = 0
    threads: int | None = None
    ray: str | None = None
    shard: tuple[int, int] | None = None
    force: bool = False
    raising: bool = False

    def __post_init__(self) -> None:
        if self.workers < 0 or (self.threads is not None and self.threads < 1):
            raise InputError(
                f"workers must be a number from 0 on and threads one from 1 on, but are {self.workers} and {self.threads}."
            )
        if self.ray is not None:
            ray_core()  # before anything is read or computed

    def home(self, out: Path) -> Path:
        """Return the folder that this run writes to."""
        return out if self.shard is None else out / SHARDS / "{:04d}-of-{:04d}".format(*self.shard)

    def share(self, tasks: Sequence[Task]) -> list[Task]:
        """Return the tasks of this run."""
        return list(tasks) if self.shard is None else list(tasks[self.shard[0] - 1 :: self.shard[1]])


def run(asked: Asked, plan: Plan, out: Path, how: How, progress: Progress) -> Comparison | None:
    """Do what is not done yet, and write tables and report; None for a shard, whose results are gathered later.

    Raises:
        InputError: If a worker would compute something else.
        FileError: If the folder cannot be used, or nothing can be written any more.
    """
    start = time.perf_counter()
    home = how.home(out)
    with claim(home, COMPARISON, plan.asked(), force=how.force) as store:
        _refuse_others(store, how.force)
        store.write(REQUEST, (json.dumps(asked.to_json(), indent=1) + "\n").encode())
        finished = Finished(plan, store, list(shards_of(home)))
        tasks = [task for task in how.share(plan.tasks) if not finished.whole(task)]

        def write() -> Comparison:
            return written(plan, store, time.perf_counter() - start)

        tick = _now_and_then(write) if how.shard is None else lambda: None
        if (how.workers or how.ray) and tasks:
            _by_workers(plan, store, finished, tasks, how, progress, tick)
        else:
            serial = Serial(raising=how.raising, threads=how.threads, tick=tick)
            serial.run(plan, finished, how.share(plan.tasks), progress)
        return write() if how.shard is None else None


def run_suite(
    suite: Suite, out: str | Path, how: How = How(), progress: Progress = lambda done, of, what: None
) -> dict[str, Comparison]:
    """Check a whole plan, then do every comparison of it; returns them by name, none of them if this is a shard.

    Args:
        suite: The plan.
        out: The folder; each comparison of several has a folder in it.
        how: By whom.
        progress: Called as each comparison goes on.

    Raises:
        InputError: If something cannot be used, or a worker would compute something else.
        FileError: If a file is missing, or the folder cannot be used.
    """
    suite.check()
    done = {}
    for name, asked in suite.comparisons().items():
        plan, _ = plan_of(asked)
        plan.check()
        if (comparison := run(asked, plan, Path(out) / name, how, progress)) is not None:
            done[name] = comparison
    if len(done) > 1:
        write_overview(Path(out))
    return done


def written(plan: Plan, store: Store, seconds: float) -> Comparison:
    """Gather what is there, in the folder and its shards, and write tables and report.

    Raises:
        FileError: If one cannot be written.
    """
    comparison = gathered(plan, Finished(plan, store, list(shards_of(store.path))), seconds)
    write_tables(comparison, store)
    store.write(REPORT, render(comparison, tables_in(store.path)).encode())
    return comparison


def merge(plan: Plan, asked: Asked, out: Path) -> tuple[Comparison, int]:
    """Gather what shards have done, and compute nothing; returns how many pieces are missing, too.

    Raises:
        FileError: If a shard is of another comparison, or the folder cannot be used.
    """
    with claim(out, COMPARISON, plan.asked()) as store:
        _refuse_others(store, force=False)
        store.write(REQUEST, (json.dumps(asked.to_json(), indent=1) + "\n").encode())
        done = Finished(plan, store, list(shards_of(out))).pieces()
        return written(plan, store, 0.0), len(plan.tasks) * (1 + len(plan.metrics)) - done


def _by_workers(
    plan: Plan,
    store: Store,
    finished: Finished,
    tasks: Sequence[Task],
    how: How,
    progress: Progress,
    tick: Callable[[], None],
) -> None:
    if store.sound(INPUTS) is None:
        store.write(INPUTS, pack_inputs(plan))
    device = plan.examples.inputs.device.type
    if how.ray is None:
        workers, number = (
            Processes(store.path, how.workers, how.threads or threads_of(how.workers), device),
            how.workers,
        )
    else:
        workers = RayWorkers(store.path, how.threads or 1, device, how.ray, how.workers)
        number = how.workers or workers.room
    Pool(plan, finished, progress, tick).run(tasks, workers, number)
    store.remove(INPUTS)


def _refuse_others(store: Store, force: bool) -> None:
    """Refuse shards of another comparison, of other versions or weights; with ``force`` they go."""
    for shard in shards_of(store.path):
        there, here = (read_plan(folder / COMPARISON.plan_file) for folder in (shard, store.path))
        if there is None or here is None or plan_identity(there) == store.plan:
            continue
        if not force:
            raise FileError(
                f"out: shard {shard.name!r} is of another comparison: {differences(there, here)}. Make it again with the same "
                "versions, weights and plan, or move it away."
            )
        with reopen(shard, COMPARISON) as other:
            other.dissolve()


def _now_and_then(write: Callable[[], object]) -> Callable[[], None]:
    """Write a report of what is there at most every minute, and at most a twentieth of the time."""
    after = time.monotonic() + _OFTEN

    def tick() -> None:
        nonlocal after
        if (start := time.monotonic()) >= after:
            write()
            end = time.monotonic()
            after = end + max(_OFTEN, _WORTH * (end - start))

    return tick
