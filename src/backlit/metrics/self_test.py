"""A test of metrics, not of methods: does a score fall while a good map is made worse, step by step?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from backlit._errors import InputError, check, check_type, check_whole, is_several, is_word, nearest, shown
from backlit.attribution import Attribution
from backlit.metrics.base import Metric, Scores
from backlit.metrics.degradation import DEGRADATIONS
from backlit.metrics.examples import Examples
from backlit.metrics.ranking import drawn_orders, spearman
from backlit.metrics.statistics import estimate


@dataclass(frozen=True, eq=False)
class SelfTest:
    """How metrics score maps that are degraded in steps.

    Attributes:
        amounts: How much of a map was degraded at each step, from 0 to 1 (steps + 1,).
        scores: The score over all images at each step (steps + 1,), by metric and degradation.
        higher_is_better: The direction, by metric.
        skipped: Metrics that cannot judge a map that no method made, or this data, and why.
    """

    amounts: tuple[float, ...]
    scores: Mapping[tuple[str, str], tuple[float, ...]]
    higher_is_better: Mapping[str, bool]
    skipped: Mapping[str, str]

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that were tested."""
        return tuple(self.higher_is_better)

    @property
    def degradations(self) -> tuple[str, ...]:
        """The degradations, by name."""
        return tuple(dict.fromkeys(kind for _, kind in self.scores))

    def order(self, metric: str, degradation: str) -> float:
        """Compute the rank correlation of how good the score is with how little was degraded: 1 if each step scores worse.

        NaN where a score is missing, or all are the same.
        """
        series = torch.tensor(self.scores[metric, degradation], dtype=torch.float64)
        if not bool(series.isfinite().all()):
            return float("nan")
        series = (series / series.abs().max().clamp(min=1e-30) * 1e9).round()  # rounding orders nothing
        good = series if self.higher_is_better[metric] else -series
        return float(spearman(good, -torch.tensor(self.amounts, dtype=torch.float64)))


def self_test(
    network: nn.Module,
    examples: Examples,
    maps: Attribution | Float[Tensor, "n c h w"],
    metrics: Iterable[Metric],
    *,
    degradations: Sequence[str] = tuple(DEGRADATIONS),
    steps: int = 5,
    seed: int = 0,
    progress: Callable[[str], None] = lambda metric: None,
) -> SelfTest:
    """Score a good map and worse and worse ones by each metric.

    Args:
        network: The network that was explained, in eval mode.
        examples: The images, with the ground truth that the metrics need.
        maps: Good maps of the examples' targets; how good is for you to say.
        metrics: The metrics. One that explains again, or reads a part that a method gives, is skipped.
        degradations: Of "noise", "blur", "shuffle" and "sign".
        steps: Number of equal steps of each, the last of which leaves nothing of the map but its values, its blur or its opposite.
        seed: Of what is drawn.
        progress: Called with each metric's name before it runs.

    Raises:
        InputError: If an argument is out of range.
    """
    check_whole("steps", steps)
    check_type("examples", examples, Examples, "backlit.Examples")
    check_type("maps", maps, (Attribution, Tensor), "an Attribution or a tensor (n, c, h, w)")
    check(callable(progress), "progress", progress, "a function of a metric's name")
    metrics = _listed(metrics)
    check(is_several(degradations), "degradations", degradations, f"a list of {', '.join(DEGRADATIONS)}")
    for name in degradations:
        if not is_word(name, DEGRADATIONS):
            hint = nearest(name, DEGRADATIONS) if isinstance(name, str) else ""
            raise InputError(f"degradations must be of {', '.join(DEGRADATIONS)}, but hold {shown(name)}.{hint}")
    good = (maps.values if isinstance(maps, Attribution) else maps).to(examples.inputs.device)
    if good.dim() != 4 or not good.is_floating_point() or good.is_meta or len(good) != len(examples):
        raise InputError(f"maps must be floating point (n, c, h, w), one an image, but are {shown(good)}.")
    amounts = tuple(i / steps for i in range(steps + 1))
    order = drawn_orders(examples.inputs, seed)
    series = {
        f"{kind} {i}": DEGRADATIONS[kind](good, a, order, seed)
        for kind in degradations
        for i, a in enumerate(amounts)
        if i
    }
    scores, higher, skipped = {}, {}, {}
    for metric in metrics:
        progress(metric.name)
        why = _cannot(metric, network, examples)
        if why is not None:
            skipped[metric.name] = why
            continue
        scored = metric(network, examples, {"good": good, **series})
        higher[metric.name] = metric.higher_is_better
        for kind in degradations:
            names = ("good", *(f"{kind} {i}" for i in range(1, steps + 1)))
            scores[metric.name, kind] = tuple(_value(scored, name) for name in names)
    return SelfTest(amounts, scores, higher, skipped)


def _listed(metrics: Iterable[Metric]) -> list[Metric]:
    check(is_several(metrics), "metrics", metrics, "a list of metrics")
    listed = list(metrics)
    for metric in listed:
        check_type("metrics", metric, Metric, "metrics")
    return listed


def _value(scores: Scores, name: str) -> float:
    values = scores.values[name]
    if not np.isfinite(values).any():
        return float("nan")
    return estimate(values, scores.groups, scores.metric.compared, intervals=False).value


def _cannot(metric: Metric, network: nn.Module, examples: Examples) -> str | None:
    """Say why a metric cannot be tested; None if it can."""
    if "methods" in metric.needs:
        return "it explains again, and no method makes a degraded map"
    if "source" in metric.needs:
        return "it reads a source signal, which few methods give"
    try:
        metric.check(network, examples, None)
    except InputError as error:
        return str(error)
    return None
