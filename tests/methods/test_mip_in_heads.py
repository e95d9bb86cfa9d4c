"""MIP-IN between the last layer and the logits, and where values are read several times."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from _fit_networks import drawn, randomised
from torch import Tensor, nn
from torch.nn import functional as F

from backlit import MIPIN, UnsupportedOp
from backlit.inverse.part import find_part

K = 4


class _Head(nn.Module):
    """A classifier whose logits are moved, or a convolution's maps of the classes."""

    def __init__(self, end: Callable[[Tensor], Tensor], *, maps: bool = False) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 3, 3)
        self.b = nn.Conv2d(3, K, 1) if maps else nn.Linear(48, K)
        self.maps, self.end = maps, end
        randomised(self)

    def forward(self, x: Tensor) -> Tensor:
        z = self.a(x).relu()
        return self.end(self.b(z if self.maps else z.flatten(1)))


# What is done with the logits, and the class of the plain network whose logit each then is.
MOVED: dict[str, tuple[Callable[[Tensor], Tensor], list[int]]] = {
    "flip": (lambda y: y.flip(1), [3, 2, 1, 0]),
    "roll": (lambda y: y.roll(1, 1), [3, 0, 1, 2]),
    "index": (lambda y: y[:, [2, 0, 3, 1]], [2, 0, 3, 1]),
    "index_select": (lambda y: y.index_select(1, torch.tensor([1, 2, 3, 0])), [1, 2, 3, 0]),
    "twice": (lambda y: y.flip(1)[:, [2, 0, 3, 1]], [1, 3, 0, 2]),
    "and scaled": (lambda y: (y * torch.tensor([1.0, -2, 3, 4])).flip(1) + 1, [3, 2, 1, 0]),
    "in place": (lambda y: y.roll(2, 1).add_(1), [2, 3, 0, 1]),
}


@pytest.mark.parametrize("samples", ["all", "own"])
@pytest.mark.parametrize("name", MOVED)
def test_logits_that_are_moved_keep_their_maps(name: str, samples: str) -> None:
    end, order = MOVED[name]
    x, y = drawn(60, 2, 6, 6), torch.arange(60) % K
    plain, moved = _Head(lambda logits: logits), _Head(end)
    own = torch.tensor(order).argsort()[y]  # the same samples for the same logit
    theirs = MIPIN(plain, fitted=MIPIN.fit(plain, [(x, y)], samples=samples))
    ours = MIPIN(moved, fitted=MIPIN.fit(moved, [(x, own)], samples=samples))
    for c in range(K):
        expected, found = theirs(x[:3], order[c]), ours(x[:3], c)
        torch.testing.assert_close(found.parts["source"], expected.parts["source"])
        if name not in ("and scaled", "in place"):  # A has no constants: what was added to the logit is not undone
            torch.testing.assert_close(found.values, expected.values)


def test_class_maps_that_are_moved_keep_theirs() -> None:
    x = drawn(40, 2, 6, 6)
    plain, moved = (
        _Head(lambda y: y.mean((2, 3)), maps=True),
        _Head(lambda y: F.max_pool2d(y.flip(1), 1).mean((2, 3)), maps=True),
    )
    theirs, ours = (MIPIN(net, fitted=MIPIN.fit(net, [x], classes=[1, 3, 0])) for net in (plain, moved))
    for c, d in ((3, 0), (0, 3)):
        torch.testing.assert_close(ours.attribute(x[:3], c), theirs.attribute(x[:3], d))


MIXED: dict[str, Callable[[Tensor], Tensor]] = {
    "twice the same": lambda y: y[:, [0, 0, 2, 3]],
    "pool": lambda y: F.avg_pool1d(y, 3, 1, 1),
    "max-pool": lambda y: F.max_pool1d(y, 3, 1, 1),
    "shuffle": lambda y: y.view(-1, 2, 2).transpose(1, 2).reshape(-1, 4),
    "part and pad": lambda y: F.pad(y[:, :3], (0, 1)),
}
MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels for rows": lambda y: y.transpose(1, 2).mean((2, 3)),
    "mean of channels": lambda y: y.mean((1, 3)),
    "maximum of channels": lambda y: y.amax((1, 3)),
}


@pytest.mark.parametrize("name", [*MIXED, *MAPS])
def test_what_mixes_the_classes_is_refused(name: str) -> None:
    net = _Head(MIXED[name]) if name in MIXED else _Head(MAPS[name], maps=True)
    with pytest.raises(UnsupportedOp, match="mixes the classes"):
        MIPIN.fit(net, [drawn(20, 2, 6, 6)])


class _Sum(nn.Module):
    """Makes its one logit of a value that has no channels."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 3)
        randomised(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1)).sum(1).unsqueeze(1)


def test_one_logit_of_a_sum_is_refused() -> None:
    with pytest.raises(UnsupportedOp, match="mixes the classes"):
        MIPIN.fit(_Sum(), [drawn(20, 3, 2, 2)])


class _Rolled(nn.Module):
    """Gives each image the values of another one of its batch."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 3)
        randomised(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1).roll(1, 0))


def test_what_moves_values_between_images_is_refused() -> None:
    with pytest.raises(UnsupportedOp, match=r"permute\[0\] .* moves values between the images of a batch"):
        MIPIN.fit(_Rolled(), [drawn(20, 3, 2, 2)])


class _Halves(nn.Module):
    """Both halves of one call's results are read twice."""

    def __init__(self, halve: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.a, self.u, self.v = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
        self.end, self.halve = nn.Linear(8, 3), halve
        randomised(self)
        with torch.no_grad():
            self.a.weight[4:] *= 20  # the halves differ

    def forward(self, x: Tensor) -> Tensor:
        u, v = self.halve(self.a(x).relu())
        u, v = u[..., 1:-1, 1:-1] + self.u(u).relu(), v[..., 1:-1, 1:-1] + self.v(v).relu()
        return self.end(torch.cat([u, v], 1).mean((2, 3)))


def test_each_of_several_results_has_a_join_of_its_own() -> None:
    x = drawn(60, 2, 6, 6)
    net = _Halves(lambda z: z.chunk(2, 1))
    joins = [step.name for step in find_part(net, (x[:2],), "input").steps if step.call is None]
    assert sorted(joins) == ["join slice[0] output 0", "join slice[0] output 1"]
    learned = MIPIN.fit(net, [x])
    assert {layer["samples"] for layer in learned.facts["layers"] if "join" in layer["name"]} == {60 * 36.0}
    first, second = (learned.layers[name]["weight"] for name in sorted(joins))
    other = MIPIN.fit(_Halves(lambda z: (z[:, :4], z.chunk(2, 1)[1])), [x])  # the second half alone is made by a chunk
    assert "join slice[1] output 1" in other.layers
    torch.testing.assert_close(other.layers["join slice[1] output 1"]["weight"], second)
    torch.testing.assert_close(other.layers["join slice[0]"]["weight"], first)


def test_the_head_of_a_thousand_classes_is_probed_at_once() -> None:
    net = nn.Sequential(nn.Conv2d(2, 1000, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    part = find_part(net, (torch.randn(2, 2, 9, 9),), "input")
    assert part.channels == tuple(range(1000))
    assert re.match("conv2d", part.steps[-1].name)
