"""Where a comparison lives: what its folder holds."""

from __future__ import annotations

from backlit._store import Kind

RESULTS, MAPS, PROTOCOLS, REPORT = "results.jsonl", "maps", "protocols.json", "report.html"
TABLES = ("scores", "curves", "ranking", "differences")
FILES_TO_READ = tuple(f"{table}.{ending}" for table in TABLES for ending in ("csv", "parquet"))
"""The numbers for other programs, each table as CSV and as parquet."""
COMPARISON = Kind(
    "comparison",
    files=(RESULTS, PROTOCOLS, REPORT, *FILES_TO_READ),
    folders=(MAPS,),
)
