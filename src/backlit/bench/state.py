"""How far a run is, read from its folder without touching it: other processes may be at work there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from backlit._claim import HIDDEN, plan_identity, read_plan
from backlit._errors import FileError
from backlit._journal import rows_in
from backlit._json import JsonObject
from backlit._lock import holder_of
from backlit.bench.asked import Asked
from backlit.bench.folder import COMPARISON, REQUEST, RESULTS, SHARDS, shards_of
from backlit.bench.plan import BLOCK

_DEPTH = 3  # of folders: network, data, seed
_FEW = 5  # errors that are told


@dataclass(frozen=True)
class FolderState:
    """How far a comparison is.

    Attributes:
        done: Pieces that are done: a method's maps of a block of images, or a metric's scores of them.
        pieces: All of them.
        failed: Pieces that failed, and were not done later.
        errors: The first reasons.
        seconds: Time that all workers together have computed.
        holder: Which process works on it; empty if none does.
    """

    done: int
    pieces: int
    failed: int
    errors: tuple[str, ...]
    seconds: float
    holder: str


def comparisons_in(folder: Path) -> list[Path]:
    """Return the folders of the comparisons of a run: the folder itself, or those in it."""
    return list(_comparisons(folder, _DEPTH))


def _comparisons(folder: Path, depth: int) -> Iterator[Path]:
    if (folder / COMPARISON.plan_file).is_file() or (folder / SHARDS).is_dir():
        yield folder
    elif depth and folder.is_dir():
        for path in sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()):
            yield from _comparisons(path, depth - 1)


def asked_in(folder: Path) -> Asked:
    """Read what a comparison was asked, from its folder or a shard's.

    Raises:
        FileError: If it is nowhere.
    """
    for place in (folder, *shards_of(folder)):
        if (told := read_plan(place / REQUEST)) is not None:
            return Asked.from_json(told)
    raise FileError(
        f"folder: {str(folder)!r} does not say what it was asked ({REQUEST} is missing). Run its plan again."
    )


def state_of(folder: Path) -> FolderState:
    """Count what is done in a folder and its shards."""
    places = [place for place in (folder, *shards_of(folder)) if read_plan(place / COMPARISON.plan_file) is not None]
    plans = [read_plan(place / COMPARISON.plan_file) or {} for place in places]
    done: set[tuple[str, str, int]] = set()
    failed: dict[tuple[str, str, int], str] = {}
    seconds = 0.0
    for place, plan in zip(places, plans, strict=True):
        for row in rows_in(place / RESULTS, plan_identity(plan)):
            key = (row["name"], row["metric"], row["start"])
            if row["kind"] == "error":
                failed[key] = f"{row['metric'] or 'maps'} of {row['name']}: {row['error']} ({row['attempts']} attempts)"
            else:
                done.add(key)
                seconds += row["seconds"]
    left = [text for key, text in sorted(failed.items()) if key not in done]
    holders = [text for place in places if (text := holder_of(place / HIDDEN))]
    errors = tuple(dict.fromkeys(left))[:_FEW]
    return FolderState(len(done), _pieces(plans[0]) if plans else 0, len(left), errors, seconds, "; ".join(holders[:2]))


def _pieces(plan: JsonObject) -> int:
    blocks = -(-len(plan["images"]) // BLOCK)
    return blocks * len(plan["methods"]) * (1 + len(plan["metrics"]))
