"""Backlit's errors: each says what was asked, what was found, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


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


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the known name closest to ``name``, or an empty string."""
    close = get_close_matches(name.lower(), [k.lower() for k in known], n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""
