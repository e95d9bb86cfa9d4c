"""The pictures of a card: the photograph, the map in its colours, the map over the photograph, and the colour bar."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import matplotlib
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from backlit._errors import InputError
from backlit.attribution import Attribution
from backlit.report.kinds import Palette, drawn, limit_of, palette_of

ENLARGED = 2  # a panel's pixels for each of the input's
LEAST_SIDE, MOST_SIDE = 256, 1024  # pixels of a panel's longer side
_COARSE = 64  # pixels: up to this side single pixels are to be seen
_ASPECT = 0.02  # how far a picture's shape may be from the input's: more is another crop
_COLOUR_LEFT = 0.7  # of the photograph under a map: the rest is grey, so that red and blue stand out on any of them
_LIGHT = 0.12  # how much lighter it is there
_ROUGH = 0.1  # of a map's strength: what neighbours differ by on average in a map of single pixels, not of regions
_FIRM = 0.7  # below 1, weak pixels of a map of single pixels are firmer than in proportion
_REGIONS = 0.72  # of the opacity: a map of regions covers what it is about, and is to let it be seen
_JET = 0.5  # of the map in jet colours, as it is used elsewhere


@dataclass(frozen=True, eq=False)
class Panels:
    """One map, prepared to be drawn.

    Attributes:
        explanation: Of one image.
        picture: The photograph (c, h, w) in [0, 1], or None.
        given: The colour limit, where another one than the map's own is asked for.
        faintness: How much of full colour the map may not reach: it is drawn weaker, unless its scale makes it so already.
    """

    explanation: Attribution
    picture: Tensor | None
    given: float | None = None
    faintness: float = 0.0

    @cached_property
    def palette(self) -> Palette:
        """The colours of this kind of map."""
        return palette_of(self.explanation)

    @cached_property
    def size(self) -> tuple[int, int]:
        """Height and width of a panel: twice the input's, within limits."""
        height, width = self.explanation.values.shape[-2:]
        longer = max(height, width)
        factor = min(max(ENLARGED * longer, LEAST_SIDE), MOST_SIDE) / longer
        return max(1, round(height * factor)), max(1, round(width * factor))

    @cached_property
    def coarse(self) -> bool:
        """Tell whether there are so few pixels that each is to be seen; a smooth map is drawn smoothly all the same."""
        return max(self.explanation.values.shape[-2:]) <= _COARSE and self.palette.name != "one-sided"

    @cached_property
    def own(self) -> tuple[float, float]:
        """The map's own colour limit, and the percentile of its magnitude that this is."""
        return limit_of(self.explanation)

    @property
    def scale(self) -> float:
        """The colour limit; with 0, nothing is drawn."""
        return self.own[0] if self.given is None else self.given

    @cached_property
    def heat(self) -> Tensor:
        """The number that each pixel is drawn by, (1, h, w)."""
        return drawn(self.explanation)[0].detach().cpu().double()

    @cached_property
    def faded(self) -> float:
        """Return what strengths are multiplied by, so that the strongest leaves the faintness free."""
        peak = self.own[0] / self.scale if self.scale > 0 else 0.0
        return min(1.0, (1 - self.faintness) / peak) if 0 < peak < 1 else 1 - self.faintness

    @cached_property
    def strength(self) -> np.ndarray | None:
        """The map over its scale (h, w), from -1 to 1, at the panel's size; None of one with NaN or infinity.

        It is enlarged before it gets its colours: colours would be cut into bands.
        """
        if not bool(self.heat.isfinite().all()):
            return None
        relative = self.heat / self.scale if self.scale > 0 else torch.zeros_like(self.heat)
        return resized(relative, self.size, coarse=self.coarse)[0].clamp(-1, 1).numpy() * self.faded

    @cached_property
    def smooth(self) -> bool:
        """Tell whether the map is of regions, in which neighbouring pixels are alike."""
        heat = self.heat[0]
        steps = [(heat[1:] - heat[:-1]).abs(), (heat[:, 1:] - heat[:, :-1]).abs()]
        changes = torch.cat([s.flatten() for s in steps])
        return bool(len(changes) and changes.mean() < _ROUGH * heat.abs().mean())

    @cached_property
    def photo(self) -> np.ndarray | None:
        """The photograph (h, w, 3) in [0, 1] at the panel's size; None where there is none."""
        image = self.picture if self.picture is not None else shown_inputs(self.explanation)
        if image is None:
            return None
        small = max(image.shape[-2:]) <= _COARSE
        return resized(as_rgb(image).double(), self.size, coarse=small).clamp(0, 1).permute(1, 2, 0).numpy()

    def map(self) -> np.ndarray:
        """The map alone, uint8 (h, w, 3); of one with NaN, grey stripes."""
        return as_bytes(_stripes(self.size) if self.strength is None else self.palette.colour(self.strength))

    def overlay(self, opacity: float = 0.9) -> np.ndarray:
        """The map over the photograph in colour, uint8: the weaker the map at a pixel, the more of the photograph shows."""
        if self.photo is None or self.strength is None:
            return self.map() if self.photo is None else as_bytes(self.photo)
        grey = self.photo @ np.array([0.299, 0.587, 0.114])
        ground = _COLOUR_LEFT * self.photo + (1 - _COLOUR_LEFT) * grey[..., None]
        ground = ground * (1 - _LIGHT) + _LIGHT
        strength = np.abs(self.strength)[..., None]
        alpha = opacity * (_REGIONS * strength if self.smooth else strength**_FIRM)
        return as_bytes(ground * (1 - alpha) + self.palette.ink(self.strength) * alpha)

    def jet(self) -> np.ndarray:
        """Return what is above 0 in jet colours, half over the photograph, uint8, as class activation maps are often shown."""
        if self.strength is None:
            return self.overlay()
        colours = matplotlib.colormaps["jet"](np.clip(self.strength, 0, 1))[..., :3]
        share = _JET * self.faded
        return as_bytes(colours if self.photo is None else (1 - share) * self.photo + share * colours)

    def bar(self, width: int, height: int) -> np.ndarray:
        """The colours from one end of the scale to the other, as faint as the map's, uint8 (height, width, 3)."""
        ends = np.linspace(-1 if self.palette.two_sided else 0, 1, width) * self.faded
        return as_bytes(np.broadcast_to(self.palette.colour(ends), (height, width, 3)))


