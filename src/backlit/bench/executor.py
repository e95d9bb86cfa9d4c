"""The tasks of a comparison, done by this process, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from backlit.bench.execute import Progress, run_task, try_task, warm_up
from backlit.bench.plan import Plan
from backlit.bench.record import Finished, Task


class Serial:
    """An executor that does one task after the other in this process.

    Args:
        raising: Raise the first failure, instead of writing it down.
        threads: Threads that torch uses meanwhile; None leaves them as they are.
        tick: Called before each piece of work.
    """

    def __init__(
        self, *, raising: bool = False, threads: int | None = None, tick: Callable[[], None] = lambda: None
    ) -> None:
        self._do, self._threads, self._tick = run_task if raising else try_task, threads, tick

    def run(self, plan: Plan, finished: Finished, tasks: Sequence[Task], progress: Progress) -> None:
        """Do what is not finished yet.

        Raises:
            FileError: If nothing can be written any more.
        """
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads or before)
        try:
            self._run(plan, finished, tasks, progress)
        finally:
            torch.set_num_threads(before)

    def _run(self, plan: Plan, finished: Finished, tasks: Sequence[Task], progress: Progress) -> None:
        pieces = 1 + len(plan.metrics)
        done, of = 0, len(tasks) * pieces
        warm_up(plan)

        def begin(what: str) -> None:
            nonlocal done
            self._tick()
            progress(done, of, what)
            done += 1

        for number, task in enumerate(tasks):
            done = number * pieces
            if not finished.whole(task):
                self._do(plan, finished, task, begin)
        progress(of, of, "done")
