"""A network's sites with their rules."""

from __future__ import annotations

import torch
from rich.table import Table
from torch.nn import functional as F

from backlit._options import option_names
from backlit.cli.console import console
from backlit.cli.settings import Chosen, Compute
from backlit.methods import FittedMethod
from backlit.models import LoadedModel


def print_trace(loaded: LoadedModel, chosen: Chosen, compute: Compute) -> None:
    """Run the network on a grey image and print each site with its rule."""
    height, width = loaded.preprocess.size
    x = loaded.placed(torch.zeros(1, loaded.preprocess.channels, height, width))
    short = {"steps": 1} if "steps" in option_names(chosen.method) else {}
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
