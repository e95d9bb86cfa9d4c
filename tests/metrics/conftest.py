"""A small network, images and maps for the metrics."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from backlit.metrics import Examples

sys.path.insert(0, str(Path(__file__).parent))

SIDE = 14


def small_network(classes: int = 5) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return (
            nn.Sequential(
                nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, classes)
            )
            .double()
            .eval()
        )  # fmt: skip


@pytest.fixture(scope="session")
def network() -> nn.Module:
    model = small_network()
    with torch.no_grad():
        model[-1].weight.mul_(4)
    return model


@pytest.fixture(scope="session")
def examples(network: nn.Module) -> Examples:
    x = torch.randn(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = network(x).argmax(1)
    labels = torch.zeros(4, 5, dtype=torch.bool)
    labels[torch.arange(4), target] = True
    labels[0, (target[0] + 1) % 5] = labels[1, (target[1] + 2) % 5] = labels[1, (target[1] + 3) % 5] = True
    boxes = [
        torch.tensor([[2.0, 3.0, 7.0, 8.0]]),
        torch.tensor([[0.0, 0.0, 4.4, 4.6], [8.0, 8.0, 12.0, 14.0]]),
        torch.zeros(0, 4),
        torch.tensor([[0.5, 1.0, 13.5, 13.0]]),
    ]
    cells = torch.tensor([[0.0, 0, 7, 7], [7, 0, 14, 7], [0, 7, 7, 14], [7, 7, 14, 14]])
    return Examples(x, target, labels, boxes, cells, ["a", "b", "c", "d"])
