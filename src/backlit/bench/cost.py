"""What a piece of work costs: seconds, and the most memory that it takes on top of what was taken before."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_PEAK, _NOW = "VmHWM", "VmRSS"


@dataclass
class Cost:
    """Seconds and bytes of a piece of work; NaN bytes where the system does not tell."""

    seconds: float = float("nan")
    bytes: float = float("nan")


@contextmanager
def measured(device: torch.device) -> Iterator[Cost]:
    """Measure what runs inside, on a device: of CUDA its own memory, else that of the process."""
    cost = Cost()
    before = _begin(device)
    start = time.perf_counter()
    yield cost
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    cost.seconds = time.perf_counter() - start
    cost.bytes = max(_peak(device) - before, 0.0)


def _begin(device: torch.device) -> float:
    """The bytes that are taken now, from where the peak is watched anew."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return float(torch.cuda.memory_allocated(device))
    with suppress(OSError):
        _RESET.write_text("5")  # Linux: the peak of this process begins anew
        return _of_process(_NOW)
    return float("nan")


def _peak(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return _of_process(_PEAK)


def _of_process(name: str) -> float:
    """A number of bytes that Linux tells of this process; NaN elsewhere."""
    with suppress(OSError):
        told = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
        if told:
            return 1024.0 * int(told[1])
    return float("nan")
