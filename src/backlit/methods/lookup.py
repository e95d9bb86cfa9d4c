"""Methods by name."""

from __future__ import annotations

from backlit._errors import InputError, nearest, shown
from backlit.methods import BASELINES, DMBP, METHODS
from backlit.methods.base import Method

SHORT = "dmbp_fast"
"""What files and rows call DMBP's short schedule, ``DMBP.fast``."""
_IGNORED = str.maketrans("", "", "-_ ")


def find_method(name: str, methods: tuple[type[Method], ...]) -> type[Method]:
    """The method of that name or class name, whatever its case, dashes, underscores and spaces.

    Raises:
        InputError: If there is none; names the nearest.
    """
    for method in methods if isinstance(name, str) else ():
        if same_name(name, method.name) or same_name(name, method.__name__):
            return method
    known = [m.name for m in methods]
    raise InputError(f"method must be one of {', '.join(known)}, but is {shown(name)}.{nearest(str(name), known)}")


def title_named(name: str) -> str:
    """Return the title of a method, with the options of its setting, by what files and rows call it; the name of others."""
    own, dot, options = name.partition(".")
    titles = {method.name: method.title for method in METHODS + BASELINES} | {SHORT: f"{DMBP.title}, short schedule"}
    return f"{titles[own]}{f' ({options})' if dot else ''}" if own in titles else name


def same_name(one: str, other: str) -> bool:
    """Tell whether the names agree but for case, dashes, underscores and spaces; any other sign counts."""
    return _key(one) == _key(other)


def _key(name: str) -> str:
    return name.lower().translate(_IGNORED)
