"""Where a network's features end."""

from __future__ import annotations

from collections.abc import Sequence

from backlit.capture.primitives import CONVOLUTIONS
from backlit.capture.sites import Site


def last_features(maps: Sequence[Site]) -> Site:
    """Of sites with feature maps, what the last convolution ends in before a pool: its activation, residual add or concat."""
    start = max((i for i, s in enumerate(maps) if s.primitive in CONVOLUTIONS), default=len(maps) - 1)
    last = maps[start]
    for site in maps[start + 1 :]:
        if "pool" in site.primitive or site.output_shape[2:] != last.output_shape[2:]:
            break
        last = site
    return last
