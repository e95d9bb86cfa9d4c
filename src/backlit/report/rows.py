"""A figure of matplotlib with a row for each image: the image, the map with its colour bar, the map over the image, the parts."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from backlit._errors import InputError, check, is_number, is_word
from backlit.attribution import Attribution
from backlit.report.canvas import plain
from backlit.report.card import class_of
from backlit.report.figure import render_image, scale_text
from backlit.report.kinds import LEVELS, PALETTES, Palette, limit_of, title_of
from backlit.report.panels import Panels, as_bytes, shown_inputs
from backlit.report.planes import as_planes
from backlit.report.trust import Trust, trust

_TITLE = 34  # letters of a title: more would run into the next one
_LABEL = 48  # letters of a line under a map
_WARNING = "#964800"


@dataclass(frozen=True)
class Look:
    """How the rows are drawn.

    Attributes:
        class_names: A name for each output of the network; None takes the explanation's own labels.
        scale: Where the colours end: "own", each map at its own; "shared", all at the largest of these; or a number.
        percentile: Of a map's magnitude: its own limit.
        parts: Also show the parts.
        opacity: Of the overlay, from 0 to 1.
    """

    class_names: Sequence[str] | None = None
    scale: float | Literal["own", "shared"] = "own"
    percentile: float = 99.5
    parts: bool = True
    opacity: float = 0.85

    def __post_init__(self) -> None:
        known = is_word(self.scale, ("own", "shared")) or (is_number(self.scale) and float(self.scale) >= 0)
        check(known, "scale", self.scale, "'own', 'shared', or a number from 0")
        check(is_number(self.opacity) and 0 <= self.opacity <= 1, "opacity", self.opacity, "from 0 to 1")
        check(
            is_number(self.percentile) and 0 < self.percentile <= 100,
            "percentile",
            self.percentile,
            "above 0 and at most 100",
        )


def draw(explanation: Attribution, images: Tensor | None, look: Look, into: Figure | None = None) -> Figure:
    """Draw a figure with a row per image: the image, the map, the map over the image, and each part.

    Parts are drawn in the map's colours; those whose names begin with "mask" hold shares from 0 to 1, drawn black to white.
    A map that is near nothing is drawn faint, and says why.

    Args:
        explanation: The maps.
        images: (n, c, h, w) in [0, 1] to show; None takes the network's inputs.
        look: How to draw.
        into: The empty figure to draw into, such as a window's; None for a new one.

    Raises:
        InputError: If there is no image, or an argument does not fit.
    """
    if not len(explanation):
        raise InputError("the attribution must hold at least one image to be drawn, but is empty.")
    explanation = as_planes(explanation)
    shown = _pictures(explanation, images)
    named = _named(explanation, look.class_names)
    columns = 1 + (shown is not None) * 2 + (len(explanation.parts) if look.parts else 0)
    figure = Figure() if into is None else into
    figure.set_size_inches(2.6 * columns, 2.9 * len(explanation))
    figure.set_layout_engine("constrained")
    axes = figure.subplots(len(explanation), columns, squeeze=False)
    limits = _limits(explanation, look)
    for i, cells in enumerate(axes):
        verdict = trust(named[i])
        picture = None if shown is None else shown[i]
        _draw_row(cells, Panels(named[i], picture, limits[i][0], verdict.faintness), verdict, look, (i, limits[i][1]))
    return figure


def _draw_row(
    cells: Sequence[Axes], panels: Panels, verdict: Trust, look: Look, place: tuple[int, float | None]
) -> None:
    """Draw one image's row; ``place`` is its number, and the percentile that its colour limit is, if it is one."""
    row = iter(cells)
    if panels.photo is not None:
        _picture(next(row), as_bytes(panels.photo), f"image {place[0]}")
    _draw_map(next(row), panels, verdict, place[1])
    if panels.photo is not None:
        _picture(next(row), panels.overlay(look.opacity), "over the image")
    for name, part in panels.explanation.parts.items() if look.parts else ():
        axis = next(row)
        if name.startswith("mask"):  # a share of each pixel, not in the map's unit
            _picture(axis, render_image(part[0]), name)
            axis.set_xlabel("black hides, white keeps", fontsize=7)
        else:
            _picture(axis, _part(panels, part), name)
            axis.set_xlabel("in the map's colours", fontsize=7)


