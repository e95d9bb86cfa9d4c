"""Pictures and texts of the app that are made of views: curves with the point that is shown, facts as a table, a link."""

from __future__ import annotations

import io
from collections.abc import Sequence
from html import escape
from urllib.parse import urlencode

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from backlit.app.view import Ask, Chance, Curves, MapView, facts

_DPI = 100


def curves_picture(of: Curves, share: float) -> np.ndarray:
    """Draw both curves, and the point of each that is shown, uint8 (h, w, 3)."""
    figure = Figure(figsize=(5.2, 3.4), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    at = int(np.abs(of.positions - share).argmin())
    for name, values, colour in (
        ("shown: insertion", of.insertion, "#b2182b"),
        ("taken away: deletion", of.deletion, "#1668d6"),
    ):
        axes.plot(100 * of.positions, values, color=colour, label=name)
        axes.plot(100 * of.positions[at], values[at], "o", color=colour)
    axes.axvline(100 * of.positions[at], color="#999", linewidth=0.8)
    axes.set(xlabel="most relevant pixels (%)", ylabel="probability", ylim=(0, 1))
    axes.legend(frameon=False, fontsize="small")
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return np.asarray(Image.open(buffer).convert("RGB"))


def curves_text(of: Curves, share: float) -> str:
    """Say what the point is."""
    at = int(np.abs(of.positions - share).argmin())
    return (
        f"With the most relevant {of.positions[at]:.0%} of the pixels alone the probability is {of.insertion[at]:.2f}; "
        f"without them {of.deletion[at]:.2f}."
    )


def facts_html(shown: MapView) -> str:
    """Return what is said of a map as a small table."""
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in facts(shown))
    return f'<table class="facts">{rows}</table>'


def labels_of(chances: Sequence[Chance]) -> dict[str, float]:
    """Return the classes as the label component takes them."""
    return {chance.name: chance.probability for chance in chances}


def link_to(network: str, asks: Sequence[Ask]) -> str:
    """Return the query of a link that opens the app with the same questions."""
    first = asks[0]
    return "?" + urlencode(
        {
            "network": network,
            "target": first.target,
            "against": first.against,
            "methods": ";".join(a.method for a in asks),
        }
    )
