"""The listings: methods with their options, and a network's sites with their rules."""

from __future__ import annotations

from dataclasses import MISSING, fields

import torch
from rich.table import Column, Table
from torch.nn import functional as F

from backlit.cli.console import console
from backlit.cli.settings import Chosen, Compute
from backlit.methods import BASELINES, METHODS, FittedMethod
from backlit.metrics import METRICS
from backlit.models import LoadedModel


def print_methods() -> None:
    """One row a method: name, what it computes, its options with their defaults, its source."""
    name = Column("method", no_wrap=True, min_width=max(len(m.name) for m in METHODS))  # whole, to be copied
    table = Table(name, "what the map is", Column("options", overflow="fold"), "source", show_lines=True)
    for method in METHODS + BASELINES:
        options = ", ".join(
            f"{f.name}={f.default!r}"
            for f in fields(method.Options)
            if f.default is not MISSING and f.name not in ("callback", "progress")
        )
        table.add_row(method.name, method.summary, options, method.source)
    console().print(table)


def print_metrics() -> None:
    """One row a metric: name, what it scores, which way is better, cost, needs, options, source."""
    table = Table(
        "metric", "what it scores", "better", "forward passes a map", "needs", "options", "source", show_lines=True
    )
    for metric in METRICS:
        options = ", ".join(f"{f.name}={getattr(metric().options, f.name)!r}" for f in fields(metric.Options))
        better = metric().direction.removesuffix(" is better").removesuffix(" is best")
        needs = ", ".join(metric.needs) or "maps"
        table.add_row(metric.name, metric.summary, better, metric().forward_passes, needs, options, metric.source)
    console().print(table)


def print_trace(loaded: LoadedModel, chosen: Chosen, compute: Compute) -> None:
    """Run the network on a grey image and print each site with its rule."""
    height, width = loaded.preprocess.size
    x = loaded.placed(torch.zeros(1, loaded.preprocess.channels, height, width))
    short = {"steps": 1} if "steps" in {f.name for f in fields(chosen.method.Options)} else {}
    method = chosen.method(loaded.network, **{**chosen.options, **short})
    target = method.learned.classes[0] if isinstance(method, FittedMethod) else None
    explanation = method(F.pad(x, [0] * 4), target)
    table = Table("site", "kind", "module", "spelled", "rule")
    for row in explanation.coverage.rows:
        style = None if row.rule in ("true", "affine") else "bold"
        table.add_row(row.site, row.kind, row.module or "<model>", row.spelling, row.rule, style=style)
    into = console()
    into.print(table)
    into.print(
        f"{len(explanation.coverage.rows)} sites of {loaded.name} under {chosen.method.title}: {explanation.coverage}"
    )
