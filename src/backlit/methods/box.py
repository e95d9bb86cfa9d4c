"""The box of the pixels where the first layer reads them: behind a normalisation that stands inside the network."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from backlit.capture import Call
from backlit.capture.record import record
from backlit.rules.linear import Bound, bound_of
from backlit.rules.relevance import reads_pixels


def box_of(
    model: nn.Module, inputs: tuple[Tensor, ...], low: Bound | None, high: Bound | None
) -> tuple[Bound | None, Bound | None]:
    """Return what ``low`` and ``high``, of the network's input, become on the way to its first layer.

    That is what a black and a white image become. A bound that is None, and those of networks with several inputs or
    nothing before the first layer, stay as they are.

    Raises:
        InputError: If a bound is not shaped for the input.
    """
    if low is None or high is None or len(inputs) != 1:
        return low, high
    x = inputs[0][:1]
    ends = [bound_of(name, bound, x).expand_as(x) for name, bound in (("low", low), ("high", high))]
    black, white = _at_first_layer(model, ends[0].contiguous()), _at_first_layer(model, ends[1].contiguous())
    if torch.equal(black, ends[0]) and torch.equal(white, ends[1]):
        return low, high
    return torch.minimum(black, white), torch.maximum(black, white)


class _Reached(Exception):
    pass


def _at_first_layer(model: nn.Module, x: Tensor) -> Tensor:
    """What the first layer reads of ``x``; ``x`` itself, if there is none."""

    def seen(call: Call, signals: tuple[Tensor, ...], result: Any) -> Any:
        if reads_pixels(call.site):
            nonlocal x
            x = signals[0].detach()
            raise _Reached
        return call.without_signals().run

    with suppress(_Reached):
        record(model, (x,), seen)
    return x
