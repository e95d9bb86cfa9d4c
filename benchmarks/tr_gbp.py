"""What TR-GBP, FullGrad and BBp cost, and what TR-GBP's options and predictions come to on real networks.

    uv run python benchmarks/tr_gbp.py time                  ResNet-50, random weights, batch 8, beside one guided back-propagation
    uv run python benchmarks/tr_gbp.py kernel --images 48    normalise_kernel and contrast: insertion, reset, correlation
    uv run python benchmarks/tr_gbp.py border --images 40    the border on a network with all layers drawn anew (Sec. 4.2)
    uv run python benchmarks/tr_gbp.py boxes --images 400    every reading of Eq. 8 against real boxes (Table 1), all boxed images

All but `time` need BACKLIT_SHARED. `boxes` writes a row an image to OUT/boxes_MODEL.jsonl: the same command goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from _common import half, in_turn, interleaved, shared_data, shared_model, write
from backlit import Attribution, load_model
from backlit.bench.compare import compare
from backlit.data import load_examples, select
from backlit.methods import LRP, TRGBP, BBp, FullGrad, GradCAM, Gradient, GuidedBackprop, Method
from backlit.metrics import BoxAccuracy, EnergyPointingGame, Examples
from backlit.metrics.ranking import spearman
from backlit.metrics.reset import layers_from_the_top, reset
from backlit.metrics.statistics import difference
from protocols import real_examples
from readings import rows_of, summary

EDGE = 16  # pixels of border, Eq. 12
VARIANTS: dict[str, dict[str, Any]] = {
    "normalised": {"normalise_kernel": True},
    "filled": {"ones": "one"},
    "normalised_no_contrast": {"normalise_kernel": True, "contrast": None},
    "filled_no_contrast": {"ones": "one", "contrast": None},
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
    rounds = arguments.rounds
    seconds = in_turn(timed, rounds) if device.type == "cpu" else interleaved(timed, device, rounds)
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
        "tr_gbp, one channel of ones": (TRGBP, {"ones": "one"}),
        "tr_gbp, one channel of ones, Eq. 9 (no contrast)": (TRGBP, {"ones": "one", "contrast": None}),
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


READINGS: dict[str, dict[str, Any]] = {
    "tr_gbp": {"ones": "layer"},
    "tr_gbp, one channel of ones": {"ones": "one"},
    "tr_gbp, normalised": {"normalise_kernel": True},
}


def boxes(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Energy pointing and box accuracy of each reading and of the methods beside it, on each half of the boxed images."""
    out = arguments.out or Path("backlit-readings")
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"boxes_{arguments.model}.jsonl"
    _measure_boxes(arguments, path)
    rows = rows_of(path)
    found = []
    for name in ("dev", "test"):
        own = [row for row in rows if row["half"] == name]
        found += [{"half": name, **row} for row in summary(own)]
        found += [{"half": name, **row} for row in _paired(own)]
    return found


def _measure_boxes(arguments: argparse.Namespace, path: Path) -> None:
    """Append a row for each image that has none."""
    loaded = shared_model(arguments.model)
    network = loaded.network.to(memory_format=torch.channels_last)
    scored = (EnergyPointingGame(largest=0.5, one_box=True), BoxAccuracy(largest=0.5, one_box=True))
    data, done, checked = shared_data(), {row["name"] for row in rows_of(path)}, False
    for name in ("dev", "test"):
        places = [i for i in half(name, arguments.images // 2, boxed=True) if data.paths[i].stem not in done]
        for start in range(0, len(places), arguments.batch):
            taken = select(data, places[start : start + arguments.batch])
            examples = load_examples(taken, loaded.preprocess, boxes=True)
            maps, shares = box_maps(network, examples, check=not checked)
            checked = True
            scores = {m.name: m(network, examples, maps).values for m in scored}
            with path.open("a") as file:
                for i, image in enumerate(examples.names):
                    of_image = {m: {k: float(v[i]) for k, v in by.items()} for m, by in scores.items()}
                    facts = {k: {"biases' share of the magnitude": float(v[i])} for k, v in shares.items()}
                    row = {"name": Path(image).stem, "half": name, "scores": of_image, "facts": facts}
                    file.write(json.dumps(row) + "\n")


def box_maps(network: nn.Module, examples: Examples, *, check: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Maps of every reading and method, and what share of a reading's magnitude is the biases'.

    The readings of Eq. 8 differ by a factor for each layer, so that one run with the layers' parts gives all of them;
    ``check`` compares each with the method's own map.
    """
    x, target = examples.inputs.contiguous(memory_format=torch.channels_last), examples.target
    many = len(x)
    maps: dict[str, Tensor] = {}
    shares: dict[str, Tensor] = {}
    for suffix, contrast in (("", 5), (", no contrast", None)):
        found = TRGBP(network, ones="one", layers=True, contrast=contrast, chunk=many)(x, target)
        for name, options in READINGS.items():
            image, biases = found.parts["input"], _biases(network, found, options)
            maps[name + suffix] = image + biases
            size, other = (v.abs().flatten(1).sum(1) for v in (image, biases))
            shares[name + suffix] = other / (size + other)
            if check:
                own = TRGBP(network, contrast=contrast, chunk=many, **options).attribute(x, target)
                torch.testing.assert_close(maps[name + suffix], own, rtol=1e-3, atol=1e-5 * float(own.abs().max()))
        maps |= {
            "guided_backprop": found.parts["input"]
        }  # of the second round: the bare guided map, summed over colours
    gradient = Gradient(network, chunk=many).attribute(x, target)
    maps |= {"saliency": gradient.abs(), "gradient_x_input": gradient * x}
    for name, method in {"lrp": LRP, "grad_cam": GradCAM, "fullgrad": FullGrad}.items():
        maps[name] = method(network, chunk=many).attribute(x, target)
    return maps, shares


def _biases(network: nn.Module, found: Attribution, options: dict[str, Any]) -> Tensor:
    """The sum of the layers' parts, each times what the reading's filled filter counts for."""
    return sum(part * _factor(network, name, options) for name, part in _layers(found))  # type: ignore[return-value]


def _layers(found: Attribution) -> Iterator[tuple[str, Tensor]]:
    return ((name, part) for name, part in found.parts.items() if name != "input")


def _factor(network: nn.Module, name: str, options: dict[str, Any]) -> float:
    weight = network.get_parameter(f"{name}.weight")
    if "normalise_kernel" in options:
        return 1 / weight[0, 0].numel()
    return weight.shape[1] if options["ones"] == "layer" else 1


def _paired(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The default reading less every other one and the methods, image by image."""
    found = []
    for metric, by in rows[0]["scores"].items():
        own = np.array([row["scores"][metric]["tr_gbp"] for row in rows])
        for other in (name for name in by if name != "tr_gbp"):
            gap = difference(own, np.array([row["scores"][metric][other] for row in rows]))
            low, high = round(gap.low, 4), round(gap.high, 4)
            found.append(
                {"metric": metric, "tr_gbp less": other, "mean": round(gap.value, 4), "low": low, "high": high}
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["time", "kernel", "border", "boxes"])
    parser.add_argument("--model")
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--threads", type=int, help="of torch; its own choice, if not given")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    arguments.model = arguments.model or ("resnet50" if arguments.what == "time" else "squeezenet1_0")
    rows = {"time": cost, "kernel": kernel, "border": border, "boxes": boxes}[arguments.what](arguments)
    for row in rows:
        if row.get("kind") != "difference":
            print(row)
    print("written to", write(f"tr_gbp_{arguments.what}_{arguments.model}", torch.device(arguments.device), rows))


if __name__ == "__main__":
    main()
