"""What the readings that the papers' texts allow come to, on real networks, images and boxes.

    uv run python benchmarks/readings.py dmbp --model resnet50 --half dev --images 40      choose a reading
    uv run python benchmarks/readings.py report --model resnet50 --half test --images 100  report the chosen ones, once
    uv run python benchmarks/readings.py tr_gbp --model resnet50 --images 333 --boxed      images with one box under half of them
    uv run python benchmarks/readings.py lpr --model resnet18 --images 24 --predicted
    uv run python benchmarks/readings.py losses --model resnet18 --images 32 --pairs --metrics ic   two images side by side

Needs BACKLIT_SHARED. One image after the other, each written to OUT/SET.MODEL.HALF.jsonl when it is done: the same command
goes on, and several processes share the images by --part 0/2, --part 1/2. The last of them (or --summary) writes the
means with their 95 % intervals to results/. MoRF and LeRF also come as a median and as a ratio of means, of which the
logits of single images carry less.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from _common import half, rows_of, shared_data, shared_model, write
from backlit.data import load_examples, select
from backlit.methods import DMBP, LPR, LRP, TRGBP, FullGrad, GradCAM, GradientXInput, GuidedBackprop, Method, Saliency
from backlit.metrics import (
    BoxAccuracy,
    ComplementaryInsertion,
    Deletion,
    EnergyPointingGame,
    Insertion,
    LeRF5,
    Metric,
    MoRF5,
)
from backlit.metrics.examples import Examples
from backlit.metrics.statistics import estimate
from backlit.models import LoadedModel

Methods = dict[str, Method]


def beside(net: nn.Module) -> Methods:
    """The methods that every reading stands beside."""
    return {
        "gradient_x_input": GradientXInput(net),
        "guided_backprop_x_input": GuidedBackprop(net, times_input=True),
        "grad_cam": GradCAM(net),
    }


def dmbp(net: nn.Module) -> Methods:
    """Where the masks stand, where they start, and the schedule."""
    short, longer = {"steps": 10, "lr": 0.2}, {"steps": 20, "lr": 0.1}
    return beside(net) | {
        "rectifiers, 0, 5 x .5": DMBP(net, sites="rectifiers", init=0.0, steps=5, lr=0.5),
        **{f"{s}, 1, 10 x .2": DMBP(net, sites=s, init=1.0, **short) for s in ("rectifiers", "everywhere")},
        **{f"{s}, 1, 20 x .1": DMBP(net, sites=s, init=1.0, **longer) for s in ("branches", "layers", "everywhere")},
    }


def losses(net: nn.Module) -> Methods:
    """DMBP's losses (Table 1), and how far the short schedule goes."""
    variants = {f"{v}, {n} x .1": DMBP.fast(net, variant=v, steps=n) for v in ("all", "+,-") for n in (10, 20)}
    return beside(net) | variants | {"+, 10 x .1": DMBP.fast(net, variant="+", steps=10)}


def report(net: nn.Module) -> Methods:
    """The defaults, and DMBP's variants (Table 1)."""
    variants = {f"dmbp_fast {v}": DMBP.fast(net, variant=v) for v in ("+,-", "+")}
    return beside(net) | {"lrp": LRP(net), "dmbp_fast": DMBP.fast(net), **variants}


def full(net: nn.Module) -> Methods:
    """The whole schedule beside the short one."""
    return beside(net) | {"dmbp": DMBP(net), "dmbp, from 1": DMBP(net, init=1.0), "dmbp_fast": DMBP.fast(net)}


def lpr(net: nn.Module) -> Methods:
    """LPR's readings by a quarter of the steps: one change at a time, and all of the text."""
    changes: dict[str, dict[str, Any]] = {
        **{r: {"reading": r} for r in ("gated", "multiplier", "features", "paper")},
        "channel": {"plugin": "channel"},
        "each colour": {"colours": "each"},
        "sum of masks": {"mask_loss": "sum"},
        "F not divided": {"relative": False},
        "nll": {"start": "nll"},
        "between convolutions": {"sites": "between_convolutions"},
    }
    short: dict[str, Any] = {"steps": 10, "lr": 0.3}
    changed: Methods = {f"lpr, {name}": LPR(net, **short, **options) for name, options in changes.items()}
    return {"gradient_x_input": GradientXInput(net), "lpr": LPR(net, **short), **changed}


