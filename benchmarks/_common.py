"""What the benchmarks share: timing, the machine's description, and result files."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import torch

import backlit

RESULTS = Path(__file__).parent / "results"
SHARED = Path(os.environ.get("BACKLIT_SHARED", Path(__file__).parents[2] / "shared"))


def interleaved(functions: dict[str, Callable[[], Any]], device: torch.device, rounds: int) -> dict[str, float]:
    """Median seconds of each function, timed in turn so that all meet the same noise; one warm-up round is dropped."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds + 1):
        for name, function in functions.items():
            start = _now(device)
            function()
            seconds[name].append(_now(device) - start)
    return {name: median(values[1:]) for name, values in seconds.items()}


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def machine(device: torch.device) -> dict[str, Any]:
    """Hardware, versions and date of a run."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "backlit": backlit.__version__,
        "python": platform.python_version(),
        "date": date.today().isoformat(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def write(name: str, device: torch.device, rows: list[dict[str, Any]]) -> Path:
    """Write rows with the machine's description to ``results/NAME.json``."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(device), "rows": rows}, indent=1) + "\n")
    return path


def shared_model(name: str) -> backlit.LoadedModel:
    """A network with real weights from the shared folder."""
    files: dict[str, tuple[str, dict[str, Any]]] = {
        "squeezenet1_0": ("squeezenet1_0-imagenet.safetensors", {"size": 227}),
        "mobilenet_v2": ("mobilenet_v2-imagenet.safetensors", {"size": 225, "mean": 0.5, "std": 0.5}),
        "cifar_resnet20": ("resnet20-cifar10.safetensors", {}),
    }
    file, preprocessing = files[name]
    return backlit.load_model(name, weights=SHARED / "models" / file, **preprocessing)
