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
    folders=(MAPS, SHARDS),
)
SHARD = Kind("shard", files=(RESULTS, REQUEST, INPUTS), folders=(MAPS,))


def shards_of(folder: Path) -> Iterator[Path]:
    """Yield the folders of the shards of a comparison, by name."""
    shards = folder / SHARDS
    if shards.is_dir() and not shards.is_symlink():
        yield from sorted(path for path in shards.iterdir() if path.is_dir() and not path.is_symlink())
