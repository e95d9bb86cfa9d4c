"""What is left of every method's map when the network has forgotten what it learned, and what it changes with the class.

    uv run python benchmarks/sanity.py --model squeezenet1_0
    uv run python benchmarks/sanity.py --model resnet18 --passes 2000
    uv run python benchmarks/sanity.py --model resnet18 --summary

Needs BACKLIT_SHARED. The cascading reset in two stages, the last layer alone and then all layers: Spearman correlation
with the trained network's map, of magnitudes too; and the correlation of the maps of the true class and of the least likely one.
A method gets ``--images`` images, or as many as ``--passes`` forward passes pay for. Rows are written to OUT/MODEL.jsonl as they
come: the same command goes on, and ``--part 0/2`` and ``--part 1/2`` share the methods. Methods that learn from data are left
out: what they learned belongs to the trained network.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from _common import for_all_methods, half, rows_of, shared_data, shared_model, written
from backlit import InputError, UnsupportedOp
from backlit.data import load_examples, select
from backlit.methods import BASELINES, DMBP, LPR, METHODS, FittedMethod, Method
from backlit.metrics import CascadingReset
from backlit.metrics.ranking import spearman
from backlit.metrics.statistics import estimate
from backlit.models import LoadedModel

RESET = CascadingReset(stages=2)
MAPS = 5  # of each image: the trained network's, two of reset ones, two of classes


def methods(loaded: LoadedModel) -> dict[str, Method]:
    """The methods by name, the cheapest first; of DMBP and LPR, the short schedules as well."""
    made: dict[str, Method] = {"dmbp_fast": DMBP.fast(loaded), "lpr_fast": LPR.fast(loaded)}
    made |= {m.name: m(loaded) for m in (*METHODS, *BASELINES) if not issubclass(m, FittedMethod)}
    return dict(sorted(made.items(), key=lambda one: one[1].forward_passes))


def measured(loaded: LoadedModel, method: Method, place: int) -> dict[str, float]:
    """Measure one image: correlations after the resets, and with the map of the least likely class."""
    examples = load_examples(select(shared_data(), [place]), loaded.preprocess)
    x, target = examples.inputs, examples.target
    first = method(x, target)
    scores = RESET(loaded.network, examples, {"m": first}, {"m": method})
    with torch.no_grad():
        least = loaded.network(x).argmin(1)
    other = method(x, least).heatmap().flatten(1)
    own = first.heatmap().flatten(1)
    last, everything = scores.curves["m"][0][1:]
    return {
        "last layer": float(last),
        "all layers": float(everything),
        "least likely class": float(spearman(own, other)[0]),
        "least likely class, magnitudes": float(spearman(own.abs(), other.abs())[0]),
    }


def measure(loaded: LoadedModel, arguments: argparse.Namespace, path: Path) -> None:
    """Append a row for each method and image that has none; a method that cannot explain this network says why."""
    part, parts = map(int, arguments.part.split("/"))
    done = {(row["method"], row["place"]) for row in rows_of(path)}
    chosen = {k: m for k, m in methods(loaded).items() if not arguments.methods or k in arguments.methods}
    for name, method in list(chosen.items())[part::parts]:
        count = min(arguments.images, int(arguments.passes / MAPS / method.forward_passes))
        for place in half("dev", arguments.images)[:count]:
            if (name, place) in done:
                continue
            try:
                row: dict[str, Any] = {"method": name, "place": place} | measured(loaded, method, place)
            except (InputError, UnsupportedOp) as error:
                print(name, "has no map:", error)
                break
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        print(name, count, "images", flush=True)


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each method: means of the correlations with their 95 % intervals."""
    table = []
    for name in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == name]
        entry: dict[str, Any] = {"method": name, "images": len(own)}
        for key in own[0]:
            if key in ("method", "place"):
                continue
            mean = estimate(np.array([row[key] for row in own]))
            entry[key] = [None if np.isnan(v) else round(v, 3) for v in (mean.value, mean.low, mean.high)]
        table.append(entry)
    return table


def main() -> None:
    arguments = for_all_methods(str(__doc__), "backlit-sanity", images=16, passes=8000).parse_args()
    written("sanity", arguments, lambda path: measure(shared_model(arguments.model), arguments, path), summary)


if __name__ == "__main__":
    main()
