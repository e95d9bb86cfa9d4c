"""How a convolution or a pool moves over its input, whatever its arguments are spelled like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from backlit.capture.canonical import Call

Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Geometry:
    """The window of a convolution or a pool, one number for each dimension that it moves over.

    ``padding`` is what stands before the first pixel. A convolution is ``uneven`` where ``padding="same"`` puts one pixel more
    behind the last.
    """

    kernel: Sizes
    stride: Sizes
    padding: Sizes
    dilation: Sizes
    output_padding: Sizes
    transposed: bool = False
    uneven: bool = False

    @classmethod
    def of(cls, call: Call) -> Geometry:
        """The geometry of a convolution's call, or of a pool's whose windows are given."""
        d, weight = call.primitive.spatial, call.get("weight")
        kernel = per_dimension(call["kernel_size"], d) if weight is None else tuple(weight.shape[-d:])
        stride = call.get("stride") or (call["kernel_size"] if weight is None else 1)
        dilation, padding, uneven = per_dimension(call.get("dilation", 1), d), call.get("padding", 0), False
        if isinstance(padding, str):
            reach = [step * (k - 1) * (padding == "same") for step, k in zip(dilation, kernel, strict=True)]
            padding, uneven = [r // 2 for r in reach], any(r % 2 for r in reach)
        return cls(
            kernel,
            per_dimension(stride, d),
            per_dimension(padding, d),
            dilation,
            per_dimension(call.get("output_padding", 0), d),
            call.primitive.has("transposed"),
            uneven,
        )

    @property
    def reach(self) -> Sizes:
        """The pixels from the first that a window reads to the last, less one."""
        return tuple(step * (k - 1) for step, k in zip(self.dilation, self.kernel, strict=True))

    def margins(self, size: Sizes, output: Sizes) -> list[int]:
        """Return what to pad an input of that size with so that its windows make that output, as ``F.pad`` takes it."""
        margins: list[int] = []
        for i in reversed(range(len(size))):
            end = (output[i] - 1) * self.stride[i] + self.reach[i] + 1
            margins += [self.padding[i], end - self.padding[i] - size[i]]
        return margins


def per_dimension(value: Any, d: int) -> Sizes:
    """A number, or one for each dimension or for all, as one for each of d dimensions."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * d if len(values) == 1 else values
