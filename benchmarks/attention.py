"""The processor time of maps from attention, of LIME and of KernelSHAP beside plain forward passes: one image, one thread.

``python benchmarks/attention.py`` writes ``results/attention.json``: torchvision's ViT-B/16 and SqueezeNet-1.0 with random
weights, on which the time does not depend.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torchvision
from torch import nn
from torch.nn import functional as F

import backlit
from _common import in_turn, write


def _pass(network: nn.Module, x: torch.Tensor) -> None:
    with torch.no_grad():
        network(x)


def main() -> None:
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    cases: dict[str, dict[type[backlit.methods.Method], dict[str, Any]]] = {
        "vit_b_16": {
            m: {} for m in (backlit.AttentionRollout, backlit.GradientRollout, backlit.LeGrad, backlit.LibraGrad)
        },
        "squeezenet1_0": {backlit.LIME: {"samples": 40}, backlit.KernelSHAP: {"samples": 40}},
    }
    for name, methods in cases.items():
        network = getattr(torchvision.models, name)().eval()
        drawn = torch.randn(1, 3, 14, 14, generator=torch.Generator().manual_seed(0))
        x = F.interpolate(drawn, (224, 224), mode="bicubic")  # smooth, as SLIC makes one superpixel of noise
        functions: dict[str, Callable[[], Any]] = {"forward": partial(_pass, network, x)}
        functions |= {m.name: partial(m(network, **options).attribute, x, 1) for m, options in methods.items()}
        seconds = in_turn(functions, 2)
        for method, taken in seconds.items():
            rows.append(
                {"network": name, "method": method, "seconds": taken, "over_forward": taken / seconds["forward"]}
            )
            print(rows[-1], flush=True)
    write("attention", torch.device("cpu"), rows)


if __name__ == "__main__":
    main()
