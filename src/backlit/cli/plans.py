"""The commands of many comparisons: `backlit bench` and `backlit reproduce`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from backlit.cli.arguments import Device, Ray, Shard, Threads, Workers


def bench(
    plan: Annotated[
        str, typer.Argument(help="A plan, as TOML; or status or merge, of a folder.", metavar="PLAN|status|merge")
    ],
    folder: Annotated[Path | None, typer.Argument(help="The folder, of status and merge.", metavar="[DIR]")] = None,
    out: Annotated[Path, typer.Option(help="Folder for reports, tables and maps.")] = Path("backlit-bench"),
    workers: Workers = 0,
    threads: Threads = None,
    ray: Ray = None,
    shard: Shard = None,
    device: Annotated[str | None, typer.Option(help="In the place of the plan's: cpu, cuda, auto.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Begin anew in a folder that is in use.")] = False,
) -> None:
    """Run a plan: networks x images x methods x metrics x seeds, by one process or many. Interrupted, it goes on.

    `backlit bench status DIR` says how far a run is, `backlit bench merge DIR` joins shards and writes the report of what is there.
    """
    from backlit.cli.bench import merge, run, status

    if plan in ("status", "merge"):
        failed = (status if plan == "status" else merge)(folder or out)
    else:
        failed = run(Path(plan), folder or out, (workers, threads, ray, shard, force), device)
    if failed:
        raise typer.Exit(1)


def reproduce(
    what: Annotated[
        str, typer.Argument(help="list; a paper: dmbp, lpr, tr_gbp, mip_in; or one of its tables: dmbp.table1.")
    ] = "list",
    places: Annotated[
        Path | None,
        typer.Option(
            help="TOML with [[networks]] and [[data]], as plans have them, by the papers' names.", metavar="FILE"
        ),
    ] = None,
    networks: Annotated[
        str | None, typer.Option(help="Networks, by comma; the paper's and those of the places, if not given.")
    ] = None,
    images: Annotated[
        int | None, typer.Option(help="Images for cheap methods; costly ones get a fifth of them.", min=1)
    ] = None,
    scale: Annotated[
        str, typer.Option(help="quick (a few images), here (100 images, 20 for costly methods), paper (1,000, 200).")
    ] = "here",
    out: Annotated[Path, typer.Option(help="Folder for pages, tables and maps.")] = Path("backlit-papers"),
    workers: Workers = 0,
    threads: Threads = None,
    force: Annotated[bool, typer.Option("--force", help="Begin anew in folders that other versions wrote.")] = False,
    device: Device = "auto",
) -> None:
    """Measure the tables and figures of the four papers again, each claim with a verdict. Interrupted, it goes on.

    The embedded network, digits, needs no files: `backlit reproduce dmbp.table1 --networks digits --scale quick`.
    """
    from backlit.bench.run import How
    from backlit.cli.reproduce import command, listing

    if what == "list":
        listing()
    elif command(what, places, networks, images, scale, out, How(workers, threads, force=force), device):
        raise typer.Exit(1)
