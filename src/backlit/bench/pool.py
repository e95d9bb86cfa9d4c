"""Tasks given out to workers that may fail, die or take long; only keys of what is done come back."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from backlit._errors import FileError, InputError
from backlit._json import JsonObject
from backlit.bench.execute import Progress
from backlit.bench.plan import Plan
from backlit.bench.record import Finished, Task, error_row

MOST_DEATHS = 6  # of workers in one task, which is then written down as failed
WHOLE_DEATHS = 3  # so many times the whole block is tried again; then in halves, since memory may be what it dies of
_MOST_STARTS = 3  # that fail, one after the other


@dataclass(frozen=True)
class Answer:
    """What a worker says, or that it is no more.

    Attributes:
        place: Which worker.
        told: Its answer; None if it died.
        why: How it ended.
    """

    place: int
    told: JsonObject | None
    why: str = ""


class Workers(Protocol):
    """Processes or actors by place, from 0."""

    def start(self, place: int) -> None:
        """Start a worker, also in the place of one that died."""
        ...

    def give(self, place: int, task: JsonObject) -> None:
        """Give it a task."""
        ...

    def answers(self, seconds: float) -> Iterator[Answer]:
        """Yield what came within this time."""
        ...

    def stop(self) -> None:
        """End all of them."""
        ...


class Pool:
    """A loop that keeps workers busy.

    Args:
        plan: What is to be done.
        finished: What is done when the loop begins; failures of dead workers are written there.
        progress: Called when something is done, with pieces done, all pieces, and words.
        tick: Called again and again.
    """

    def __init__(self, plan: Plan, finished: Finished, progress: Progress, tick: Callable[[], None]) -> None:
        self._plan, self._finished, self._progress, self._tick = plan, finished, progress, tick
        self._pieces = 1 + len(plan.metrics)
        self._queue: deque[Task] = deque()
        self._busy: dict[int, Task | None] = {}  # by place; None while it starts
        self._idle: set[int] = set()
        self._deaths: Counter[Task] = Counter()
        self._failed_starts = 0
        self._done = 0

    def run(self, tasks: Sequence[Task], workers: Workers, number: int) -> None:
        """Have all tasks done by so many workers.

        Raises:
            FileError: If a worker can write nothing.
            InputError: If workers cannot start, or would compute something else.
        """
        self._queue.extend(tasks)
        self._of = len(tasks) * self._pieces
        try:
            for place in range(min(number, len(tasks))):
                self._start(workers, place)
            while self._queue or any(self._busy.values()):
                for answer in workers.answers(1.0):
                    self._take(workers, answer)
                self._give(workers)
                self._tick()
        finally:
            workers.stop()
        self._progress(self._of, self._of, "done")

    def _start(self, workers: Workers, place: int) -> None:
        self._busy[place] = None
        workers.start(place)

    def _give(self, workers: Workers) -> None:
        while self._queue and self._idle:
            place, task = self._idle.pop(), self._queue.popleft()
            halves = max(0, self._deaths[task] - WHOLE_DEATHS)
            workers.give(place, {"method": task.method, "number": task.number, "halves": halves})
            self._busy[place] = task

    def _take(self, workers: Workers, answer: Answer) -> None:
        starting = self._busy.get(answer.place, ...) is None
        task = self._busy.pop(answer.place, None)
        if answer.told is None:
            self._idle.discard(answer.place)
            self._died(workers, answer, task, starting=starting)
        elif "stopped" in answer.told:
            raise (FileError if answer.told["file"] else InputError)(answer.told["stopped"])
        else:
            self._failed_starts = 0
            self._idle.add(answer.place)
            if task is not None:
                self._count(task)

    def _count(self, task: Task) -> None:
        self._done += self._pieces
        words = self._plan.words(self._plan.blocks[task.number])
        self._progress(self._done, self._of, f"{task.method}, {words}")

    def _died(self, workers: Workers, answer: Answer, task: Task | None, *, starting: bool) -> None:
        if task is None:
            self._failed_starts += starting
            if self._failed_starts >= _MOST_STARTS:
                raise InputError(
                    f"workers: {_MOST_STARTS} of them ended before they could begin, the last {answer.why}."
                )
        else:
            self._deaths[task] += 1
            if self._deaths[task] < MOST_DEATHS:
                self._queue.appendleft(task)
            else:
                why = f"the worker ended each time, the last one {answer.why}"
                self._finished.add(error_row(self._plan, task, "", why, self._deaths[task]))
                self._count(task)
        if self._queue:
            self._start(workers, answer.place)
