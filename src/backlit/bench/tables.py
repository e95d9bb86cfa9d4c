"""Scores as data frames: per image, per point of a curve, ranked, and pair by pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import isfinite
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from backlit._errors import InputError
from backlit.metrics import Scores
from backlit.metrics.statistics import Estimate, kendall_tau, mean_band

if TYPE_CHECKING:
    import polars as pl

COSTS = ("seconds", "forward_equivalents", "megabytes")
"""What a method's map of one image and class costs: the same in the rows of all metrics."""
NUMBERS = ("value", "low", "high")
BESIDE = ("median", "ratio of means")
"""What stands beside the score of a metric that has it, with its interval."""


def polars() -> ModuleType:
    """Import the data frames' library, an optional dependency.

    Raises:
        InputError: If it is not installed; says how.
    """
    try:
        import polars
    except ImportError as error:
        raise InputError("Tables of scores need polars: pip install 'backlit[compare]'.") from error
    return polars


def score_rows(scores: Mapping[str, Scores], targets: Mapping[str, int]) -> pl.DataFrame:
    """List one row an image, metric and method; null where the protocol does not score the image."""
    rows = []
    for metric, one in scores.items():
        named = {"": one.values, **one.extra}
        for extra, values in named.items():
            for method, numbers in values.items():
                for image, value in zip(one.names, numbers.tolist(), strict=True):
                    rows.append((metric, method, image, targets[image], value, extra))
    names = ("metric", "method", "image", "target", "value", "extra")
    kinds = (str, str, str, int, float, str)
    return _frame(names, kinds, rows)


def curve_rows(scores: Mapping[str, Scores]) -> pl.DataFrame:
    """List one row a point of each mean curve, with its 95 % band."""
    rows = []
    for metric, one in scores.items():
        for method, curves in one.curves.items():
            assert one.positions is not None
            middle, low, high = mean_band(curves, seed=one.metric.seed)
            points = zip(one.positions.tolist(), middle.tolist(), low.tolist(), high.tolist(), strict=True)
            rows += [(metric, method, *point, len(curves)) for point in points]
    names = ("metric", "method", "position", "mean", "low", "high", "images")
    return _frame(names, (str, str, float, float, float, float, int), rows)


def ranking_rows(scores: Mapping[str, Scores], costs: Mapping[str, Sequence[float]]) -> pl.DataFrame:
    """List one row a metric and method, best first; the statistics beside the score are null where a metric has none.

    ``costs`` are those of a method's maps: seconds, forward-equivalents and megabytes.
    """
    rows = []
    for metric, one in scores.items():
        for rank, (method, e) in enumerate(one.ranking(), 1):
            further = one.beside(method)
            beside = [n for name in BESIDE for n in _numbers(further.get(name))]
            rows.append((metric, rank, method, e.value, e.low, e.high, e.images, *beside, *costs[method]))
    own = ("metric", "rank", "method", "value", "low", "high", "images")
    ends = [f"{name.replace(' ', '_')}{end}" for name in BESIDE for end in ("", "_low", "_high")]
    numbers = (*ends, *COSTS)
    return _frame((*own, *numbers), (str, int, str, float, float, float, int, *[float] * len(numbers)), rows)


def _numbers(e: Estimate | None) -> tuple[float | None, ...]:
    return (None,) * 3 if e is None else (e.value, e.low, e.high)


def difference_rows(scores: Mapping[str, Scores]) -> pl.DataFrame:
    """List one row a metric and pair of methods: the paired difference, its interval, and whether that excludes 0."""
    rows = []
    for metric, one in scores.items():
        for method, other in combinations(one.values, 2):
            e = one.difference(method, other)
            rows.append((metric, method, other, e.value, e.low, e.high, e.images, e.excludes_zero))
    names = ("metric", "method", "other", "difference", "low", "high", "images", "significant")
    return _frame(names, (str, str, str, float, float, float, int, bool), rows)


def agreement_rows(scores: Mapping[str, Scores]) -> pl.DataFrame:
    """List one row a pair of metrics: Kendall's tau-b of their orders of the methods that both score, null for fewer than 3."""
    rows, goodness = [], {metric: one.goodness for metric, one in scores.items()}
    for metric, other in combinations(scores, 2):
        one, two = goodness[metric], goodness[other]
        both = [name for name in one if name in two and isfinite(one[name]) and isfinite(two[name])]
        a, b = (np.array([of[name] for name in both]) for of in (one, two))
        rows.append((metric, other, kendall_tau(a, b) if len(both) > 2 else None, len(both)))
    return _frame(("metric", "other", "tau", "methods"), (str, str, float, int), rows)


def _frame(names: Sequence[str], kinds: Sequence[type], rows: list[tuple[Any, ...]]) -> pl.DataFrame:
    pl = polars()
    frame = pl.DataFrame(rows, schema=dict(zip(names, kinds, strict=True)), orient="row")
    return frame.with_columns(pl.col(pl.Float64).fill_nan(None))
