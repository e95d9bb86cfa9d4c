"""ROAR on CIFAR-10, the LPR paper's Table 1: ``python benchmarks/roar.py`` (about 20 minutes on one core).

The default is small: 8,000 of the 20,000 shared training images, 5,000 test images, a narrow network, three fractions, two
retrainings, and what the bare masks tell. ``--full`` is the paper's grid on all shared images with the wide network: days on
one core. ``--target label`` explains the true class instead of the predicted one, and writes ``roar_label.json``.
An interrupted run goes on from its folder (``--out``).
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

import _common
from backlit.bench.roar import RoarData, RoarOptions, RoarResult, RoarStep, TrainingOptions, roar
from backlit.data import CIFAR10, load_examples
from backlit.methods import METHODS
from backlit.methods.lookup import find_method
from backlit.metrics.examples import Examples
from backlit.models import cifar
from backlit.models.cifar_cnn import CifarCNN

SMALL = ("gradient_x_input", "saliency", "guided_backprop")


def examples(part: str, n: int | None, device: torch.device) -> Examples:
    """The first n shared CIFAR-10 images of a part (they are in random order)."""
    dataset = CIFAR10(_common.SHARED / "data" / "cifar10", train=part == "train")
    return load_examples(dataset[:n], cifar.PREPROCESS).to(device)


def measure(arguments: argparse.Namespace, device: torch.device) -> RoarResult:
    full = arguments.full
    data = RoarData(
        examples("train", None if full else arguments.train, device),
        examples("test", None if full else arguments.test, device),
    )
    training = TrainingOptions(
        epochs=30 if full else arguments.epochs,
        batch=128,
        learning_rate=arguments.learning_rate,
        flip=full,
    )
    grid = RoarOptions() if full else RoarOptions(fractions=(0.5, 0.7, 0.9), seeds=tuple(range(arguments.seeds)))
    options = replace(grid, training=training, target=arguments.target, mask_only=True)
    width, dropout = (32, 0.25) if full else (16, 0.0)
    names = arguments.methods.split(",")
    methods = {name: partial(find_method(name, METHODS), chunk=arguments.chunk) for name in names}
    return roar(data, lambda: CifarCNN(width=width, dropout=dropout), methods, options, out=arguments.out, progress=say)


def say(step: RoarStep) -> None:
    if step.done == step.total:
        print(f"{step.run}/{step.runs} {step.stage} {step.method} {step.fraction:g} seed {step.seed}", flush=True)


def rows(result: RoarResult) -> list[dict[str, object]]:
    found = result.to_json()
    setting = {name: found[name] for name in ("protocol", "provenance", "constant_maps", "notes", "table")}
    return [setting, *found["summary"], *found["rows"]]


def main() -> None:
    parser = argparse.ArgumentParser(description="ROAR on CIFAR-10.")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--methods", default=",".join(SMALL))
    parser.add_argument("--train", type=int, default=8000)
    parser.add_argument("--test", type=int, default=5000)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--target", choices=("predicted", "label"), default="predicted")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--chunk", type=int, default=100)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    arguments.out = arguments.out or Path(f"roar-cifar10-{arguments.target}")
    device = torch.device(arguments.device)
    result = measure(arguments, device)
    print(result.table(), *result.notes(), sep="\n")
    print(_common.write("roar" if arguments.target == "predicted" else "roar_label", device, rows(result)))


if __name__ == "__main__":
    main()
