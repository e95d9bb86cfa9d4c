"""Who does the tasks of a comparison: this process, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from backlit.bench.execute import run_task, try_task, warm_up
from backlit.bench.plan import Plan
from backlit.bench.record import Finished

Progress = Callable[[int, int, str], None]
"""``progress(done, of, what)``, called before each piece of work and at the end."""


class Executor(Protocol):
    """A way to do the tasks of a plan; one that fails is written down and does not stop the others."""

    def run(self, plan: Plan, finished: Finished, progress: Progress) -> None:
        """Do what is not finished yet.

        Raises:
            FileError: If nothing can be written any more.
        """
        ...


class Serial:
    """An executor that does one task after the other in this process.

    Args:
        raising: Raise the first failure, instead of writing it down.
    """

    def __init__(self, *, raising: bool = False) -> None:
        self._raising = raising

    def run(self, plan: Plan, finished: Finished, progress: Progress) -> None:
        """Do what is not finished yet."""
        tasks = plan.tasks
        pieces = 1 + len(plan.metrics)
        done, of = 0, len(tasks) * pieces
        warm_up(plan)

        def begin(what: str) -> None:
            nonlocal done
            progress(done, of, what)
            done += 1

        for number, task in enumerate(tasks):
            done = number * pieces
            if finished.whole(task):
                continue
            if self._raising:
                run_task(plan, finished, task, begin)
            else:
                try_task(plan, finished, task, begin)
        progress(of, of, "done")
