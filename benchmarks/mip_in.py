"""MIP-IN measured: what its source signals keep, what a fit costs, and whether its maps follow the class.

    uv run python benchmarks/mip_in_networks.py mlp_mnist cnn_mnist cnn_cifar10 --weights FOLDER     first: its networks
    uv run python benchmarks/mip_in.py apc --weights FOLDER          APC and positive APC (Table 1), both choices of samples
    uv run python benchmarks/mip_in.py time --weights FOLDER         seconds of a fit of MNIST's MLP
    uv run python benchmarks/mip_in.py memory --weights FOLDER       peak memory over the number of samples
    uv run python benchmarks/mip_in.py classes --model NAME          1,000 classes of ImageNet: seconds; class sensitivity (Fig. 9)

    uv run python benchmarks/mip_in.py readings --weights FOLDER --networks mlp_mnist     APC of the fit's readings, own samples
    uv run python benchmarks/mip_in.py boxes --model resnet50        box accuracy of both readings of a classifier part

Needs BACKLIT_SHARED. Results go to results/mip_in_NAME.json.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from _common import SHARED, half, shared_data, shared_model, write
from backlit import MIPIN, Deconvnet, GradCAM, GradientXInput, GuidedBackprop
from backlit.data import Batches, ImageFolder, load_examples, select
from backlit.inverse import InverseNetwork
from backlit.metrics import BoxAccuracy, ClassSensitivity, Examples, PercentageChange, PositivePercentageChange
from backlit.metrics.statistics import estimate
from mip_in_networks import images, network, trained

PAPER = {"mlp_mnist": (0.101, 0.026), "cnn_mnist": (0.165, 0.023), "cnn_cifar10": (0.211, 0.106)}
SAMPLES = {  # training images of a fit, by whose samples a class learns from
    "mlp_mnist": {"own": 60000, "all": 60000},
    "cnn_mnist": {"own": 60000, "all": 3000},
    "cnn_cifar10": {"own": 20000, "all": 3000},
}


def batches(x: Tensor, y: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(x.split(size), y.split(size), strict=True))


def apc(name: str, folder: Path, count: int) -> list[dict[str, Any]]:
    """Table 1 for one network, fitted on training images: over test images, over those that it gets right, and over images of
    the fit. Eq. 10 divides by the true class's logit, which is near 0 in images that the network gets wrong."""
    model, spec = trained(name, folder), network(name)
    x, y = images(spec, train=True)
    shown = {"test": images(spec, train=False), "fitted": (x, y)}
    shown = {key: (a[:count], b[:count]) for key, (a, b) in shown.items()}
    rows = []
    for samples, fitted in SAMPLES[name].items():
        start = time.perf_counter()
        data = batches(x[:fitted], y[:fitted], 5000 if name == "mlp_mnist" else 200)
        inverse = MIPIN.fit(model, data, samples=samples)
        row: dict[str, Any] = {
            "network": name, "table": spec.table, "samples": samples, "fitted on": fitted, "judged on": count,
            "seconds": round(time.perf_counter() - start, 1),
            "paper": dict(zip(("apc", "positive_apc"), PAPER[name], strict=True)),
            "explained": {layer["name"]: round(layer["explained"], 3) for layer in inverse.facts["layers"]},
        }  # fmt: skip
        for key, (chosen, labels) in shown.items():
            maps = {"mip_in": MIPIN(model, fitted=inverse)(chosen, labels)}
            with torch.no_grad():
                right = (model(chosen).argmax(1) == labels).numpy()
            for metric in (PercentageChange(), PositivePercentageChange()):
                values = metric(model, Examples(chosen, labels), maps).values["mip_in"]
                for which, rows_ in (("", right | True), (" right", right)):
                    mean = metric.statistic(values[None, rows_], labels.numpy()[rows_])[0]
                    row[f"{metric.name} {key}{which}"] = round(float(mean), 4)
            row[f"right of {key}"] = round(float(right.mean()), 3)
        rows.append(row)
        print(row, flush=True)
    return rows


