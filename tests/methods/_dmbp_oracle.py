"""DMBP as the paper writes it: the gradient masked at every place of a reading, and that backward pass differentiated.

Written for the small network of `test_dmbp.py`, without Backlit: explicit masked backward steps as autograd functions,
batch norm kept as the affine map that it is, and every bias an input of its own, so that Eq. 14 can be read off.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PLACES = {
    "rectifiers": ("relu 0", "relu 1", "relu 2"),
    "branches": ("relu 0", "relu 2"),  # relu 1 reads the residual sum
    "everywhere": ("relu 0", "conv 2", "relu 1", "relu 2"),
    "layers": ("relu 0", "conv 2", "relu 2"),  # no ReLU stands between conv 2 and the sum
}


class _Masked(torch.autograd.Function):
    """A value whose backward pass is multiplied by a mask; differentiable in the mask."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(mask)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return g * mask, None


class DoubleBackward:
    """Masks theta for each place of a reading, their loss (Eq. 10 or its ablations), and RMSProp on it.

    ``shared`` is what each part counts of the biases that no mask scales: all, or half.
    """

    def __init__(
        self, net: nn.Module, x: Tensor, target: Tensor, variant: str, *, sites: str = "layers", init: float = 0.0
    ) -> None:
        self.net, self.x, self.target, self.variant = net, x, target, variant
        self.shared = 1.0
        shapes: dict[str, torch.Size] = {}
        self._forward({}, x, self._biases(), shapes)
        self.theta = {
            place: torch.full(shapes[place], init, dtype=x.dtype, requires_grad=True) for place in PLACES[sites]
        }
        self.optimizer = torch.optim.RMSprop(list(self.theta.values()), lr=0.01)
        self.y = net(x).gather(1, target[:, None])[:, 0].detach()

    def step(self) -> Tensor:
        positive, negative = (sum(self._parts(sign)) for sign in (True, False))
        loss = -positive
        if self.variant != "+":
            loss = loss + negative
        if self.variant == "all":
            loss = loss + (self.y - positive - negative).abs()
        self.optimizer.zero_grad()
        loss.sum().backward()
        self.optimizer.step()
        return loss.detach()

    def maps(self) -> tuple[Tensor, Tensor]:
        return tuple(self._gradients(sign)[0].detach() * self.x for sign in (True, False))  # type: ignore[return-value]

    def bias_terms(self) -> tuple[Tensor, Tensor]:
        return tuple(self._parts(sign)[1].detach() for sign in (True, False))  # type: ignore[return-value]

    def _parts(self, sign: bool) -> tuple[Tensor, Tensor]:
        """<grad_x, x> and the sum over layers of <grad_b, b>, per image (Eq. 14)."""
        grad_x, *grad_b = self._gradients(sign)
        terms = [(g * b).flatten(1).sum(1) for g, b in zip(grad_b, self._biases(), strict=True)]
        # Behind every mask stand two: the shift of the norm that cannot fold, and the last layer's bias.
        from_biases = sum(terms[:-2]) + self.shared * (terms[-2] + terms[-1])
        return (grad_x * self.x).flatten(1).sum(1), from_biases

    def _gradients(self, sign: bool) -> tuple[Tensor, ...]:
        masks = {k: torch.sigmoid(t) if sign else 1 - torch.sigmoid(t) for k, t in self.theta.items()}
        leaves = [self.x.clone().requires_grad_(), *(b.clone().requires_grad_() for b in self._biases())]
        output = self._forward(masks, leaves[0], leaves[1:], {})
        score = output.gather(1, self.target[:, None]).sum()
        return torch.autograd.grad(score, leaves, create_graph=True)

    def _biases(self) -> list[Tensor]:
        """Every bias and batch norm shift, one copy an image so that gradients stay apart."""
        net, n = self.net, len(self.x)
        shifts = [
            b.bias - b.running_mean * b.weight / (b.running_var + b.eps).sqrt() for b in (net.bn1, net.bn2, net.bn3)
        ]
        vectors = [net.conv1.bias, shifts[0], shifts[1], net.conv3.bias, shifts[2], net.fc.bias]
        return [v.detach().expand(n, -1) for v in vectors]

    def _forward(
        self, masks: dict[str, Tensor], x: Tensor, biases: list[Tensor], shapes: dict[str, torch.Size]
    ) -> Tensor:
        net = self.net
        b1, s1, s2, b3, s3, b4 = (b[:, :, None, None] for b in biases)

        def masked(z: Tensor, place: str) -> Tensor:
            shapes[place] = z.shape
            return _Masked.apply(z, masks[place]) if place in masks else z

        def relu(z: Tensor, i: int) -> Tensor:
            return masked(z * (z > 0), f"relu {i}")

        def scale(norm: nn.BatchNorm2d) -> Tensor:
            return (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()[:, None, None]

        def conv(layer: nn.Conv2d, z: Tensor) -> Tensor:
            return F.conv2d(z, layer.weight.detach(), None, layer.stride, layer.padding)

        x = F.max_pool2d(relu((conv(net.conv1, x) + b1) * scale(net.bn1) + s1, 0), 3, stride=1, padding=1)
        x = relu(masked(conv(net.conv2, x) * scale(net.bn2) + s2, "conv 2") + x, 1)
        x = torch.cat([x, F.avg_pool2d(x, 3, 1, 1)], 1)
        x = relu(conv(net.conv3, x) + b3, 2) * scale(net.bn3) + s3
        return F.linear(x.mean((2, 3)), net.fc.weight.detach()) + b4[:, :, 0, 0]
