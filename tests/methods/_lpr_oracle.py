"""LPR step by step as the paper writes it, for one small network, without Backlit.

The backward pass is written out by hand, so that one ordinary differentiation by the parameters is all that is left to
autograd; one image at a time; masks, losses and Adam as in Eq. 3 to 10.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DEFAULTS: dict[str, Any] = {
    **{"reading": "gradient", "plugin": "element", "reference": True, "sign_aware": True, "mask": "sigmoid"},
    **{"alpha": 0.75, "beta": 0.25, "gamma": 10.0, "sigma": 2.0, "lam": 0.1, "score": "logit"},
    **{"steps": 3, "lr": 0.2, "init": 1.0},
    **{"colours": "sum", "mask_loss": "mean", "relative": True, "start": "logit", "sites": "activations"},
}


class Small(nn.Module):
    """conv, ReLU, max-pool, conv, SiLU, residual add, mean, linear: what an oracle by hand can still follow."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.b = nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = F.max_pool2d(F.relu(self.a(x)), 2)
        return self.fc((h + F.silu(self.b(h))).mean((2, 3)))


class Oracle:
    """The learning of one image's parameters, for one target."""

    def __init__(self, net: Small, x: Tensor, target: int, **options: Any) -> None:
        self.o = {**DEFAULTS, **options}
        self.net, self.x, self.target = net, x, target
        with torch.no_grad():
            self.z = self._features(x)
            self.z0 = (
                self._features(torch.zeros_like(x)) if self.o["reference"] else [torch.zeros_like(z) for z in self.z]
            )
            self.logits = net(x)[0]
        channel = self.o["plugin"] == "channel"
        shapes = [(z.shape[1], 1, 1) if channel else z.shape[1:] for z in self.z]
        self.theta = [torch.full((1, *s), self.o["init"], dtype=x.dtype, requires_grad=True) for s in shapes]
        self.curve: list[list[float]] = []

    def run(self) -> Tensor:
        optimizer = torch.optim.Adam(self.theta, lr=self.o["lr"], fused=False, foreach=False)
        for _ in range(self.o["steps"]):
            optimizer.zero_grad()
            terms = self.terms(self.attribution())
            terms[0].backward()
            optimizer.step()
            self.curve.append([float(t.detach()) for t in terms])
        return self.attribution().detach()

    def attribution(self) -> Tensor:
        """Eq. 3, the backward pass by hand."""
        net, za = self.net, self.z[0]
        g = net.fc.weight[self.target].view(1, -1, 1, 1)
        if self.o["start"] == "nll":  # log p = logit - log sum exp, so its derivative mixes the rows of the last layer
            g = g - (self.logits.softmax(0) @ net.fc.weight).view(1, -1, 1, 1)
        side = za.shape[2] // 2
        g = (g / side**2).expand(1, 4, side, side)
        through_b = F.conv_transpose2d(self._g(1, g), net.b.weight, padding=1)
        g = g + through_b
        _, indices = F.max_pool2d(F.relu(za), 2, return_indices=True)
        g = F.max_unpool2d(g, indices, 2, output_size=za.shape[2:])
        g = F.conv_transpose2d(self._g(0, g), net.a.weight, stride=2, padding=1, output_padding=1)
        return (g * self.x).sum(1, keepdim=True) if self.o["colours"] == "sum" else g * self.x

    def terms(self, a: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Eq. 10 and its parts."""
        o = self.o
        p, n = self.masks(a)
        whole, scale = self._score(self.logits), 1.0
        if o["score"] == "logit" and o["relative"]:
            scale = max(abs(float(self.logits[self.target])), float(self.logits.abs().max()) / 100)
        positive = (self._score(self.net(self.x * p)[0]) - whole) / scale
        negative = (whole - self._score(self.net(self.x * n)[0])) / scale if o["sign_aware"] else torch.zeros(())
        norm = torch.sum if o["mask_loss"] == "sum" else torch.mean
        hidden = norm((1 - p).abs()) + (norm((1 - n).abs()) if o["sign_aware"] else 0)
        return positive + negative + o["lam"] * hidden, positive, negative, hidden

    def masks(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """Eq. 4 to 6."""
        o = self.o
        scaled = (a - a.min()) / (a.max() - a.min())
        if o["mask"] == "sigmoid":
            p = 1 - 1 / (1 + torch.exp(-o["gamma"] * (scaled - o["alpha"])))
            return p, 1 / (1 + torch.exp(-o["gamma"] * (scaled - o["beta"])))
        assert a.shape[1] == 1
        rows = []
        height, width = a.shape[2:]
        for i in range(height):
            for j in range(width):
                y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
                near = torch.exp(-((y - i) ** 2 + (x - j) ** 2) / (2 * o["sigma"] ** 2)).to(a)
                rows.append((near * scaled[0, 0]).sum() / near.sum())
        smooth = torch.stack(rows).view(a.shape)
        return 1 - smooth, smooth

    def _score(self, logits: Tensor) -> Tensor:
        return logits[self.target] if self.o["score"] == "logit" else logits.softmax(0)[self.target]

    def _features(self, x: Tensor) -> list[Tensor]:
        za = self.net.a(x)
        return [za, self.net.b(F.max_pool2d(F.relu(za), 2))]

    def _g(self, layer: int, g: Tensor) -> Tensor:
        z, z0, t = self.z[layer], self.z0[layer], self.theta[layer]
        f = F.relu if layer == 0 else F.silu
        slope = (z > 0).to(z) if layer == 0 else torch.sigmoid(z) * (1 + z * (1 - torch.sigmoid(z)))
        if self.o["sites"] == "between_convolutions" and layer == 1:  # no convolution follows the SiLU
            return g * slope
        if self.o["reading"] == "gradient":
            return torch.tanh(t * g)
        if self.o["reading"] == "gated":
            return torch.tanh(t * g) * slope
        if self.o["reading"] == "multiplier":
            return torch.tanh(t * g) * (f(z) - f(z0)) / (z - z0)
        return g * torch.tanh(t * (z - z0))