def readings(name: str, folder: Path, count: int, fitted: int) -> list[dict[str, Any]]:
    """Eq. 10 and 11 on test images for the readings of Eq. 6 and 7, each class learned from its own samples."""
    model, spec = trained(name, folder), network(name)
    (x, y), (shown, labels) = images(spec, train=True), images(spec, train=False)
    x, y, shown, labels = x[:fitted], y[:fitted], shown[:count], labels[:count]
    changes: dict[str, dict[str, Any]] = {
        "means": {},
        "sums": {"products": "sums"},
        "ridge at dense layers": {"ridge_at": "dense"},
        "no constant": {"constant": False},
        "paper": {"reading": "paper"},
    }
    rows = []
    for reading, options in changes.items():
        inverse = MIPIN.fit(model, batches(x, y, 5000 if name == "mlp_mnist" else 200), samples="own", **options)
        maps = {"mip_in": MIPIN(model, fitted=inverse)(shown, labels)}
        row: dict[str, Any] = {"network": name, "reading": reading, "fitted on": fitted, "judged on": count}
        for metric in (PercentageChange(), PositivePercentageChange()):
            values = metric(model, Examples(shown, labels), maps).values["mip_in"]
            row[metric.name] = round(float(metric.statistic(values[None], labels.numpy())[0]), 4)
        rows.append(row)
        print(row, flush=True)
    return rows


def boxes(name: str) -> list[dict[str, Any]]:
    """Box accuracy (Table 2) on the images of the half "test" with one box under a third of the image.

    The classifier part is learned from the half "dev" and from the 800 photographs, one a class.
    """
    loaded, data = shared_model(name), shared_data()
    photographs = ImageFolder(SHARED / "data" / "imagenet-sample", SHARED / "data" / "imagenet_classes.json")
    learned = [*select(data, half("dev", 450)), *photographs]
    test = half("test", 450, boxed=True)
    examples = load_examples(select(data, test), loaded.preprocess, boxes=True)
    methods: dict[str, Any] = {"grad_cam": GradCAM(loaded.network), "gradient_x_input": GradientXInput(loaded.network)}
    for reading in ("means", "paper"):
        batched = Batches(learned, loaded.preprocess, batch=10, classes=1000)
        fitted = MIPIN.fit(loaded.network, batched, start="features", reading=reading)
        methods[f"mip_in, {reading}"] = MIPIN(loaded.network, fitted=fitted)
        other = "mean" if reading == "means" else "each"
        methods[f"mip_in, {reading}, {other} rectified"] = MIPIN(loaded.network, fitted=fitted, rectify=other)
    metric = BoxAccuracy(largest=1 / 3, one_box=True)
    values: dict[str, list[float]] = {key: [] for key in methods}
    for i in range(len(examples)):
        one = examples[slice(i, i + 1)]
        maps = {key: method(one.inputs, one.target) for key, method in methods.items()}
        for key, value in metric(loaded.network, one, maps).values.items():
            values[key].append(float(value[0]))
    rows = []
    for key, found in values.items():
        e = estimate(np.array(found))
        rows.append({"network": name, "method": key, "images": e.images, "learned from": len(learned)})
        rows[-1] |= {"box_accuracy": round(e.value, 4), "low": round(e.low, 4), "high": round(e.high, 4)}
        print(rows[-1], flush=True)
    return rows


def fit_time(folder: Path) -> list[dict[str, Any]]:
    """MNIST's MLP, ten classes."""
    rows = []
    model, spec = trained("mlp_mnist", folder), network("mlp_mnist")
    x, y = images(spec, train=True)
    data = batches(x, y, 5000)
    for samples in ("own", "all"):
        for precision in (torch.float32, torch.float64):
            rows.append(timed(model, data, "mlp_mnist", samples=samples, precision=precision)[0])
            print(rows[-1], flush=True)
    return rows


def timed(model: nn.Module, data: Any, name: str, **options: Any) -> tuple[dict[str, Any], InverseNetwork]:
    """Seconds of a fit, and of as many plain passes of the network over the same data; and the fit."""
    start, cpu = time.perf_counter(), time.process_time()
    inverse = MIPIN.fit(model, data, **options)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    passes = len(inverse.layers)
    start = time.perf_counter()
    with torch.no_grad():
        for batch in data:
            model(batch[0])
    forward = (time.perf_counter() - start) * passes
    shown = {k: str(v).removeprefix("torch.") for k, v in options.items()}
    row = {
        "network": name, **shown, "classes": len(inverse.classes), "images": inverse.facts["data"]["samples"], "passes": passes,
        "seconds": round(seconds, 2), "processor seconds": round(cpu, 2), "of which loading and forward passes": round(forward, 2),
        "MB": round(inverse.bytes / 1e6, 1),
    }  # fmt: skip
    return row, inverse


