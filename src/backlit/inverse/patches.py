"""What a kernel reads of a map."""

from __future__ import annotations

from torch import Tensor

from backlit.capture.geometry import Geometry, Sizes


def patches(x: Tensor, window: Geometry, stride: Sizes, groups: int) -> Tensor:
    """Return what a kernel reads of a padded map (n, c, ...) at each place: (n, g, places, c / g times taps)."""
    dims = len(window.kernel)
    for i in range(dims):
        x = x.unfold(2 + i, window.reach[i] + 1, stride[i])[..., :: window.dilation[i]]
    x = x.unflatten(1, (groups, -1)).flatten(3, 2 + dims)  # (n, g, c, places, *taps)
    return x.transpose(2, 3).flatten(3)
