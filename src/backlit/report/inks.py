"""How a page colours its maps: SVG filters from the grey values of their pictures to the colours of each kind of map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.colors import to_hex

from backlit.methods import BASELINES, METHODS
from backlit.methods.base import Kind
from backlit.report.kinds import PALETTES, Palette
from backlit.report.levels import FULL, ZERO, Heat

View = Literal["alone", "over", "regions"]
_FIRM = 0.7  # below 1: weak pixels of a map of single pixels are firmer over a photograph than in proportion
_REGIONS = 0.8  # of the opacity: a map of regions covers what it is about, and is to let it be seen
_STOPS = 9  # colours of a legend's bar


@dataclass(frozen=True)
class Filter:
    """One SVG filter: the values of each channel for the grey values from 0 to 255, from 0 to 1, as text.

    ``alpha`` is empty where the map is shown alone, on nothing.
    """

    name: str
    red: str
    green: str
    blue: str
    alpha: str


@dataclass(frozen=True)
class Ink:
    """A kind of map on the page: its filters, its legend, and the methods that are drawn so.

    Attributes:
        name: Of the kind, as in ``report.kinds``.
        filters: For the map alone, over the image, and over the image for maps of regions.
        ramp: Colours of the bar, for a CSS gradient.
        below: What the bar's left end says.
        above: What its right end says.
        legend: What the colours claim.
        methods: Titles.
    """

    name: str
    filters: tuple[Filter, ...]
    ramp: str
    below: str
    above: str
    legend: str
    methods: tuple[str, ...] = ()


def strengths() -> np.ndarray:
    """Return what each grey value from 0 to 255 stands for, from -1 to 1."""
    root = np.clip((np.arange(256) - ZERO) / FULL, -1, 1)
    return np.sign(root) * root**2


def palette_for(method: str, heats: list[Heat]) -> Palette:
    """The palette of a method's maps, by its name or title: of its kind, if that can show them all.

    The maps of a comparison are what was scored, sums over channels with their signs. Where a kind has no colours for values
    below 0 and there are some, the colours claim nothing but the sign; those of a one-sided method speak against the class.
    """
    kind: Kind | None = next((m.kind for m in (*METHODS, *BASELINES) if method in (m.name, m.title)), None)
    palette = PALETTES[kind]
    if palette.two_sided or not any(h.strength is not None and bool((h.strength < 0).any()) for h in heats):
        return palette
    return PALETTES["signed" if kind == "one-sided" else None]


def ink(palette: Palette, methods: tuple[str, ...]) -> Ink:
    """The filters and the legend of a palette."""
    stops = np.linspace(-1 if palette.two_sided else 0, 1, _STOPS)
    return Ink(
        palette.name,
        tuple(_filter(palette, view) for view in ("alone", "over", "regions")),
        ", ".join(to_hex(c) for c in palette.colour(stops)),
        palette.below or "0",
        palette.above,
        palette.legend,
        methods,
    )


def _filter(palette: Palette, view: View) -> Filter:
    strength = strengths()
    colours = palette.colour(strength) if view == "alone" else palette.ink(strength)
    alpha = {"alone": None, "over": np.abs(strength) ** _FIRM, "regions": _REGIONS * np.abs(strength)}[view]
    red, green, blue = (_text(channel) for channel in colours.T)
    return Filter(f"{view}-{palette.name}", red, green, blue, "" if alpha is None else _text(alpha))


def _text(values: np.ndarray) -> str:
    """The values with three decimals; of values that are all the same two, between which nothing changes."""
    texts = [f"{v:.3f}".rstrip("0").rstrip(".") or "0" for v in values]
    return " ".join(texts[:2] if len(set(texts)) == 1 else texts)
