"""Backlit's errors: each says what was asked, what was found, and what to do about it."""

from __future__ import annotations

import os
import traceback
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from numbers import Integral, Number
from pathlib import Path
from typing import TypeGuard

_LONGEST = 200  # characters of a value in an error
LARGEST = 1e15
"""The largest magnitude of a number that an option may have: beyond it, what is computed from it overflows."""
MOST_STEPS = 1_000_000
"""What an iterative method may be asked for: more is a mistake that would not end."""
MOST_PIXELS = 10_000
"""The largest width of a blur or a step, in pixels: more is wider than the images."""


class BacklitError(Exception):
    """Base of every error that Backlit raises on purpose."""


class InputError(BacklitError, ValueError):
    """An argument cannot be used: its name, what it must be, what was found, the way out."""


class UnsupportedOp(BacklitError, NotImplementedError):
    """An operation of the network cannot be seen, or has no rule, and a silent gradient would be wrong."""


class RuleMismatch(BacklitError):
    """A rule returned something that does not fit the inputs of its site."""


class ModelStateError(BacklitError, ValueError):
    """The model is in a state whose explanation would be wrong (train mode, another device, NaN weights)."""


class FileError(BacklitError, OSError):
    """A file or folder cannot be read or written."""


def check(holds: bool, name: str, found: object, must_be: str) -> None:
    """Refuse an argument's value.

    Raises:
        InputError: Unless ``holds``.
    """
    if not holds:
        too_large = isinstance(found, (int, float)) and abs(found) > LARGEST
        bound = f" Numbers reach to {LARGEST:g}." if too_large else ""
        raise InputError(f"{name} must be {must_be}, but is {shown(found)}.{bound}")


def check_whole(name: str, found: object, *, low: int = 1, high: int | None = None, none: bool = False) -> None:
    """Refuse what is no whole number from ``low`` to ``high``; a truth value is none.

    Raises:
        InputError: Unless it is one, or None where that is allowed.
    """
    whole = isinstance(found, int) and not isinstance(found, bool) and found >= low and (high is None or found <= high)
    kind = "a positive integer" if low == 1 else f"an integer from {low}"
    check(
        whole or (none and found is None),
        name,
        found,
        f"{kind}{'' if high is None else f' up to {high:,}'}{' or None' * none}",
    )


def is_number(found: object) -> TypeGuard[float]:
    """Tell whether it is a number that can be computed with, of a magnitude up to ``LARGEST``; a truth value is none."""
    return isinstance(found, (int, float)) and not isinstance(found, bool) and abs(found) <= LARGEST


def is_whole(given: object) -> TypeGuard[int]:
    """Tell whether it is a whole number, of Python's or numpy's; a truth value is none."""
    return isinstance(given, Integral) and not isinstance(given, bool)


def check_positive(name: str, found: object, *, high: float | None = None, none: bool = False) -> None:
    """Refuse what is no number above 0, up to ``high``.

    Raises:
        InputError: Unless it is one, or None where that is allowed.
    """
    check(
        (is_number(found) and 0 < found <= (high or LARGEST)) or (none and found is None),
        name,
        found,
        f"a positive number{'' if high is None else f' up to {high:,}'}{' or None' * none}",
    )


def is_several(given: object) -> bool:
    """Tell whether it holds several values one after the other, as a list or an array of one axis does; a text is one value."""
    one_axis = getattr(given, "ndim", 1) == 1
    return isinstance(given, Iterable) and not isinstance(given, (str, bytes, Mapping, type)) and one_axis


def is_word(given: object, words: Collection[str]) -> TypeGuard[str]:
    """Tell whether a value is one of these words; an array, which compares number by number, is none."""
    return isinstance(given, str) and given in words


def check_word(name: str, given: object, words: Collection[str], *, none: bool = False) -> None:
    """Refuse what is none of the words that an argument may be.

    Raises:
        InputError: Unless it is one, or None where that is allowed; with the word that is nearest.
    """
    if is_word(given, words) or (none and given is None):
        return
    *others, last = map(repr, words)
    listed = f"{', '.join([*others, last])}, or None" if none else f"{', '.join(others)} or {last}"
    hint = nearest(given, words) if isinstance(given, str) else ""
    raise InputError(f"{name} must be {listed}, but is {shown(given)}.{hint}")


def check_type(name: str, given: object, kinds: type | tuple[type, ...], must_be: str) -> None:
    """Refuse what is of no such type.

    Raises:
        InputError: With the type that it is of.
    """
    if not isinstance(given, kinds):
        raise InputError(f"{name} must be {must_be}, but is of type {type(given).__name__}.")


def shown(value: object) -> str:
    """Return a value as an error shows it: an array by its shape, and what takes many characters in short."""
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and not isinstance(value, Number):  # a number of numpy's has a shape, too
        return f"{type(value).__name__}{tuple(shape)}"
    try:
        text = repr(value)
    except Exception:  # a broken __repr__ must not hide what is wrong
        return f"a {type(value).__name__}"
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def reason(error: BaseException) -> str:
    """Say in one line what somebody else's code failed with: the type, the text, the innermost place of theirs."""
    if isinstance(error, BacklitError):
        return str(error)
    try:
        text = str(error)
    except Exception:  # a broken __str__ must not hide the failure
        text = "its text cannot be had"
    if isinstance(error, SystemExit):
        said = f"the code ended the program, sys.exit({text})"
    elif isinstance(error, MemoryError) or "not enough memory" in text or "out of memory" in text:
        said = f"there is not enough memory ({type(error).__name__}{text and ': '}{text})"
    else:
        said = f"{type(error).__name__}{text and ': '}{text}"
    places = traceback.extract_tb(error.__traceback__)
    ours = (str(Path(__file__).parent), f"{os.sep}torch{os.sep}")  # passed through on the way
    theirs = [place for place in places if not any(part in place.filename for part in ours)]
    place = (theirs or places or [None])[-1]
    return said if place is None else f"{said} ({Path(place.filename).name}, line {place.lineno})"


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the known name closest to ``name``, or an empty string."""
    close = get_close_matches(name.lower(), [k.lower() for k in known], n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""
