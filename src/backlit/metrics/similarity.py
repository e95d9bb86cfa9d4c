"""How alike two maps are: structural similarity, and distance after scaling."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from backlit._errors import InputError

_WINDOW, _SIGMA = 11, 1.5


def scaled(heat: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n 1 h w"]:
    """Divide each map by its own largest magnitude; a map of zeros stays one."""
    largest = heat.abs().amax((1, 2, 3), keepdim=True)
    return heat / torch.where(largest > 0, largest, 1)


def ssim(a: Float[Tensor, "n 1 h w"], b: Float[Tensor, "n 1 h w"], span: float) -> Float[Tensor, " n"]:
    """Compute structural similarity (Wang et al. 2004, Eq. 13; Gaussian window of 11 pixels, sigma 1.5), mean over whole windows.

    Args:
        a: Maps.
        b: Maps of the same size.
        span: The range of their values, from the smallest to the largest possible.

    Raises:
        InputError: If the maps are smaller than the window.
    """
    if min(a.shape[-2:]) < _WINDOW:
        raise InputError(f"maps must be at least {_WINDOW} pixels a side for SSIM, but are {tuple(a.shape[-2:])}.")
    offsets = torch.arange(_WINDOW, dtype=a.dtype, device=a.device) - _WINDOW // 2
    line = torch.exp(-(offsets**2) / (2 * _SIGMA**2))
    line = (line / line.sum()).view(1, 1, 1, -1)

    def local(x: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(x, line), line.transpose(2, 3))

    mean_a, mean_b = local(a), local(b)
    variance_a, variance_b = local(a * a) - mean_a**2, local(b * b) - mean_b**2
    covariance = local(a * b) - mean_a * mean_b
    luminance, contrast = (0.01 * span) ** 2, (0.03 * span) ** 2
    local_ssim = (2 * mean_a * mean_b + luminance) * (2 * covariance + contrast)
    local_ssim = local_ssim / ((mean_a**2 + mean_b**2 + luminance) * (variance_a + variance_b + contrast))
    return local_ssim.mean((1, 2, 3))
