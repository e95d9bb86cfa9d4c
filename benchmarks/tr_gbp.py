"""What TR-GBP, FullGrad and BBp cost, and what TR-GBP's options and predictions come to on real networks.

    uv run python benchmarks/tr_gbp.py time                  ResNet-50, random weights, batch 8, beside one guided back-propagation
    uv run python benchmarks/tr_gbp.py kernel --images 48    normalise_kernel and contrast: insertion, reset, correlation
    uv run python benchmarks/tr_gbp.py border --images 40    the border on a network with all layers drawn anew (Sec. 4.2)

All but `time` need BACKLIT_SHARED.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from _common import interleaved, shared_model, write
from backlit import load_model
from backlit.bench.compare import compare
from backlit.methods import TRGBP, BBp, FullGrad, GuidedBackprop, Method
from backlit.metrics.ranking import spearman
from backlit.metrics.reset import layers_from_the_top, reset
from protocols import real_examples

EDGE = 16  # pixels of border, Eq. 12
VARIANTS: dict[str, dict[str, Any]] = {
    "normalised": {"normalise_kernel": True},
    "filled": {"normalise_kernel": False},
    "normalised_no_contrast": {"normalise_kernel": True, "contrast": None},
    "filled_no_contrast": {"normalise_kernel": False, "contrast": None},
}


def cost(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Median seconds of each method on a batch, timed in turn: of the processor on a CPU, where others run beside it."""
    loaded = load_model(arguments.model, weights="random", device=arguments.device)
    device = torch.device(arguments.device)
    size = loaded.preprocess.size
    x = torch.randn(arguments.batch, 3, *size, generator=torch.Generator().manual_seed(0)).to(device)
    target = torch.arange(arguments.batch, device=device) % 1000
    network = loaded.network

    def forward() -> Tensor:
        with torch.no_grad():
            return network(x)

    methods: dict[str, Method] = {
        "guided_backprop": GuidedBackprop(network, chunk=arguments.batch),
        "tr_gbp": TRGBP(network, chunk=arguments.batch),
        "fullgrad": FullGrad(network, chunk=arguments.batch),
        "bbp": BBp(network, chunk=arguments.batch),
    }
    timed: dict[str, Any] = {"forward": forward}
    timed |= {name: (lambda m=method: m.attribute(x)) for name, method in methods.items()}
    timed["tr_gbp, target outside the top 5"] = lambda: methods["tr_gbp"].attribute(x, target)
    seconds = (processor if device.type == "cpu" else interleaved)(timed, device, arguments.rounds)
    return [
        {
            "network": arguments.model,
            "batch": arguments.batch,
            "what": name,
            "seconds": round(value, 4),
            "over guided_backprop": round(value / seconds["guided_backprop"], 2),
            "forward passes": round(value / seconds["forward"], 2),
        }
        for name, value in seconds.items()
    ]


def processor(functions: dict[str, Any], device: torch.device, rounds: int) -> dict[str, float]:
    """As ``interleaved``, in seconds of the processor, which waiting for others does not lengthen."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds + 1):
        for name, function in functions.items():
            start = time.process_time()
            function()
            seconds[name].append(time.process_time() - start)
    return {name: median(values[1:]) for name, values in seconds.items()}


def kernel(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Insertion and last-layer reset of TR-GBP's variants, and how alike their maps are."""
    loaded = shared_model(arguments.model)
    examples = real_examples(arguments.model, arguments.images)
    methods = {name: TRGBP(loaded.network, layers=False, **options) for name, options in VARIANTS.items()}
    out = arguments.out or Path("backlit-protocols") / f"tr_gbp_kernel_{arguments.model}"
    metrics = ["insertion", "morf_5", "lerf_5", "last_layer_reset"]
    found = compare(loaded, examples, methods, metrics, out=out, target="ground truth")
    rows = [{"kind": "ranking", **row} for row in found.ranking.to_dicts()]
    rows += [{"kind": "difference", **row} for row in found.differences.to_dicts()]
    maps = {name: method.attribute(examples.inputs, examples.target) for name, method in methods.items()}
    for name, values in maps.items():
        parts = methods[name](examples.inputs[:8], examples.target[:8]).parts
        share = parts["biases"].abs().sum() / sum(p.abs().sum() for p in parts.values())
        alike = spearman(values.flatten(1), maps["normalised"].flatten(1)).mean()
        rows.append({"kind": "map", "variant": name, "biases' share of the magnitude": round(float(share), 3)})
        rows[-1]["rank correlation with normalised"] = round(float(alike), 3)
    return rows


def border(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Mean relevance of a pixel of the border over that of one inside, of the predicted class, before and after a full reset."""
    loaded = shared_model(arguments.model)
    examples = real_examples(arguments.model, arguments.images)
    layers = layers_from_the_top(loaded.network, examples.inputs[:1])
    blank = reset(loaded.network, layers, seed=0)
    variants: dict[str, tuple[type[Method], dict[str, Any]]] = {
        "tr_gbp": (TRGBP, {"layers": False}),
        "tr_gbp, Eq. 9 (no contrast)": (TRGBP, {"layers": False, "contrast": None}),
        "guided_backprop": (GuidedBackprop, {}),
        "fullgrad": (FullGrad, {}),
    }
    rows = []
    for name, (method, options) in variants.items():
        for network, state in ((loaded.network, "trained"), (blank, "all layers reset")):
            found = method(network, **options)(
                examples.inputs
            )  # behind a ReLU on the logits, another class may be silent
            sizes = {
                "whole map": found.heatmap(),
                **({"biases": found.parts["biases"]} if "biases" in found.parts else {}),
            }
            for part, heat in sizes.items():
                rows.append({"method": name, "network": state, "part": part, **_edge(heat)})
                print(rows[-1], flush=True)
    return rows


def _edge(heat: Tensor) -> dict[str, float]:
    """Mean magnitude at the border over the mean inside, and the same of positive relevance; medians over images."""
    inside = torch.zeros(heat.shape[-2:], dtype=torch.bool)
    inside[EDGE:-EDGE, EDGE:-EDGE] = True
    size, positive = heat.abs()[:, 0], heat.clamp(min=0)[:, 0]
    ratio = [(v[:, ~inside].mean(1) / v[:, inside].mean(1).clamp(min=1e-30)).median() for v in (size, positive)]
    return {"border over inside, magnitude": round(float(ratio[0]), 3), "positive": round(float(ratio[1]), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["time", "kernel", "border"])
    parser.add_argument("--model")
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    arguments.model = arguments.model or ("resnet50" if arguments.what == "time" else "squeezenet1_0")
    rows = {"time": cost, "kernel": kernel, "border": border}[arguments.what](arguments)
    for row in rows:
        if row.get("kind") != "difference":
            print(row)
    print("written to", write(f"tr_gbp_{arguments.what}_{arguments.model}", torch.device(arguments.device), rows))


if __name__ == "__main__":
    main()
