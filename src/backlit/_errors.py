"""Backlit's errors: each says what was asked, what was found, and what to do about it."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


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
        raise InputError(f"{name} must be {must_be}, but is {found!r}.")


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
