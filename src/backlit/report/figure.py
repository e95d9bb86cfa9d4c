"""Maps as pictures: red speaks for the class, blue against it, white says nothing; the scale is always printed."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from backlit._errors import InputError
from backlit._files import write_whole
from backlit.attribution import Attribution

COLOURS = "RdBu_r"
_SHOWN = 256  # pixels: smaller pictures are enlarged to about this side


def colour(heatmap: Tensor, scale: float) -> np.ndarray:
    """The heatmap (1, h, w) in red and blue, symmetric about 0, as uint8 (h, w, 3); white where ``scale`` is 0."""
    values = heatmap[0].detach().float().cpu().numpy()
    relative = values / (2 * scale) + 0.5 if scale > 0 else np.full_like(values, 0.5)
    return (matplotlib.colormaps[COLOURS](np.clip(relative, 0, 1))[..., :3] * 255).round().astype(np.uint8)


def render_map(heatmap: Tensor, *, scale: float) -> np.ndarray:
    """The map alone, enlarged if it is small: uint8 (H, W, 3)."""
    return _enlarged(colour(heatmap, scale))


def render_overlay(image: Tensor, heatmap: Tensor, *, scale: float, opacity: float = 0.85) -> np.ndarray:
    """The map over the grey image, as uint8 (H, W, 3), enlarged if it is small.

    The stronger the map at a pixel, the more of the map shows, up to ``opacity``: weak pixels leave the image readable.

    Args:
        image: (c, h, w) in [0, 1].
        heatmap: (1, h, w).
        scale: Colour limit, ``Attribution.scale()``.
        opacity: Of the map at full strength, from 0 to 1.

    Raises:
        InputError: If image and heatmap differ in size, or the opacity is out of range.
    """
    if not 0 <= opacity <= 1:
        raise InputError(f"opacity must be from 0 to 1, but is {opacity!r}.")
    if image.shape[1:] != heatmap.shape[1:]:
        raise InputError(
            f"image must be as large as the map {tuple(heatmap.shape[1:])}, but is {tuple(image.shape[1:])}."
        )
    grey = grey_of(image)[..., None] * 0.4 + 0.55  # light and flat, so that both colours stand out
    strength = (
        (heatmap[0].detach().float().abs().cpu().numpy() / scale).clip(0, 1) if scale > 0 else np.zeros(grey.shape[:2])
    )
    alpha = opacity * np.sqrt(strength)[..., None]
    mixed = grey * 255 * (1 - alpha) + colour(heatmap, scale) * alpha
    return _enlarged(mixed.round().astype(np.uint8))


def grey_of(image: Tensor) -> np.ndarray:
    """Luminance (h, w) in [0, 1] of an image (c, h, w), c = 1 or 3 (the mean of channels otherwise)."""
    pixels = image.detach().float().cpu().clamp(0, 1)
    weights = torch.tensor([0.299, 0.587, 0.114]) if len(pixels) == 3 else torch.full((len(pixels),), 1 / len(pixels))
    return torch.tensordot(weights, pixels, 1).numpy()


def render_image(image: Tensor) -> np.ndarray:
    """The image (c, h, w) in [0, 1] itself, as uint8 (H, W, 3), enlarged if it is small."""
    pixels = image if len(image) == 3 else torch.from_numpy(grey_of(image))[None].expand(3, -1, -1)
    return _enlarged((pixels.detach().float().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())


def _enlarged(picture: np.ndarray) -> np.ndarray:
    factor = max(1, _SHOWN // max(picture.shape[:2]))
    return picture.repeat(factor, 0).repeat(factor, 1)


def save_png(path: str | Path, picture: np.ndarray) -> None:
    """Write a uint8 picture (H, W, 3) as PNG.

    Raises:
        FileError: If it cannot be written.
    """
    write_whole(path, png(picture))


def png(picture: np.ndarray) -> bytes:
    """A uint8 picture (H, W, 3) as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def scale_text(scale: float, percentile: float) -> str:
    """What a reader must know of the colours."""
    return (
        f"colour scale ±{scale:.3g} ({percentile:g}th percentile of |map|)"
        if scale > 0
        else "the map is zero everywhere"
    )


def draw(explanation: Attribution, images: Tensor | None, *, percentile: float, parts: bool) -> Figure:
    """A figure with a row per image: the image, the map, the map over the image, and each part.

    Args:
        explanation: The maps.
        images: (n, c, h, w) in [0, 1] to show; None takes the network's inputs, stretched to [0, 1].
        percentile: Of the magnitude of each row's map: where the colours end.
        parts: Also show the parts.
    """
    shown = _pictures(explanation, images)
    names = list(explanation.parts) if parts else []
    columns = 1 + (shown is not None) * 2 + len(names)
    figure = Figure(figsize=(2.6 * columns, 2.9 * len(explanation)), layout="constrained")
    axes = figure.subplots(len(explanation), columns, squeeze=False)
    heat = explanation.heatmap()
    for i, row in enumerate(axes):
        scale = explanation[i].scale(percentile)
        limits = Normalize(-scale or -1, scale or 1)
        cells = iter(row)
        if shown is not None:
            _picture(next(cells), render_image(shown[i]), f"image {i}")
        axis = next(cells)
        mappable = axis.imshow(
            heat[i, 0].detach().float().cpu().numpy(), cmap=COLOURS, norm=limits, interpolation="nearest"
        )
        _bare(axis, f"{explanation.provenance.get('method', 'map')}, class {int(explanation.target[i])}")
        axis.set_xlabel(scale_text(scale, percentile), fontsize=7)
        figure.colorbar(mappable, ax=axis, shrink=0.8)
        if shown is not None:
            _picture(next(cells), render_overlay(shown[i], heat[i], scale=scale), "over the image")
        for name in names:
            part = explanation.parts[name][i].sum(0, keepdim=True)
            _picture(next(cells), render_map(part, scale=scale), name)
    return figure


def _picture(axis: Axes, picture: np.ndarray, title: str) -> None:
    axis.imshow(picture, interpolation="nearest")
    _bare(axis, title)


def _bare(axis: Axes, title: str) -> None:
    axis.set_title(title, fontsize=9)
    axis.set_xticks([])
    axis.set_yticks([])


def _pictures(explanation: Attribution, images: Tensor | None) -> Tensor | None:
    if images is not None:
        if images.dim() != 4 or len(images) != len(explanation):
            raise InputError(
                f"images must be (n, c, h, w) with n = {len(explanation)}, but have shape {tuple(images.shape)}."
            )
        return F.interpolate(images.float(), explanation.values.shape[-2:], mode="bilinear", antialias=True)
    if explanation.inputs is None:
        return None
    x = explanation.inputs.float()
    low, high = x.flatten(1).amin(1), x.flatten(1).amax(1)
    return (x - low[:, None, None, None]) / (high - low).clamp(min=1e-12)[:, None, None, None]
