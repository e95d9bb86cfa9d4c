"""`backlit metrics --self-test`: which metrics order a good map and worse ones, on the embedded network."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from rich.table import Table

import backlit
from backlit.cli.console import console
from backlit.data import Sample, mosaics
from backlit.methods import LRP
from backlit.metrics import METRICS, Examples, Metric
from backlit.metrics.lookup import find_metric
from backlit.metrics.self_test import SelfTest, self_test
from backlit.models.digits import digits_images

_IMAGES, _STEPS = 6, 4
_FEWER: dict[str, dict[str, Any]] = {
    **{name: {"steps": 16} for name in ("insertion", "complementary_insertion", "deletion")},
    "infidelity": {"samples": 2},
    "irof": {"segments": 16},
    "sensitivity_n": {"subsets": 20},
}
"""Options with which a metric that takes long runs in seconds."""


def run_self_test(name: str | None) -> None:
    """Test a metric, or all, and print what it does to a map that is made worse.

    Raises:
        InputError: If there is no metric of that name.
    """
    into = console()
    kinds = METRICS if name is None else (find_metric(name),)
    loaded = backlit.load_model("digits")
    examples = _mosaics(loaded)
    maps = LRP(loaded.network)(examples.inputs, examples.target)
    with into.status("") as status:
        tested = self_test(
            loaded.network,
            examples,
            maps,
            [_made(kind) for kind in kinds],
            steps=_STEPS,
            progress=lambda metric: status.update(f"testing {metric}"),
        )
    into.print(_table(tested))
    into.print(
        f"LRP's maps of {_IMAGES} mosaics of digits, degraded in {_STEPS} steps. 1: each step scores worse; −1: each better; "
        "near 0: the metric does not see it. A metric of magnitudes cannot see signs."
    )
    for metric, why in tested.skipped.items():
        into.print(f"{metric} is not tested: {why}", soft_wrap=True)


def _made(kind: type[Metric]) -> Metric:
    """Make a metric with its defaults, of those that run for long with fewer samples."""
    return kind(**_FEWER.get(kind.name, {}))


def _mosaics(loaded: backlit.LoadedModel) -> Examples:
    """Mosaics of digits, each cell a box, too: ground truth for every metric that needs some."""
    images, labels = digits_images()
    samples = [
        Sample(image, f"digit {i}", int(k)) for i, (image, k) in enumerate(zip(images[:120], labels, strict=False))
    ]
    made = mosaics(loaded.network, samples, loaded.preprocess, count=_IMAGES).examples
    assert made.cells is not None
    return replace(made, boxes=list(made.cells[:, None]))


def _table(tested: SelfTest) -> Table:
    table = Table("metric", *tested.degradations, "score of the map", "and at the end of each")
    for metric in tested.metrics:
        orders = [_number(tested.order(metric, kind), "+.2f") for kind in tested.degradations]
        series = [tested.scores[metric, kind] for kind in tested.degradations]
        ends = ", ".join(_number(one[-1], ".3g") for one in series)
        table.add_row(metric, *orders, _number(series[0][0], ".3g"), ends)
    return table


def _number(value: float, form: str) -> str:
    return "–" if torch.tensor(value).isnan() else format(value, form).replace("-", "−")
