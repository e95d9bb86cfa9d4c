"""From finished pieces to the comparison: tables, facts, maps to look at."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from backlit._fingerprint import fingerprint
from backlit._json import JsonObject
from backlit._plain import described
from backlit._store import Store
from backlit._version import __version__
from backlit.bench.execute import STRIPS
from backlit.bench.folder import PROTOCOLS
from backlit.bench.plan import Plan
from backlit.bench.record import Finished, scores_of
from backlit.bench.setting import title_of
from backlit.bench.tables import curve_rows, difference_rows, ranking_rows, score_rows
from backlit.comparison import TABLES, ClassFacts, Comparison, ImageFacts, MethodFacts, Strip
from backlit.metrics import Metric, Scores
from backlit.models.loaded import numbered_classes


def gathered(plan: Plan, finished: Finished, seconds: float) -> Comparison:
    """Join the finished pieces of all blocks; ``seconds`` is how long this call took."""
    scores = {name: _joined(plan, finished, name, metric) for name, metric in plan.metrics.items()}
    heat = {name: torch.cat(blocks, 1) for name, blocks in finished.heat.items()}
    images = _image_facts(plan)
    targets = dict(zip(plan.examples.names, plan.examples.target.tolist(), strict=True))
    return Comparison(
        model=plan.model,
        methods=tuple(_method_facts(plan, finished, name) for name in plan.methods),
        images=images,
        maps=_maps(heat, images),
        scores=score_rows(scores, targets),
        curves=curve_rows(scores),
        ranking=ranking_rows(scores),
        differences=difference_rows(scores),
        protocols=tuple(_protocol(plan, name, metric) for name, metric in plan.metrics.items()),
        strips=tuple(strip for name, one in scores.items() for strip in _strips(plan, finished, name, one, heat)),
        notes={name: one.remarks for name, one in scores.items() if one.remarks},
        provenance=_provenance(plan, seconds),
    )


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
    return {**told, "metric": name, "title": title_of(metric.title, metric.name, name), "target": plan.target}


def _joined(plan: Plan, finished: Finished, name: str, metric: Metric) -> Scores:
    rows = [(finished.row("scores", name, block), plan.examples.names[block]) for block in plan.blocks]
    return Scores.cat([scores_of(metric, row, names) for row, names in rows])


def _maps(heat: Mapping[str, Tensor], images: tuple[ImageFacts, ...]) -> dict[tuple[str, str, int], Tensor]:
    """The heatmap (h, w) by method, image and class."""
    return {
        (name, image.name, shown.index): values[t, i]
        for name, values in heat.items()
        for i, image in enumerate(images)
        for t, shown in enumerate(image.classes)
    }


def _method_facts(plan: Plan, finished: Finished, name: str) -> MethodFacts:
    rows, method = [finished.row("maps", name, block) for block in plan.blocks], plan.methods[name]
    seconds = sum(r["seconds"] for r in rows) / sum(r["images"] * r["classes"] for r in rows)
    forward = float(np.median([r["forward"] for r in rows]))
    complete = {k: float(np.mean([v for r in rows for v in r["completeness"][k]])) for k in rows[0]["completeness"]}
    return MethodFacts(
        name=name,
        title=title_of(method.title, method.name, name),
        summary=method.summary,
        source=method.source,
        options=described(method),
        seconds=seconds,
        forward_equivalents=seconds / forward,
        coverage=rows[0]["coverage"],
        completeness=complete,
        notes=rows[0]["notes"],
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


def _strips(plan: Plan, finished: Finished, metric: str, scores: Scores, heat: Mapping[str, Tensor]) -> Iterator[Strip]:
    labels = finished.row("scores", metric, plan.blocks[0])["labels"]
    for method in plan.methods if labels else ():
        after = finished.pictures[metric, method]
        for i in range(min(after.shape[1], STRIPS)):
            curve = scores.curves[method][i] if scores.curves else np.array([1.0, scores.values[method][i]])
            yield Strip(
                method=method,
                image=plan.examples.names[i],
                metric=metric,
                labels=("trained", *labels),
                maps=(heat[method][0, i], *after[:, i]),
                correlations={"Spearman": tuple(curve.tolist())},
            )


def _provenance(plan: Plan, seconds: float) -> JsonObject:
    return {
        "images": len(plan.examples),
        "fingerprint": fingerprint(plan.network),
        "device": str(plan.examples.inputs.device),
        "dtype": str(plan.examples.inputs.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "versions": {"backlit": __version__, "torch": str(torch.__version__)},
        "date": time.strftime("%Y-%m-%d"),
        "seconds": round(seconds, 1),
    }
