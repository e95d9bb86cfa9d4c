"""Which activations a learned method acts on."""

from __future__ import annotations

from collections.abc import Callable, Collection

from backlit.capture import RECTIFIERS, Site

Sites = str | Callable[[Site], bool] | Collection[str]
"""``"rectifiers"`` (ReLU and its kin), ``"activations"`` (every elementwise one), a function of the site, or names of sites
and modules."""


def is_wanted(site: Site, wanted: Sites) -> bool:
    """The site is among the activations that ``wanted`` describes."""
    if callable(wanted):
        return bool(wanted(site))
    if wanted in ("rectifiers", "activations"):
        return site.kind == "activation" and (wanted == "activations" or site.primitive in RECTIFIERS)
    names = (wanted,) if isinstance(wanted, str) else wanted
    return site.name in names or site.module in names
