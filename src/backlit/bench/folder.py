"""Where a comparison lives: what its folder holds."""

from __future__ import annotations

from backlit._store import Kind

RESULTS, MAPS, PROTOCOLS, REPORT = "results.jsonl", "maps", "protocols.json", "report.html"
TABLES = ("scores", "curves", "ranking", "differences")
COMPARISON = Kind(
    "comparison",
    files=(RESULTS, PROTOCOLS, REPORT, *(f"{table}.parquet" for table in TABLES)),
    folders=(MAPS,),
)
