"""MIP-IN slowly, from the paper: plain NumPy in float64, one sample, one position, one tap after the other.

Chains of dense layers, convolutions, ReLUs and max-pools. Least squares by ``numpy.linalg.lstsq`` on the stacked system, the
ridge as further rows, so that nothing is shared with the normal equations that it checks.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from torch import nn

Layer = tuple[nn.Module, np.ndarray, np.ndarray]  # module, its inputs, its outputs, (n, ...)


def ridge(design: np.ndarray, targets: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows (r, q) and (r, m): minimise the mean squared error + strength |W|^2 over W (m, q) and an intercept (m,).

    Of sums, as Eq. 6 prints them, the strength is to be divided by the number of rows.
    """
    r, q = design.shape
    mean_s, mean_x = design.mean(0), targets.mean(0)
    stacked = np.vstack([(design - mean_s) / np.sqrt(r), np.sqrt(strength) * np.eye(q)])
    right = np.vstack([(targets - mean_x) / np.sqrt(r), np.zeros((q, targets.shape[1]))])
    weight = np.linalg.lstsq(stacked, right, rcond=None)[0].T
    return weight, mean_x - weight @ mean_s


def bare(design: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eq. 7 as printed: least squares without an intercept and without a penalty."""
    return np.linalg.lstsq(design, targets, rcond=None)[0].T, np.zeros(targets.shape[1])


def taps(conv: nn.Conv2d, u: tuple[int, int], height: int, width: int) -> list[tuple[int, int, int, int]]:
    """For a pixel u of the layer's input: kernel taps that read it, and the output pixel that does."""
    found = []
    for a, b in product(range(conv.kernel_size[0]), range(conv.kernel_size[1])):
        y = u[0] + conv.padding[0] - conv.dilation[0] * a
        x = u[1] + conv.padding[1] - conv.dilation[1] * b
        if y % conv.stride[0] == 0 and x % conv.stride[1] == 0:
            i, j = y // conv.stride[0], x // conv.stride[1]
            if 0 <= i < height and 0 <= j < width:
                found.append((a, b, i, j))
    return found


def design(conv: nn.Conv2d, s: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """What a transposed convolution would read: (n, pixels of the input, channels of s x taps)."""
    n, c, height, width = s.shape
    rows = np.zeros((n, size[0] * size[1], c, *conv.kernel_size))
    for p, u in enumerate(product(range(size[0]), range(size[1]))):
        for a, b, i, j in taps(conv, u, height, width):
            rows[:, p, :, a, b] = s[:, :, i, j]
    return rows.reshape(n, size[0] * size[1], -1)


def unpooled(pool: nn.MaxPool2d, s: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Each signal at the place of its window's maximum; windows do not overlap."""
    out, k = np.zeros_like(x), int(pool.kernel_size)  # type: ignore[arg-type]
    for n, c, i, j in np.ndindex(*y.shape):
        window = x[n, c, i * k : (i + 1) * k, j * k : (j + 1) * k]
        a, b = np.unravel_index(window.argmax(), window.shape)
        out[n, c, i * k + a, j * k + b] = s[n, c, i, j]
    return out


class Inverse:
    """The inverse of one class: fitted on some samples, applied to others."""

    def __init__(
        self, strength: float, *, products: str = "means", ridge_at: str = "all", constant: bool = True
    ) -> None:
        self.strength, self.parameters = strength, {}
        self.products, self.ridge_at, self.constant = products, ridge_at, constant

    def _solved(self, design: np.ndarray, targets: np.ndarray, *, dense: bool) -> tuple[np.ndarray, np.ndarray]:
        if not dense and self.ridge_at == "dense" and not self.constant:
            return bare(design, targets)
        strength = self.strength if dense or self.ridge_at == "all" else 0.0
        strength /= len(design) if self.products == "sums" else 1
        if dense or self.constant:
            return ridge(design, targets, strength)
        stacked = np.vstack([design / np.sqrt(len(design)), np.sqrt(strength) * np.eye(design.shape[1])])
        right = np.vstack([targets / np.sqrt(len(design)), np.zeros((design.shape[1], targets.shape[1]))])
        return bare(stacked, right)

    def run(
        self, layers: list[Layer], logit: np.ndarray, *, learn: bool, bias: bool = True, gate: bool = True
    ) -> np.ndarray:
        """Algorithm 1: S_0, or A without constants; ``logit`` is (n,)."""
        s = logit[:, None]
        for depth in reversed(range(len(layers))):
            module, x, y = layers[depth]
            if isinstance(module, nn.Flatten):
                s = s.reshape(x.shape)
            elif isinstance(module, nn.MaxPool2d):
                s = unpooled(module, s, x, y)
            elif isinstance(module, nn.Linear):
                if learn:
                    self.parameters[depth] = self._solved(s, x, dense=True)
                weight, shift = self.parameters[depth]
                s = s @ weight.T + (shift if bias else 0)
            elif isinstance(module, nn.Conv2d):
                rows = design(module, s, x.shape[2:])
                targets = x.reshape(*x.shape[:2], -1).transpose(0, 2, 1)
                if learn:
                    flat = rows.reshape(-1, rows.shape[2]), targets.reshape(-1, x.shape[1])
                    self.parameters[depth] = self._solved(*flat, dense=False)
                weight, shift = self.parameters[depth]
                s = (rows @ weight.T + (shift if bias else 0)).transpose(0, 2, 1).reshape(x.shape)
            if gate and not all(isinstance(m, nn.Flatten) for m, _, _ in layers[:depth]):  # the image is not gated
                s = s * (x != 0)
        return s
