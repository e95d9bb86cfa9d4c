"""Run what a table or figure of a paper asks for, by the runner of all comparisons: it goes on where it was stopped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from backlit._errors import InputError, check_word
from backlit.bench.asked import Asked, plan_of
from backlit.bench.execute import Progress
from backlit.bench.papers.exhibit import Exhibit, MethodRow
from backlit.bench.papers.learn import learned
from backlit.bench.papers.outcome import Reproduced, outcome
from backlit.bench.papers.places import Places
from backlit.bench.run import How, run
from backlit.bench.suite import Suite
from backlit.comparison import Comparison

CHEAP = 100.0
"""Forward passes of a map, up to which it is explained for all of the images."""
SCALES: dict[str, tuple[int, int]] = {"quick": (6, 3), "here": (100, 20), "paper": (1000, 200)}
"""Images of a cheap method and of a costly one."""
SHOWN = 3
"""Images of figures that show maps."""


@dataclass(frozen=True)
class Amount:
    """How much is measured.

    Attributes:
        cheap: Images for methods of up to 100 forward passes.
        costly: Images for the others: some of the same.
    """

    cheap: int
    costly: int

    @classmethod
    def of(cls, scale: str, images: int | None = None) -> Amount:
        """Return a scale's images; ``images`` in the place of a cheap method's, and a fifth of it for costly ones.

        Raises:
            InputError: If one cannot be.
        """
        check_word("scale", scale, SCALES)
        if images is not None and images < 1:
            raise InputError(f"images must be a number from 1 on, but is {images}.")
        return cls(*SCALES[scale]) if images is None else cls(images, max(1, images // 5))


def reproduce(
    exhibit: Exhibit,
    places: Places,
    out: Path,
    amount: Amount,
    how: How,
    *,
    device: str = "cpu",
    progress: Progress = lambda done, of, what: None,
    say: Callable[[str], object] = lambda text: None,
) -> Reproduced:
    """Measure a table or figure, on the networks and images that are here.

    Args:
        exhibit: The table, for the networks that are wanted.
        places: Where networks and images are.
        out: The folder of this table; a folder for each comparison.
        amount: How many images.
        how: By whom.
        device: Where to compute.
        progress: Called as each comparison goes on.
        say: Told what begins, and what cannot be had.

    Raises:
        FileError: If a folder holds something else, or nothing can be written.
    """
    done: dict[tuple[str, str], list[Comparison]] = {}
    missing: dict[tuple[str, str], str] = {}
    for network, data in dict.fromkeys((column.network, column.data) for column in exhibit.columns):
        where = (network, data)
        if (lacks := _lacks(places, network, data)) is not None:
            missing[where] = lacks
            continue
        try:
            done[where] = [
                _compared(exhibit, places, out / f"{network}.{data}", where, rows, images, how, device, progress, say)
                for rows, images in _groups(exhibit, amount)
            ]
        except InputError as error:
            missing[where] = str(error)
            say(f"{exhibit.name} on {network}, {data}: {error}")
    return outcome(exhibit, done, missing)


def _lacks(places: Places, network: str, data: str) -> str | None:
    if places.network(network) is None:
        return "no weights here"
    return "no images here" if places.images(network, data, None) is None else None


def _groups(exhibit: Exhibit, amount: Amount) -> list[tuple[list[MethodRow], int]]:
    """The rows that get all of the images, and those that get some of the same."""
    if exhibit.drawn in ("maps", "strips"):
        return [(list(exhibit.rows), min(SHOWN, amount.cheap))]
    if exhibit.together:
        return [(list(exhibit.rows), amount.cheap)]
    cheap = [row for row in exhibit.rows if row.bare.forward_passes <= CHEAP]
    costly = [row for row in exhibit.rows if row.bare.forward_passes > CHEAP]
    return [(rows, images) for rows, images in ((cheap, amount.cheap), (costly, amount.costly)) if rows]


def _compared(
    exhibit: Exhibit,
    places: Places,
    out: Path,
    where: tuple[str, str],
    rows: Sequence[MethodRow],
    images: int,
    how: How,
    device: str,
    progress: Progress,
    say: Callable[[str], object],
) -> Comparison:
    network, data = places.network(where[0]), places.images(*where, images)
    assert network is not None
    assert data is not None
    fitted = [str(learned(fit, where[0], places, out / "learned", device, say)) for fit in exhibit.fits]
    suite = Suite(
        [network],
        [data],
        [row.method for row in rows],
        exhibit.metrics(*where),
        fitted=fitted,
        classes=exhibit.classes,
        device=device,
    )
    (asked,) = suite.comparisons().values()
    say(f"{exhibit.name} on {where[0]}, {where[1]}: {len(rows)} methods, {images} images")
    return _run(asked, out / f"{images}-images", how, progress)


def _run(asked: Asked, out: Path, how: How, progress: Progress) -> Comparison:
    plan, failures = plan_of(asked)
    if failures:
        raise InputError(f"data: {failures[0].image} cannot be read: {failures[0].error}")
    plan.check()
    comparison = run(asked, plan, out, how, progress)
    if comparison is None:
        raise InputError("shard must be None: the tables of a paper are gathered in one run.")
    return comparison
