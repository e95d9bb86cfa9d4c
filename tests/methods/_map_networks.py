"""Networks whose last map the gradient differs over from place to place, and the map and its gradient by autograd."""

from __future__ import annotations

import torch
from torch import Tensor, nn

TARGET = torch.tensor([0, 3, 1])


def deep_head() -> nn.Sequential:
    """Two convolutions, the second's activation as large as the image, and a head with a hidden layer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        body = [nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU()]
        head = [nn.MaxPool2d(3), nn.Flatten(), nn.Linear(8 * 4 * 5, 10), nn.ReLU(), nn.Linear(10, 4)]
        return nn.Sequential(*body, *head).double().eval()


def pooled_head() -> nn.Sequential:
    """The same with an average pool and one linear layer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        body = [nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU()]
        return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).double().eval()


def images(n: int = 3) -> Tensor:
    return torch.randn(n, 3, 12, 15, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def map_and_gradient(network: nn.Sequential, x: Tensor, target: int, layer: int = 3) -> tuple[Tensor, Tensor]:
    """The feature map (c, h, w) of one image (3, h, w), and the gradient of the target's logit to it."""
    value = network[: layer + 1](x[None]).detach().requires_grad_()
    network[layer + 1 :](value)[0, target].backward()
    assert value.grad is not None
    return value.detach()[0], value.grad[0]
