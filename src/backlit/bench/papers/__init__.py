"""Four papers as their tables and figures: what they print, what they claim, and how each is measured again."""

from __future__ import annotations

from backlit._errors import InputError, nearest
from backlit.bench.papers import dmbp, lpr, mip_in, tr_gbp
from backlit.bench.papers.exhibit import Exhibit, Paper

PAPERS: tuple[Paper, ...] = (dmbp.PAPER, lpr.PAPER, tr_gbp.PAPER, mip_in.PAPER)


def find(name: str) -> tuple[Paper, tuple[Exhibit, ...]]:
    """Return a paper and those of its tables and figures that are meant: "dmbp" is all of them, "dmbp.table1" one.

    Raises:
        InputError: If there is no such paper or table, or another command makes it.
    """
    wanted, _, number = name.lower().replace("-", "_").partition(".")
    paper = next((one for one in PAPERS if one.name == wanted), None)
    if paper is None:
        known = [one.name for one in PAPERS]
        raise InputError(f"paper must be one of {', '.join(known)}, but is {wanted!r}.{nearest(wanted, known)}")
    if not number:
        return paper, paper.exhibits
    if (other := dict(paper.elsewhere).get(number)) is not None:
        raise InputError(f"{paper.name}.{number} is not made here: {other}.")
    chosen = tuple(one for one in paper.exhibits if one.name == number)
    if not chosen:
        known = [one.name for one in paper.exhibits]
        raise InputError(
            f"table must be one of {', '.join(known)} of {paper.name}, but is {number!r}.{nearest(number, known)}"
        )
    return paper, chosen
