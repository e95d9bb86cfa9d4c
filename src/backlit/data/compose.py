"""What mosaics and two-object scenes share: cells, the draw of their pictures, and the examples made of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from backlit._errors import InputError, check, check_word, is_whole
from backlit.data.confident import Known
from backlit.data.examples import multi_hot
from backlit.metrics.examples import Examples

Targets: TypeAlias = Literal["one", "all"]
Box: TypeAlias = tuple[int, int, int, int]
_TRIES = 100


@dataclass(frozen=True, eq=False)
class Mosaics:
    """Images put together from pictures of different classes.

    Attributes:
        examples: The images, with the cell that shows the target, and all classes in the image as labels.
        sources: For each image the names of its pictures, cell by cell in reading order.
        confident: How many pictures of the data set were classified right above the confidence.
    """

    examples: Examples
    sources: tuple[tuple[str, ...], ...]
    confident: int

    def __len__(self) -> int:
        return len(self.examples)


def check_options(count: object, targets: object, seed: object) -> None:
    """See that all are usable."""
    check(is_whole(count) and count >= 1, "count", count, "at least 1")
    check_word("targets", targets, ("one", "all"))
    check(is_whole(seed) and seed >= 0, "seed", seed, "an integer from 0")


def cells_of(rows: int, columns: int, height: int, width: int) -> list[Box]:
    """Cells in reading order; where the size does not divide, they differ by a pixel."""
    down = [round(i * height / rows) for i in range(rows + 1)]
    across = [round(i * width / columns) for i in range(columns + 1)]
    return [(across[j], down[i], across[j + 1], down[i + 1]) for i in range(rows) for j in range(columns)]


def draw(known: Sequence[Known], cells: int, count: int, seed: int, confidence: float) -> Iterator[tuple[Known, ...]]:
    """Tuples of pictures no two of which share a true class, each in an order of its own."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        # With one class a picture the first order does; with several, a picture of many classes can leave no other.
        orders = (random.permutation(len(known)) for _ in range(_TRIES))
        chosen = next((found for order in orders if len(found := _disjoint(known, order, cells)) == cells), None)
        if chosen is None:
            raise InputError(
                f"dataset must have {cells} confident pictures of different classes, but the network classifies "
                f"{len(known)} of its pictures, of {len({each.target for each in known})} classes, right with a probability "
                f"above {confidence}. Give more pictures, or lower confidence."
            )
        yield chosen


def _disjoint(known: Sequence[Known], order: Iterable[int], cells: int) -> tuple[Known, ...]:
    """The first pictures in this order, at most ``cells``, that share no true class."""
    chosen: list[Known] = []
    for index in order:
        if len(chosen) == cells:
            break
        if all(known[index].labels.isdisjoint(other.labels) for other in chosen):
            chosen.append(known[index])
    return tuple(chosen)


def shown(count: int, cells: int, targets: Targets, hold: int = 1) -> list[tuple[int, int]]:
    """Tell which cell of which image is the target of each example: all, or one cell after the other, ``hold`` images each."""
    if targets == "all":
        return [(i, cell) for i in range(count) for cell in range(cells)]
    return [(i, i // hold % cells) for i in range(count)]


def assembled(
    kind: str,
    images: Sequence[Tensor],
    drawn: Sequence[Sequence[Known]],
    cells: Sequence[Sequence[Box]],
    wanted: Sequence[tuple[int, int]],
    classes: int,
    found: int,
) -> Mosaics:
    """The examples of the wanted (image, cell) pairs."""
    examples = Examples(
        torch.stack([images[i] for i, _ in wanted]),
        torch.tensor([drawn[i][cell].target for i, cell in wanted], dtype=torch.int64),
        multi_hot((frozenset().union(*(each.labels for each in drawn[i])) for i, _ in wanted), classes),
        cells=torch.tensor([cells[i][cell] for i, cell in wanted], dtype=torch.float32),
        names=tuple(f"{kind} {i}, cell {cell}" for i, cell in wanted),
    )
    return Mosaics(examples, tuple(tuple(each.name for each in drawn[i]) for i, _ in wanted), found)
