"""Metrics by name."""

from __future__ import annotations

from backlit._errors import InputError, nearest, shown
from backlit.methods.lookup import same_name
from backlit.metrics import METRICS
from backlit.metrics.base import Metric


def find_metric(name: str) -> type[Metric]:
    """Return the metric of that name or class name, whatever its case, dashes, underscores and spaces.

    Raises:
        InputError: If there is none; names the nearest.
    """
    for metric in METRICS if isinstance(name, str) else ():
        if same_name(name, metric.name) or same_name(name, metric.__name__):
            return metric
    known = [m.name for m in METRICS]
    raise InputError(f"metric must be one of {', '.join(known)}, but is {shown(name)}.{nearest(str(name), known)}")
