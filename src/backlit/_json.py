"""JSON: plain values, and files that anybody may have written, where every way to be wrong is one ``ValueError``."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

JsonObject = dict[str, Any]
"""Plain JSON values by name: a row of a journal, a plan, a record of what was run."""
_LARGEST = 1 << 64
"""No seed is larger, and no number of anything in a file."""


def parse(text: str | bytes) -> Any:
    """Return what a JSON text holds.

    Raises:
        ValueError: No JSON, no UTF-8, nested too deeply, a key twice in one object, NaN or infinity, or an integer of more
            than 64 bits.
    """
    try:
        return json.loads(
            text, object_pairs_hook=_object, parse_constant=_refuse_constant, parse_int=_integer, parse_float=_number
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def with_null(value: Any) -> Any:
    """Replace NaN and infinity, which JSON has not, by null; tuples become lists."""
    if isinstance(value, dict):
        return {name: with_null(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [with_null(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"it has the key {key!r} twice")
        found[key] = value
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"it holds {name}, which is no JSON")


def _integer(text: str) -> int:
    if len(text) > 21 or abs(value := int(text)) > _LARGEST:
        raise ValueError(f"it holds the integer {text[:24]}, which is beyond 64 bits")
    return value


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"it holds the number {text[:24]}, which is out of range")
    return value
