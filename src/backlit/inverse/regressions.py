"""The inverses that are learned: each is a linear regression of what a layer read on the source signal of what it gave.

Each says how its samples become rows of regressors and targets, what the solution's parameters are, and how to apply
them. Signals are (k, n, ...), targets (n, ...): see ``signals.py``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from backlit.capture.canonical import Call
from backlit.capture.geometry import Geometry
from backlit.inverse.moments import Moments, Sizes
from backlit.inverse.patches import patches
from backlit.inverse.signals import Who

Parameters = Mapping[str, Tensor]
Shape = tuple[int, ...]


class Regression(ABC):
    """A learned inverse.

    Attributes:
        relative: The ridge is in units of the regressors' variance.
    """

    relative: ClassVar[bool] = False

    @property
    @abstractmethod
    def sizes(self) -> Sizes:
        """The groups, unknowns and targets."""

    @property
    @abstractmethod
    def positions(self) -> int:
        """The number of samples that one image gives."""

    @abstractmethod
    def rows(self, signals: Sequence[Tensor]) -> Tensor:
        """Return signals (k, n, ...) as regressors (k, n, g, positions, q)."""

    @abstractmethod
    def targets(self, values: Sequence[Tensor]) -> Tensor:
        """Return values (n, ...) as targets (n, g, positions, m)."""

    @abstractmethod
    def parameters(self, weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
        """Return the solution (c, g, m, q) and (c, g, m) as the inverse keeps it, one row a class."""

    @abstractmethod
    def apply(self, parameters: Parameters, signals: Sequence[Tensor], who: Who, *, bias: bool) -> list[Tensor]:
        """Return reconstructions (k, n, ...), one for each target."""

    @property
    def row(self) -> int:
        """The numbers that one image and signal take while they are learned from."""
        return self.positions * self.sizes.groups * self.sizes.unknowns

    def shapes(self, classes: int) -> dict[str, torch.Size]:
        """Return the shapes of the parameters."""
        of = self.sizes
        weight = torch.empty(classes, of.groups, of.targets, of.unknowns, device="meta")
        return {name: t.shape for name, t in self.parameters(weight, weight[..., 0]).items()}

    def learn(self, moments: Moments, classes: Tensor, signals: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        """Add signals (k, n, ...) of k classes and the values (n, ...) that they should reconstruct."""
        rows, targets = self.rows(signals), self.targets(values)
        rows, targets = rows.transpose(1, 2).flatten(2, 3), targets.transpose(0, 1).flatten(1, 2)
        moments.add(classes, rows, targets, self.positions)


@dataclass(frozen=True)
class Dense(Regression):
    """An inverse ``X = W S + b`` (Eq. 6) over the last dimension; further positions of an image are further samples."""

    size: Shape  # of X: positions, then channels
    outputs: int

    @property
    def positions(self) -> int:
        return prod(self.size[:-1])

    @property
    def sizes(self) -> Sizes:
        return Sizes(1, self.outputs, self.size[-1])

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

        def of_classes(s: Tensor, ids: Tensor) -> Tensor:
            product = s.flatten(1, -2) @ weight[ids].mT
            return (product + shift[ids][:, None] if bias else product).unflatten(1, s.shape[1:-1])

        return [_by_class(of_classes, s, who)]


@dataclass(frozen=True)
class Transposed(Regression):
    """An inverse ``X = g * S + b`` (Eq. 7): a transposed convolution with the layer's geometry and free weights.

    It is linear in its weights: the regressors of a position are the values of S that its kernel would read there.
    """

    size: Shape  # of X: channels, then pixels
    channels: int  # of S
    window: Geometry
    groups: int

    @classmethod
    def of(cls, call: Call, channels: int) -> Transposed:
        """Return the inverse of a convolution's call; ``channels`` of its output have signals."""
        return cls(call.site.input_shapes[0][1:], channels, Geometry.of(call), call.get("groups", 1))

    @property
    def positions(self) -> int:
        return prod(self.size[1:])

    @property
    def sizes(self) -> Sizes:
        g = self.groups
        return Sizes(g, self.channels // g * prod(self.window.kernel), self.size[0] // g)

    def rows(self, signals: Sequence[Tensor]) -> Tensor:
        (s,) = signals
        of, spread = self.window, self._spread(s.flatten(0, 1))
        # Pixel u of X reads what a kernel that begins at u reads, taps counted from the last one: t reads u + padding - dilation t.
        before = tuple(r - p for r, p in zip(of.reach, of.padding, strict=True))
        size = tuple(h + r for h, r in zip(self.size[1:], of.reach, strict=True))
        return patches(_padded(spread, before, size), of, (1,) * len(size), self.groups).unflatten(0, s.shape[:2])

    def _spread(self, s: Tensor) -> Tensor:
        """Return S (n, c, ...) with its pixels ``stride`` apart and zeros between."""
        stride = self.window.stride
        if all(step == 1 for step in stride):
            return s
        size = [(h - 1) * step + 1 for h, step in zip(s.shape[2:], stride, strict=True)]
        spread = s.new_zeros(*s.shape[:2], *size)
        spread[(..., *(slice(None, None, step) for step in stride))] = s
        return spread

    def targets(self, values: Sequence[Tensor]) -> Tensor:
        (x,) = values
        return x.unflatten(1, (self.groups, -1)).flatten(3).mT

    def parameters(self, weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
        kernel = self.window.kernel
        taps = tuple(range(-len(kernel), 0))
        turned = weight.unflatten(3, (-1, *kernel)).flip(taps).transpose(2, 3)
        return {"weight": turned.flatten(1, 2).contiguous(), "bias": bias.flatten(1)}

    def apply(self, parameters: Parameters, signals: Sequence[Tensor], who: Who, *, bias: bool) -> list[Tensor]:
        (s,) = signals
        of, weight, shift = self.window, parameters["weight"], parameters["bias"]
        convolve = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[len(of.kernel) - 1]

        def of_classes(s: Tensor, ids: Tensor) -> Tensor:
            stacked = s.transpose(0, 1).flatten(1, 2)  # the classes side by side, as groups
            groups = len(ids) * self.groups
            whole = convolve(stacked, weight[ids].flatten(0, 1), None, of.stride, 0, 0, groups, of.dilation)
            x = _padded(whole, tuple(-p for p in of.padding), self.size[1:])
            x = x.unflatten(1, (len(ids), -1)).transpose(0, 1)
            return x + shift[ids].view(len(ids), 1, -1, *[1] * len(of.kernel)) if bias else x

        return [_by_class(of_classes, s, who)]


@dataclass(frozen=True)
class PerChannel(Regression):
    """An inverse of each channel by itself, of m targets as a sum of the same channel of r signals, weighted, plus a constant.

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
        shift = shift if bias else torch.zeros_like(shift)
        reconstructions = []
        for m in range(self.outputs):
            x = shift[..., m].view(*shift.shape[:3], *pixels)
            for r, s in enumerate(signals):
                x = x + s * weight[..., m, r].view(*weight.shape[:3], *pixels)
            reconstructions.append(x)
        return reconstructions


def _padded(x: Tensor, before: Shape, size: Shape) -> Tensor:
    """Pad a map (n, c, ...) with so many zeros before its pixels, and behind them up to ``size``; negative ones crop."""
    margins: list[int] = []
    for i in reversed(range(len(size))):
        margins += [before[i], size[i] - before[i] - x.shape[2 + i]]
    return F.pad(x, margins)


def _by_class(of_classes: Callable[[Tensor, Tensor], Tensor], s: Tensor, who: Who) -> Tensor:
    """Apply ``of_classes(signals (k, n, ...), classes (k,))`` to signals whose class may differ from image to image."""
    if who.uniform:
        return of_classes(s, who.ids[:, 0])
    order, results = [], []
    for one, where in who.each_class():
        results.append(of_classes(s[where][None], torch.tensor([one], device=s.device))[0])
        order.append(where.flatten().nonzero().flatten())
    return torch.cat(results)[torch.cat(order).argsort()].unflatten(0, s.shape[:2])
