"""Which value the inverted part begins with: the input, or the last feature map of the features."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from torch import Tensor, nn

from backlit._errors import InputError, UnsupportedOp, nearest
from backlit._features import find_features
from backlit.capture.sites import Site, Trace

FEATURES, POOLED = "features", "pooled"


def feature_site(
    model: nn.Module, inputs: tuple[Tensor, ...], trace: Trace, start: str | None, reaches: Callable[[Site], bool]
) -> Site:
    """Return the site whose output a module path or a site's name means.

    "features", or None, is the last feature map on the way to the logits, "pooled" that map behind the last pool that leaves
    it more than one position. ``reaches`` says of a site of the ``trace`` whether the logits depend on it.

    Raises:
        InputError: If no module or site of that name has an output with channels, or if none of them reaches the logits.
        UnsupportedOp: If None is asked for and the network has no feature map (n, c, h, w).
    """
    if start in (None, FEATURES, POOLED):
        last = _last_map(model, inputs)
        return last if start != POOLED else _pooled(trace, last, reaches)
    shaped = [s for s in trace if len(s.output_shape) >= 2 and s.primitive != "dropout"]
    matching = [s for s in shaped if start in (s.name, s.module) or s.module.startswith(f"{start}.")]
    if not matching:
        known = list(dict.fromkeys([*(s.module for s in shaped if s.module), *(s.name for s in shaped), "input"]))
        raise InputError(
            "start must be 'input', 'features', 'pooled', the path of a module, or a site that `backlit trace` lists, but is "
            f"{start!r}. The last ones are {', '.join(known[-7:-1])}.{nearest(start, known)}"
        )
    on_the_way = [s for s in matching if reaches(s)]
    if not on_the_way:
        raise InputError(
            f"start must lie on the way to the logits, but nothing of {matching[-1]} reaches them. Use "
            "start='features' for the last feature map that does."
        )
    return on_the_way[-1]


def _pooled(trace: Trace, last: Site, reaches: Callable[[Site], bool]) -> Site:
    """Return the last pool behind the last feature map that leaves more than one position; the map itself if there is none."""
    behind = list(trace)[[site.name for site in trace].index(last.name) + 1 :]
    pools = [
        s for s in behind if s.has("pool") and len(s.output_shape) == 4 and prod(s.output_shape[2:]) > 1 and reaches(s)
    ]
    return pools[-1] if pools else last


def _last_map(model: nn.Module, inputs: tuple[Tensor, ...]) -> Site:
    features = find_features(model, inputs)
    try:
        node = features.last(range(features.classes))
    except UnsupportedOp as error:
        raise UnsupportedOp(
            "The network has no feature map (n, c, h, w) of more than one position to begin with. Say where: start='input', "
            f"or a module's path. ({error})"
        ) from error
    layout = features.layout(node)
    if len(node.site.output_shape) != 4 or layout is None or layout.channels != 1:
        raise UnsupportedOp(
            f"The network's last feature map, {node.site}, is no map (n, c, h, w), but of shape {node.site.output_shape}, and "
            "cannot be begun with. Say where: start='input', or a module's path."
        )
    return node.site
