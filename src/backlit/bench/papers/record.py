"""What was measured of a table or figure, as plain JSON values and pictures: pages are made of these alone."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

from backlit._files import make_folder, write_whole
from backlit._json import JsonObject
from backlit._version import __version__
from backlit.bench.papers.exhibit import Column, Exhibit
from backlit.bench.papers.outcome import Reproduced, TableCell, metric_name
from backlit.methods.base import Kind
from backlit.report.side_by_side import curves_of, maps_of, strips_of

RECORD = "outcome.json"


def write_record(outcome: Reproduced, out: Path) -> Path:
    """Write the numbers, the verdicts and the pictures of a table; returns the file of the numbers.

    Raises:
        FileError: If one cannot be written.
    """
    make_folder(out)
    pictures = []
    for name, data, words in _pictures(outcome):
        write_whole(out / name, data)
        pictures.append({"file": name, "words": words})
    exhibit = outcome.exhibit
    record = {
        "name": exhibit.name,
        "caption": exhibit.caption,
        "differs": exhibit.differs,
        "tables": [] if exhibit.drawn in ("maps", "strips") else list(_tables(outcome)),
        "claims": _claims(outcome),
        "pictures": pictures,
        "made": {
            "backlit": __version__,
            "torch": str(torch.__version__),
            "date": time.strftime("%Y-%m-%d"),
            "reports": _reports(outcome),
        },
    }
    write_whole(out / RECORD, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())
    return out / RECORD


def _tables(outcome: Reproduced) -> Iterator[JsonObject]:
    """A table for each network and images; of a network that the paper does not have, only if something was measured."""
    exhibit = outcome.exhibit
    for network, data in dict.fromkeys((c.network, c.data) for c in exhibit.columns):
        columns = [c for c in exhibit.columns if (c.network, c.data) == (network, data)]
        cells = {row.title: [outcome.cells[row.title, column] for column in columns] for row in exhibit.rows}
        measured = any(cell.measured is not None for own in cells.values() for cell in own)
        if not measured and not any(column.printed for column in columns):
            continue
        rows = [
            {
                "title": row.title,
                "method": row.method,
                "note": row.note,
                "seconds": _first(cells[row.title]),
                "cells": [_cell(cell) for cell in cells[row.title]],
            }
            for row in exhibit.rows
        ]
        yield {
            "network": network,
            "data": data,
            "metrics": [_title(outcome, column) for column in columns],
            "rows": rows,
        }


def _cell(cell: TableCell) -> JsonObject:
    numbers = {} if cell.measured is None else {k: _number(getattr(cell.measured, k)) for k in ("value", "low", "high")}
    return {"printed": cell.printed, **numbers, "images": cell.measured.images if cell.measured else 0, "why": cell.why}


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _first(cells: list[TableCell]) -> float | None:
    return next((round(cell.seconds, 4) for cell in cells if np.isfinite(cell.seconds)), None)


def _title(outcome: Reproduced, column: Column) -> str:
    wanted = metric_name(column.metric)
    told = (
        protocol
        for comparison in outcome.comparisons.get((column.network, column.data), ())
        for protocol in comparison.protocols
        if protocol["metric"] == wanted
    )
    title = next((f"{p['title']}, {p['direction']}" for p in told), column.metric)
    return f"{title}, times {column.unit:g}" if column.unit != 1 else title


def _claims(outcome: Reproduced) -> list[JsonObject]:
    """Each claim with the verdicts of its tests, network by network; what was not measured is left out."""
    told: list[JsonObject] = []
    for claim in outcome.exhibit.claims:
        own = [t for t in outcome.tested if t.claim is claim and t.verdict != "not measured"]
        by_place: dict[tuple[str, str], list[JsonObject]] = {}
        for t in own:
            numbers = {k: _number(getattr(t.difference, k)) for k in ("value", "low", "high")}
            test = {"worse": t.worse, "verdict": t.verdict, **numbers, "images": t.difference.images}
            by_place.setdefault((t.network, t.data), []).append(test)
        places = [{"network": n, "data": d, "tests": tests} for (n, d), tests in by_place.items()]
        told.append(
            {
                "text": claim.text,
                "better": claim.better,
                "metric": claim.metric,
                "margin": claim.margin,
                "places": places,
            }
        )
    return told


def _reports(outcome: Reproduced) -> list[str]:
    return [f"{network} on {data}" for network, data in outcome.comparisons]


def _pictures(outcome: Reproduced) -> Iterator[tuple[str, bytes, str]]:
    exhibit = outcome.exhibit
    titles = {row.chosen.name: row.title for row in exhibit.rows}
    for (network, data), comparisons in outcome.comparisons.items():
        where = f"{exhibit.name}.{network}.{data}"
        for name, picture, words in _drawn(exhibit, titles, network, data, outcome):
            if picture is not None:
                yield (
                    f"{where}{name}.png",
                    picture,
                    f"{words}: {network}, {data}, {comparisons[0].provenance['images']} images",
                )


def _drawn(
    exhibit: Exhibit, titles: Mapping[str, str], network: str, data: str, outcome: Reproduced
) -> Iterator[tuple[str, bytes | None, str]]:
    comparisons = outcome.comparisons[network, data]
    kinds: dict[str, Kind] = {row.chosen.name: row.bare.kind_of_map for row in exhibit.rows}
    if exhibit.drawn == "maps":
        yield "", maps_of(comparisons[0], titles, kinds), exhibit.caption
    elif exhibit.drawn == "strips":
        yield "", strips_of(comparisons[0].strips, kinds), exhibit.caption
    else:
        for metric in map(metric_name, exhibit.metrics(network, data)):
            yield f".{metric}", curves_of(comparisons, metric, titles), metric
