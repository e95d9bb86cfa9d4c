"""The geometry of convolutions and pools against what torch makes of the same arguments."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from backlit.capture import Call
from backlit.capture.geometry import Geometry
from backlit.capture.record import record
from methods._fit_networks import drawn

KERNEL = drawn(3, 4, 3, 5)
LAYERS: dict[str, tuple[Callable[[Tensor], Tensor], Geometry]] = {
    "one number for all": (
        lambda x: F.conv2d(x, KERNEL, stride=2, padding=1, dilation=2),
        Geometry((3, 5), (2, 2), (1, 1), (2, 2), (0, 0)),
    ),
    "a list of one": (
        lambda x: torch.conv2d(x, KERNEL, None, [2], [1]),
        Geometry((3, 5), (2, 2), (1, 1), (1, 1), (0, 0)),
    ),
    "one each": (
        lambda x: F.conv2d(x, KERNEL, stride=(1, 2), padding=(0, 3)),
        Geometry((3, 5), (1, 2), (0, 3), (1, 1), (0, 0)),
    ),
    "same": (lambda x: F.conv2d(x, KERNEL, padding="same"), Geometry((3, 5), (1, 1), (1, 2), (1, 1), (0, 0))),
    "same, uneven": (
        lambda x: F.conv2d(x, KERNEL[..., :4], padding="same"),
        Geometry((3, 4), (1, 1), (1, 1), (1, 1), (0, 0), uneven=True),
    ),
    "valid": (lambda x: F.conv2d(x, KERNEL, padding="valid"), Geometry((3, 5), (1, 1), (0, 0), (1, 1), (0, 0))),
    "transposed": (
        lambda x: F.conv_transpose2d(x, KERNEL.transpose(0, 1), stride=2, output_padding=(1, 0)),
        Geometry((3, 5), (2, 2), (0, 0), (1, 1), (1, 0), transposed=True),
    ),
    "pool": (lambda x: F.max_pool2d(x, 2), Geometry((2, 2), (2, 2), (0, 0), (1, 1), (0, 0))),
    "pool with a stride": (
        lambda x: F.max_pool2d(x, (3, 2), stride=1, padding=1),
        Geometry((3, 2), (1, 1), (1, 1), (1, 1), (0, 0)),
    ),
    "one dimension": (lambda x: F.avg_pool1d(x[..., 0], 3), Geometry((3,), (3,), (0,), (1,), (0,))),
}


class _Net(torch.nn.Module):
    def __init__(self, layer: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).flatten(1)


@pytest.mark.parametrize("name", LAYERS)
def test_a_geometry_is_the_same_however_it_is_spelled(name: str) -> None:
    layer, expected = LAYERS[name]
    calls: list[tuple[Call, tuple[int, ...], tuple[int, ...]]] = []

    def note(call: Call, signals: tuple[Tensor, ...], result: Tensor) -> Callable[..., Tensor]:
        if call.primitive.spatial:
            calls.append((call, tuple(signals[0].shape[2:]), tuple(result.shape[2:])))
        return call.without_signals().run

    record(_Net(layer), (drawn(2, 4, 9, 11),), note)
    ((call, size, output),) = calls
    geometry = Geometry.of(call)
    assert geometry == expected
    if not geometry.transposed:  # the windows fill the padded input
        margins = geometry.margins(size, output)
        before, after = margins[::2][::-1], margins[1::2][::-1]
        ends = [s + a + b for s, a, b in zip(size, before, after, strict=True)]
        assert ends == [(o - 1) * s + r + 1 for o, s, r in zip(output, geometry.stride, geometry.reach, strict=True)]
        assert tuple(before) == geometry.padding
