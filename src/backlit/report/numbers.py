"""Numbers as a reader wants them: as many digits as the differences need, a true minus sign, words for what is missing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

NOT_SCORED = "not scored"
TOO_FEW = "too few images"


def known(*values: float | None) -> bool:
    """All of them are there and finite: a frame has null where a score is missing, other sources NaN."""
    return all(v is not None and math.isfinite(v) for v in values)


def decimals(values: Iterable[float | None]) -> int | None:
    """Decimal places that show a hundredth of the values' spread; None where only powers of ten can."""
    there = [v for v in values if v is not None and math.isfinite(v)]
    spread = (max(there) - min(there) or max(abs(v) for v in there)) if there else 0
    if spread == 0:
        return 2
    places = 2 - math.floor(math.log10(spread))
    return max(0, places) if places <= 6 and max(abs(v) for v in there) < 1e7 else None


def number(value: float, places: int | None = None, *, sign: bool = False) -> str:
    """The number with so many decimal places, or with three digits."""
    if places is None and 1e3 <= abs(value) < 1e6:
        places = 0
    if places is not None and round(value, places) == 0:
        value = 0.0  # without the sign of what is not shown
    text = f"{value:{'+' if sign else ''}.3g}" if places is None else f"{value:{'+' if sign else ''},.{places}f}"
    return text.replace("-", "−")


def interval(low: float | None, high: float | None, places: int | None = None) -> str:
    """``[low, high]``, or that there are too few images for one."""
    if low is None or high is None or not known(low, high):
        return TOO_FEW
    return f"[{number(low, places)}, {number(high, places)}]"


def plain(value: Any) -> str:
    """A JSON value in words."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {plain(v)}" for k, v in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(plain(v) for v in value) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def facts(values: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Names and values for a definition list."""
    return tuple((str(k).replace("_", " "), plain(v)) for k, v in values.items())
