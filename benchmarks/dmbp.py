"""Time of a DMBP step: frozen forward against double backward, in one run, with the forward pass beside them.

    uv run python benchmarks/dmbp.py                     # four networks, batch 1 and 4, random weights
    uv run python benchmarks/dmbp.py --networks resnet50 --batches 1 --steps 200
    uv run python benchmarks/dmbp.py --device cuda --batches 32

"forward" is the plain network on n images, "forward 2n" on the 2n images that a DMBP step runs; both as the model is
(memory format and all), without gradients. Ratios count; seconds are this machine's.
"""

from __future__ import annotations

import argparse
import resource
import time
from typing import Any

import torch
import torchvision
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from _common import interleaved, write
from backlit.methods import DMBP, GradientXInput, GuidedBackprop
from backlit.methods.dmbp import descent
from double_backward import DoubleBackward

SIZES = {"squeezenet1_0": 227}
NETWORKS = ("squeezenet1_0", "resnet18", "vgg16", "resnet50")


def one(name: str, batch: int, device: torch.device, arguments: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)().eval().to(device)
    size = SIZES.get(name, 224)
    x = torch.randn(batch, 3, size, size, device=device)
    target = torch.arange(batch, device=device) % 1000
    ours = descent(model, x, target, sites="rectifiers", compile=arguments.compile)  # as the rival masks
    rival = DoubleBackward(model, x, target)
    twice = torch.cat([x, x])
    row: dict[str, Any] = {"network": name, "batch": batch, "size": size}
    row |= interleaved(
        {
            "forward": lambda: _forward(model, x),
            "forward_2n": lambda: _forward(model, twice),
            "frozen_step": ours.step,
            "double_backward_step": rival.step,
        },
        device,
        arguments.rounds,
    )
    row |= interleaved(
        {
            "gradient": lambda: GradientXInput(model).attribute(x, target),
            "autograd": lambda: _autograd(model, x, target),
            "guided": lambda: GuidedBackprop(model).attribute(x, target),
        },
        device,
        arguments.rounds,
    )
    row["double_over_frozen"] = row["double_backward_step"] / row["frozen_step"]
    row["step_over_forward"] = row["frozen_step"] / row["forward"]
    row["step_over_forward_2n"] = row["frozen_step"] / row["forward_2n"]
    row["guided_over_autograd"] = row["guided"] / row["autograd"]
    del ours, rival
    if arguments.steps:
        start = time.perf_counter()
        DMBP(model, steps=arguments.steps, chunk=batch, compile=arguments.compile)(x, target)
        row[f"seconds_{arguments.steps}_steps_per_image"] = (time.perf_counter() - start) / batch
    row["peak_bytes"] = _peak(device)
    return row


def _forward(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


def _autograd(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(model(leaf).gather(1, target[:, None]).sum(), leaf)[0]


def _peak(device: torch.device) -> int:
    """Peak memory so far: of the device, or resident in this process (which only ever grows)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=0, help="also time a whole map of so many steps")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--name", default="dmbp", help="of the result file")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    rows = []
    table = Table(
        "network", "n", "forward ms", "forward 2n", "frozen step", "double", "double/frozen", "step/forward 2n"
    )
    for name in arguments.networks:
        for batch in arguments.batches:
            row = one(name, batch, device, arguments)
            rows.append(row)
            print({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
            milliseconds = [row[k] * 1e3 for k in ("forward", "forward_2n", "frozen_step", "double_backward_step")]
            ratios = [row["double_over_frozen"], row["step_over_forward_2n"]]
            table.add_row(name, str(batch), *(f"{v:.1f}" for v in milliseconds), *(f"{r:.2f}" for r in ratios))
    console = Console()
    console.print(table)
    console.print(f"written to {write(arguments.name, device, rows)}")


if __name__ == "__main__":
    main()
