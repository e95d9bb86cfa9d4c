"""From finished pieces to the comparison: tables, facts, maps to look at."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from backlit._fingerprint import fingerprint
from backlit._json import JsonObject
from backlit._plain import described
from backlit._store import Store
from backlit._version import __version__
from backlit.bench.collect import OfMethod, OfMetric
from backlit.bench.folder import PROTOCOLS
from backlit.bench.plan import Plan
from backlit.bench.record import STRIPS, Finished, Task
from backlit.bench.setting import title_of
from backlit.bench.tables import agreement_rows, curve_rows, difference_rows, ranking_rows, score_rows
from backlit.comparison import TABLES, ClassFacts, Comparison, ImageFacts, MethodFacts, Strip
from backlit.metrics import Metric, Scores
from backlit.models.loaded import numbered_classes


def gathered(plan: Plan, finished: Finished, seconds: float) -> Comparison:
    """Join what is finished, be it all or not; ``seconds`` is how long this call took."""
    costs, by_metric = _collected(plan, finished)
    scores = {name: one.scores(finished.failures) for name, one in by_metric.items()}
    images = _image_facts(plan)
    maps = _maps(plan, finished)
    targets = dict(zip(plan.examples.names, plan.examples.target.tolist(), strict=True))
    return Comparison(
        model=plan.model,
        methods=tuple(_method_facts(plan, name, cost) for name, cost in costs.items()),
        images=images,
        maps=maps,
        scores=score_rows(scores, targets),
        curves=curve_rows(scores),
        ranking=ranking_rows(scores, {name: _cost(one) for name, one in costs.items()}),
        differences=difference_rows(scores),
        agreement=agreement_rows(scores),
        protocols=tuple(_protocol(plan, name, metric) for name, metric in plan.metrics.items()),
        strips=tuple(strip for name, one in scores.items() for strip in _strips(plan, finished, name, one)),
        notes={name: one.remarks for name, one in scores.items() if one.remarks},
        provenance=_provenance(plan, costs.values(), seconds),
    )


def _collected(plan: Plan, finished: Finished) -> tuple[dict[str, OfMethod], dict[str, OfMetric]]:
    costs = {name: OfMethod() for name in plan.methods}
    scores = {name: OfMetric(plan, name) for name in plan.metrics}
    for row in finished.rows():
        (costs[row["name"]] if row["kind"] == "maps" else scores[row["metric"]]).take(row)
    return costs, scores


def _cost(cost: OfMethod) -> tuple[float, float, float]:
    return cost.seconds_of_one, cost.forward_equivalents, cost.bytes / 2**20


def write_tables(comparison: Comparison, store: Store) -> None:
    """Write the tables, and what they were measured by, for other programs.

    Raises:
        FileError: If one cannot be written.
    """
    record = {
        "protocols": list(comparison.protocols),
        "notes": comparison.notes,
        "provenance": dict(comparison.provenance),
    }
    store.write(PROTOCOLS, (json.dumps(record, indent=1) + "\n").encode())
    for table in TABLES:
        frame, buffer = getattr(comparison, table), io.BytesIO()
        frame.write_parquet(buffer)
        store.write(f"{table}.parquet", buffer.getvalue())
        store.write(f"{table}.csv", frame.write_csv().encode())


def _protocol(plan: Plan, name: str, metric: Metric) -> JsonObject:
    told = metric.protocol.to_json()
    own = name.partition(".")[0] == metric.name  # then its title says all that its name does
    title = told["title"] if own else title_of(told["title"], metric.name, name)
    return {**told, "metric": name, "title": title, "target": plan.target}


def _maps(plan: Plan, finished: Finished) -> dict[tuple[str, str, int], Tensor]:
    """The heatmap (h, w) by method, image and class, of the images that are shown."""
    maps = {}
    for task in plan.tasks:
        block = plan.blocks[task.number]
        if block.start >= plan.shown or not finished.has(task):
            continue
        of_block = finished.load_maps(task, torch.device("cpu")) or ()
        heat = [one.heatmap()[:, 0].float() for one in of_block[: plan.classes]]
        for i in range(block.start, min(block.stop, plan.shown)):
            for t, values in enumerate(heat):
                key = (task.method, plan.examples.names[i], int(plan.targets[i, t]))
                maps[key] = values[i - block.start].clone()
    return maps


def _method_facts(plan: Plan, name: str, cost: OfMethod) -> MethodFacts:
    method = plan.methods[name]
    return MethodFacts(
        name=name,
        title=title_of(method.title, method.name, name),
        summary=method.summary,
        source=method.source,
        options=described(method),
        seconds=cost.seconds_of_one,
        forward_equivalents=cost.forward_equivalents,
        megabytes=cost.bytes / 2**20,
        coverage=cost.first("coverage"),
        completeness=cost.completeness,
        notes=cost.first("notes"),
    )


def _image_facts(plan: Plan) -> tuple[ImageFacts, ...]:
    names = plan.loaded.class_names if plan.loaded else numbered_classes(plan.logits.shape[1])
    chances = plan.logits.softmax(1)
    facts = []
    for i, name in enumerate(plan.examples.names[: plan.shown]):
        classes = [
            ClassFacts(c, names[c], float(plan.logits[i, c]), float(chances[i, c])) for c in plan.targets[i].tolist()
        ]
        facts.append(ImageFacts(name, _picture(plan, plan.examples.inputs[i]), tuple(classes[: plan.classes])))
    return tuple(facts)


def _picture(plan: Plan, x: Tensor) -> Tensor:
    x = x.detach().float().cpu()
    if plan.loaded is not None:
        return plan.loaded.preprocess.restore(x)
    low, high = x.min(), x.max()
    return (x - low) / (high - low).clamp(min=1e-12)


def _strips(plan: Plan, finished: Finished, metric: str, scores: Scores) -> Iterator[Strip]:
    labels = scores.labels
    for method in plan.methods if labels else ():
        after = finished.load_pictures(metric, method, len(labels))
        first = finished.load_maps(Task(method, 0), torch.device("cpu")) if after is not None else None
        if after is None or first is None:
            continue
        heat = first[0].heatmap()[:, 0].float()
        for i in range(min(after.shape[1], STRIPS)):
            curve = scores.curves[method][i] if scores.curves else np.array([1.0, scores.values[method][i]])
            yield Strip(
                method=method,
                image=plan.examples.names[i],
                metric=metric,
                labels=("trained", *labels),
                maps=(heat[i], *after[:, i]),
                correlations={"Spearman": tuple(curve.tolist())},
            )


def _provenance(plan: Plan, costs: Iterable[OfMethod], seconds: float) -> JsonObject:
    threads = sorted({number for cost in costs for number in cost.threads})
    return {
        "images": len(plan.examples),
        "fingerprint": fingerprint(plan.network),
        "device": str(plan.examples.inputs.device),
        "dtype": str(plan.examples.inputs.dtype).removeprefix("torch."),
        "threads": threads[0] if len(threads) == 1 else threads,
        "versions": {"backlit": __version__, "torch": str(torch.__version__)},
        "date": time.strftime("%Y-%m-%d"),
        "seconds": round(seconds, 1),
    }
