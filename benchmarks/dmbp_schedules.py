"""Which short schedule keeps the paper schedule's map: DMBP's objective and its insertion score (Sec. 4.1), per schedule.

    uv run python benchmarks/dmbp_schedules.py --images 50

Real network, real images (BACKLIT_SHARED). Insertion reveals the pixels of x, most relevant first (sum over channels),
over a blurred copy (51-pixel Gaussian, sigma 10) in 50 steps; the score is the mean probability of the ground truth.
The masks stand at every rectifier and start at sigmoid(0); `readings.py dmbp` compares that with other readings.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import matplotlib
import numpy as np
import torch

from _common import RESULTS, SHARED, shared_model, write
from backlit.data.images import load_batch
from backlit.methods import DMBP
from backlit.metrics import Examples, Insertion
from backlit.metrics.statistics import difference, estimate

matplotlib.use("Agg")

SCHEDULES: dict[str, dict[str, Any]] = {
    "paper 200 x .01": {},
    "5 x .5": {"steps": 5, "lr": 0.5},
    "3 x 1": {"steps": 3, "lr": 1.0},
    "10 x .2": {"steps": 10, "lr": 0.2},
    "20 x .1": {"steps": 20, "lr": 0.1},
    "adam 10 x .2": {"steps": 10, "lr": 0.2, "optimizer": "adam"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--model", default="squeezenet1_0")
    parser.add_argument("--schedules", nargs="+", default=list(SCHEDULES))
    arguments = parser.parse_args()
    loaded = shared_model(arguments.model)
    classes = json.loads((SHARED / "data" / "imagenet_classes.json").read_text())
    index = {entry["wnid"]: entry["index"] for entry in classes}
    files = sorted((SHARED / "data" / "ilsvrc2012-val").glob("*/*.JPEG"))
    files = files[:: len(files) // arguments.images][: arguments.images]
    network = loaded.network.to(memory_format=torch.channels_last)
    scores: dict[str, list[float]] = {name: [] for name in arguments.schedules}
    objective: dict[str, list[float]] = {name: [] for name in arguments.schedules}
    seconds: dict[str, list[float]] = {name: [] for name in arguments.schedules}
    for file in files:
        x = load_batch([file], loaded.preprocess)
        target = index[file.parent.name]
        examples = Examples(x, torch.tensor([target]))
        for name in arguments.schedules:
            start = time.perf_counter()
            explained = DMBP(network, sites="rectifiers", init=0.0, **SCHEDULES[name])(x, target)
            seconds[name].append(time.perf_counter() - start)
            scores[name].append(float(Insertion()(network, examples, {name: explained}).values[name][0]))
            objective[name].append(float(explained.trajectory["loss"][-1, 0]))
    rows = []
    paper = np.array(scores[arguments.schedules[0]])
    for name in arguments.schedules:
        values = np.array(scores[name])
        mean, gap = estimate(values), difference(values, paper)
        rows.append(
            {
                "schedule": name, "images": len(files), "insertion": mean.value, "low": mean.low, "high": mean.high,
                "minus_paper": gap.value, "minus_paper_low": gap.low, "minus_paper_high": gap.high,
                "objective": float(np.mean(objective[name])), "seconds": float(np.median(seconds[name])),
            }
        )  # fmt: skip
        print({k: round(v, 4) if isinstance(v, float) else v for k, v in rows[-1].items()})
    print("written to", write("dmbp_schedules", torch.device("cpu"), rows))
    plot(rows)


def plot(rows: list[dict[str, Any]]) -> None:
    """Insertion against the objective: the objective cannot choose the schedule."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4))
    for row in rows:
        error = [[row["insertion"] - row["low"]], [row["high"] - row["insertion"]]]
        axes.errorbar(-row["objective"], row["insertion"], yerr=error, fmt="o", capsize=3)
        axes.annotate(row["schedule"], (-row["objective"], row["insertion"]), xytext=(6, 4), textcoords="offset points")
    axes.set_xscale("log")
    axes.set_xlabel("objective reached, -L (higher is lower loss)")
    axes.set_ylabel("insertion AUC, 95 % interval")
    figure.tight_layout()
    figure.savefig(RESULTS / "dmbp_schedules.png", dpi=120)


if __name__ == "__main__":
    main()
