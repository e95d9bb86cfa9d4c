"""MIP-IN back through what moves elements: each gets the mean of the signals of all the places that it went to, one by one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from _fit_networks import drawn
from torch import Tensor, nn
from torch.nn import functional as F

from backlit.inverse import table
from backlit.inverse.calls import Calls

ORDER = torch.tensor([2, 0, 1, 1])
MASK = torch.arange(16).view(4, 4) % 3 == 0


def _written(write: Callable[[Tensor, Tensor], object]) -> Callable[[Tensor], Tensor]:
    """A move that writes the signal into zeros."""

    def move(z: Tensor) -> Tensor:
        y = torch.zeros_like(z)
        write(y, z)
        return y

    return move


def _first_dropped(z: Tensor) -> Tensor:
    y = z.clone()
    y[:, :2] = 0
    return y


MOVES: dict[str, Callable[[Tensor], Tensor]] = {
    "rot90": lambda z: z.rot90(1, (2, 3)),
    "tril": lambda z: z.tril(),
    "diagonal": lambda z: z.diagonal(0, 2, 3),
    "take_along_dim": lambda z: z.take_along_dim(ORDER.view(1, 4, 1, 1), 1),
    "gather": lambda z: z.gather(1, ORDER.view(1, 4, 1, 1).expand(len(z), 4, 4, 4)),
    "index": lambda z: z[:, ORDER],
    "index by a mask": lambda z: z[:, torch.tensor([True, False, True, True])],
    "repeat_interleave": lambda z: z.repeat_interleave(2, 1),
    "tile": lambda z: z.tile(1, 2, 1, 1),
    "reflected": lambda z: F.pad(z, (1, 1, 1, 1), mode="reflect"),
    "replicated": lambda z: F.pad(z, (1, 1, 1, 1), mode="replicate"),
    "cropped": lambda z: F.pad(z, (1, -1, 1, 1)),
    "pixel_shuffle": lambda z: F.pixel_shuffle(z, 2),
    "channel_shuffle": lambda z: torch.channel_shuffle(z, 2),
    "where": lambda z: torch.where(MASK, z, 0.0),
    "masked_fill": lambda z: z.masked_fill(MASK, 1.0),
    "setitem": _first_dropped,
    "index_copy": _written(lambda y, z: y.index_copy_(1, torch.tensor([3, 2, 1, 0]), z)),
    "put": _written(lambda y, z: y.put_(torch.arange(z.numel()).view_as(z).flip(1), z)),
}


class _Moved(nn.Module):
    def __init__(self, move: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.move = move

    def forward(self, x: Tensor) -> Tensor:
        return self.move(x).flatten(1) * 2


@pytest.mark.parametrize("name", MOVES)
def test_an_element_gets_the_mean_of_where_it_went(name: str) -> None:
    move, x = MOVES[name], drawn(2, 4, 4, 4)
    nodes = Calls.of(_Moved(move).eval(), (x,)).lean.nodes
    node = next(node for node in nodes if node.call.primitive.name in table.MOVES - {"copy"})
    s = drawn(3, *move(x).shape, seed=1)
    (back,) = table.CLOSED[node.call.primitive.name](node.call, [x], [s], True)
    expected = torch.zeros_like(back).flatten(2)
    came = move(x).flatten(1)
    for n in range(2):
        for i, value in enumerate(x[n].flatten().tolist()):
            places = (came[n] == value).nonzero().flatten()  # no value is there twice
            if len(places):
                expected[:, n, i] = s.flatten(2)[:, n, places].mean(1)
    torch.testing.assert_close(back.flatten(2), expected)
