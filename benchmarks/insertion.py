"""What a perturbation metric costs beside the forward passes that it needs, and beside the loop that everyone writes.

    uv run python benchmarks/insertion.py                     8 maps of one image, 50 steps; needs torchvision
    uv run python benchmarks/insertion.py --compare 100       100 images x 6 methods x 3 metrics on SqueezeNet; needs BACKLIT_SHARED

Rows: the metric; 8 x 51 forward passes of ready-made images in the same chunks, as stored and channels last; and one map
after the other, each step's image copied and changed by index on its own, all steps in chunks of the same size.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor, nn

from _common import interleaved, shared_model, write
from backlit import compare, load_model
from backlit.methods import Random
from backlit.metrics import Examples, Insertion
from backlit.metrics.replacement import blurred

MAPS, STEPS, CHUNK = 8, 50, 16


def forwards(network: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        for part in images.split(CHUNK):
            network(part)


def loop(network: nn.Module, x: Tensor, maps: list[Tensor], target: int) -> list[float]:
    """The usual way: sort, copy, assign; a list of images, then the network."""
    base, found = blurred(x), []
    with torch.no_grad():
        for heat in maps:
            order = heat.flatten().argsort(descending=True)
            images = []
            for step in range(STEPS + 1):
                image = base[0].clone().flatten(1)
                chosen = order[: round(step / STEPS * order.numel())]
                image[:, chosen] = x[0].flatten(1)[:, chosen]
                images.append(image.view_as(x[0]))
            scores = [network(part).softmax(1)[:, target] for part in torch.stack(images).split(CHUNK)]
            curve = torch.cat(scores)
            found.append(float((curve[1:] + curve[:-1]).mean() / 2))
    return found


def ratios(name: str, rounds: int) -> dict[str, object]:
    loaded = load_model(name, weights="random")
    network = loaded.network
    height, width = loaded.preprocess.size
    x = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    maps = {str(i): Random(network, seed=i)(x, 0) for i in range(MAPS)}
    examples, metric = Examples(x, torch.tensor([0])), Insertion(steps=STEPS, chunk=CHUNK)
    ready = x.expand(MAPS * (STEPS + 1), -1, -1, -1).contiguous()
    last = ready.contiguous(memory_format=torch.channels_last)
    heat = [m.heatmap()[0, 0] for m in maps.values()]
    seconds = interleaved(
        {
            "metric": lambda: metric(network, examples, maps),
            "forwards": lambda: forwards(network, ready),
            "forwards, channels last": lambda: forwards(network, last),
            "loop": lambda: loop(network, x, heat, 0),
        },
        torch.device("cpu"),
        rounds,
    )
    gap = max(
        abs(a - float(metric(network, examples, {k: m}).values[k][0]))
        for (k, m), a in zip(maps.items(), loop(network, x, heat, 0), strict=True)
    )
    row = {"network": name, **{k: round(v, 3) for k, v in seconds.items()}, "largest difference from the loop": gap}
    row |= {f"metric / {k}": round(seconds["metric"] / v, 3) for k, v in seconds.items() if k != "metric"}
    return row


def whole_comparison(images: int) -> dict[str, object]:
    """The time of a whole comparison by gradient methods."""
    from protocols import real_examples

    loaded = shared_model("squeezenet1_0")
    examples = real_examples("squeezenet1_0", images)
    methods = ["gradient", "saliency", "gradient_x_input", "deconvnet", "guided_backprop", "grad_cam"]
    metrics = ["insertion", "morf_5", "lerf_5"]
    start = time.perf_counter()
    compare(loaded, examples, methods, metrics, target="ground truth")
    seconds = time.perf_counter() - start
    return {
        "images": images,
        "methods": methods,
        "metrics": metrics,
        "network": "squeezenet1_0",
        "seconds": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["squeezenet1_0", "resnet18", "mobilenet_v2"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compare", type=int, metavar="IMAGES")
    arguments = parser.parse_args()
    if arguments.compare:
        rows, name = [whole_comparison(arguments.compare)], "compare_time"
    else:
        rows, name = [ratios(model, arguments.rounds) for model in arguments.models], "insertion"
    for row in rows:
        print(row)
    print("written to", write(name, torch.device("cpu"), rows))


if __name__ == "__main__":
    main()
