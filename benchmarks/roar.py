"""ROAR on CIFAR-10, the LPR paper's Table 1: ``python benchmarks/roar.py`` (about 25 minutes on one core).

The default is small: 10,000 of the 20,000 shared training images, 5,000 test images, a narrow network, three fractions, three
retrainings. ``--full`` is the paper's grid on all shared images with the wide network: days on one core, an hour on a GPU.
An interrupted run goes on from its folder (``--out``).
"""

from __future__ import annotations

import argparse
import io
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import torch
from PIL import Image

import _common
from backlit.bench.roar import RoarData, RoarOptions, RoarResult, RoarStep, TrainingOptions, roar
from backlit.methods import METHODS
from backlit.methods.lookup import find_method
from backlit.metrics.examples import Examples
from backlit.models import cifar
from backlit.models.cifar_cnn import CifarCNN

SMALL = ("gradient_x_input", "saliency", "guided_backprop")


def examples(part: str, n: int | None, device: torch.device) -> Examples:
    """The first n shared CIFAR-10 images of a part, normalised (they are in random order)."""
    rows = pl.read_parquet(_common.SHARED / "data" / "cifar10" / f"{part}.parquet", n_rows=n)
    pictures = [np.asarray(Image.open(io.BytesIO(row["bytes"])).convert("RGB")) for row in rows["image"]]
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in (cifar.PREPROCESS.mean, cifar.PREPROCESS.std))
    return Examples((pixels - mean) / std, torch.tensor(rows["label"].to_list())).to(device)


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
    small = {"fractions": (0.5, 0.7, 0.9), "seeds": (0, 1, 2)}
    options = RoarOptions(training=training) if full else RoarOptions(training=training, **small)
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
    parser.add_argument("--train", type=int, default=10_000)
    parser.add_argument("--test", type=int, default=5000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--chunk", type=int, default=100)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("roar-cifar10"))
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    result = measure(arguments, device)
    print(result.table(), *result.notes(), sep="\n")
    print(_common.write("roar", device, rows(result)))


if __name__ == "__main__":
    main()
