"""A small network with a forward pass of its own, for the accounts of relevance propagation."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn


class Net(nn.Module):
    """Two convolutions and a linear layer in float64, and a forward pass of its own."""

    def __init__(self, forward: Callable[[Net, Tensor], Tensor], bias: bool = True, channels: int = 3) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.a = nn.Conv2d(channels, 4, 3, padding=1, bias=bias)
        self.b = nn.Conv2d(4, 4, 1, bias=bias)
        self.f = nn.Linear(4, 3, bias=bias)
        self._forward = forward
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, x)


def drawn(n: int = 2, size: int = 6, channels: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def quietly(method: object, *arguments: object) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return method(*arguments)  # type: ignore[operator]
