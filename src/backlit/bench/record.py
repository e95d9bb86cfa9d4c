"""Finished pieces of a comparison as lines of its journal, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backlit._journal import Rows
from backlit._json import JsonObject
from backlit._store import Store
from backlit.attribution import Attribution
from backlit.bench.folder import MAPS, RESULTS
from backlit.metrics import Metric, Scores


class Finished:
    """Finished pieces of a comparison: in the folder if there is one, else in memory.

    Attributes:
        heat: By method the heatmaps (t, n, h, w) that the result shows, one tensor a block.
        pictures: By metric and method the maps (layers, n, h, w) of networks with reset layers.
    """

    def __init__(self, store: Store | None) -> None:
        self._store = store
        self._rows = Rows(None, _key) if store is None else store.rows(RESULTS, _key)
        self.heat: dict[str, list[Tensor]] = {}
        self.pictures: dict[tuple[str, str], Tensor] = {}

    def has(self, kind: str, name: str, block: slice) -> bool:
        """Tell whether a method's maps (``kind`` "maps") or a metric's "scores" of a block are done."""
        return (kind, name, block.start) in self._rows

    def row(self, kind: str, name: str, block: slice) -> JsonObject:
        """The line of a piece that is done."""
        return self._rows[kind, name, block.start]

    def add(self, row: JsonObject) -> None:
        """Add the line of a piece; it is on the disk when this returns."""
        self._rows.add(row)

    def save_maps(self, name: str, block: slice, maps: Sequence[Attribution]) -> None:
        """Write one file a method, block and class; the images themselves are not written again."""
        for t, attribution in enumerate(maps):
            self._save(_maps_file(name, block, t), replace(attribution, inputs=None))

    def load_maps(self, name: str, block: slice, classes: int, device: torch.device) -> list[Attribution] | None:
        """Read a method's maps of a block; None if one was lost or changed."""
        maps = [self._load(_maps_file(name, block, t), device) for t in range(classes)]
        whole = [one for one in maps if one is not None]
        return whole if len(whole) == classes else None

    def save_pictures(self, metric: str, method: str, maps: Tensor) -> None:
        """Keep the maps (layers, n, h, w) of networks with reset layers."""
        self.pictures[metric, method] = maps
        zeros = torch.zeros(len(maps.flatten(0, 1)), dtype=torch.int64)
        self._save(_pictures_file(metric, method), Attribution(maps.flatten(0, 1)[:, None], zeros, zeros.float()))

    def load_pictures(self, metric: str, method: str, layers: int, device: torch.device) -> bool:
        """Read such maps, unless they are in memory; False if they were lost or changed."""
        if self._store is None:
            return True
        kept = self._load(_pictures_file(metric, method), device)
        if kept is not None:
            self.pictures[metric, method] = kept.values[:, 0].unflatten(0, (layers, -1))
        return kept is not None

    def _save(self, file: str, attribution: Attribution) -> None:
        if self._store is not None:
            self._store.write(file, attribution.to_bytes())

    def _load(self, file: str, device: torch.device) -> Attribution | None:
        path = None if self._store is None else self._store.sound(file)
        if path is None:
            return None
        kept = Attribution.load(path)
        return replace(
            kept,
            values=kept.values.to(device),
            target=kept.target.to(device),
            output=kept.output.to(device),
            parts={k: v.to(device) for k, v in kept.parts.items()},
        )


def _key(row: JsonObject) -> tuple[str, str, int]:
    return row["kind"], row["name"], row["start"]


def _maps_file(name: str, block: slice, t: int) -> str:
    return f"{MAPS}/{name}.{block.start:06d}-{block.stop - 1:06d}.{t}.safetensors"


def _pictures_file(metric: str, method: str) -> str:
    return f"{MAPS}/{metric}.{method}.pictures.safetensors"


def map_row(name: str, block: slice, maps: Sequence[Attribution], seconds: float, forward: float) -> JsonObject:
    """Make the line that says a method's maps of a block are done; ``forward`` is the time of one image's forward pass."""
    first = maps[0]
    known = {"method", "options", "model", "fingerprint", "seed", "versions", "device", "dtype", "seconds"}
    return {
        "kind": "maps",
        "name": name,
        "start": block.start,
        "images": len(first),
        "classes": len(maps),
        "seconds": seconds,
        "forward": forward,
        "coverage": first.coverage.count(),
        "completeness": {k: v.double().tolist() for k, v in first.completeness.items()},
        "notes": {k: v for k, v in first.provenance.items() if k not in known},
    }


def score_row(name: str, block: slice, scores: Scores, seconds: float) -> JsonObject:
    """Make the line that holds a metric's scores of a block."""

    def plain(values: Mapping[str, np.ndarray]) -> JsonObject:
        return {method: v.tolist() for method, v in values.items()}

    return {
        "kind": "scores",
        "name": name,
        "start": block.start,
        "seconds": seconds,
        "values": plain(scores.values),
        "curves": plain(scores.curves),
        "positions": None if scores.positions is None else scores.positions.tolist(),
        "groups": None if scores.groups is None else scores.groups.tolist(),
        "extra": {k: plain(v) for k, v in scores.extra.items()},
        "labels": list(scores.labels),
        "counts": dict(scores.counts),
        "notes": list(scores.notes),
    }


def scores_of(metric: Metric, row: JsonObject, names: Sequence[str]) -> Scores:
    """Read the scores of such a line."""

    def arrays(values: Mapping[str, Any]) -> dict[str, np.ndarray]:
        return {name: np.array(v, dtype=np.float64) for name, v in values.items()}

    return Scores(
        metric=metric,
        names=names,
        values=arrays(row["values"]),
        curves=arrays(row["curves"]),
        positions=None if row["positions"] is None else np.array(row["positions"]),
        groups=None if row["groups"] is None else np.array(row["groups"]),
        extra={k: arrays(v) for k, v in row["extra"].items()},
        labels=row["labels"],
        counts=row["counts"],
        notes=row["notes"],
    )