def _draw_map(axis: Axes, panels: Panels, verdict: Trust, percentile: float | None) -> None:
    """Draw the map with its colour bar; one that says nothing below 0 has a bar from 0 up."""
    one, scale, palette = panels.explanation, panels.scale, panels.palette
    _title(axis, f"{title_of(one)}: {class_of(one)}")
    label = "\n".join(textwrap.wrap(" ".join(verdict.reasons), _LABEL))
    if panels.strength is None:
        axis.imshow(panels.map())
    else:
        norm = Normalize((-scale or -1) if palette.two_sided else 0, scale or 1)
        mappable = axis.imshow(
            panels.heat[0].numpy(), cmap=_colours(palette, panels.faded), norm=norm, interpolation="nearest"
        )
        if scale > 0:
            label = f"{_scale_text(scale, percentile, two_sided=palette.two_sided)}\n{label}".rstrip()
            axis.get_figure(root=True).colorbar(mappable, ax=axis, shrink=0.8)  # type: ignore[union-attr]
    axis.set_xlabel(label, fontsize=7, color=_WARNING if verdict.near_nothing else "black")


def _scale_text(scale: float, percentile: float | None, *, two_sided: bool) -> str:
    text = f"colour scale ±{scale:.3g}" if percentile is None else scale_text(scale, percentile)
    return text if two_sided else text.replace("±", "0 to ")


def _colours(palette: Palette, faded: float) -> ListedColormap:
    """A palette for matplotlib, as faint as the map."""
    return ListedColormap(palette.colour(np.linspace(-1 if palette.two_sided else 0, 1, LEVELS) * faded))


def _part(panels: Panels, part: Tensor) -> np.ndarray:
    """A part (1, c, h, w) in the map's colours; in both signs' if it has both and the map has not."""
    heat = part.sum(1)[0].detach().cpu().double()
    relative = (heat / panels.scale if panels.scale > 0 else torch.zeros_like(heat)).clamp(-1, 1).nan_to_num()
    two_sided = panels.palette.two_sided or not bool((heat < 0).any())
    palette = panels.palette if two_sided else PALETTES[None]
    return as_bytes(palette.colour(relative.numpy() * panels.faded))


def _limits(explanation: Attribution, look: Look) -> list[tuple[float, float | None]]:
    """The colour limit of each image's map, and the percentile of its magnitude that this is; None of another limit."""
    if isinstance(look.scale, (int, float)):
        return [(float(look.scale), None)] * len(explanation)
    own: list[tuple[float, float | None]] = [limit_of(one, look.percentile) for one in explanation]
    return own if look.scale == "own" else [(max(limit for limit, _ in own), None)] * len(own)


def _named(explanation: Attribution, class_names: Sequence[str] | None) -> Attribution:
    """The explanation with these names for its targets."""
    if class_names is None:
        return explanation
    names, most = list(class_names), int(explanation.target.max())
    if isinstance(class_names, str) or len(names) <= most:
        raise InputError(
            f"class_names must have a name for each output of the network, and at least {most + 1}, but has {len(names)}."
        )
    return replace(explanation, labels=tuple(names[k] for k in explanation.target.tolist()))


def _picture(axis: Axes, picture: np.ndarray, title: str) -> None:
    axis.imshow(picture, interpolation="nearest")
    _title(axis, title)


def _title(axis: Axes, title: str) -> None:
    axis.set_title(_shortened(title).replace("$", r"\$"), fontsize=9)
    axis.set_xticks([])
    axis.set_yticks([])


def _shortened(title: str) -> str:
    title = plain(title)
    return title if len(title) <= _TITLE else f"{title[: _TITLE - 1].rstrip()}…"


def _pictures(explanation: Attribution, images: Tensor | None) -> Tensor | None:
    if images is None:
        found = [shown_inputs(one) for one in explanation]
        return None if explanation.inputs is None else torch.stack([x for x in found if x is not None])
    if images.dim() != 4 or len(images) != len(explanation):
        raise InputError(
            f"images must be (n, c, h, w) with n = {len(explanation)}, but have shape {tuple(images.shape)}."
        )
    if not images.is_floating_point() or not bool(((images >= 0) & (images <= 1)).all()):
        raise InputError(
            f"images must hold pixels from 0 to 1, but are {images.dtype} from {images.min():.4g} to {images.max():.4g}. "
            "Divide 8-bit pixels by 255, and undo the normalisation of network inputs with Preprocess.restore."
        )
    return F.interpolate(images.float(), explanation.values.shape[-2:], mode="bilinear", antialias=True)
