"""What a map accounts for: its sum beside the difference of the score that it promises to share out."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(values: Tensor) -> Tensor:
    """Return values in single precision at least, for sums."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def account(values: tuple[Tensor, ...], output: Tensor, start: Tensor) -> dict[str, Tensor]:
    """Compare the maps' sum with the score's difference from where the path or the comparison starts.

    Args:
        values: Maps (t, n, c, h, w), one for each input.
        output: The targets' scores of the images, (t, n).
        start: The same of their baselines.

    Returns:
        "total" (the sum of the map), "difference", "ratio" and "gap" (the difference less the sum), (t, n) each. Where
        nothing but rounding is to be shared out, and is, the ratio is 1.
    """
    total = torch.stack([wide(v).flatten(2).sum(2) for v in values]).sum(0)
    difference = wide(output) - start
    ratio = torch.where(difference == 0, 1 + total, total / torch.where(difference == 0, 1, difference))
    rounding = 16 * torch.finfo(output.dtype).eps * torch.maximum(wide(output).abs(), wide(start).abs())
    nothing = (difference.abs() <= rounding) & (total.abs() <= rounding)
    ratio = torch.where(nothing, 1, ratio)
    return {"total": total, "difference": difference, "ratio": ratio, "gap": difference - total}