def memory(folder: Path) -> list[dict[str, Any]]:
    """Peak memory of a process that fits on 1, 4 and 16 times the samples, drawn batch by batch."""
    rows = []
    for count in (0, 1, 4, 16):
        words = [sys.executable, __file__, "one-fit", "--weights", str(folder), "--batches", str(count)]
        found = subprocess.run(words, capture_output=True, text=True, check=True)
        rows.append(
            {
                "network": "cnn_mnist",
                "samples": 250 * count,
                "peak MB of the process": round(float(found.stdout) / 1024, 1),
            }
        )
        print(rows[-1], flush=True)
    return rows


class _Drawn:
    """Random images that exist one batch at a time."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Any:
        for i in range(self.count):
            generator = torch.Generator().manual_seed(i)
            yield torch.rand(250, 1, 28, 28, generator=generator), torch.arange(250) % 10


def one_fit(folder: Path, count: int) -> None:
    model = trained("cnn_mnist", folder)
    if count:
        MIPIN.fit(model, _Drawn(count), samples="own", classes=[0, 1, 2])
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def sensitivity(count: int, name: str) -> list[dict[str, Any]]:
    """All 1,000 classes of a classifier part, timed; and Fig. 9: the mean l2 distance of the maps for 981 and 589."""
    rows = []
    loaded = shared_model(name)
    data = ImageFolder(SHARED / "data" / "ilsvrc2012-val", SHARED / "data" / "imagenet_classes.json")
    row, inverse = timed(loaded.network, Batches(data, loaded.preprocess, batch=20), name, start=None)
    rows.append(row)
    print(row, flush=True)
    chosen = [data[i * len(data) // count] for i in range(count)]
    x, y = next(iter(Batches(chosen, loaded.preprocess, batch=count)))
    methods = {
        "mip_in": MIPIN(loaded.network, fitted=inverse),
        "guided_backprop": GuidedBackprop(loaded.network),
        "deconvnet": Deconvnet(loaded.network),
    }
    examples = Examples(x, torch.full_like(y, 981))
    maps = {k: m(x, 981) for k, m in methods.items()}
    for scale in ("max", "none"):
        metric = ClassSensitivity(classes=(981, 589), scale=scale)
        found = metric(loaded.network, examples, maps, methods)
        means = {k: round(float(v.mean()), 3) for k, v in found.values.items()}
        rows.append({"network": name, "images": count, "maps divided by": scale, **means})
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["apc", "readings", "boxes", "time", "memory", "classes", "one-fit"])
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--networks", nargs="+", default=list(PAPER))
    parser.add_argument("--model", default="squeezenet1_0", help="or mobilenet_v2")
    parser.add_argument("--test", type=int, default=1000)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--fitted", type=int, default=20000, help="training images of the readings' fits")
    parser.add_argument("--batches", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.what == "one-fit":
        one_fit(arguments.weights, arguments.batches)
        return
    if arguments.what == "apc":
        rows = [row for name in arguments.networks for row in apc(name, arguments.weights, arguments.test)]
    elif arguments.what == "readings":
        rows = [
            r
            for name in arguments.networks
            for r in readings(name, arguments.weights, arguments.test, arguments.fitted)
        ]
    elif arguments.what == "boxes":
        rows = boxes(arguments.model)
    elif arguments.what == "time":
        rows = fit_time(arguments.weights)
    elif arguments.what == "memory":
        rows = memory(arguments.weights)
    else:
        rows = sensitivity(arguments.images, arguments.model)
    one, several = [arguments.model], arguments.networks
    part = {"classes": one, "boxes": one, "apc": several, "readings": several}.get(arguments.what, [])
    name = "_".join([arguments.what, *(part if len(part) == 1 else [])])
    print("written to", write(f"mip_in_{name}", torch.device("cpu"), rows))


if __name__ == "__main__":
    main()
