"""What a low-pass of the maps does to insertion: the cut-off chosen on some images, its effect told on others.

``python benchmarks/post.py [images]`` writes ``results/post.json``: SqueezeNet-1.0, saliency and gradient times input.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import torch

import backlit
from _common import half, shared_data, shared_model, write
from backlit import Examples
from backlit.data import load_examples, select
from backlit.metrics import Insertion
from backlit.post import LowPass, choose_cutoff

CUTOFFS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5)


def examples_of(model: backlit.LoadedModel, part: str, count: int) -> Examples:
    return load_examples(select(shared_data(), half(part, count)), model.preprocess)


def main() -> None:
    torch.set_num_threads(1)
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 8
    model, metric = shared_model("squeezenet1_0"), Insertion(steps=20)
    dev, test = (examples_of(model, part, count) for part in ("dev", "test"))
    rows: list[dict[str, Any]] = []
    cases: tuple[tuple[type[backlit.methods.Method], LowPass], ...] = (
        (backlit.Saliency, LowPass(reduce="abs")),
        (backlit.GradientXInput, LowPass(reduce="sum")),
    )
    for kind, step in cases:
        chosen = choose_cutoff(model.network, dev, kind(model)(dev.inputs, dev.target), metric, CUTOFFS, step)
        maps = kind(model)(test.inputs, test.target)
        cut = replace(step, cutoff=chosen.best)(maps)
        scores = metric(model.network, test, {"plain": maps, "cut": cut})
        row = {name: scores.estimate(name).value for name in ("plain", "cut")}
        paired = scores.difference("cut", "plain")
        rows.append({"method": kind.name, "cutoff": chosen.best, **row, "low": paired.low, "high": paired.high})
        print(rows[-1], {k: round(v, 3) for k, v in chosen.scores.items()}, flush=True)
    write("post", torch.device("cpu"), rows)


if __name__ == "__main__":
    main()
