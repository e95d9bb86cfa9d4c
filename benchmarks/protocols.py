"""The papers' tables on real networks and images: every method under every protocol that such images allow.

    uv run python benchmarks/protocols.py table --images 128        insertion, deletion, MoRF, LeRF, IBD (DMBP's Table 2, and more)
    uv run python benchmarks/protocols.py short --images 50         insertion and the 5 % protocols alone
    uv run python benchmarks/protocols.py magnitudes --fast         insertion by the magnitudes of the channels instead of their sum
    uv run python benchmarks/protocols.py times_input --images 90   insertion of the rectified gradients, alone and times the input
    uv run python benchmarks/protocols.py reset --images 40         last-layer reset (DMBP's Table 3)
    uv run python benchmarks/protocols.py classes --images 40       class sensitivity (MIP-IN's Fig. 9)
    uv run python benchmarks/protocols.py cascade --images 16       cascading reset
    uv run python benchmarks/protocols.py grid --images 100         grid pointing game on 2 x 2 mosaics

Needs BACKLIT_SHARED. The work goes to --out and resumes there; rankings and paired differences go to results/.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from _common import RESULTS, SHARED, shared_model, write
from backlit.bench.compare import compare
from backlit.data.images import load_batch
from backlit.methods import DMBP, METHODS, Deconvnet, FittedMethod, GuidedBackprop, GuidedGradCAM, Method, Random
from backlit.metrics import ClassSensitivity, Examples, Insertion

METRICS = {
    "table": ["insertion", "deletion", "morf_5", "lerf_5", "morf_100", "lerf_100", "ibd", "ibd_auc"],
    "short": ["insertion", "morf_5", "lerf_5"],
    "magnitudes": [Insertion(reduce="abs")],
    "times_input": ["insertion"],
    "reset": ["last_layer_reset"],
    "classes": [ClassSensitivity(classes=(981, 589))],
    "cascade": ["cascading_reset"],
    "grid": ["grid_pointing_game"],
}


def real_examples(model: str, count: int) -> Examples:
    """Every so-manieth of the 900 validation images, with their ground truth."""
    loaded = shared_model(model)
    classes = json.loads((SHARED / "data" / "imagenet_classes.json").read_text())
    index = {entry["wnid"]: entry["index"] for entry in classes}
    files = sorted((SHARED / "data" / "ilsvrc2012-val").glob("*/*.JPEG"))
    files = [files[i * len(files) // count] for i in range(count)]
    target = torch.tensor([index[file.parent.name] for file in files])
    return Examples(load_batch(files, loaded.preprocess), target, names=[file.stem for file in files])


def mosaics(model: str, count: int) -> Examples:
    """2 x 2 mosaics of validation images that the network is sure of."""
    from backlit.data import ImageFolder
    from backlit.data import mosaics as make

    loaded = shared_model(model)
    data = ImageFolder(SHARED / "data" / "ilsvrc2012-val", SHARED / "data" / "imagenet_classes.json")
    return make(loaded.network, data, loaded.preprocess, grid=2, count=count, seed=0).examples


def chosen_methods(what: str, network: nn.Module) -> dict[str, Method]:
    """Every method that learns nothing from data, with DMBP's short schedule; for ``times_input`` those beside the input, too."""
    methods: dict[str, Method] = {m.name: m(network) for m in (Random, *METHODS) if not issubclass(m, FittedMethod)}
    if what == "times_input":
        rectified = (GuidedBackprop, Deconvnet, GuidedGradCAM)
        kept = ("gradient_x_input", "saliency", "grad_cam", *(m.name for m in rectified))
        times = {f"{m.name}_x_input": m(network, times_input=True) for m in rectified}
        return {name: methods[name] for name in kept} | times
    return methods | {"dmbp_fast": DMBP.fast(network)}


def print_markdown(rows: list[dict[str, Any]]) -> None:
    """A table with a row a method and a column a metric, bold where it is not significantly worse than the best."""
    ranking = [row for row in rows if row["kind"] == "ranking"]
    metrics = list(dict.fromkeys(row["metric"] for row in ranking))
    methods = [row["method"] for row in ranking if row["metric"] == metrics[0]]
    best = {row["metric"]: row["method"] for row in ranking if row["rank"] == 1}
    apart = {
        (r["metric"], frozenset((r["method"], r["other"])))
        for r in rows
        if r["kind"] == "difference" and r["significant"]
    }
    print("| method | " + " | ".join(f"`{m}`" for m in metrics) + " |")
    print("|---" * (len(metrics) + 1) + "|")
    for method in methods:
        cells = []
        for metric in metrics:
            row = next(r for r in ranking if (r["metric"], r["method"]) == (metric, method))
            text = "not defined" if row["value"] is None else _interval(row)
            tied = (metric, frozenset((method, best[metric]))) not in apart
            cells.append(f"**{text}**" if tied else text)
        print(f"| {method} | " + " | ".join(cells) + " |")


def _interval(row: dict[str, Any]) -> str:
    return f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=list(METRICS))
    parser.add_argument("--model", default="squeezenet1_0")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--methods", nargs="+", help="all of them, if not given")
    parser.add_argument("--fast", action="store_true", help="DMBP by its short schedule alone")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--name", help="of the result file; WHAT_MODEL, if not given")
    parser.add_argument("--markdown", action="store_true", help="only print the tables of the last run's results")
    arguments = parser.parse_args()
    name = arguments.name or f"{arguments.what}_{arguments.model}"
    if arguments.markdown:
        print_markdown(json.loads((RESULTS / f"{name}.json").read_text())["rows"])
        return
    loaded = shared_model(arguments.model)
    make = mosaics if arguments.what == "grid" else real_examples
    examples = make(arguments.model, arguments.images)
    methods = chosen_methods(arguments.what, loaded.network)
    if arguments.fast:
        methods.pop("dmbp", None)
    if arguments.methods:
        methods = {name: methods[name] for name in arguments.methods}
    found = compare(
        loaded,
        examples,
        methods,
        METRICS[arguments.what],
        out=arguments.out or Path("backlit-protocols") / name,
        target="ground truth",
        progress=lambda done, of, what: print(f"{done}/{of} {what}", flush=True),
    )
    rows = [{"kind": "ranking", **row} for row in found.ranking.to_dicts()]
    rows += [{"kind": "difference", **row} for row in found.differences.to_dicts()]
    rows += [{"kind": "cost", "method": m.name, "forward_equivalents": m.forward_equivalents} for m in found.methods]
    rows += [{"kind": "note", "metric": metric, "notes": notes} for metric, notes in found.notes.items()]
    write(name, torch.device("cpu"), rows)
    for row in found.ranking.to_dicts():
        print("{metric:20} {rank:2} {method:18} {value:8.4f} [{low:.4f}, {high:.4f}] {images}".format_map(row))
    print("written to", RESULTS / f"{name}.json")


if __name__ == "__main__":
    main()
