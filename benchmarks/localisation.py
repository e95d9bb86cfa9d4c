"""Where the maps of every method lie, against real boxes: energy pointing game, box accuracy and pointing game.

    uv run python benchmarks/localisation.py --model squeezenet1_0
    uv run python benchmarks/localisation.py --model resnet50 --passes 2000
    uv run python benchmarks/localisation.py --model resnet50 --summary

Needs BACKLIT_SHARED: the images with one box under half of the image, in float32, explained for their ground truth, maps summed
over channels. A method gets all of the images or as many as ``--passes`` forward passes pay for, evenly spread over them; the
table says how many. Rows are written to OUT/MODEL.jsonl as they come: the same command goes on, and ``--part 0/2`` and
``--part 1/2`` share the methods. Methods that learn from data are left out.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import Tensor

from _common import for_all_methods, half, rows_of, shared_data, shared_model, written
from backlit._errors import BacklitError
from backlit.data import load_examples, select
from backlit.methods import BASELINES, DMBP, LPR, METHODS, FittedMethod, Method
from backlit.metrics import BoxAccuracy, EnergyPointingGame, PointingGame
from backlit.metrics.statistics import estimate
from backlit.models import LoadedModel

Maps = Callable[[Tensor, Tensor], Tensor]
METRICS = (
    EnergyPointingGame(largest=0.5, one_box=True),
    BoxAccuracy(largest=0.5, one_box=True),
    PointingGame(largest=0.5, one_box=True),
)
BLOCK = 8  # images that are explained, scored and written together


def methods(loaded: LoadedModel) -> dict[str, tuple[Maps, float]]:
    """What makes a map of images and targets, and what it costs in forward passes, by name."""
    made: dict[str, Method] = {"dmbp_fast": DMBP.fast(loaded), "lpr_fast": LPR.fast(loaded)}
    for kind in (*METHODS, *BASELINES):
        if kind not in (DMBP, LPR) and not issubclass(kind, FittedMethod):
            made[kind.name] = kind(loaded)
    return {name: (method.attribute, method.forward_passes) for name, method in made.items()}


def measure(loaded: LoadedModel, arguments: argparse.Namespace, path: Path) -> None:
    """Append a row for each method and image that has none; a method that cannot explain this network says why."""
    part, parts = map(int, arguments.part.split("/"))
    done = {(row["method"], row["place"]) for row in rows_of(path)}
    places = sorted([*half("dev", 900, boxed=True), *half("test", 900, boxed=True)])
    data = shared_data()
    chosen = {
        name: made for name, made in methods(loaded).items() if not arguments.methods or name in arguments.methods
    }
    for name, (maps, passes) in list(chosen.items())[part::parts]:
        count = max(arguments.least, min(len(places), arguments.images, int(arguments.passes / passes)))
        wanted = [places[i * len(places) // count] for i in range(count)]
        mine = [place for place in wanted if (name, place) not in done]
        for start in range(0, len(mine), BLOCK):
            block = mine[start : start + BLOCK]
            examples = load_examples(select(data, block), loaded.preprocess, boxes=True)
            begun = time.process_time()
            try:
                made = maps(examples.inputs, examples.target)
            except BacklitError as error:
                print(name, "has no map:", error)
                break
            seconds = (time.process_time() - begun) / len(examples.inputs)
            scores = {m.name: m(loaded.network, examples, {name: made}).values[name] for m in METRICS}
            with path.open("a") as file:
                for i, image in enumerate(examples.names):
                    row = {"method": name, "place": block[i], "name": image, "seconds": seconds, "passes": passes}
                    row |= {metric: float(values[i]) for metric, values in scores.items()}
                    file.write(json.dumps(row) + "\n")
        print(name, count, "images", flush=True)


def summary(rows: list[dict[str, float]]) -> list[dict[str, object]]:
    """A row for each method: the means of the metrics with their 95 % intervals, best energy pointing game first."""
    table: list[dict[str, object]] = []
    for name in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == name]
        entry: dict[str, object] = {"method": name, "images": len(own), "passes": own[0]["passes"]}
        entry["processor seconds"] = round(float(np.median([row["seconds"] for row in own])), 3)
        for metric in METRICS:
            mean = estimate(np.array([row[metric.name] for row in own]))
            entry[metric.name] = [round(v, 3) for v in (mean.value, mean.low, mean.high)]
        table.append(entry)
    return sorted(table, key=lambda entry: -entry[METRICS[0].name][0])  # type: ignore[index]


def main() -> None:
    parser = for_all_methods(str(__doc__), "backlit-localisation", images=333, passes=4000)
    parser.add_argument("--least", type=int, default=8, help="images of a method that costs more")
    arguments = parser.parse_args()
    written("localisation", arguments, lambda path: measure(shared_model(arguments.model), arguments, path), summary)


if __name__ == "__main__":
    main()
