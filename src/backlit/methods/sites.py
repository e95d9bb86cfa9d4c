"""Which activations a learned method acts on."""

from __future__ import annotations

from collections.abc import Callable, Collection

from backlit._errors import check
from backlit.capture import Site

Sites = str | Callable[[Site], bool] | Collection[str]
"""``"rectifiers"`` (ReLU and its kin), ``"activations"`` (every elementwise one), a function of the site, or names of sites
and modules."""


def is_wanted(site: Site, wanted: Sites) -> bool:
    """The site is among the activations that ``wanted`` describes."""
    if callable(wanted):
        return bool(wanted(site))
    if wanted in ("rectifiers", "activations"):
        return site.kind == "activation" and (wanted == "activations" or site.has("rectifier"))
    names = (wanted,) if isinstance(wanted, str) else wanted
    return site.name in names or site.module in names


def check_sites(wanted: object) -> None:
    """Refuse what describes no sites.

    Raises:
        InputError: Unless it is one of the two words, a function, a name or names.
    """
    names = (
        isinstance(wanted, Collection)
        and not hasattr(wanted, "shape")  # an array, also one of words, compares word by word
        and all(isinstance(name, str) for name in wanted)
    )
    check(callable(wanted) or names, "sites", wanted, "'rectifiers', 'activations', a function of the site, or names")
