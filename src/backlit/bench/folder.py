"""Where a comparison lives: what its folder holds, and the shards that workers write beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from backlit._store import Kind
from backlit.comparison import FILES_TO_READ

RESULTS, MAPS, PROTOCOLS, REPORT = "results.jsonl", "maps", "protocols.json", "report.html"
SHARDS, INPUTS, REQUEST = "shards", "inputs.safetensors", "request.json"
COMPARISON = Kind(
    "comparison",
    files=(RESULTS, PROTOCOLS, REPORT, REQUEST, INPUTS, *FILES_TO_READ),
    folders=(MAPS,),
    beside=(SHARDS,),
)
"""A shard is a comparison, too, of which its folder holds a part."""


def shards_of(folder: Path) -> Iterator[Path]:
    """Yield the folders of the shards of a comparison, and of theirs."""
    shards = folder / SHARDS
    if shards.is_dir() and not shards.is_symlink():
        for path in sorted(path for path in shards.iterdir() if path.is_dir() and not path.is_symlink()):
            yield path
            yield from shards_of(path)