def lpr_steps(net: nn.Module) -> Methods:
    """Shorter schedules, and the ablations of Fig. 9 in a reading where the reference acts."""
    schedules = {"5 x .5": (5, 0.5), "10 x .3": (10, 0.3), "10 x .5": (10, 0.5), "20 x .2": (20, 0.2)}
    acting: dict[str, Any] = {"reading": "multiplier"}
    return {
        "gradient_x_input": GradientXInput(net),
        "grad_cam": GradCAM(net),
        "lpr": LPR(net),
        **{f"lpr {name}": LPR(net, steps=steps, lr=lr) for name, (steps, lr) in schedules.items()},
        "lpr, multiplier": LPR(net, **acting),
        "lpr, multiplier, no reference": LPR(net, **acting, reference=False),
        "lpr, one-sided loss": LPR(net, sign_aware=False),
    }


def tr_gbp(net: nn.Module) -> Methods:
    """The input of ones, the filled kernel and the contrast, beside the methods of the paper's Table 1."""
    return {
        "tr_gbp": TRGBP(net),
        "tr_gbp, one channel of ones": TRGBP(net, ones="one"),
        "tr_gbp, normalised": TRGBP(net, normalise_kernel=True),
        "tr_gbp, no contrast": TRGBP(net, contrast=None),
        "guided_backprop": GuidedBackprop(net),
        "lrp": LRP(net),
        "grad_cam": GradCAM(net),
        "saliency": Saliency(net),
        "fullgrad": FullGrad(net),
        "gradient_x_input": GradientXInput(net),
    }


SETS: dict[str, Callable[[nn.Module], Methods]] = {
    f.__name__: f for f in (dmbp, losses, report, full, lpr, lpr_steps, tr_gbp)
}


def metrics(names: str, steps: int) -> list[Metric]:
    """The metrics by letter: i(nsertion), c(omplementary insertion), d(eletion), m(oRF and LeRF, 5 %), b(oxes)."""
    return [
        *([Insertion(steps=steps)] if "i" in names else []),
        *([ComplementaryInsertion(steps=steps)] if "c" in names else []),
        *([Deletion(steps=steps)] if "d" in names else []),
        *([MoRF5(), LeRF5()] if "m" in names else []),
        *(
            [EnergyPointingGame(largest=0.5, one_box=True), BoxAccuracy(largest=0.5, one_box=True)]
            if "b" in names
            else []
        ),
    ]


def measure(arguments: argparse.Namespace, path: Path) -> None:
    """Append a row for each image that has none: scores by metric and method, facts by method, the target's logit."""
    loaded = shared_model(arguments.model)
    network = loaded.network.to(memory_format=torch.channels_last)
    methods, scored = SETS[arguments.what](network), metrics(arguments.metrics, arguments.steps)
    if arguments.methods:
        methods = {name.strip(): methods[name.strip()] for name in arguments.methods.split(";")}
    part, parts = map(int, arguments.part.split("/"))
    done = {row["name"] for row in rows_of(path)}
    for examples in wanted(arguments, loaded, part, parts):
        if examples.names[0] in done:
            continue
        x = examples.inputs.contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            logits = network(x)
        target = logits.argmax(1) if arguments.predicted else examples.target
        maps, facts = {}, {}
        for name, method in methods.items():
            start = time.process_time()
            maps[name] = method(x, target)
            facts[name] = {k: float(v[0]) for k, v in maps[name].completeness.items()}
            facts[name]["processor seconds"] = time.process_time() - start
        found: dict[str, dict[str, float]] = {}
        for metric in scored:
            if "boxes" in metric.needs and not (examples.boxes is not None and len(examples.boxes[0])):
                continue
            ours = replace(examples, target=target)
            found[metric.name] = {k: float(v[0]) for k, v in metric(network, ours, maps).values.items()}
        row = {"name": examples.names[0], "logit": float(logits[0, int(target)]), "scores": found, "facts": facts}
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def wanted(arguments: argparse.Namespace, loaded: LoadedModel, part: int, parts: int) -> Iterator[Examples]:
    """The images of this part, one at a time; or pairs of them side by side, once for each of the two classes."""
    found = places(arguments)
    count = len(found) // 2 if arguments.pairs else len(found)
    for i in range(part, count, parts):
        chosen = found[i::count][:2] if arguments.pairs else [found[i]]  # of a pair, the classes are far apart
        examples = load_examples(select(shared_data(), chosen), loaded.preprocess, boxes=not arguments.pairs)
        if not arguments.pairs:
            yield examples
            continue
        classes = examples.target.tolist()
        labels = torch.zeros(1, len(loaded.class_names), dtype=torch.bool)
        labels[0, classes] = True
        for index in dict.fromkeys(classes):
            name = f"{' beside '.join(examples.names)}, class {index}"
            yield Examples(torch.cat([*examples.inputs], 2)[None], torch.tensor([index]), labels, names=[name])


