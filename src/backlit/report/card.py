"""The card of one map: photograph, map, overlay, whose class it is, how strong it is, and how far to trust it."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from torch import Tensor

from backlit._errors import InputError, is_number, nearest
from backlit._options import default_of
from backlit.attribution import Attribution
from backlit.report.canvas import INK, SOFT, WARNING, WARNING_GROUND, Canvas, fitted, line_height, width_of, wrapped
from backlit.report.kinds import check_one, methods_in, title_of
from backlit.report.panels import Panels, as_bytes, check_picture
from backlit.report.planes import as_planes
from backlit.report.scales import scales
from backlit.report.trust import Trust, is_contrast, score_word, trust

Style = Literal["card", "overlay", "jet", "bare"]
_WEAK = 0.99  # of the scale: a map that reaches less of it says so
_LEAST_TEXT, _MOST_TEXT = 13, 28  # pixels
_SLOT = 18  # letters' heights that a panel is wide at least
_ROWS = 40  # letters' heights that head, bar and foot take at most
_HIDDEN = ("chunk", "seed", "callback", "progress", "rules", "fitted")  # options that a subtitle does not list


def card(
    explanation: Attribution, picture: Tensor | None = None, *, scale: float | None = None, style: Style = "card"
) -> np.ndarray:
    """Draw one map so that it can be shown and trusted, uint8 (H, W, 3).

    Each picture has twice the input's size, 256 to 1,024 pixels on its longer side. A map that is near nothing is drawn
    faded, and the card says why (:func:`backlit.report.trust.trust`); so does a strip under the styles "overlay" and "jet".

    Args:
        explanation: Of one image.
        picture: The photograph as the network sees it, (c, h, w) in [0, 1], at any size: ``Preprocess.picture(path)``. None
            shows the network's input, with its own colours if the method was given a :class:`~backlit.LoadedModel`.
        scale: Where the colours end; None takes the 99.5th percentile of this map's magnitude. See :func:`scales`.
        style: "card"; "overlay", the map over the photograph; "jet", the same in jet colours, of what is above 0; "bare",
            the map alone.

    Raises:
        InputError: If the explanation is of several images, or an argument cannot be used.
    """
    check_one(explanation)
    explanation = as_planes(explanation)
    if style not in get_args(Style):
        known = ", ".join(get_args(Style))
        raise InputError(f"style must be one of {known}, but is {style!r}.{nearest(str(style), get_args(Style))}")
    if scale is not None and not (is_number(scale) and scale >= 0):
        raise InputError(f"scale must be a number from 0, or None for the map's own, but is {scale!r}.")
    picture = None if picture is None else check_picture(picture, explanation)
    verdict = trust(explanation)
    panels = Panels(explanation, picture, scale, verdict.faintness)
    if style == "bare":
        return panels.map()
    if style == "card":
        return _Card(panels, verdict).drawn()
    bare = panels.overlay() if style == "overlay" else panels.jet()
    return _with_strip(bare, verdict) if verdict.near_nothing else bare


def class_of(explanation: Attribution) -> str:
    """The name of the target's class; its index where no name is known."""
    return explanation.labels[0] if explanation.labels else f"class {int(explanation.target[0])}"


def numbers_of(explanation: Attribution) -> str:
    """Probability, where there is one, and logit."""
    chance = (
        "" if explanation.probability is None else f"p = {probability_text(float(explanation.probability[0]))}     "
    )
    score = score_word(explanation).replace("logits' difference", "logit difference")
    return f"{chance}{score} = {float(explanation.output[0]):.4g}".replace("= -", "= −")


def probability_text(p: float) -> str:
    """A probability with two decimals; a small one, which they would make 0.00, with its size beside it."""
    return f"{p:.2f}" if p >= 0.005 or p == 0 else f"{p:.2f} ({p:.0e})"


def made_by(explanation: Attribution) -> str:
    """Method, its options that are not the defaults, and the network."""
    facts = [title_of(explanation)]
    for depth, (method, options) in enumerate(methods_in(explanation)):
        told = {k: v for k, v in options.items() if k not in _HIDDEN and _told(v) and v != _default(method, k)}
        facts += [f"{'of.' * depth}{k}={v}" for k, v in told.items()]
    network = explanation.provenance.get("model")
    return ", ".join(facts) + (f"   ·   {network}" if network else "")


def _told(value: Any) -> bool:
    return isinstance(value, (bool, int, float, str))


def _default(method: Any, name: str) -> Any:
    return default_of(method, name)


