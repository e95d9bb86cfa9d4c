"""The inverses that are learned: each is a linear regression of what a layer read on the source signal of what it gave.

Each says how its samples become rows of regressors and targets, what the solution's parameters are, and how to apply
them. Signals are (k, n, ...), targets (n, ...): see ``signals.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from backlit.capture.canonical import Call
from backlit.capture.geometry import Geometry
from backlit.inverse.lags import shifted_products
from backlit.inverse.moments import Moments, Sizes
from backlit.inverse.signals import Who

Parameters = Mapping[str, Tensor]
Shape = tuple[int, ...]


class Regression(Protocol):
    """A learned inverse.

    ``relative`` says that the ridge is in units of the regressors' variance.
    """

    relative: ClassVar[bool]

    @property
    def sizes(self) -> Sizes:
        """Of the regression."""
        ...

    @property
    def row(self) -> int:
        """Numbers that one image and signal take while they are learned from."""
        ...

    def rows(self, signals: Sequence[Tensor]) -> Tensor:
        """Signals (k, n, ...) as regressors (k, n, g, positions, q)."""
        ...

    def targets(self, values: Sequence[Tensor]) -> Tensor:
        """Values (n, ...) as targets (n, g, positions, m)."""
        ...

    def learn(self, moments: Moments, classes: Tensor, signals: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        """Add signals (k, n, ...) of k classes and the values (n, ...) that they should reconstruct."""
        ...

    def parameters(self, weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
        """The solution (c, g, m, q) and (c, g, m) as the inverse keeps it, one row a class."""
        ...

    def shapes(self, classes: int) -> dict[str, torch.Size]:
        """Of the parameters."""
        ...

    def apply(self, parameters: Parameters, signals: Sequence[Tensor], who: Who, *, bias: bool) -> list[Tensor]:
        """Reconstructions (k, n, ...), one for each target."""
        ...


class _ByRows:
    """What learns from rows of regressors and targets."""

    relative: ClassVar[bool] = False

    @property
    def row(self: Any) -> int:
        return self.positions * self.sizes.groups * self.sizes.unknowns

    def shapes(self: Any, classes: int) -> dict[str, torch.Size]:
        of = self.sizes
        weight = torch.empty(classes, of.groups, of.targets, of.unknowns, device="meta")
        return {name: t.shape for name, t in self.parameters(weight, weight[..., 0]).items()}

    def learn(
        self: Any, moments: Moments, classes: Tensor, signals: Sequence[Tensor], values: Sequence[Tensor]
    ) -> None:
        rows, targets = self.rows(signals), self.targets(values)
        moments.add(classes, rows.transpose(1, 2).flatten(2, 3), targets.transpose(0, 1).flatten(1, 2))


@dataclass(frozen=True)
class Dense(_ByRows):
    """``X = W S + b`` (Eq. 6) over the last dimension; further positions of an image are further samples."""

    inputs: int
    outputs: int
    positions: int

    @property
    def sizes(self) -> Sizes:
        return Sizes(1, self.outputs, self.inputs)

    def rows(self, signals: Sequence[Tensor]) -> Tensor:
        (s,) = signals
        return s.reshape(*s.shape[:2], 1, -1, s.shape[-1])

    def targets(self, values: Sequence[Tensor]) -> Tensor:
        (x,) = values
        return x.reshape(len(x), 1, -1, x.shape[-1])

    def parameters(self, weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
        return {"weight": weight[:, 0], "bias": bias[:, 0]}

    def apply(self, parameters: Parameters, signals: Sequence[Tensor], who: Who, *, bias: bool) -> list[Tensor]:
        (s,) = signals
        weight, shift = parameters["weight"], parameters["bias"]
        if who.uniform:
            ids = who.ids[:, 0]
            product = s.flatten(1, -2) @ weight[ids].mT
            x = (product + shift[ids][:, None] if bias else product).unflatten(1, s.shape[1:-1])
            return [x]
        x = s.new_empty(*s.shape[:-1], self.inputs)
        for one, where in who.each_class():
            x[where] = F.linear(s[where], weight[one], shift[one] if bias else None)
        return [x]


@dataclass(frozen=True)
class Transposed(_ByRows):
    """``X = g * S + b`` (Eq. 7): a transposed convolution with the layer's geometry and free weights.

    It is linear in its weights: the regressors of a position are the values of S that its kernel would read there.
    """

    size: Shape  # of X: channels, then pixels
    channels: int  # of S
    kernel: Shape
    stride: Shape
    padding: Shape  # before the first pixel
    dilation: Shape
    groups: int

    @classmethod
    def of(cls, call: Call, channels: int) -> Transposed:
        """The inverse of a convolution's call; ``channels`` of its output have signals."""
        g, size = Geometry.of(call), call.site.input_shapes[0][1:]
        return cls(size, channels, g.kernel, g.stride, g.padding, g.dilation, call.get("groups", 1))

    @property
    def positions(self) -> int:
        return prod(self.size[1:])

    @property
    def sizes(self) -> Sizes:
        g = self.groups
        return Sizes(g, self.channels // g * prod(self.kernel), self.size[0] // g)

    @property
    def _reach(self) -> Shape:
        """Pixels from a kernel's first tap to its last."""
        return tuple(d * (k - 1) for d, k in zip(self.dilation, self.kernel, strict=True))

    def rows(self, signals: Sequence[Tensor]) -> Tensor:
        (s,) = signals
        k, n = s.shape[:2]
        s = self._padded(s.flatten(0, 1))
        for i, (reach, dilation) in enumerate(zip(self._reach, self.dilation, strict=True)):
            s = s.unfold(2 + i, reach + 1, 1)[..., ::dilation]
        d = len(self.kernel)
        s = s.unflatten(1, (self.groups, -1)).flatten(3, 2 + d)  # (k n, g, c, positions, *taps)
        return s.transpose(2, 3).flatten(3).unflatten(0, (k, n))

    @property
    def _by_lags(self) -> bool:
        return len(self.kernel) == 2 and prod(self.kernel) > 1 and self.stride == (1, 1)

    @property
    def row(self) -> int:
        return 4 * prod(self.size[1:]) * (self.channels + self.groups) if self._by_lags else super().row

    def learn(self, moments: Moments, classes: Tensor, signals: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        if not self._by_lags:
            super().learn(moments, classes, signals, values)
            return
        (s,), (x,) = signals, values
        x = x.unflatten(1, (self.groups, -1))
        n = len(x) * self.positions
        mean_x = x.mean((0, 3, 4), dtype=torch.float64)
        x = (x.double() - mean_x[..., None, None]).to(moments.precision)
        # Centred, but for the margin: another channel that says where S is makes up for it, in float64.
        mean = s.mean((1, 3, 4), dtype=torch.float64)
        s = (s.double() - mean[:, None, :, None, None]).to(moments.precision)
        there = s.new_ones(*s.shape[:2], self.groups, 1, *s.shape[3:])
        s = torch.cat([s.unflatten(2, (self.groups, -1)), there], 3).flatten(2, 3)
        v = self._padded(s.flatten(0, 1)).unflatten(0, s.shape[:2]).unflatten(2, (self.groups, -1))
        sums, ss, xs = (t.double() for t in shifted_products(v, x, self.kernel, self.dilation))
        sums, ss, xs = _uncentred(sums, ss, xs, mean.unflatten(1, (self.groups, -1)), prod(self.kernel))
        mean_s = sums / n
        moments.merge(
            classes, n, mean_s, mean_x, ss - n * mean_s[..., None] * mean_s[..., None, :], xs, (x * x).sum((0, 3, 4))
        )

    def _padded(self, s: Tensor) -> Tensor:
        """S with zeros, such that output pixel u reads it at u + dilation * tap, taps counted from the last one."""
        s = self._spread(s)
        # A tap t reads spread[u + padding - dilation * t].
        margins: list[int] = []
        for i in reversed(range(len(self.kernel))):
            before = self._reach[i] - self.padding[i]
            margins += [before, self.size[1 + i] + self._reach[i] - before - s.shape[2 + i]]
        return F.pad(s, margins)

    def _spread(self, s: Tensor) -> Tensor:
        """S with its pixels ``stride`` apart and zeros between."""
        if all(step == 1 for step in self.stride):
            return s
        size = [(h - 1) * step + 1 for h, step in zip(s.shape[2:], self.stride, strict=True)]
        spread = s.new_zeros(*s.shape[:2], *size)
        spread[(..., *(slice(None, None, step) for step in self.stride))] = s
        return spread

    def targets(self, values: Sequence[Tensor]) -> Tensor:
        (x,) = values
        return x.unflatten(1, (self.groups, -1)).flatten(3).mT

    def parameters(self, weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
        taps = tuple(range(-len(self.kernel), 0))
        kernel = weight.unflatten(3, (-1, *self.kernel)).flip(taps).transpose(2, 3)
        return {"weight": kernel.flatten(1, 2).contiguous(), "bias": bias.flatten(1)}

    def apply(self, parameters: Parameters, signals: Sequence[Tensor], who: Who, *, bias: bool) -> list[Tensor]:
        (s,) = signals
        weight, shift = parameters["weight"], parameters["bias"]
        pixels = (1,) * len(self.kernel)
        if who.uniform:
            ids = who.ids[:, 0]
            x = self._convolved(s.transpose(0, 1).flatten(1, 2), weight[ids].flatten(0, 1), len(s))
            x = x.unflatten(1, (len(s), -1)).transpose(0, 1)
            return [x + shift[ids].view(len(s), 1, -1, *pixels) if bias else x]
        x = s.new_empty(*s.shape[:2], *self.size)
        for one, where in who.each_class():
            found = self._convolved(s[where], weight[one], 1)
            x[where] = found + shift[one].view(-1, *pixels) if bias else found
        return [x]

    def _convolved(self, s: Tensor, weight: Tensor, stacks: int) -> Tensor:
        function: Any = getattr(F, f"conv_transpose{len(self.kernel)}d")
        full = function(s, weight, stride=self.stride, dilation=self.dilation, groups=stacks * self.groups)
        margins: list[int] = []
        for i in reversed(range(len(self.kernel))):
            margins += [-self.padding[i], self.size[1 + i] + self.padding[i] - full.shape[2 + i]]
        return F.pad(full, margins)


def _uncentred(sums: Tensor, ss: Tensor, xs: Tensor, mean: Tensor, taps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of products of ``s + mean e``, mean (k, g, c), from those of s and, as the last channel of ``taps`` taps, of e."""
    s, e = slice(None, -taps), slice(-taps, None)
    mean = mean[..., None]  # for each tap

    def times(of_e: Tensor) -> Tensor:
        """``mean e`` for e, in the last dimension."""
        between = [1] * (of_e.dim() - 3)
        return (of_e[..., None, :] * mean.view(*mean.shape[:2], *between, -1, 1)).flatten(-2)

    half = ss[..., s, e] + times(ss[..., e, e]).mT / 2
    both = times(half)
    return sums[..., s] + times(sums[..., e]), ss[..., s, s] + both + both.mT, xs[..., s] + times(xs[..., e])


@dataclass(frozen=True)
class Channels(_ByRows):
    """Each channel of m targets as a sum of the same channel of r signals, weighted, plus a constant.

    The split of a residual add regresses both branches on the sum's signal; a join regresses a value that was read r times
    on its r reconstructions. Both are shares of a value's own size, so the ridge is relative to it.
    """

    relative: ClassVar[bool] = True
    size: Shape
    signals: int
    outputs: int

    @property
    def positions(self) -> int:
        return prod(self.size[1:])

    @property
    def sizes(self) -> Sizes:
        return Sizes(self.size[0], self.signals, self.outputs)

    def rows(self, signals: Sequence[Tensor]) -> Tensor:
        return torch.stack([s.reshape(*s.shape[:3], -1) for s in signals], -1)

    def targets(self, values: Sequence[Tensor]) -> Tensor:
        return torch.stack([x.reshape(*x.shape[:2], -1) for x in values], -1)

    def parameters(self, weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
        return {"weight": weight, "bias": bias}

    def apply(self, parameters: Parameters, signals: Sequence[Tensor], who: Who, *, bias: bool) -> list[Tensor]:
        pixels = (1,) * (len(self.size) - 1)
        weight, shift = parameters["weight"][who.ids], parameters["bias"][who.ids]  # (k, n, c, m, r), (k, n, c, m)
        found = []
        for m in range(self.outputs):
            x = shift[..., m].view(*shift.shape[:3], *pixels) if bias else 0
            found.append(
                sum((s * weight[..., m, r].view(*weight.shape[:3], *pixels) for r, s in enumerate(signals)), x)
            )
        return found  # type: ignore[return-value]  sum() may give an int, of no signals only
