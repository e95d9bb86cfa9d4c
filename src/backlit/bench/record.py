"""Finished pieces of a comparison as lines of its journal, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from backlit._store import Store
from backlit.attribution import Attribution
from backlit.bench.folder import RESULTS
from backlit.metrics import Metric, Scores


class Done:
    """What is finished: in the folder if there is one, else in memory."""

    def __init__(self, store: Store | None) -> None:
        self.store = store
        self._journal = None if store is None else store.journal(RESULTS)
        self._rows = {_key(row): row for row in (self._journal.rows if self._journal else ())}
        self.heat: dict[str, list[Tensor]] = {}
        self.pictures: dict[tuple[str, str], Tensor] = {}

    def has(self, kind: str, name: str, part: slice) -> bool:
        return (kind, name, part.start) in self._rows

    def row(self, kind: str, name: str, part: slice) -> dict[str, Any]:
        return self._rows[kind, name, part.start]

    def add(self, row: dict[str, Any]) -> None:
        if self._journal is not None:
            self._journal.append(row)
        self._rows[_key(row)] = row


def _key(row: dict[str, Any]) -> tuple[str, str, int]:
    return row["kind"], row["name"], row["start"]


def map_row(name: str, part: slice, found: list[Attribution], seconds: float, forward: float) -> dict[str, Any]:
    """The line that says a method's maps of a block are done; ``forward`` is the time of one image's forward pass."""
    first = found[0]
    known = {"method", "options", "model", "fingerprint", "seed", "versions", "device", "dtype", "seconds"}
    return {
        "kind": "maps",
        "name": name,
        "start": part.start,
        "images": len(first),
        "classes": len(found),
        "seconds": seconds,
        "forward": forward,
        "coverage": first.coverage.count(),
        "completeness": {k: v.double().tolist() for k, v in first.completeness.items()},
        "notes": {k: v for k, v in first.provenance.items() if k not in known},
    }


def score_row(metric: Metric, part: slice, found: Scores, seconds: float) -> dict[str, Any]:
    """The line that holds a metric's scores of a block."""

    def plain(values: Mapping[str, np.ndarray]) -> dict[str, Any]:
        return {name: v.tolist() for name, v in values.items()}

    return {
        "kind": "scores",
        "name": metric.name,
        "start": part.start,
        "seconds": seconds,
        "values": plain(found.values),
        "curves": plain(found.curves),
        "positions": None if found.positions is None else found.positions.tolist(),
        "groups": None if found.groups is None else found.groups.tolist(),
        "extra": {k: plain(v) for k, v in found.extra.items()},
        "labels": list(found.labels),
        "counts": dict(found.counts),
        "notes": list(found.notes),
    }


def scores_of(metric: Metric, row: dict[str, Any], names: Sequence[str]) -> Scores:
    """The scores of such a line."""

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
