"""What a set of scored images says: a mean with its interval, and whether two methods differ on the same images."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Statistic = Callable[[np.ndarray, np.ndarray | None], np.ndarray]
"""``(values (d, n), groups (d, n) or None) -> (d,)``: one number for each of d samples of n images."""

DRAWS = 10_000
FEWEST = 5  # images: a bootstrap of fewer says nothing
_BAND_DRAWS = 2_000  # a curve's band is looked at, not tested with
_CELLS = 2**22  # of one block of draws


@dataclass(frozen=True)
class Estimate:
    """A statistic of the scored images, with the bootstrap's 95 % interval; NaN where there are too few images."""

    value: float
    low: float
    high: float
    images: int

    @property
    def excludes_zero(self) -> bool:
        """The interval lies on one side of 0: a difference that chance does not explain, at 5 %."""
        return self.low > 0 or self.high < 0


def kendall_tau(a: np.ndarray, b: np.ndarray) -> float:
    """Compute Kendall's tau-b of two rows of numbers (m,), which ties bring nearer to 0; NaN where one of them is constant.

    Source: Kendall 1945, "The treatment of ties in ranking problems".
    """
    pairs = np.triu_indices(len(a), 1)
    one, other = (np.sign(v[:, None] - v[None])[pairs] for v in (a, b))
    untied = np.sqrt(float(np.abs(one).sum()) * float(np.abs(other).sum()))
    return float((one * other).sum() / untied) if untied else float("nan")


def mean(values: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    """Compute the mean over images, (d, n) -> (d,)."""
    return values.mean(-1)


def median(values: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    """Compute the median over images, (d, n) -> (d,)."""
    return np.median(values, -1)


def ratio_of_means(values: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    """Divide the mean numerator by the mean denominator, from ratios and their denominators (``groups``), (d, n) -> (d,)."""
    assert groups is not None
    return (values * groups).mean(-1) / groups.mean(-1)


def estimate(
    values: np.ndarray,
    groups: np.ndarray | None = None,
    statistic: Statistic = mean,
    *,
    seed: int = 0,
    intervals: bool = True,
) -> Estimate:
    """Estimate the statistic of n images and its percentile bootstrap (Efron 1979), 10,000 draws of the images.

    Images whose value is NaN were not scored and do not count. With fewer than five there is no interval, and a warning.
    """
    scored = np.isfinite(values)
    values = values[scored].astype(np.float64)
    groups = None if groups is None else groups[scored]
    n = len(values)
    if n == 0:
        return Estimate(np.nan, np.nan, np.nan, 0)
    value = float(statistic(values[None], None if groups is None else groups[None])[0])
    if not intervals:
        return Estimate(value, np.nan, np.nan, n)
    if n < FEWEST:
        warnings.warn(
            f"{n} scored image{'s' * (n != 1)}: an interval needs at least {FEWEST}; the mean is given without one.",
            stacklevel=2,
        )
        return Estimate(value, np.nan, np.nan, n)
    draws = resampled(values, groups, statistic, seed)
    draws = draws[np.isfinite(draws)]
    if not len(draws):
        return Estimate(value, np.nan, np.nan, n)
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(value, float(low), float(high), n)


def difference(
    first: np.ndarray,
    second: np.ndarray,
    groups: np.ndarray | None = None,
    statistic: Statistic = mean,
    *,
    seed: int = 0,
) -> Estimate:
    """Estimate the first's statistic less the second's on the images that both scored: the draws are shared, so it is paired."""
    both = np.isfinite(first) & np.isfinite(second)
    stacked = np.stack([first[both], second[both]]).astype(np.float64)
    groups = None if groups is None else groups[both]
    n = int(both.sum())
    if n == 0:
        return Estimate(np.nan, np.nan, np.nan, 0)
    whole = [float(statistic(v[None], None if groups is None else groups[None])[0]) for v in stacked]
    value = whole[0] - whole[1]
    if n < FEWEST:
        return Estimate(value, np.nan, np.nan, n)
    draws = resampled(stacked[0], groups, statistic, seed) - resampled(stacked[1], groups, statistic, seed)
    draws = draws[np.isfinite(draws)]
    if not len(draws):
        return Estimate(value, np.nan, np.nan, n)
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(value, float(low), float(high), n)


def mean_band(curves: np.ndarray, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute the mean curve (points,) of n images (n, points), and the ends of its 95 % bootstrap interval at each point."""
    curves = curves[np.isfinite(curves).all(1)]
    n = len(curves)
    unknown = np.full(curves.shape[1], np.nan)
    if n < FEWEST:
        return (curves.mean(0) if n else unknown), unknown, unknown
    generator = np.random.default_rng(seed % 2**64)
    counts = generator.multinomial(n, np.full(n, 1 / n), size=_BAND_DRAWS)  # how often each image is drawn
    low, high = np.quantile(counts @ curves / n, [0.025, 0.975], axis=0)
    return curves.mean(0), low, high


def resampled(values: np.ndarray, groups: np.ndarray | None, statistic: Statistic, seed: int) -> np.ndarray:
    """Compute the statistic of each draw of n images with replacement; the same seed draws the same images."""
    generator = np.random.default_rng(seed % 2**64)
    n, blocks = len(values), []
    block = max(1, _CELLS // n)
    for start in range(0, DRAWS, block):
        drawn = generator.integers(n, size=(min(block, DRAWS - start), n))
        blocks.append(statistic(values[drawn], None if groups is None else groups[drawn]))
    return np.concatenate(blocks)
