"""The result of ROAR: one row a training, means with intervals over the seeds, and the table as the papers print it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from backlit._json import JsonObject, with_null

ORIGINAL, RANDOM = "original", "random"
MASK = " mask"  # after a method's name: trained on its bare masks
_HALF_95 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622)  # Student's t, 1 to 9 degrees


@dataclass(frozen=True)
class RoarRow:
    """One finished training.

    ``method`` is "original" (fraction 0) for the unmodified data, "random" for the baseline and "METHOD mask" for the bare
    masks of a method; ``accuracy`` is
    ``right / images`` on the test set with the same share of its pixels removed. ``loss`` is the mean of the last epoch,
    ``fingerprint`` that of the trained network.
    """

    method: str
    fraction: float
    seed: int
    accuracy: float
    right: int
    images: int
    loss: float
    seconds: float
    fingerprint: str

    @property
    def key(self) -> tuple[str, float, int]:
        """Method, fraction and seed of the training."""
        return self.method, self.fraction, self.seed


@dataclass(frozen=True)
class OverSeeds:
    """The mean over n trainings, the standard deviation of one, and Student's 95 % interval of the mean.

    NaN for what one training cannot say.
    """

    mean: float
    std: float
    low: float
    high: float
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> OverSeeds:
        """Make it from one number a seed."""
        n = len(values)
        mean = float(np.mean(values))
        if n < 2:
            return cls(mean, math.nan, math.nan, math.nan, n)
        std = float(np.std(values, ddof=1))
        half = student(n - 1) * std / math.sqrt(n)
        return cls(mean, std, mean - half, mean + half, n)


@dataclass(frozen=True)
class RoarCell:
    """A method at a fraction: its accuracy, and the accuracy less the random ranking's at the same seeds (paired).

    A ranking that finds what matters has a difference below 0; ``difference`` is None for "original".
    """

    method: str
    fraction: float
    accuracy: OverSeeds
    difference: OverSeeds | None


@dataclass(frozen=True, eq=False)
class RoarResult:
    """All that was measured.

    Attributes:
        rows: One a training, in the order of seed, fraction and method.
        methods: The methods' names, without "original" and "random".
        constant_maps: By method, the images of the train and of the test set whose map says nothing.
        protocol: Options, data, network: plain JSON values.
        provenance: Versions, device, threads, seconds: plain JSON values.
    """

    rows: tuple[RoarRow, ...]
    methods: tuple[str, ...]
    constant_maps: Mapping[str, Mapping[str, int]]
    protocol: JsonObject
    provenance: JsonObject = field(default_factory=dict)

    @property
    def fractions(self) -> tuple[float, ...]:
        """The fractions of removed pixels, smallest first."""
        return tuple(sorted({row.fraction for row in self.rows if row.fraction}))

    def accuracies(self, method: str, fraction: float) -> dict[int, float]:
        """The accuracy of each seed."""
        return {row.seed: row.accuracy for row in self.rows if (row.method, row.fraction) == (method, fraction)}

    def cell(self, method: str, fraction: float) -> RoarCell:
        """A method at a fraction, over the seeds."""
        own = self.accuracies(method, fraction)
        if method == ORIGINAL:
            return RoarCell(method, fraction, OverSeeds.of(list(own.values())), None)
        chance = self.accuracies(RANDOM, fraction)
        below = [value - chance[seed] for seed, value in own.items()]
        return RoarCell(method, fraction, OverSeeds.of(list(own.values())), OverSeeds.of(below))

    @property
    def columns(self) -> tuple[str, ...]:
        """List what was trained on modified data: the random ranking, the methods, and their bare masks."""
        trained = {row.method for row in self.rows}
        return (RANDOM, *self.methods, *(m + MASK for m in self.methods if m + MASK in trained))

    def summary(self) -> list[RoarCell]:
        """The original first, then by fraction the random ranking and each method."""
        return [self.cell(ORIGINAL, 0.0), *(self.cell(m, f) for f in self.fractions for m in self.columns)]

    def notes(self) -> list[str]:
        """Tell what a reader must know."""
        said = [
            f"{method}: the map of {images['train']} training and {images['test']} test images is constant; their pixels went "
            "at random."
            for method, images in self.constant_maps.items()
            if images["train"] or images["test"]
        ]
        said += [self._leak(m) for m in self.methods if self._above_original(m)]
        if len({row.seed for row in self.rows}) < 3:
            said.append("Fewer than three trainings a cell: differences between methods may be chance.")
        return said

    def _above_original(self, method: str) -> list[RoarCell]:
        """Cells with more accuracy than before the removal, by more than the test images' chance (3 standard errors)."""
        whole, images = self.cell(ORIGINAL, 0.0).accuracy.mean, self.rows[0].images
        error = math.sqrt(2 * whole * (1 - whole) / images)
        cells = (self.cell(method, f) for f in self.fractions)
        return [cell for cell in cells if cell.accuracy.mean > whole + 3 * error]

    def _leak(self, method: str) -> str:
        where = ", ".join(f"{_percent(c.accuracy)} at {100 * c.fraction:g}%" for c in self._above_original(method))
        return (
            f"{method}: {where}, more than the {_percent(self.cell(ORIGINAL, 0.0).accuracy)} before the removal. The places of "
            "the removed pixels tell the class that was explained, so this says nothing of what was removed; mask_only shows "
            "what the places alone tell."
        )

    def table(self) -> str:
        """The LPR paper's Table 1: a row a fraction, a column a method, test accuracy (± standard deviation over seeds)."""
        columns = (ORIGINAL, *self.columns)
        rows = [["Fraction", *(name.capitalize() if name in (ORIGINAL, RANDOM) else name for name in columns)]]
        for fraction in self.fractions:
            cells = [self.cell(m, 0.0 if m == ORIGINAL else fraction).accuracy for m in columns]
            rows.append([f"{100 * fraction:g}%", *map(_percent, cells)])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(text.rjust(w) for text, w in zip(row, widths, strict=True)) for row in rows)

    def to_json(self) -> JsonObject:
        """As a dictionary of plain values; NaN is None."""
        result = {
            "protocol": dict(self.protocol),
            "provenance": dict(self.provenance),
            "constant_maps": {m: dict(images) for m, images in self.constant_maps.items()},
            "notes": self.notes(),
            "table": self.table().splitlines(),
            "summary": [asdict(cell) for cell in self.summary()],
            "rows": [asdict(row) for row in self.rows],
        }
        return with_null(result)


def student(degrees: int) -> float:
    """The 97.5 % quantile of Student's t, to 4 digits (beyond 9 degrees by Cornish and Fisher's expansion)."""
    if degrees <= len(_HALF_95):
        return _HALF_95[degrees - 1]
    z, v = 1.959964, float(degrees)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / v + second / v**2 + third / v**3


def _percent(accuracy: OverSeeds) -> str:
    spread = f" ± {100 * accuracy.std:.2f}" if accuracy.seeds > 1 else ""
    return f"{100 * accuracy.mean:.2f}%{spread}"
