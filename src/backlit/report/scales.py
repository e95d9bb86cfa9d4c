"""One colour limit for the maps of one image, so that a weak one looks weak beside a strong one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from backlit._errors import InputError
from backlit.attribution import Attribution
from backlit.report.kinds import check_one, limit_of
from backlit.report.trust import trust


def scales(explanations: Sequence[Attribution], how: str = "image") -> list[float]:
    """The colour limit of each explanation of one image.

    Args:
        explanations: Explanations of one image each, all of the same image: of several classes, by one method or by several.
        how: "image": what one method made of the image, for whatever class, has the largest of its limits in common. Those of
            maps near nothing do not count, unless all are: what the network does not see must not make faint what it sees.
            "own": each has its own limit.

    Raises:
        InputError: If ``how`` is neither, or an explanation is of several images.
    """
    if how not in ("image", "own"):
        raise InputError(f"how must be 'image' or 'own', but is {how!r}.")
    for one in explanations:
        check_one(one)
    own = [limit_of(one)[0] for one in explanations]
    if how == "own":
        return own
    made_by = [_made_by(one) for one in explanations]
    firm = [not trust(one).near_nothing for one in explanations]
    largest: dict[tuple[Any, Any], tuple[bool, float]] = {}
    for limit, by, counts in zip(own, made_by, firm, strict=True):
        largest[by] = max(largest.get(by, (False, 0.0)), (counts, limit))  # one that counts before all that do not
    return [largest[by][1] for by in made_by]


def _made_by(explanation: Attribution) -> tuple[Any, Any]:
    return explanation.provenance.get("method"), repr(explanation.provenance.get("options"))
