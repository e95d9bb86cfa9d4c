"""Grad-CAM's processor time beside plain hooks: one forward and one backward pass with a hook at a layer that is named.

``python benchmarks/cam.py`` writes ``results/cam.json``: on random weights (the time does not depend on them), one thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from _common import in_turn, write
from backlit import GradCAM


def _image(value: Tensor) -> Tensor:
    return value


def _tokens(value: Tensor) -> Tensor:
    return value[:, 1:].transpose(1, 2).unflatten(2, (14, 14))


NETWORKS: list[tuple[str, str, Callable[[Tensor], Tensor], int]] = [
    ("resnet18", "layer4", _image, 1),
    ("resnet18", "layer4", _image, 4),
    ("resnet50", "layer4", _image, 1),
    ("resnet50", "layer4", _image, 4),
    ("vit_b_16", "encoder.layers.encoder_layer_11.ln_1", _tokens, 1),
]


def by_hooks(model: nn.Module, layer: str, arrange: Callable[[Tensor], Tensor], x: Tensor, targets: Tensor) -> Tensor:
    """Compute Grad-CAM as code with hooks does: the gradient goes down to the parameters of the first layer."""
    kept: dict[str, Tensor] = {}

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        kept["value"] = output.detach()
        output.register_hook(lambda grad: kept.update(grad=grad))

    handle = model.get_submodule(layer).register_forward_hook(keep)
    try:
        model.zero_grad()
        model(x).gather(1, targets[:, None]).sum().backward()
    finally:
        handle.remove()
    value, grad = arrange(kept["value"]), arrange(kept["grad"])
    maps = (grad.mean((2, 3), keepdim=True) * value).sum(1, keepdim=True).relu()
    return F.interpolate(maps, x.shape[-2:], mode="bilinear", align_corners=False)


def row(name: str, layer: str, arrange: Callable[[Tensor], Tensor], n: int, rounds: int = 5) -> dict[str, Any]:
    """Time both, and a forward pass, on one network; the maps must agree."""
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)().eval()
    x, targets = torch.randn(n, 3, 224, 224), torch.arange(n)
    with torch.no_grad():
        model.get_submodule("heads.head" if name == "vit_b_16" else "fc").weight.normal_(0, 0.05)  # type: ignore[union-attr]
    ours, theirs = GradCAM(model)(x, targets), by_hooks(model, layer, arrange, x, targets)
    torch.testing.assert_close(ours.values, theirs, rtol=1e-3, atol=1e-4 * float(theirs.max()))

    def forward() -> None:
        with torch.no_grad():
            model(x)

    functions = {
        "forward": forward,
        "hooks": lambda: by_hooks(model, layer, arrange, x, targets),
        "grad_cam": lambda: GradCAM(model)(x, targets),
    }
    seconds = in_turn(functions, rounds)
    found = {"network": name, "images": n, "size": 224, "seconds": seconds}
    return {**found, "grad_cam_by_hooks": round(seconds["grad_cam"] / seconds["hooks"], 2)}


def main() -> None:
    """Time all networks."""
    torch.set_num_threads(1)
    rows = []
    for network in NETWORKS:
        rows.append(row(*network))
        print(rows[-1], flush=True)
    print(write("cam", torch.device("cpu"), rows))


if __name__ == "__main__":
    main()