def places(arguments: argparse.Namespace) -> list[int]:
    """The images of the half that was asked for, or of both."""
    names = ("dev", "test") if arguments.half == "both" else (arguments.half,)
    count = arguments.images // len(names)
    return sorted(i for name in names for i in half(name, count, boxed=arguments.boxed))


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a metric and method: mean with its interval and median; of logit ratios, the ratio of means as well."""
    found = []
    for metric in sorted({m for row in rows for m in row["scores"]}):
        scored = [row for row in rows if metric in row["scores"]]
        for method in scored[0]["scores"][metric]:
            values = np.array([row["scores"][metric][method] for row in scored])
            mean = estimate(values)
            entry: dict[str, Any] = {"metric": metric, "method": method, "images": mean.images}
            entry |= {"mean": round(mean.value, 4), "low": round(mean.low, 4), "high": round(mean.high, 4)}
            entry["median"] = round(float(np.nanmedian(values)), 4)
            if metric in ("morf_5", "lerf_5"):
                known = np.isfinite(values)
                logits = np.array([row["logit"] for row in scored])[known]
                order = np.arange(len(logits)).astype(float)
                ratio = estimate(order, statistic=_ratio_of_means(values[known], logits))
                entry["ratio of means"] = [round(v, 4) for v in (ratio.value, ratio.low, ratio.high)]
            found.append(entry)
    for method in rows[0]["facts"]:
        facts = [row["facts"][method] for row in rows]
        medians = {k: round(float(np.median([f[k] for f in facts])), 3) for k in facts[0]}
        found.append({"metric": "facts, medians", "method": method, "images": len(rows), **medians})
    return found


def _ratio_of_means(values: np.ndarray, logits: np.ndarray) -> Callable[..., np.ndarray]:
    """Statistic of drawn images: the mean of their disturbed logits over the mean of their own."""

    def statistic(drawn: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
        images = drawn.astype(int)
        return (values[images] * logits[images]).mean(-1) / logits[images].mean(-1)

    return statistic


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=sorted(SETS))
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--half", choices=("dev", "test", "both"), default="dev")
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--boxed", action="store_true", help="images with one box under half of the image")
    parser.add_argument("--pairs", action="store_true", help="every two images side by side, for both classes")
    parser.add_argument("--predicted", action="store_true", help="explain the predicted class, not the ground truth")
    parser.add_argument("--metrics", default="imb", help="letters of i, c, d, m, b")
    parser.add_argument("--steps", type=int, default=50, help="of insertion and deletion")
    parser.add_argument("--part", default="0/1")
    parser.add_argument("--methods", help="by semicolon; all of the set, if not given")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("backlit-readings"))
    parser.add_argument("--summary", action="store_true", help="only write the summary of what is there")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    name = f"{arguments.what}_{arguments.model}_{arguments.half}{'_pairs' * arguments.pairs}"
    path = arguments.out / f"{name}.jsonl"
    if not arguments.summary:
        measure(arguments, path)
    rows = summary(rows_of(path))
    for row in rows:
        print(json.dumps(row))
    print("written to", write(f"readings_{name}", torch.device("cpu"), rows))


if __name__ == "__main__":
    main()
