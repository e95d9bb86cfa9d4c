"""What a map says, by its method's kind: which number a pixel is drawn by, in which colours, and what the legend may claim."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args

import matplotlib
import numpy as np
import torch
from matplotlib.colors import LinearSegmentedColormap, to_rgb

from backlit._callables import class_of
from backlit._errors import InputError
from backlit._types import Heatmap
from backlit.attribution import Attribution
from backlit.methods import BASELINES, METHODS
from backlit.methods.base import Kind, Method
from backlit.report.figure import limit

LEVELS = 2049  # of a palette: finer than 8 bits show, so that a smooth map has no steps but those of the picture itself
_ZERO = 1024  # of LEVELS: the level of 0 in a palette with two sides


_BLUE_AND_RED = ("#1668d6", "#e0182d")


@dataclass(frozen=True)
class Palette:
    """The colours of a kind of map, and what may be said of them.

    Attributes:
        name: The kind.
        colours: A colour map of matplotlib, or the colours of one; 0 is white.
        below: What negative values say, for the colour bar; empty where the kind has none.
        above: What positive values say.
        legend: A sentence on what the colours claim.
        inks: What negative and positive values are drawn with over a photograph: seen on light and on dark ground.
    """

    name: str
    colours: str | tuple[str, ...]
    below: str
    above: str
    legend: str
    inks: tuple[str, str] = _BLUE_AND_RED

    @property
    def two_sided(self) -> bool:
        """Tell whether the colours run from below 0 to above it."""
        return bool(self.below)

    def colour(self, strength: np.ndarray) -> np.ndarray:
        """Colours (..., 3), from 0 to 1, of strengths (...) from -1 to 1; of what a one-sided palette cannot show, white."""
        table = _table(self.colours)
        if self.two_sided:
            return table[np.rint(strength * _ZERO).astype(int) + _ZERO]
        return table[np.rint(np.clip(strength, 0, 1) * (LEVELS - 1)).astype(int)]

    def ink(self, strength: np.ndarray) -> np.ndarray:
        """Colours for an overlay, whose opacity says how strong: one for each sign."""
        below, above = (np.array(to_rgb(ink)) for ink in self.inks)
        return np.where(strength[..., None] < 0, below, above)


_RED = ("#ffffff", "#fddbc7", "#f4a582", "#d6604d", "#b2182b", "#8c0a25")  # the red half of RdBu
_VIOLET = ("#ffffff", "#efd3f8", "#d68ae6", "#a928cb", "#6d1296", "#320a4d")
_GREY = ("#ffffff", "#9a9a9a", "#303030")
_CONTRAST = "Red speaks for this class more than for those it is compared with, blue less."
_ONE_SIDED = "Red speaks for the class; this method shows nothing that speaks against it."
_MAGNITUDE = "Strength only: the darker, the more the pixel matters, be it for the class or against it."
_SIGNAL = "The part of the image that the score follows: no claim for or against the class."
_NOISE = "This map does not look at the network, and says nothing about it: a baseline."
_UNKNOWN = "Positive values are red, negative ones blue; what they claim is for the method to say."
PALETTES: dict[Kind | None, Palette] = {
    "signed": Palette("signed", "RdBu_r", "against", "for", "Red speaks for the class, blue against it."),
    "contrast": Palette("contrast", "RdBu_r", "less", "more", _CONTRAST),
    "one-sided": Palette("one-sided", _RED, "", "for", _ONE_SIDED),
    "magnitude": Palette("magnitude", _VIOLET, "", "strong", _MAGNITUDE, ("#c535e8", "#c535e8")),
    "signal": Palette("signal", "PuOr_r", "lower", "higher", _SIGNAL, ("#7b4bd1", "#f08a12")),
    "noise": Palette("noise", _GREY, "", "", _NOISE, ("#9a9a9a", "#9a9a9a")),
    None: Palette("unknown", "RdBu_r", "below 0", "above 0", _UNKNOWN),
}
"""The colours of each kind of map; under None, of a method that is not known."""


def kind_of(explanation: Attribution) -> Kind | None:
    """The kind of map, as its method recorded it, or as the method of that name has it; None of an unknown one."""
    recorded = explanation.provenance.get("kind")
    if recorded in get_args(Kind):
        return recorded
    method = method_of(explanation)
    return None if method is None else method.kind


def method_of(explanation: Attribution) -> type[Method] | None:
    """The method that made it, by its recorded name."""
    name = explanation.provenance.get("method")
    return next((m for m in (*METHODS, *BASELINES) if m.name == name), None)


def methods_in(explanation: Attribution) -> list[tuple[type[Method], Mapping[str, object]]]:
    """The method that made it, the one that this was made of, ``of``, and so on, each with its recorded options."""
    chain, method, options = [], method_of(explanation), explanation.provenance.get("options")
    while method is not None:
        options = options if isinstance(options, Mapping) else {}
        chain.append((method, options))
        of = options.get("of")
        if not isinstance(of, Mapping):
            break
        kind, options = (of["method"], of) if "method" in of else (of, {})
        method = next((m for m in (*METHODS, *BASELINES) if class_of(m) == kind.get("class")), None)
    return chain


def title_of(explanation: Attribution) -> str:
    """The method's title, with the method that it is made of, and the steps behind it; the recorded name of a foreign one."""
    titles = [method.title for method, _ in methods_in(explanation)]
    title = " of ".join(titles) if titles else str(explanation.provenance.get("method", "map"))
    return ", ".join([title, *map(_said_of_step, explanation.provenance.get("post", []))])