def shown_inputs(explanation: Attribution) -> Tensor | None:
    """The input (c, h, w) of one image as pixels in [0, 1]: by the bounds that were recorded, else stretched to its own."""
    if explanation.inputs is None:
        return None
    x = explanation.inputs[0].detach().cpu().double()
    bounds = explanation.provenance.get("pixels")
    if bounds is not None and all(len(bound) == len(x) for bound in bounds):
        low, high = (torch.tensor(bound, dtype=x.dtype)[:, None, None] for bound in bounds)
    else:
        low, high = x.amin(), x.amax()
    return ((x - low) / (high - low).clamp(min=1e-12)).nan_to_num().clamp(0, 1)


def as_rgb(image: Tensor) -> Tensor:
    """An image (c, h, w) as one of three channels: grey is repeated, a fourth channel lies on white, of others the mean."""
    image = image.detach().cpu()
    if len(image) == 4:
        return image[:3] * image[3:] + (1 - image[3:])
    return image if len(image) == 3 else image.double().mean(0, keepdim=True).expand(3, -1, -1)


def check_picture(picture: Tensor, explanation: Attribution) -> Tensor:
    """The picture, if it can be what the network saw.

    Raises:
        InputError: If it is no image of pixels from 0 to 1, or has another shape than the map.
    """
    if not isinstance(picture, Tensor) or picture.dim() != 3 or not picture.is_floating_point():
        found = (
            f"{picture.dtype} of shape {tuple(picture.shape)}"
            if isinstance(picture, Tensor)
            else type(picture).__name__
        )
        raise InputError(
            f"picture must be a floating-point tensor (c, h, w) of pixels from 0 to 1, but is {found}. Use "
            "Preprocess.picture(path), which is what the network sees."
        )
    if not bool(((picture >= 0) & (picture <= 1)).all()):
        raise InputError(
            f"picture must hold pixels from 0 to 1, but holds {float(picture.min()):.4g} to {float(picture.max()):.4g}. Undo the "
            "normalisation of network inputs with Preprocess.restore."
        )
    (height, width), (rows, columns) = explanation.values.shape[-2:], picture.shape[-2:]
    if abs(width / height * rows / columns - 1) > max(_ASPECT, 1 / min(rows, columns, height, width)):
        raise InputError(
            f"picture must have the shape of the map, {height} x {width}, at any size, but is {rows} x {columns}: another crop "
            "would put the map in the wrong place. Use Preprocess.picture(path), which is what the network sees."
        )
    return picture


def resized(planes: Tensor, size: tuple[int, int], *, coarse: bool) -> Tensor:
    """Planes (c, h, w) at another size: smoothly, or as squares where single pixels are to be seen."""
    if tuple(planes.shape[-2:]) == size:
        return planes
    if coarse:
        return F.interpolate(planes[None], size, mode="nearest-exact")[0]
    return F.interpolate(planes[None], size, mode="bilinear", antialias=True)[0]


def as_bytes(colours: np.ndarray) -> np.ndarray:
    """Colours from 0 to 1 as uint8."""
    return np.rint(np.clip(colours, 0, 1) * 255).astype(np.uint8)


def _stripes(size: tuple[int, int]) -> np.ndarray:
    rows, columns = np.indices(size)
    return np.where(((rows + columns) // 12 % 2 == 0)[..., None], 0.86, 0.78) * np.ones(3)
