"""Workers that are actors of Ray: of this machine, or of a cluster whose machines all see the folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from backlit._errors import InputError
from backlit._json import JsonObject
from backlit.bench.pool import Answer
from backlit.bench.worker import Worker, answered

LOCAL = "local"
_GONE = "ray: the cluster is gone. What is done is kept: the same command goes on, there or elsewhere."
_QUIET = 15  # polls without an answer, before the cluster is asked whether it is there
_NO_USAGE = {"RAY_USAGE_STATS_ENABLED": "0"}  # Ray reports to its makers otherwise


class RayWorkers:
    """Actors of Ray core, one network each, with cores or a GPU of their own.

    An actor is not restarted by Ray, but started anew by whoever gives out the tasks, which goes on as with processes.

    Args:
        home: The folder whose tasks they do.
        threads: Cores of each, and threads.
        device: Where they compute: of "cuda" each gets a GPU.
        address: A cluster's, as ``ray.init`` takes it, or "local" for one of this machine's own.

    Raises:
        InputError: If Ray is not installed, or there is no such cluster.
    """

    def __init__(self, home: Path, threads: int, device: str, address: str, number: int) -> None:
        self._home, self._threads, self._gpus = home.absolute(), threads, int(device == "cuda")
        self._ray = ray_core()
        local = (
            {"num_cpus": max(1, number) * threads, "include_dashboard": False} if address == LOCAL and number else {}
        )
        paths = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
        variables = {**_NO_USAGE, **({"PYTHONPATH": paths} if address == LOCAL else {})}
        try:
            self._ray.init(
                address=address,
                log_to_driver=False,
                runtime_env={"env_vars": variables},
                logging_level="error",
                **local,
            )
        except Exception as error:  # Ray raises many kinds, and none of its own
            said = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(
                f"ray: there is no cluster at {address!r} ({said}). Give the address of a running one, or {LOCAL!r}."
            ) from error
        self._actors: dict[int, Any] = {}
        self._quiet = 0
        self._asked: dict[Any, int] = {}  # what each actor was asked last

    @property
    def room(self) -> int:
        """The number of workers that the cluster has room for."""
        there = self._ray.cluster_resources()
        return max(1, int(there.get("GPU", 0) if self._gpus else there.get("CPU", 1) // self._threads))

    def start(self, place: int) -> None:
        """Start an actor, also in the place of one that died."""
        kind = self._ray.remote(num_cpus=self._threads, num_gpus=self._gpus, max_restarts=0)(_Actor)
        self._actors[place] = kind.remote()
        self._asked[self._actors[place].begin.remote(str(self._home), self._threads)] = place

    def give(self, place: int, task: JsonObject) -> None:
        """Give it a task."""
        self._asked[self._actors[place].run.remote(task)] = place

    def answers(self, seconds: float) -> Iterator[Answer]:
        """Yield what came within this time.

        Raises:
            InputError: If the cluster is gone.
        """
        if not self._asked:
            return
        ready, _ = self._ray.wait(list(self._asked), timeout=seconds)
        self._quiet = 0 if ready else self._quiet + 1
        if self._quiet > _QUIET:
            self._refuse_gone()
        for asked in ready:
            place = self._asked.pop(asked)
            try:
                yield Answer(place, self._ray.get(asked))
            except self._ray.exceptions.RayActorError:
                yield Answer(place, None, "with its actor")
            except (self._ray.exceptions.RaySystemError, ConnectionError) as error:
                raise InputError(_GONE) from error

    def _refuse_gone(self) -> None:
        """Stop waiting for answers of a cluster without a machine.

        Raises:
            InputError: If none is alive.
        """
        self._quiet = 0
        alive = False
        with suppress(Exception):  # whatever Ray raises where nobody answers
            alive = any(node["Alive"] for node in self._ray.nodes())
        if not alive:
            raise InputError(_GONE)

    def stop(self) -> None:
        """End all of them: what they have written is whole at any moment."""
        with suppress(Exception):  # of a cluster that is gone
            for actor in self._actors.values():
                self._ray.kill(actor)
        self._ray.shutdown()


class _Actor:
    """A worker, in a process that Ray has started."""

    def __init__(self) -> None:
        self._worker: list[Worker] = []

    def begin(self, home: str, threads: int) -> JsonObject:
        """Load the network and take a shard."""

        def begin() -> JsonObject:
            self._worker.append(Worker(Path(home), threads))
            return {"ready": os.getpid()}

        return answered(begin)

    def run(self, task: JsonObject) -> JsonObject:
        """Do a task."""
        return answered(lambda: self._worker[0].run(task))


def ray_core() -> ModuleType:
    """Import Ray, an optional dependency, which then tells nobody that it is used.

    Raises:
        InputError: If it is not installed; says how.
    """
    os.environ.update(_NO_USAGE)
    try:
        return import_module("ray")
    except ImportError as error:
        raise InputError(
            "ray: workers on a cluster need Ray: pip install 'backlit[ray]'. Without it, give --workers alone."
        ) from error
