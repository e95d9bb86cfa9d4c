"""Score-CAM's throughput beside bare forward passes, and the cost of every class activation map beside Grad-CAM.

``python benchmarks/score_cam.py`` writes ``results/score_cam.json``: on random weights (the time does not depend on them, but
for the channels of a single value that Score-CAM skips, which it counts), one thread, seconds of the processor.
"""

from __future__ import annotations

from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from _common import in_turn, write
from backlit import CAM, CAMERAS, PFV, GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM, NormGrad, ScoreCAM, XGradCAM
from backlit.methods import Method

KINDS: tuple[type[Method], ...] = (GradCAM, GradCAMPlusPlus, XGradCAM, HiResCAM, LayerCAM, NormGrad, CAM, PFV)


def network(name: str) -> nn.Module:
    """The network with random weights, and a score that depends on the image."""
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)().eval()
    head = model.classifier[1] if name.startswith("squeezenet") else model.fc
    with torch.no_grad():
        head.weight.normal_(0, 0.05)
    return model


def throughput(name: str, size: int, rounds: int = 2) -> dict[str, Any]:
    """Time Score-CAM on one image beside bare passes over as many images, at each batch size and layout."""
    model, x = network(name), torch.randn(1, 3, size, size)
    method = ScoreCAM(model)
    passes: list[int] = []
    handle = model.register_forward_hook(lambda module, inputs, output: passes.append(len(output)))
    method(x, 0)
    handle.remove()
    count = sum(passes)

    def bare(batch: int, layout: torch.memory_format) -> None:
        images = x.expand(batch, *x.shape[1:]).contiguous(memory_format=layout)
        with torch.no_grad():
            for _ in range(count // batch):
                model(images)

    functions: dict[str, Any] = {
        f"bare, {batch} at once, {told}": (lambda b=batch, m=layout: bare(b, m))
        for batch, told, layout in (
            (8, "channels first", torch.contiguous_format),
            *((b, "channels last", torch.channels_last) for b in (4, 8, 16)),
        )
    }
    functions["score_cam"] = lambda: method(x, 0)
    seconds = in_turn(functions, rounds)
    best = min(value for key, value in seconds.items() if key.startswith("bare"))
    row = {"network": name, "size": size, "passes": count, "seconds": seconds}
    return {**row, "of_best_bare": round(best / seconds["score_cam"], 3)}


def costs(name: str, size: int, n: int, kinds: tuple[type[Method], ...] = KINDS, rounds: int = 5) -> dict[str, Any]:
    """Time methods on ``n`` images, and a bare forward pass."""
    model, x = network(name), torch.randn(n, 3, size, size)

    def forward() -> Tensor:
        with torch.no_grad():
            return model(x)

    functions: dict[str, Any] = {"forward": forward, **{kind.name: (lambda k=kind: k(model)(x, 0)) for kind in kinds}}
    return {"network": name, "size": size, "images": n, "seconds": in_turn(functions, rounds)}


def main() -> None:
    """Time all, and write what came out."""
    torch.set_num_threads(1)
    rows = []
    for run in (
        lambda: throughput("squeezenet1_0", 227),
        lambda: costs("squeezenet1_0", 227, 4),
        lambda: costs("resnet18", 224, 4),
        lambda: costs("squeezenet1_0", 227, 1, (GradCAM, CAMERAS), rounds=1),
        lambda: costs("resnet18", 224, 1, (GradCAM, CAMERAS), rounds=1),
    ):
        rows.append(run())
        print(rows[-1], flush=True)
    print(write("score_cam", torch.device("cpu"), rows))


if __name__ == "__main__":
    main()
