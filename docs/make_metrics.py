"""Write docs/metrics.md, the reference of every metric, from the metrics themselves: python docs/make_metrics.py"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import get_args, get_type_hints

from backlit._options import option_docs
from backlit.metrics import METRICS, Metric
from backlit.metrics.base import WHO_HAS_IT

_BAR = "\\|"  # in a cell
PAGE = Path(__file__).with_name("metrics.md")
HEAD = """# Every metric

<!-- Written by docs/make_metrics.py; change the docstrings, not this page. -->

A metric is a frozen dataclass whose fields are its options: `Insertion(steps=25)` prints as itself, and
`dataclasses.replace(metric, seed=1)` makes another one. [Protocols](protocols/index.md) says what they have in common and how
to call them; `backlit metrics NAME` shows the same as this page.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *(line for kind in METRICS for line in _section(kind))])


def _section(kind: type[Metric]) -> Iterator[str]:
    metric = kind()
    yield f"## {kind.__name__}\n"
    yield f"{inspect.cleandoc(kind.__doc__ or '').partition('Attributes:')[0].strip()}\n"
    yield f"`{metric.name}`: {metric.summary}. {metric.source}.\n"
    yield f"- {metric.direction.capitalize()}; from {metric.range[0]:g} to {metric.range[1]:g}."
    yield f"- Forward passes a map: {metric.forward_passes}."
    yield f"- Ties: {metric.ties}."
    yield from (f"- Needs {WHO_HAS_IT[need]}." for need in metric.needs)
    yield "\n| option | type | default | meaning |\n|---|---|---|---|"
    types, meanings = get_type_hints(kind), option_docs(kind)
    for field in fields(kind):
        cells = (f"`{field.name}`", f"`{_type(types[field.name])}`", f"`{field.default!r}`", meanings[field.name])
        yield f"| {' | '.join(cell.replace('|', _BAR) for cell in cells)} |"
    yield ""


def _type(kind: object) -> str:
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind).replace("typing.", "")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
