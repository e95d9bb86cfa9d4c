"""Values that no argument takes, or few do, and how a call with one of them ends."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from backlit._errors import BacklitError


class Incomparable:
    """An object that can be neither compared, nor hashed, nor told true from false."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("cannot be compared")

    def __bool__(self) -> bool:
        raise RuntimeError("is neither true nor false")


VALUES: dict[str, Callable[[], Any]] = {
    "an array": lambda: np.array([1.0, 2.0]),
    "an array of words": lambda: np.array(["a", "b"]),
    "a tensor": lambda: torch.tensor([1.0, 2.0]),
    "a tensor of one number": lambda: torch.tensor(0.5),
    "an empty list": list,
    "a list of words": lambda: ["a", "b"],
    "lists in a list": lambda: [[1, 2], [3]],
    "a dictionary": lambda: {"a": 1},
    "a set": lambda: {1},
    "an object": object,
    "an object that cannot be compared": Incomparable,
    "a large integer": lambda: 10**30,
    "a large number": lambda: 1e308,
    "a number of pixels that no image has": lambda: 1e14,
    "a count that would not end": lambda: 10**14,
    "a subnormal number": lambda: 5e-324,
    "below 0": lambda: -1,
    "0": lambda: 0,
    "half": lambda: 0.5,
    "a number of numpy's": lambda: np.float32(0.5),
    "not a number": lambda: float("nan"),
    "infinite": lambda: float("inf"),
    "a truth value": lambda: True,
    "a complex number": lambda: 1j,
    "an empty text": str,
    "a text": lambda: "nope",
    "bytes": lambda: b"x",
    "None": lambda: None,
    "a function": lambda: lambda *given, **named: 0,
    "a pair": lambda: (1, 2),
    "a pair of large integers": lambda: (10**30, 10**30),
}


def outcome(work: Callable[[], object]) -> str:
    """Return what is wrong with how a call ended; nothing if it worked or was refused in Backlit's words."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            work()
    except BacklitError as error:
        text = str(error)
        return "" if 10 < len(text) < 1000 else f"a text of {len(text)} characters: {text[:100]}"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:100]}"
    return ""


def refusals(called: str, names: Iterable[str], run: Callable[[dict[str, Any]], object]) -> list[str]:
    """Return each argument and value that ends in another error than Backlit's."""
    wrong = []
    for name in names:
        for words, make in VALUES.items():
            if said := outcome(lambda make=make, name=name: run({name: make()})):
                wrong.append(f"{called}({name}={words}): {said}")
    return wrong
