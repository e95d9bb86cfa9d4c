"""What the benchmarks share: timing, the machine's description, and result files."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import torch

import backlit
from backlit.data import ImageNet, Sample

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


def in_turn(functions: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """As ``interleaved``, in seconds of the processor, which waiting for others does not lengthen."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds + 1):
        for name, function in functions.items():
            start = time.process_time()
            function()
            seconds[name].append(time.process_time() - start)
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


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows that are there; a last line that was cut off is left out."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def for_all_methods(doc: str, out: str, *, images: int, passes: float) -> argparse.ArgumentParser:
    """Options of a measurement of every method that writes its rows as they come, and goes on from them."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="squeezenet1_0")
    parser.add_argument("--images", type=int, default=images, help="at most")
    parser.add_argument("--passes", type=float, default=passes, help="what a method may cost in all, in forward passes")
    parser.add_argument("--methods", type=lambda text: text.split(","), help="by comma; all, if not given")
    parser.add_argument("--part", default="0/1", help="which of how many parts of the methods")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(out))
    parser.add_argument("--summary", action="store_true", help="only write the summary of what is there")
    return parser


def written(
    name: str,
    arguments: argparse.Namespace,
    measure: Callable[[Path], None],
    summary: Callable[[list[dict[str, Any]]], list[dict[str, Any]]],
) -> None:
    """Measure what is missing, and write the summary of all rows to ``results/NAME_MODEL.json``."""
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"{arguments.model}.jsonl"
    if not arguments.summary:
        measure(path)
    rows = summary(rows_of(path))
    for row in rows:
        print(json.dumps(row))
    print("written to", write(f"{name}_{arguments.model}", torch.device("cpu"), rows))


def shared_model(name: str) -> backlit.LoadedModel:
    """A network with real weights from the shared folder; images are squashed to its size, as their boxes are."""
    torchvision: dict[str, Any] = {"crop": "stretch"}
    networks: dict[str, tuple[str, dict[str, Any]]] = {
        "squeezenet1_0": ("squeezenet1_0-imagenet", {"size": 227, **torchvision}),
        "mobilenet_v2": ("mobilenet_v2-imagenet", {"size": 225, "mean": 0.5, "std": 0.5, **torchvision}),
        "resnet18": ("resnet18-imagenet", {"size": 224, **torchvision}),
        "resnet50": ("resnet50-imagenet", {"size": 224, **torchvision}),
        "googlenet_bvlc": (
            "googlenet_bvlc-imagenet",
            {"size": 224, "mean": [123 / 255, 117 / 255, 104 / 255], "std": 1 / 255, **torchvision},
        ),
        "cifar_resnet20": ("resnet20-cifar10", {}),
    }
    file, preprocessing = networks[name]
    if name == "googlenet_bvlc":  # a module of the shared folder, beside its weights
        sys.path.insert(0, str(SHARED / "models"))
        name = "googlenet_bvlc:GoogLeNetBVLC"
    return backlit.load_model(name, weights=SHARED / "models" / f"{file}.safetensors", **preprocessing)


def shared_data() -> ImageNet:
    """The 900 validation images of the shared folder with their real boxes."""
    data = SHARED / "data"
    return ImageNet(data / "ilsvrc2012-val", data / "ilsvrc2012-boxes", data / "imagenet_classes.json")


def half(name: str, count: int, *, boxed: bool = False) -> list[int]:
    """Places of ``count`` images, evenly spread over one half of the shared images.

    Readings are chosen on the half "dev" (even places) and reported on the half "test" (odd places). ``boxed`` keeps to
    images with one box under half of the image.
    """
    data = shared_data()
    places = list(range({"dev": 0, "test": 1}[name], len(data), 2))
    if boxed:
        places = [i for i in places if _one_box_under_half(data[i])]
    count = min(count, len(places))
    return [places[i * len(places) // count] for i in range(count)]


def _one_box_under_half(sample: Sample) -> bool:
    if sample.boxes is None or len(sample.boxes) != 1:
        return False
    x0, y0, x1, y1 = sample.boxes[0].tolist()
    height, width = sample.size
    return (x1 - x0) * (y1 - y0) < 0.5 * height * width
