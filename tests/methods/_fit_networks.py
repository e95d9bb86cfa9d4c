"""Small networks and data for the methods that learn from data."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sequential(*layers: nn.Module, seed: int = 1) -> nn.Sequential:
    net = nn.Sequential(*layers)
    randomised(net, seed)
    return net


def randomised(net: nn.Module, seed: int = 1) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for p in net.double().eval().parameters():
            nn.init.normal_(p, std=0.4)


def mlp() -> nn.Sequential:
    return sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))


def cnn() -> nn.Sequential:
    """A strided, dilated, padded convolution and a plain one with a max-pool."""
    return sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 5, 2, stride=2, padding=1, dilation=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(5 * 2 * 2, 3),
    )


class Stopped(RuntimeError):
    """An interruption."""


class Passes:
    """Batches that fail in the pass of this number, from 1; the first look at the first batch does not count."""

    def __init__(self, x: Tensor, y: Tensor, fails_in: int | None) -> None:
        self.x, self.y, self.fails_in, self.passes = x, y, fails_in, -1

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.passes += 1
        for i, batch in enumerate(zip(self.x.split(8), self.y.split(8), strict=True)):
            if self.passes == self.fails_in and i == 2:
                raise Stopped
            yield batch
