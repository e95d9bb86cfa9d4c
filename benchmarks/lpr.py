"""LPR beside other methods by the paper's MoRF and LeRF, its readings beside each other, and what a step costs.

    uv run python benchmarks/lpr.py table --model squeezenet1_0 --images 50
    uv run python benchmarks/lpr.py readings --model mobilenet_v2 --images 16
    uv run python benchmarks/lpr.py speed

Needs BACKLIT_SHARED. As in the paper (Sec. 4.2), the class that the network predicts is the one that is explained.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from _common import RESULTS, shared_model, write
from backlit.bench.compare import compare
from backlit.capture import Rule, Site, propagate
from backlit.methods import DMBP, LPR, GradCAM, GradientXInput, GuidedBackprop, Method, Random
from backlit.methods.lpr import Learning, Plugins
from backlit.metrics import Examples
from backlit.rules.adjoint import adjoint
from protocols import real_examples

LEARNED: dict[str, dict[str, dict[str, Any]]] = {
    "table": {"lpr": {}, "lpr_gated": {"reading": "gated"}},
    "readings": {
        "lpr_gradient": {"reading": "gradient"},
        "lpr_gated": {"reading": "gated"},
        "lpr_multiplier": {"reading": "multiplier"},
        "lpr_features": {"reading": "features"},
        "lpr_channel": {"plugin": "channel"},
    },
}


def compared(network: nn.Module, which: str, chunk: int) -> dict[str, Method]:
    """LPR with several options, and the methods beside it."""
    return {
        "random": Random(network),
        "gradient_x_input": GradientXInput(network),
        "guided_x_input": GuidedBackprop(network, times_input=True),
        "grad_cam": GradCAM(network),
        "dmbp_fast": DMBP.fast(network),
        **{name: LPR(network, chunk=chunk, **options) for name, options in LEARNED[which].items()},
    }


def table(arguments: argparse.Namespace) -> None:
    loaded = shared_model(arguments.model)
    images = real_examples(arguments.model, arguments.images)
    with torch.no_grad():
        target = torch.cat([loaded.network(x[None]).argmax(1) for x in images.inputs])
    name = f"lpr_{arguments.what}_{arguments.model}"
    found = compare(
        loaded,
        Examples(images.inputs, target, names=images.names),
        compared(loaded.network, arguments.what, arguments.chunk),
        ["morf_5", "lerf_5", "insertion"],
        out=arguments.out or Path("backlit-lpr") / name,
        target="predicted",
        progress=lambda done, of, what: print(f"{done}/{of} {what}", flush=True),
    )
    rows = [{"kind": "ranking", **row} for row in found.ranking.to_dicts()]
    rows += [{"kind": "difference", **row} for row in found.differences.to_dicts()]
    write(name, torch.device("cpu"), rows)
    for row in found.ranking.to_dicts():
        print("{metric:20} {rank:2} {method:18} {value:8.4f} [{low:.4f}, {high:.4f}] {images}".format_map(row))
    print("written to", RESULTS / f"{name}.json")


def speed(arguments: argparse.Namespace) -> None:
    rows = []
    for model in ("squeezenet1_0", "mobilenet_v2"):
        loaded = shared_model(model)
        for n in (1, 4):
            x = real_examples(model, n).inputs
            rows.append(_speed(model, loaded.network, x))
            print(rows[-1], flush=True)
    write("lpr_speed", torch.device("cpu"), rows)


class ByAutograd(Plugins):
    """Every derivative but G's left to autograd, the second one too: the rival."""

    def rule_for(self, site: Site) -> tuple[str, Rule | None]:
        name, rule = super().rule_for(site)
        return name, None if rule is adjoint else rule


def _speed(name: str, network: nn.Module, x: Tensor) -> dict[str, Any]:
    fast = x.contiguous(memory_format=torch.channels_last)
    method = LPR(network)
    steps = []
    for plugins in (Plugins(method, None), ByAutograd(method, None)):
        run = propagate(network, fast, plugins)
        steps.append(Learning(method, run, plugins, run.output.argmax(1)).step)
    times = _side_by_side(lambda: _forward(network, x), lambda: _forward(network, fast), *steps)
    start = time.perf_counter()
    method(x)
    whole = time.perf_counter() - start
    return {
        "network": name,
        "images": len(x),
        "forward_ms": times[0] * 1e3,
        "forward_channels_last_ms": times[1] * 1e3,
        "step_ms": times[2] * 1e3,
        "step_by_autograd_ms": times[3] * 1e3,
        "step_over_forward": times[2] / times[0],
        "step_over_forward_channels_last": times[2] / times[1],
        "whole_s_per_image": whole / len(x),
    }


@torch.no_grad()
def _forward(network: nn.Module, x: Tensor) -> None:
    network(x)


def _side_by_side(*calls: Callable[[], Any], rounds: int = 8) -> list[float]:
    """The shortest time of each, all of them in turn, so that what else the machine does falls on all."""
    shortest = [float("inf")] * len(calls)
    for _ in range(rounds):
        for i, call in enumerate(calls):
            start = time.perf_counter()
            call()
            shortest[i] = min(shortest[i], time.perf_counter() - start)
    return shortest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("table", "readings", "speed"))
    parser.add_argument("--model", default="squeezenet1_0")
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--chunk", type=int, default=4)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    (speed if arguments.what == "speed" else table)(arguments)


if __name__ == "__main__":
    main()
