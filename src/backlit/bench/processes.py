"""Workers that are processes of this machine: one a group of cores, or one a GPU."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import torch

from backlit._json import JsonObject
from backlit.bench.pool import Answer

_END = 5.0  # seconds that a worker has to end by itself


def cores() -> list[int]:
    """Return the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def threads_of(workers: int) -> int:
    """Return how many threads each of so many workers gets."""
    return max(1, len(cores()) // workers)


class Processes:
    """Worker processes with pipes: lines of JSON, no pickles, and no start of the user's own program.

    Args:
        home: The folder whose tasks they do.
        number: How many there are.
        threads: Threads of each.
        device: Where they compute: of "cuda" each gets one of the GPUs, in turn.
    """

    def __init__(self, home: Path, number: int, threads: int, device: str) -> None:
        self._home, self._number, self._threads, self._device = home, number, threads, device
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._selector = selectors.DefaultSelector()
        self._partial: dict[int, bytes] = {}

    def start(self, place: int) -> None:
        """Start a worker, also in the place of one that died."""
        process = subprocess.Popen(
            [sys.executable, "-m", "backlit.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=self._environment(place),
            start_new_session=True,  # an interrupt from the keyboard is for whoever gives out the tasks
        )
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        self._processes[place], self._partial[place] = process, b""
        self._selector.register(process.stdout, selectors.EVENT_READ, place)
        self.give(place, {"home": str(self._home), "threads": self._threads, "cores": self._cores(place)})

    def give(self, place: int, task: JsonObject) -> None:
        """Give it a task."""
        stdin = self._processes[place].stdin
        assert stdin is not None
        with suppress(OSError):  # it is dead, which its output will tell
            stdin.write(json.dumps(task).encode() + b"\n")
            stdin.flush()

    def answers(self, seconds: float) -> Iterator[Answer]:
        """Yield what came within this time."""
        for key, _ in self._selector.select(seconds):
            place = key.data
            data = os.read(key.fd, 1 << 16)
            whole, newline, rest = (self._partial[place] + data).rpartition(b"\n")
            self._partial[place] = rest
            for line in whole.splitlines() if newline else ():
                yield Answer(place, json.loads(line))
            if not data:
                yield Answer(place, None, self._ended(place))

    def stop(self) -> None:
        """End all of them: what they have written is whole at any moment."""
        for process in self._processes.values():
            if process.stdin is not None:
                with suppress(OSError):
                    process.stdin.close()
        for place in list(self._processes):
            try:
                self._processes[place].wait(_END)
            except subprocess.TimeoutExpired:
                self._processes[place].kill()
            self._ended(place)
        self._selector.close()

    def _ended(self, place: int) -> str:
        """Take a worker away; say how it ended."""
        process = self._processes.pop(place)
        assert process.stdout is not None
        self._selector.unregister(process.stdout)
        process.stdout.close()
        code = process.wait()
        return f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"

    def _cores(self, place: int) -> Sequence[int]:
        """The cores of a worker; none if there are not enough to give each its own."""
        all_cores = cores()
        if self._number * self._threads > len(all_cores) or self._device != "cpu":
            return ()
        return all_cores[place * self._threads : (place + 1) * self._threads]

    def _environment(self, place: int) -> dict[str, str]:
        paths = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
        threads = {name: str(self._threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        gpu = {"CUDA_VISIBLE_DEVICES": _gpu(place)} if self._device == "cuda" else {}
        return {**os.environ, "PYTHONPATH": paths, **threads, **gpu}


def _gpu(place: int) -> str:
    """The GPU of a worker, by the names that this process sees them under."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = seen.split(",") if seen else [str(i) for i in range(torch.cuda.device_count())]
    return names[place % len(names)]
