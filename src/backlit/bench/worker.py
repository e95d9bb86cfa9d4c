"""A process that does tasks of one comparison: ``python -m backlit.bench.worker``, started by :mod:`backlit.bench.processes`.

It reads lines of JSON from its standard input, first what it works for, then a task each, and answers each with a line. When
its input ends, because whoever started it has ended, however that was, it ends, too.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import torch

from backlit._claim import differences, read_plan
from backlit._errors import FileError, InputError, reason
from backlit._json import JsonObject
from backlit._lock import InUse
from backlit._store import Store, claim
from backlit.bench.asked import Asked, plan_from
from backlit.bench.execute import try_task, warm_up
from backlit.bench.folder import COMPARISON, INPUTS, REQUEST, SHARDS
from backlit.bench.plan import Plan
from backlit.bench.record import Finished, Task

_MOST_SHARDS = 10_000
_GRACE = 0.5  # seconds to let go of the lock
_ADDED = ("backlit", "kind")  # to a plan, by the store


class Worker:
    """What a worker process and a Ray actor have in common: one network, one shard, one task after the other.

    Args:
        home: The folder of whoever gives out the tasks.
        threads: Number of threads that torch uses.

    Raises:
        InputError: If this process would compute something else: other versions, another network, other code.
        FileError: If the folder cannot be used.
    """

    def __init__(self, home: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        self._open = ExitStack()
        asked = read_plan(home / "plan.json")
        told = read_plan(home / REQUEST)
        if asked is None or told is None:
            raise FileError(f"out: {str(home)!r} holds no comparison that a worker could read. Begin the run anew.")
        self._plan = plan_from(Asked.from_json(told), home / INPUTS)
        same_as(self._plan, asked)
        self._store = self._open.enter_context(_free_shard(home, asked))
        self._finished = Finished(self._plan, self._store)
        warm_up(self._plan)

    def run(self, task: JsonObject) -> JsonObject:
        """Do a task; tell how many of its pieces failed, and how long it took.

        Raises:
            FileError: If nothing can be written.
        """
        start = time.perf_counter()
        failed = try_task(self._plan, self._finished, Task(task["method"], task["number"]), halves=task["halves"])
        return {"failed": failed, "seconds": time.perf_counter() - start}

    def close(self) -> None:
        """Let go of the shard."""
        self._open.close()


def same_as(plan: Plan, asked: JsonObject) -> None:
    """Refuse to compute with what is not the same here as where the run was begun.

    Raises:
        InputError: With what differs.
    """
    here = json.loads(json.dumps(plan.computes()))
    there = {name: asked.get(name) for name in here}
    if here != there:
        raise InputError(
            f"worker: it would compute something else than the run that it works for: {differences(there, here)}. Install the same "
            "versions and give it the same weights, or begin a run of its own in another folder."
        )


def answered(work: Callable[[], JsonObject]) -> JsonObject:
    """Return what the work answers, or what it failed with: it is said where the run was begun."""
    try:
        return work()
    except Exception as error:  # whatever it is, it would come back in any other task
        return {"stopped": reason(error), "file": isinstance(error, FileError)}


class _free_shard:  # noqa: N801  a context manager
    """The first shard of a folder that no other process holds."""

    def __init__(self, home: Path, asked: JsonObject) -> None:
        self._home, self._stack = home, ExitStack()
        self._asked = {name: value for name, value in asked.items() if name not in _ADDED}

    def __enter__(self) -> Store:
        for number in range(1, _MOST_SHARDS):
            try:
                return self._stack.enter_context(claim(self._home / SHARDS / f"w{number:03d}", COMPARISON, self._asked))
            except InUse:  # of a worker beside this one, or of one that is about to end
                continue
        raise FileError(f"out: {str(self._home)!r} has no free shard. Wait until other workers are done.")

    def __exit__(self, *error: object) -> None:
        self._stack.close()


def _lines(file: IO[str]) -> Iterator[JsonObject]:
    """Yield what is read; where nothing more can come, end, and a moment later the process, also in the middle of a task."""
    read: queue.SimpleQueue[str] = queue.SimpleQueue()

    def watch() -> None:
        for line in file:
            read.put(line)
        read.put("")
        time.sleep(_GRACE)
        os._exit(0)  # all that is written is whole

    threading.Thread(target=watch, daemon=True).start()
    while line := read.get():
        yield json.loads(line)


def main() -> None:
    """Do tasks until there are none."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the code of a model prints is no answer

    def answer(told: JsonObject) -> None:
        print(json.dumps(told), file=answers, flush=True)

    lines = _lines(sys.stdin)
    begin = next(lines)
    if begin["cores"] and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, begin["cores"])
    workers: list[Worker] = []

    def start() -> JsonObject:
        workers.append(Worker(Path(begin["home"]), begin["threads"]))
        return {"ready": os.getpid()}

    answer(answered(start))
    for task in lines if workers else ():
        answer(answered(lambda task=task: workers[0].run(task)))
    for worker in workers:
        worker.close()


if __name__ == "__main__":
    main()
