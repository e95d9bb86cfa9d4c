"""Finished pieces of a comparison: lines of journals and files of maps, the folder's own and those of its shards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from backlit._errors import FileError
from backlit._journal import rows_in
from backlit._json import JsonObject
from backlit._store import Store
from backlit.attribution import Attribution
from backlit.bench.folder import MAPS, RESULTS
from backlit.metrics import Scores

if TYPE_CHECKING:
    from backlit.bench.plan import Plan

STRIPS = 3  # images whose reset checks are kept to look at


@dataclass(frozen=True)
class Task:
    """The work that is given out at once: a method on a block of images, its maps and all their scores.

    Attributes:
        method: The method's name.
        number: The block's number, from 0.
    """

    method: str
    number: int


class Finished:
    """The finished pieces of a comparison: in the folder and its shards if there is one, else in memory.

    Only what is done is kept in memory, a bit a piece; rows are read again where they are gathered.

    Attributes:
        failures: The last failed try of each piece, by method, metric ("" for the maps) and number of the block.

    Args:
        plan: What is to be done.
        store: The folder that this process writes to; None keeps all in memory.
        shards: Folders of other processes with pieces of the same comparison.
    """

    def __init__(self, plan: Plan, store: Store | None, shards: Sequence[Path] = ()) -> None:
        self._plan, self._store, self._shards = plan, store, shards
        self._journal = store.journal(RESULTS, keeps=False) if store else None
        self._memory: list[JsonObject] = []
        self._maps: dict[str, Attribution] = {}
        self._methods = {name: i for i, name in enumerate(plan.methods)}
        self._pieces = {name: i for i, name in enumerate(("", *plan.metrics))}
        self._done = np.zeros((len(self._methods), len(plan.blocks), len(self._pieces)), dtype=bool)
        self._labels: dict[tuple[str, str], int] = {}
        self.failures: dict[tuple[str, str, int], JsonObject] = {}
        for row in self._all_rows():
            self._mark(row)

    def has(self, task: Task, metric: str = "") -> bool:
        """Tell whether a task's maps, or a metric's scores of them, are done."""
        return bool(self._done[self._methods[task.method], task.number, self._pieces[metric]])

    def pieces(self) -> int:
        """Count the pieces that are done."""
        return int(self._done.sum())

    def whole(self, task: Task) -> bool:
        """Tell whether all of a task is done, and what the report shows of it can be read."""
        if not self._done[self._methods[task.method], task.number].all():
            return False
        if self._plan.blocks[task.number].start >= max(self._plan.shown, STRIPS) or self._store is None:
            return True
        names = [_maps_file(self._plan, task, t) for t in range(self._plan.targets.shape[1])]
        if task.number == 0:
            names += [_pictures_file(metric, task.method) for metric, method in self._labels if method == task.method]
        return all(self._find(name) is not None for name in names)

    def add(self, row: JsonObject) -> None:
        """Add the line of a piece; it is on the disk when this returns."""
        if self._journal is None:
            self._memory.append(row)
        else:
            self._journal.append(row)
        self._mark(row)

    def rows(self) -> Iterator[JsonObject]:
        """Yield the line of each piece that is done, once, in no certain order."""
        seen = np.zeros_like(self._done)
        for row in self._all_rows():
            place = self._place(row)
            if row["kind"] != "error" and place is not None and not seen[place]:
                seen[place] = True
                yield row

    def _all_rows(self) -> Iterator[JsonObject]:
        if self._store is None:
            return iter(self._memory)
        folders = (self._store.path, *self._shards)
        return chain.from_iterable(rows_in(folder / RESULTS, self._store.plan) for folder in folders)

    def _place(self, row: JsonObject) -> tuple[int, int, int] | None:
        """Where a row stands among the pieces; None if it is none of them."""
        method, piece = self._methods.get(row["name"]), self._pieces.get(row["metric"])
        number = self._plan.number_of(row["start"])
        return None if method is None or piece is None or number is None else (method, number, piece)

    def _mark(self, row: JsonObject) -> None:
        place = self._place(row)
        if place is None:
            return
        key = (row["name"], row["metric"], place[1])
        if row["kind"] == "error":
            if not self._done[place]:
                self.failures[key] = row
            return
        self._done[place] = True
        self.failures.pop(key, None)
        if place[1] == 0 and row.get("labels"):
            self._labels[row["metric"], row["name"]] = len(row["labels"])

    def save_maps(self, task: Task, maps: Sequence[Attribution]) -> None:
        """Write one file a class; the images themselves are not written again. In memory, keep what is shown."""
        start = self._plan.blocks[task.number].start
        for t, attribution in enumerate(maps):
            name = _maps_file(self._plan, task, t)
            if self._store is not None:
                self._store.write(name, replace(attribution, inputs=None).to_bytes())
            elif (kept := max(self._plan.shown, STRIPS) - start) > 0:
                heat = attribution.heatmap().float().cpu()[:kept].clone()
                self._maps[name] = Attribution(heat, attribution.target[:kept].cpu(), attribution.output[:kept].cpu())

    def load_maps(self, task: Task, device: torch.device) -> list[Attribution] | None:
        """Read a task's maps, one a class; None if one was lost or changed."""
        read = [self._find(_maps_file(self._plan, task, t)) for t in range(self._plan.targets.shape[1])]
        whole = [_on(one, device) for one in read if one is not None]
        return whole if len(whole) == len(read) else None

    def save_pictures(self, metric: str, method: str, maps: Tensor) -> None:
        """Keep the maps (layers, n, h, w) of networks with reset layers."""
        flat = maps.detach().cpu().flatten(0, 1)
        zeros = torch.zeros(len(flat), dtype=torch.int64)
        kept = Attribution(flat[:, None], zeros, zeros.float())
        name = _pictures_file(metric, method)
        if self._store is None:
            self._maps[name] = kept
        else:
            self._store.write(name, kept.to_bytes())

    def layers(self, method: str, metric: str) -> int:
        """Return the number of pictures that a metric gave of each image of the first block."""
        return self._labels.get((metric, method), 0)

    def load_pictures(self, metric: str, method: str, layers: int) -> Tensor | None:
        """Read such maps; None if they were lost or changed."""
        kept = self._find(_pictures_file(metric, method))
        return (
            None if kept is None else kept.values[:, 0].unflatten(0, (layers, -1)).clone()
        )  # not the file's own pages

    def _find(self, name: str) -> Attribution | None:
        """Read a file, from the own folder or any shard that has it whole."""
        if self._store is None:
            return self._maps.get(name)
        own = self._store.sound(name)
        for path in (own, *(shard / name for shard in self._shards)):
            if path is not None and path.is_file() and not path.is_symlink():
                try:
                    return Attribution.load(path)
                except FileError:  # of a shard, whose owner makes it again
                    continue
        return None


