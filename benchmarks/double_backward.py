"""DMBP as the paper writes it (Sec. 3.2 and 3.3): mask the gradient at every ReLU, then differentiate that backward pass.

The rival of `dmbp.py`. It uses Backlit's engine only to reach the ReLUs; batch norm is folded, as in the paper.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from backlit.capture import Call, propagate
from backlit.rules import presets


class DoubleBackward:
    """The masks and their loss, by a differentiated backward pass; masks are shaped as the ReLUs' outputs."""

    def __init__(self, model: nn.Module, x: Tensor, target: Tensor) -> None:
        self._model, self._x, self._target = model, x, target
        run = propagate(model, x, presets.gradient)
        shapes = {s.name: s.output_shape for s in run.trace if s.primitive == "relu"}
        self.theta = {name: x.new_zeros(shape, requires_grad=True) for name, shape in shapes.items()}
        self._y = self._score(run.output).detach()
        self.optimizer = torch.optim.RMSprop(list(self.theta.values()), lr=0.01)

    def step(self) -> Tensor:
        """One step on Eq. 10; returns the loss per image."""
        masks = {name: torch.sigmoid(t) for name, t in self.theta.items()}
        positive = self._masked(masks)
        negative = self._masked({name: 1 - m for name, m in masks.items()})
        loss = negative - positive + (self._y - positive - negative).abs()
        self.optimizer.zero_grad()
        loss.sum().backward()
        self.optimizer.step()
        return loss.detach()

    def _masked(self, masks: dict[str, Tensor]) -> Tensor:
        """Eq. 14 with the gradient scaled by a mask at every ReLU, as a function of the masks."""

        def masked(g: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> tuple[Tensor, ...]:
            return (g * (inputs[0] > 0) * masks[call.site.name],)

        table = presets.gradient.but({"relu": masked}, "masked")
        run = propagate(self._model, self._x, table, keep=lambda s: s.primitive in ("conv2d", "linear"), fold=True)
        biased = [kept for kept in run.kept.values() if kept.call.get("bias") is not None]
        outputs = [run.inputs[0], *(kept.output for kept in biased)]
        grads = torch.autograd.grad(self._score(run.output).sum(), outputs, create_graph=True)
        total = (grads[0] * self._x).flatten(1).sum(1)
        for kept, grad in zip(biased, grads[1:], strict=True):
            bias = kept.call["bias"].view(-1, *[1] * (grad.dim() - 2))
            total = total + (grad * bias).flatten(1).sum(1)
        return total

    def _score(self, output: Tensor) -> Tensor:
        return output.gather(1, self._target[:, None])[:, 0]
