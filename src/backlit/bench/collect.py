"""Rows of a comparison, one by one and in any order, into arrays: what is kept grows with the images, not with the rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from backlit._json import JsonObject
from backlit.bench.plan import Plan
from backlit.metrics import Scores

Place = tuple[int, int]
"""The start of a block and the place of a method: the order in which texts are told, whatever the order of the rows."""


class OfMethod:
    """What the rows of a method's maps tell."""

    def __init__(self) -> None:
        self.seconds, self.maps, self.bytes = 0.0, 0, float("nan")
        self.forward: list[float] = []
        self.threads: set[int] = set()
        self._first: tuple[int, JsonObject] | None = None
        self._completeness: dict[str, dict[int, np.ndarray]] = {}

    def take(self, row: JsonObject) -> None:
        """Add a row."""
        self.seconds += row["seconds"]
        self.maps += row["images"] * row["classes"]
        self.bytes = float(np.fmax(self.bytes, row["bytes"]))
        self.forward.append(row["forward"])
        self.threads.add(row["threads"])
        if self._first is None or row["start"] < self._first[0]:
            self._first = (row["start"], {"coverage": row["coverage"], "notes": row["notes"]})
        for name, values in row["completeness"].items():
            self._completeness.setdefault(name, {})[row["start"]] = np.array(values, dtype=np.float64).ravel()

    def first(self, name: str) -> JsonObject:
        """Return the coverage or the notes of the first block that is there."""
        return self._first[1][name] if self._first else {}

    @property
    def completeness(self) -> dict[str, float]:
        """The mean over images and classes of each number that the method tells."""
        joined = {
            name: np.concatenate([blocks[start] for start in sorted(blocks)])
            for name, blocks in self._completeness.items()
        }
        return {name: float(values.mean()) for name, values in joined.items()}

    @property
    def seconds_of_one(self) -> float:
        """Seconds of one image and class."""
        return self.seconds / self.maps if self.maps else float("nan")

    @property
    def forward_equivalents(self) -> float:
        """The same in forward passes of one image."""
        return self.seconds_of_one / float(np.median(self.forward)) if self.forward else float("nan")


class OfMetric:
    """What the rows of a metric's scores tell, of all methods.

    Args:
        plan: The comparison.
        name: The metric's name.
    """

    def __init__(self, plan: Plan, name: str) -> None:
        self._plan, self._name = plan, name
        n = len(plan.examples)
        self._order = {method: i for i, method in enumerate(plan.methods)}
        self._values = {method: np.full(n, np.nan) for method in plan.methods}
        self._curves: dict[str, np.ndarray] = {}
        self._extra: dict[str, dict[str, np.ndarray]] = {}
        self._groups: np.ndarray | None = None
        self._positions: np.ndarray | None = None
        self._labels: list[str] = []
        self._counts: dict[str, dict[str, int]] = {}
        self._notes: dict[str, Place] = {}
        self._told: dict[str, Place] = {}

    def take(self, row: JsonObject) -> None:
        """Add a row."""
        method, start = row["name"], row["start"]
        images = slice(start, start + len(row["values"]))
        place = (start, self._order[method])
        self._values[method][images] = row["values"]
        for name, values in row["extra"].items():
            self._array(self._extra.setdefault(name, {}), method)[images] = values
        if row["curves"] is not None:
            curves = np.array(row["curves"], dtype=np.float64)
            self._array(self._curves, method, curves.shape[1])[images] = curves
            self._positions = np.array(row["positions"])
        if row["groups"] is not None:
            self._groups = self._array({} if self._groups is None else {"": self._groups}, "")
            self._groups[images] = row["groups"]
        self._labels = row["labels"] or self._labels
        for what, count in row["counts"].items():
            by_method = self._counts.setdefault(what, {})
            by_method[method] = by_method.get(method, 0) + count
            self._told[what] = min(self._told.get(what, place), place)
        for note in row["notes"]:
            self._notes[note] = min(self._notes.get(note, place), place)

    def scores(self, failed: Mapping[tuple[str, str, int], JsonObject]) -> Scores:
        """Return all scores; images of which there are none are NaN, and the notes say why."""
        curves = {m: self._curves.get(m, self._no_curves()) for m in self._values} if self._curves else {}
        extra = {name: {m: self._array(by, m) for m in self._values} for name, by in sorted(self._extra.items())}
        counts = {what: max(self._counts[what].values()) for what in sorted(self._told, key=self._told.__getitem__)}
        return Scores(
            metric=self._plan.metrics[self._name],
            names=self._plan.examples.names,
            values=self._values,
            curves=curves,
            positions=self._positions,
            groups=self._groups,
            extra=extra,
            labels=self._labels,
            counts=counts,
            notes=[*sorted(self._notes, key=self._notes.__getitem__), *self._failures(failed)],
        )

    def _array(self, arrays: dict[str, np.ndarray], key: str, *more: int) -> np.ndarray:
        return arrays.setdefault(key, np.full((len(self._plan.examples), *more), np.nan))

    def _no_curves(self) -> np.ndarray:
        assert self._positions is not None
        return np.full((len(self._plan.examples), len(self._positions)), np.nan)

    def _failures(self, failed: Mapping[tuple[str, str, int], JsonObject]) -> Iterator[str]:
        """Say of each method why images have no score, the first reason of each."""
        why: dict[str, list[tuple[int, str]]] = {}
        for (method, metric, number), row in failed.items():
            if metric in ("", self._name):
                why.setdefault(method, []).append((number, row["error"]))
        for method in (m for m in self._values if m in why):
            images = sum(self._plan.blocks[n].stop - self._plan.blocks[n].start for n in {n for n, _ in why[method]})
            yield f"{method}: {images} images have no score, as it failed on them: {min(why[method])[1]}"
