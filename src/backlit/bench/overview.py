"""One page over the reports of a plan, and its rankings in one table."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, PackageLoader

from backlit._store import share
from backlit.bench.folder import REPORT
from backlit.bench.state import comparisons_in, state_of
from backlit.bench.tables import polars

OVERVIEW = "index.html"


def write_overview(folder: Path) -> Path:
    """Write a page that leads to the report of each comparison, with the best three methods by each metric.

    Raises:
        FileError: If it cannot be written, or a file that Backlit did not write has its name.
    """
    pl = polars()
    rows, frames = [], []
    for path in comparisons_in(folder):
        name, one = path.relative_to(folder).as_posix(), state_of(path)
        ranking = pl.read_parquet(path / "ranking.parquet") if (path / "ranking.parquet").is_file() else None
        best = []
        if ranking is not None:
            frames.append(ranking.select(pl.lit(name).alias("comparison"), pl.all()))
            for metric in ranking["metric"].unique(maintain_order=True):
                first = ranking.filter(metric=metric).sort("rank").head(3)
                best.append(
                    (metric, ", ".join(f"{r['method']} {_number(r['value'])}" for r in first.iter_rows(named=True)))
                )
        rows.append({"name": name, "report": f"{name}/{REPORT}", "state": one, "best": best})
    environment = Environment(
        loader=PackageLoader("backlit.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("overview.html").render(rows=rows)
    with share(folder, OVERVIEW) as store:
        if frames:
            store.write("ranking.csv", pl.concat(frames).write_csv().encode())
        return store.write(OVERVIEW, page.encode())


def _number(value: float | None) -> str:
    return "not scored" if value is None else f"{value:.3f}"
