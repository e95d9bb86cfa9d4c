"""Pictures of 8 bits that show some pixels of an image: how they are filled in, and how much information they hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from io import BytesIO

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

POINTS = 1000  # of a curve, and one more


@dataclass(frozen=True, eq=False)
class Levels:
    """A way from a network's input to pictures of 8 bits and back: an input is a picture in 0 to 1, less ``mean``, over ``std``.

    Attributes:
        mean: A number for each channel (c, 1, 1).
        std: A number for each channel (c, 1, 1).
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, image: Float[Tensor, "c h w"], mean: Sequence[float] | None, std: Sequence[float] | None) -> Levels:
        """Take a normalisation, or the image's own range for 0 to 1 where there is none."""
        if mean is None or std is None:
            low, high = image.double().aminmax()
            span = torch.where(high > low, high - low, 1)
            return cls((-low / span).view(1, 1, 1), (1 / span).view(1, 1, 1))
        given = (torch.tensor(values, dtype=torch.float64, device=image.device) for values in (mean, std))
        return cls(*(values.view(-1, 1, 1) for values in given))

    def picture(self, image: Float[Tensor, "c h w"]) -> np.ndarray:
        """Return the picture (h, w, c), uint8."""
        levels = (255 * (image.double() * self.std + self.mean)).round().clamp(0, 255)
        return levels.to(torch.uint8).permute(1, 2, 0).cpu().numpy()

    def images(self, pictures: Sequence[np.ndarray]) -> Float[Tensor, "j c h w"]:
        """Return the inputs that pictures are."""
        levels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).to(self.mean)
        return (levels / 255 - self.mean) / self.std


def entropy(picture: np.ndarray) -> int:
    """Estimate the information of a picture (h, w, c), uint8: the bytes of its lossless WebP at the greatest effort."""
    with BytesIO() as buffer:
        Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture).save(
            buffer, format="webp", lossless=True, quality=100
        )
        return buffer.tell()


def filled(picture: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Interpolate a picture (h, w, c) from its known pixels (h, w) and its corners, linearly in Delaunay's triangles."""
    known = known.copy()
    known[[0, 0, -1, -1], [0, -1, 0, -1]] = True
    if known.all():
        return picture
    # One triangulation for all channels.
    surface = import_module("scipy.interpolate").LinearNDInterpolator(np.argwhere(known), picture[known].astype(float))
    made = picture.copy()
    made[~known] = np.round(surface(np.argwhere(~known)).astype(np.float32))
    return made


def information_curve(entropies: Sequence[float], scores: Sequence[float], *, monotone: bool) -> np.ndarray:
    """Return the score at 1,001 shares of the information, from 0 to 1, linear between the pictures.

    Args:
        entropies: Of the pictures that show more and more, 0 for the one that shows nothing and 1 for the image.
        scores: Of the same pictures, in the same unit.
        monotone: Whether a picture counts with the largest score up to it.
    """
    x, y = (np.clip(np.asarray(v, float), 0, 1) for v in (entropies, scores))
    y = np.maximum.accumulate(y) if monotone else y
    x, y = np.append(x, [0, 1]), np.append(y, [0, 1])
    order = np.argsort(x, kind="stable")  # a picture that shows more may take fewer bytes
    curve = np.interp(np.arange(POINTS + 1) / POINTS, x[order], y[order])
    curve[-1] = 1
    return curve


def area(curve: np.ndarray) -> float:
    """Compute the area under a curve of equal steps from 0 to 1."""
    return float((curve[1:] + curve[:-1]).mean() / 2)