def _on(kept: Attribution, device: torch.device) -> Attribution:
    return replace(
        kept,
        values=kept.values.to(device),
        target=kept.target.to(device),
        output=kept.output.to(device),
        parts={k: v.to(device) for k, v in kept.parts.items()},
    )


def _maps_file(plan: Plan, task: Task, t: int) -> str:
    block = plan.blocks[task.number]
    return f"{MAPS}/{task.method}.{block.start:06d}-{block.stop - 1:06d}.{t}.safetensors"


def _pictures_file(metric: str, method: str) -> str:
    return f"{MAPS}/{metric}.{method}.pictures.safetensors"


def map_row(plan: Plan, task: Task, maps: Sequence[Attribution], cost: Mapping[str, float]) -> JsonObject:
    """Make the line that says a task's maps are done; ``cost`` has seconds, bytes, and an image's forward pass in seconds."""
    first = maps[0]
    known = {"method", "options", "model", "fingerprint", "seed", "versions", "device", "dtype", "seconds"}
    return {
        "kind": "maps",
        "name": task.method,
        "metric": "",
        "start": plan.blocks[task.number].start,
        "images": len(first),
        "classes": len(maps),
        **cost,
        "threads": torch.get_num_threads(),
        "coverage": first.coverage.count(),
        "completeness": {
            k: torch.stack([a.completeness[k] for a in maps]).double().tolist() for k in first.completeness
        },
        "notes": {k: v for k, v in first.provenance.items() if k not in known},
    }


def score_row(plan: Plan, task: Task, metric: str, scores: Scores, seconds: float) -> JsonObject:
    """Make the line that holds a metric's scores of a task's maps."""
    method = task.method
    return {
        "kind": "scores",
        "name": method,
        "metric": metric,
        "start": plan.blocks[task.number].start,
        "seconds": seconds,
        "values": scores.values[method].tolist(),
        "curves": scores.curves[method].tolist() if scores.curves else None,
        "positions": None if scores.positions is None else scores.positions.tolist(),
        "groups": None if scores.groups is None else scores.groups.tolist(),
        "extra": {k: v[method].tolist() for k, v in scores.extra.items()},
        "labels": list(scores.labels),
        "counts": dict(scores.counts),
        "notes": list(scores.notes),
    }


def error_row(plan: Plan, task: Task, metric: str, error: str, attempts: int) -> JsonObject:
    """Make the line that says why a piece cannot be had, and how often it was tried."""
    start = plan.blocks[task.number].start
    return {
        "kind": "error",
        "name": task.method,
        "metric": metric,
        "start": start,
        "error": error,
        "attempts": attempts,
    }
