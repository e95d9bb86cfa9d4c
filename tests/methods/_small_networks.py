"""Small classifiers of images of any size, for methods that run the network on altered copies."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Pooled(nn.Module):
    """A convolution, a function, the mean over places and a linear layer, with weights that are always the same.

    Args:
        classes: Number of outputs.
        channels: Of the images.
        after: What follows the convolution.
        scale: Of the logits.
        black: No gradient passes, and nothing tells how the scores were made.
    """

    def __init__(
        self,
        classes: int = 4,
        *,
        channels: int = 3,
        after: Callable[[Tensor], Tensor] = torch.relu,
        scale: float = 1.0,
        black: bool = False,
    ) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(channels, 6, 3), nn.Linear(6, classes)
        self.after, self.scale, self.black = after, scale, black
        generator = torch.Generator().manual_seed(0)
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=generator)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        scores = self.scale * self.fc(self.after(self.conv(x)).mean((2, 3)))
        return torch.from_numpy(scores.detach().numpy().copy()) if self.black else scores


class Two(nn.Module):
    """A network of two inputs, which may be of different sizes."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.one, self.two = make(), make()
        self.eval()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.one(x) * (1 + self.two(y).tanh())
