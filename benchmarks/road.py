"""ROAD beside pytorch-grad-cam's: the same images, maps and percentages in one run, one thread each, in seconds of the processor.

    uv run python benchmarks/road.py --model squeezenet1_0 --images 4 --method GradCAM

Needs BACKLIT_SHARED. Explained are the predictions; both solve the same systems. The rows go to results/.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from typing import Any

import torch
from pytorch_grad_cam.metrics.road import NoisyLinearImputer
from torch import Tensor, nn

import backlit
from _common import shared_model, write
from backlit.metrics import Metric, RoadLeRF, RoadMoRF
from backlit.metrics.imputation import imputed
from protocols import real_examples

PERCENTAGES = tuple(range(10, 100, 10))


def masks_of(heat: Tensor) -> Tensor:
    """The pixels that go at each percentage, in both orders (2 * percentages, 1, h, w)."""
    ranks = heat.flatten().argsort(descending=True).argsort().view_as(heat)
    counts = [int(p * heat.numel() / 100) for p in PERCENTAGES]
    return torch.stack([r < c for r in (ranks, heat.numel() - 1 - ranks) for c in counts])


def by_scipy(x: Tensor, masks: Tensor) -> Tensor:
    solver = NoisyLinearImputer(noise=0.0)
    return torch.stack([solver(x, (~mask[0]).float()) for mask in masks])


def in_batches(x: Tensor, masks: Tensor, chunk: int) -> Tensor:
    return torch.cat([imputed(x.expand(len(part), *x.shape), part) for part in masks.split(chunk)])


@torch.no_grad()
def one_by_one(network: nn.Module, images: Tensor) -> None:
    for image in images:
        network(image[None])


def measure(model: str, count: int, method: str, chunk: int) -> dict[str, Any]:
    network, x = shared_model(model).network, real_examples(model, count).inputs
    with torch.no_grad():
        target = network(x).argmax(1)
    maps = {method: getattr(backlit, method)(network)(x, target)}
    examples = backlit.Examples(x, target)
    metrics: list[Metric] = [kind(percentages=PERCENTAGES) for kind in (RoadMoRF, RoadLeRF)]
    seconds = dict.fromkeys(("scipy", "passes", "batches"), 0.0)
    apart = 0.0
    for image, heat in zip(x, maps[method].heatmap("sum"), strict=True):
        masks = masks_of(heat)
        start = time.process_time()
        theirs = by_scipy(image, masks)
        solved = time.process_time()
        one_by_one(network, theirs)
        passed = time.process_time()
        ours = in_batches(image, masks, chunk)
        for name, spent in zip(seconds, (solved - start, passed - solved, time.process_time() - passed), strict=True):
            seconds[name] += spent
        apart = max(apart, float((ours - theirs).abs().max()))
    start = time.process_time()
    scores = [metric(network, examples, maps).values[method].mean() for metric in metrics]
    whole = time.process_time() - start
    return {
        "model": model,
        "method": method,
        "images": count,
        "systems": count * 2 * len(PERCENTAGES),
        "solved at once": chunk,
        "imputation, images per second": count / seconds["batches"],
        "imputation by pytorch-grad-cam, images per second": count / seconds["scipy"],
        "imputation, times as fast": seconds["scipy"] / seconds["batches"],
        "metric, images per second": count / whole,
        "metric by pytorch-grad-cam's imputation, images per second": count / (seconds["scipy"] + seconds["passes"]),
        "metric, times as fast": (seconds["scipy"] + seconds["passes"]) / whole,
        "largest difference of a pixel": apart,
        "road_morf": scores[0],
        "road_lerf": scores[1],
        "peak memory, MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="squeezenet1_0")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--method", nargs="+", default=["GradCAM", "GradientXInput"])
    parser.add_argument("--chunk", type=int, default=4, help="systems that are solved at once")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measure(arguments.model, arguments.images, method, arguments.chunk) for method in arguments.method]
    print(json.dumps(rows, indent=1))
    write(f"road_{arguments.model}", torch.device("cpu"), rows)
