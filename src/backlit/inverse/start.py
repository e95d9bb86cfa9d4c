"""Which value the inverted part begins with: the input, or the last feature map of the features."""

from __future__ import annotations

from backlit._errors import InputError, UnsupportedOp, nearest
from backlit._features import last_features
from backlit.capture.sites import Site, Trace


def feature_site(trace: Trace, start: str | None, classes: int) -> Site:
    """The site whose output a module path or a site's name means; None is the last feature map that is no map of classes.

    Raises:
        InputError: If no module or site of that name has an output with channels; names the nearest.
        UnsupportedOp: If None is asked for and the network has no feature map.
    """
    found = [s for s in trace if len(s.output_shape) >= 2 and s.primitive != "dropout"]
    if start is None:
        maps = [s for s in found if len(s.output_shape) == 4 and max(s.output_shape[2:]) > 1]
        maps = [s for s in maps if s.output_shape[1] != classes]
        if not maps:
            raise UnsupportedOp(
                "The network has no feature map (n, c, h, w) of more than one position to begin with. Say where: start='input', "
                "or a module's path."
            )
        return last_features(maps)
    matching = [s for s in found if start in (s.name, s.module) or s.module.startswith(f"{start}.")]
    if not matching:
        known = list(dict.fromkeys([*(s.module for s in found if s.module), *(s.name for s in found), "input"]))
        raise InputError(
            f"start must be 'input', the path of a module, or a site that `backlit trace` lists, but is {start!r}. The last "
            f"ones are {', '.join(known[-7:-1])}.{nearest(start, known)}"
        )
    return matching[-1]