def _said_of_step(step: Mapping[str, object]) -> str:
    """A step behind the method, as its name and the numbers that it was given."""
    numbers = [f"{value:.3g}" for value in step.values() if isinstance(value, float)]
    return " ".join([str(step["step"]).replace("_", "-"), *numbers])


def palette_of(explanation: Attribution) -> Palette:
    """The palette of its kind; of a one-sided map that falls below 0 all the same, as for a negative logit, of both signs."""
    palette = PALETTES[kind_of(explanation)]
    if palette.two_sided or not bool((drawn(explanation) < 0).any()):
        return palette
    return PALETTES["signed"]


def drawn(explanation: Attribution) -> Heatmap:
    """The number that each pixel is drawn by (n, 1, h, w): the sum over channels, of magnitudes where signs claim nothing."""
    return explanation.heatmap("abs" if kind_of(explanation) in ("magnitude", "noise") else "sum")


def limit_of(explanation: Attribution, percentile: float = 99.5) -> tuple[float, float]:
    """Tell where the colours of a map end, and the percentile of its magnitude that this is; 0 of a map with NaN or infinity."""
    heat = drawn(explanation).detach()
    if not bool(torch.isfinite(heat).all()):
        return 0.0, percentile
    return limit(heat.flatten(0, -2), percentile)


def check_one(explanation: Attribution) -> None:
    """Refuse an attribution of several images, or of none.

    Raises:
        InputError: With the way to one of them.
    """
    if len(explanation) != 1:
        raise InputError(
            f"explanation must be of one image, but is of {len(explanation)}. Take one of them: explanation[0], or go through "
            "all of them: for one in explanation."
        )


@cache
def _table(colours: str | tuple[str, ...]) -> np.ndarray:
    """The colours (LEVELS, 3) of a palette, from 0 to 1; of one with two sides, 0 is exactly white."""
    found: Any = (
        matplotlib.colormaps[colours] if isinstance(colours, str) else LinearSegmentedColormap.from_list("", colours)
    )
    table = np.asarray(found.resampled(LEVELS)(np.linspace(0, 1, LEVELS)))[:, :3]
    if isinstance(colours, str):  # matplotlib's are a little grey in the middle
        near = np.clip(1 - np.abs(np.linspace(-1, 1, LEVELS)) / 0.2, 0, 1)[:, None]
        table = table + near * (1 - table[_ZERO])
    return np.clip(table, 0, 1)