class _Card:
    """The layout of a card: a head, three panels side by side, the colour bar under the map, and the foot.

    Each part is drawn below a row of pixels and says where the next may begin.
    """

    def __init__(self, panels: Panels, verdict: Trust) -> None:
        self._panels, self._verdict = panels, verdict
        self._one = panels.explanation
        height, width = panels.size
        self._size = min(max(round(max(height, width) / 26), _LEAST_TEXT), _MOST_TEXT)
        self._slot = max(width, _SLOT * self._size)  # room for the bar under a narrow picture, too
        self._lefts = [self._size + i * (self._slot + self._size) for i in range(1 if panels.photo is None else 3)]
        self._room = self._lefts[-1] + self._slot - self._size
        self._surface = Canvas(self._room + 2 * self._size, height + _ROWS * self._size)

    def drawn(self) -> np.ndarray:
        """The card, cut to the height that it takes."""
        top = self._head(self._size)
        top = self._pictures(top)
        top = self._bar(top + self._size // 2)
        return self._surface.pixels(self._foot(top + self._size // 2) + self._size)

    def _head(self, top: int) -> int:
        """The class and its numbers on one line where there is room, what made the map on the next."""
        large, size, left = round(self._size * 1.5), self._size, self._size
        numbers = numbers_of(self._one)
        taken = width_of(numbers, size)
        beside = taken < self._room // 2
        room = self._room - taken - 2 * size if beside else self._room
        self._surface.text(fitted(class_of(self._one), large, room, bold=True), left, top, large, bold=True)
        if beside:
            self._surface.text(numbers, left + self._room, top + (large - size) // 2, size, align="right")
        top += line_height(large)
        if not beside:
            self._surface.text(fitted(numbers, size, self._room), left, top, size)
            top += line_height(size)
        self._surface.text(fitted(made_by(self._one), size, self._room), left, top, size, colour=SOFT)
        return top + line_height(size) + size // 2

    def _pictures(self, top: int) -> int:
        height, width = self._panels.size
        photo = self._panels.photo
        shown = [self._panels.map()]
        if photo is not None:
            shown = [as_bytes(photo), *shown, self._panels.overlay()]
        for left, pixels in zip(self._lefts, shown, strict=True):
            left += (self._slot - width) // 2
            self._surface.put(pixels, left, top)
            self._surface.frame(left, top, width, height)
        return top + height

    def _bar(self, top: int) -> int:
        """Under the map: the colours, the numbers at their ends, and what the ends say; nothing of a map without colours."""
        size, palette, scale = self._size, self._panels.palette, self._panels.scale
        if scale == 0:
            return top
        left = self._lefts[len(self._lefts) // 2]
        width, height = self._slot, max(6, size * 2 // 3)
        self._surface.put(self._panels.bar(width, height), left, top)
        self._surface.frame(left, top, width, height)
        top += height + size // 4
        small = round(size * 0.85)
        sign = "+" * palette.two_sided
        low = f"{palette.below}  −{scale:.3g}" if palette.two_sided else "0"
        places = {"left": (left, low), "right": (left + width, f"{sign}{scale:.3g}  {palette.above}")}
        if palette.two_sided and all(width_of(text, small) < width // 2 - size for _, text in places.values()):
            places["middle"] = (left + width // 2, "0")
        for align, (x, text) in places.items():
            self._surface.text(text, x, top, small, colour=SOFT, align=align)
        return top + line_height(small)

    def _foot(self, top: int) -> int:
        """The warning of a map near nothing, the verdict, and the legend."""
        verdict, reasons = self._verdict, self._verdict.reasons
        if reasons:
            top = self._warning(" ".join(reasons), top)
        lines = [(verdict.word, verdict.account)] if not reasons else [("", verdict.account)]
        legend = self._panels.palette.legend
        if is_contrast(self._one):
            legend = legend.replace("the class", "the first class").replace("blue against it", "blue for the second")
        for bold, text in [*lines, ("", f"{legend} {self._scale_said()}")]:
            top = self._paragraph(bold, text, top)
        return top

    def _warning(self, text: str, top: int) -> int:
        size, left = self._size, self._size
        word = f"{self._verdict.word}  "
        start = width_of(word, size, bold=True)
        rows = wrapped(text, size, self._room - 2 * size - start)
        height = len(rows) * line_height(size) + size // 2
        self._surface.box(left, top, self._room, height, WARNING_GROUND)
        self._surface.text(word, left + size, top + size // 4, size, bold=True, colour=WARNING)
        for i, row in enumerate(rows):
            self._surface.text(row, left + size + start, top + size // 4 + i * line_height(size), size, colour=WARNING)
        return top + height + size // 2

    def _paragraph(self, bold: str, text: str, top: int) -> int:
        size, left = self._size, self._size
        start = width_of(f"{bold}  ", size, bold=True) if bold else 0
        self._surface.text(bold, left, top, size, bold=True)
        if start > self._room // 3:  # a narrow card
            start, top = 0, top + line_height(size)
        for row in wrapped(text, size, self._room - start) if text else []:
            self._surface.text(row, left + start, top, size, colour=INK if bold else SOFT)
            top += line_height(size)
        return top

    def _scale_said(self) -> str:
        """What the colours' ends are, and how far a map reaches on the scale of others."""
        (own, percentile), scale = self._panels.own, self._panels.scale
        if scale == 0 or own == 0:
            return ""
        if self._panels.given is None:
            return f"Full colour at its {'largest value' if percentile == 100 else '99.5th percentile'}."
        return "" if own >= _WEAK * scale else f"On the scale that it is shown on, this map reaches {own / scale:.0%}."


def _with_strip(picture: np.ndarray, verdict: Trust) -> np.ndarray:
    """The picture with the reasons why it is near nothing under it."""
    height, width = picture.shape[:2]
    size = min(max(round(max(height, width) / 30), _LEAST_TEXT), _MOST_TEXT)
    rows = wrapped(" ".join(verdict.reasons), size, width - size)
    surface = Canvas(width, height + len(rows) * line_height(size) + size // 2)
    surface.put(picture, 0, 0)
    surface.box(0, height, width, len(rows) * line_height(size) + size // 2, WARNING_GROUND)
    for i, row in enumerate(rows):
        surface.text(row, size // 2, height + size // 4 + i * line_height(size), size, colour=WARNING)
    return surface.pixels(height + len(rows) * line_height(size) + size // 2)


__all__ = ["Style", "card", "class_of", "made_by", "numbers_of", "probability_text", "scales"]
