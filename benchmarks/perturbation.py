"""What the perturbation methods cost beside the network's own passes.

    uv run python benchmarks/perturbation.py passes      Occlusion and RISE against bare forward passes of several batch sizes
    uv run python benchmarks/perturbation.py rise        8,000 masks, one image: seconds and the growth of memory
    uv run python benchmarks/perturbation.py search      steps of mask search against forward and backward passes

Seconds are of the processor (one thread), which waiting for others does not lengthen. SqueezeNet-1.0 and a photograph of
``BACKLIT_SHARED``.
"""

from __future__ import annotations

import argparse
import resource
import time

import torch
from torch import Tensor, nn

import backlit
from _common import in_turn, shared_data, shared_model, write

SIZES = (1, 4, 16)
CPU = torch.device("cpu")


LAYOUTS = {"": torch.contiguous_format, ", channels last": torch.channels_last}


def bare(network: nn.Module, x: Tensor, count: int, size: int, layout: torch.memory_format) -> None:
    """Run ``count`` copies of an image in batches of this size and layout."""
    with torch.no_grad():
        for _ in range(0, count, size):
            network(x.expand(size, -1, -1, -1).contiguous(memory_format=layout))


def passes(network: nn.Module, x: Tensor, rounds: int) -> list[dict[str, object]]:
    """Time Occlusion and RISE with 64 copies or so against as many bare passes."""
    count = 64
    occlusion = backlit.Occlusion(network, window=48, stride=27)  # 8 x 8 windows of 227 pixels
    runs = {
        f"bare, batches of {size}{name}": lambda size=size, layout=layout: bare(network, x, count, size, layout)
        for name, layout in LAYOUTS.items()
        for size in SIZES
    }
    runs |= {
        "rise": lambda: backlit.RISE(network, masks=count)(x, 0),
        "occlusion": lambda: occlusion(x, 0),
    }
    seconds = in_turn(runs, rounds)
    each = {name: 1e3 * value / count for name, value in seconds.items()}
    best = min(value for name, value in each.items() if name.startswith("bare"))
    return [{"run": name, "ms a pass": value, "best bare over this": best / value} for name, value in each.items()]


def rise(network: nn.Module, x: Tensor, masks: int) -> list[dict[str, object]]:
    """Time RISE on one image, and see how much the peak of memory grows."""
    backlit.RISE(network, masks=32)(x, 0)
    before, start, clock = peak(), time.process_time(), time.perf_counter()
    backlit.RISE(network, masks=masks)(x, 0)
    return [
        {
            "masks": masks,
            "seconds": time.process_time() - start,
            "wall": time.perf_counter() - clock,
            "peak MB": peak(),
            "growth MB": peak() - before,
        }
    ]


def search(network: nn.Module, x: Tensor, rounds: int) -> list[dict[str, object]]:
    """Time steps of both searches, in forward passes: one step of one mask is one forward and one backward pass."""
    areas = tuple((k + 1) / 10 for k in range(8))
    copies = x.repeat(8, 1, 1, 1)

    def both_ways() -> None:
        batch = copies.clone().requires_grad_()
        network(batch)[:, 0].sum().backward()

    def forward() -> None:
        with torch.no_grad():
            network(copies)

    runs = {
        "8 forward passes": forward,
        "8 forward and backward passes": both_ways,
        "extremal, 8 areas, 2 steps": lambda: backlit.ExtremalPerturbation(network, areas=areas, steps=2)(x, 0),
        "extremal, 8 areas, 4 steps": lambda: backlit.ExtremalPerturbation(network, areas=areas, steps=4)(x, 0),
        "meaningful, 2 steps": lambda: backlit.MeaningfulPerturbation(network, start="ones", steps=2)(x, 0),
        "meaningful, 6 steps": lambda: backlit.MeaningfulPerturbation(network, start="ones", steps=6)(x, 0),
    }
    seconds = in_turn(runs, rounds)
    one = seconds["8 forward passes"] / 8
    rows: list[dict[str, object]] = [
        {"run": name, "seconds": value, "forward passes": value / one} for name, value in seconds.items()
    ]
    for name, few, many, steps, masks in (
        ("extremal", "extremal, 8 areas, 2 steps", "extremal, 8 areas, 4 steps", 2, 8),
        ("meaningful", "meaningful, 2 steps", "meaningful, 6 steps", 4, 1),
    ):
        step = (seconds[many] - seconds[few]) / steps / masks
        rows.append({"run": f"{name}, a step of one mask", "seconds": step, "forward passes": step / one})
    return rows


def peak() -> float:
    """Return the largest memory that the process has had, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("passes", "rise", "search"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--masks", type=int, default=8000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    loaded = shared_model("squeezenet1_0")
    network, x = loaded.network, loaded.preprocess(shared_data()[0].image)[None]
    rows = {
        "passes": lambda: passes(network, x, arguments.rounds),
        "rise": lambda: rise(network, x, arguments.masks),
        "search": lambda: search(network, x, arguments.rounds),
    }[arguments.what]()
    for row in rows:
        print({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()})
    print(write(f"perturbation_{arguments.what}", CPU, rows))


if __name__ == "__main__":
    main()
