"""Where a comparison lives: what its folder holds."""

from __future__ import annotations

from backlit._store import Kind
from backlit.comparison import FILES_TO_READ

RESULTS, MAPS, PROTOCOLS, REPORT = "results.jsonl", "maps", "protocols.json", "report.html"
COMPARISON = Kind(
    "comparison",
    files=(RESULTS, PROTOCOLS, REPORT, *FILES_TO_READ),
    folders=(MAPS,),
)
