"""The protocols written a second time, slowly, from their papers: one image, one pixel at a time, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from scipy.ndimage import correlate1d
from torch import Tensor


def gaussian_blur(x: np.ndarray, size: int, sigma: float) -> np.ndarray:
    """(c, h, w), by scipy; "mirror" is what torch calls reflect."""
    weights = np.array([math.exp(-((i - size // 2) ** 2) / (2 * sigma**2)) for i in range(size)])
    weights /= weights.sum()
    return correlate1d(correlate1d(x, weights, axis=1, mode="mirror"), weights, axis=2, mode="mirror")


def perturbation_curve(
    logits_of: Callable[[np.ndarray], np.ndarray],
    start: np.ndarray,
    end: np.ndarray,
    heat: np.ndarray,
    score: Callable[[np.ndarray], float],
    *,
    steps: int,
    fraction: float,
    ascending: bool,
) -> list[float]:
    """The score while pixels of ``end`` replace those of ``start`` in the order of the map's (distinct) values."""
    height, width = heat.shape
    places = [(heat[r, c], r, c) for r in range(height) for c in range(width)]
    assert len({v for v, _, _ in places}) == len(places)
    places.sort(key=lambda p: p[0] if ascending else -p[0])
    curve = []
    for step in range(steps + 1):
        image = start.copy()
        for _, r, c in places[: round(step / steps * fraction * height * width)]:
            image[:, r, c] = end[:, r, c]
        curve.append(score(logits_of(image)))
    return curve


def area(curve: Sequence[float]) -> float:
    """Trapezoids over a width of 1."""
    return sum((a + b) / 2 for a, b in pairwise(curve)) / (len(curve) - 1)


def softmax(logits: np.ndarray) -> np.ndarray:
    exp = np.exp(logits - logits.max())
    return exp / exp.sum()


def in_box(box: Sequence[float], r: int, c: int) -> bool:
    x0, y0, x1, y1 = box
    return x0 <= c + 0.5 < x1 and y0 <= r + 0.5 < y1


def positive_share(heat: np.ndarray, boxes: Sequence[Sequence[float]]) -> float:
    within = total = 0.0
    for r in range(heat.shape[0]):
        for c in range(heat.shape[1]):
            value = max(heat[r, c], 0.0)
            total += value
            within += value * any(in_box(b, r, c) for b in boxes)
    return within / total


def pointing_hit(heat: np.ndarray, boxes: Sequence[Sequence[float]], tolerance: float) -> float:
    r, c = np.unravel_index(heat.argmax(), heat.shape)
    x, y = c + 0.5, r + 0.5
    for x0, y0, x1, y1 in boxes:
        across, down = max(x0 - x, 0, x - x1), max(y0 - y, 0, y - y1)
        if math.sqrt(across**2 + down**2) <= tolerance:
            return 1.0
    return 0.0


def box_accuracy(heat: np.ndarray, boxes: Sequence[Sequence[float]]) -> float:
    height, width = heat.shape
    places = [(r, c) for r in range(height) for c in range(width)]
    within = {p for p in places if any(in_box(b, *p) for b in boxes)}
    top = sorted(places, key=lambda p: -heat[p])[: len(within)]
    return sum(p in within for p in top) / len(within)


def ssim(a: np.ndarray, b: np.ndarray, span: float) -> float:
    """Wang et al. 2004, Eq. 13, window by window."""
    size, sigma = 11, 1.5
    line = np.array([math.exp(-((i - 5) ** 2) / (2 * sigma**2)) for i in range(size)])
    window = np.outer(line, line) / line.sum() ** 2
    found = []
    for r in range(a.shape[0] - size + 1):
        for c in range(a.shape[1] - size + 1):
            p, q = a[r : r + size, c : c + size], b[r : r + size, c : c + size]
            mp, mq = (window * p).sum(), (window * q).sum()
            vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
            cov = (window * (p - mp) * (q - mq)).sum()
            c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
            found.append((2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    return float(np.mean(found))


def distinct(shape: tuple[int, ...], seed: int) -> Tensor:
    """Normal values, no two alike within a map."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
