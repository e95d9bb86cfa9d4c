"""Maps of signals and volumes as planes that can be drawn: a row for each channel, and slices side by side."""

from __future__ import annotations

from dataclasses import replace
from math import ceil, sqrt

import torch
from torch import Tensor
from torch.nn import functional as F

from backlit.attribution import Attribution

_SHAPE = 0.25  # height over width of a signal's picture
MOST_SLICES = 16  # of a volume


def as_planes(explanation: Attribution) -> Attribution:
    """Return the explanation with maps (n, c, h, w); that of images is itself.

    A signal's channels become rows of a picture of one channel. Of a volume, up to 16 slices, evenly spread, stand side by
    side from the upper left.
    """
    dims = explanation.values.dim()
    if dims == 4:
        return explanation
    channels = max(x.shape[1] for x in (explanation.values, explanation.inputs) if x is not None)

    def plane(x: Tensor) -> Tensor:
        return _rows(x, channels) if dims == 3 else _slices(x)

    return replace(
        explanation,
        values=plane(explanation.values),
        inputs=None if explanation.inputs is None else plane(explanation.inputs),
        parts={name: plane(part) for name, part in explanation.parts.items()},
    )


def _rows(x: Tensor, channels: int) -> Tensor:
    """Signals (n, c, t) as (n, 1, c * k, t), each channel k rows high; one channel stands for all of them."""
    thick = max(1, round(_SHAPE * x.shape[-1] / channels))
    return x.expand(-1, channels, -1).repeat_interleave(thick, 1)[:, None]


def _slices(x: Tensor) -> Tensor:
    """Slices of volumes (n, c, d, h, w) as (n, c, rows * h, columns * w)."""
    count = min(x.shape[2], MOST_SLICES)
    chosen = x[:, :, torch.linspace(0, x.shape[2] - 1, count).round().long().to(x.device)]
    columns = ceil(sqrt(count))
    rows = ceil(count / columns)
    whole = F.pad(chosen, (0, 0, 0, 0, 0, rows * columns - count))
    return whole.unflatten(2, (rows, columns)).transpose(3, 4).flatten(4, 5).flatten(2, 3)
