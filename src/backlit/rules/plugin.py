"""The learnable plugin module G of LPR: a rule with parameters (Yang et al., ECCV 2020, Sec. 3.2 and 4.2).

The paper: "first computes the Hadamard product between its parameter matrix and the input feature map, then follows a
tanh activation function". G is handed the gradient of the output (Eq. 2), and whether the "input feature map" is that
gradient or the layer's own input it does not say; so there are four readings.

t are the parameters (theta), g is the gradient of the output, z the activation's input, z0 its input for the reference,
f the activation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from backlit.capture import Call, Rule
from backlit.rules.activation import derivative

Held = Callable[[Tensor, Tensor, Call], Tensor]


@dataclass(frozen=True)
class Reading:
    """One reading of G: ``formula(t, g, held)``, and what it holds of the forward pass, ``held(z, z0, call)``."""

    formula: Callable[[Tensor, Tensor, Any], Tensor]
    held: Held | None = None


def _slope(z: Tensor, z0: Tensor, call: Call) -> Tensor:
    """f'(z)."""
    (slope,) = derivative(torch.ones_like(z), (z,), call.run(z), call)
    return torch.zeros_like(z) if slope is None else slope


def _multiplier(z: Tensor, z0: Tensor, call: Call) -> Tensor:
    """(f(z) - f(z0)) / (z - z0), f'(z) where the two are equal: DeepLIFT's rescale rule."""
    dz = z - z0
    close = dz.abs() <= 1e-6 * (1 + z.abs())
    return torch.where(close, _slope(z, z0, call), (call.run(z) - call.run(z0)) / torch.where(close, 1, dz))


def _difference(z: Tensor, z0: Tensor, call: Call) -> Tensor:
    """z - z0: "all the original features are modified by subtracting their corresponding reference feature map"."""
    return z - z0


READINGS: dict[str, Reading] = {
    "gradient": Reading(lambda t, g, _: torch.tanh(t * g)),
    "gated": Reading(lambda t, g, slope: slope * torch.tanh(t * g), _slope),
    "multiplier": Reading(lambda t, g, m: m * torch.tanh(t * g), _multiplier),
    "features": Reading(lambda t, g, dz: g * torch.tanh(t * dz), _difference),
}


class Plugin:
    """G at one activation, as a rule. Its parameters ``theta`` have one row an image and are made when it first runs.

    Args:
        reading: A name in ``READINGS``, or a reading of your own.
        channel: None for one parameter an element (the paper's second architecture); a dimension of the gradient for one
            parameter for each of its indices (the first: C parameters).
        init: What theta starts at.
        reference: z0, shaped as z; None for zeros.
    """

    def __init__(
        self,
        reading: str | Reading = "gradient",
        *,
        channel: int | None = None,
        init: float = 1.0,
        reference: Tensor | None = None,
    ) -> None:
        self.reading = READINGS[reading] if isinstance(reading, str) else reading
        self.theta: Tensor | None = None
        self._channel, self._init, self._reference = channel, init, reference
        self._held: Tensor | None = None

    def __call__(self, g: Tensor, inputs: tuple[Tensor, ...], output: Tensor, call: Call) -> tuple[Tensor]:
        if self.theta is None:
            self.theta = torch.full_like(self._shaped(g.detach()), self._init).requires_grad_()
        if self._held is None and self.reading.held is not None:
            z = inputs[0].detach()
            z0 = torch.zeros_like(z) if self._reference is None else self._reference
            self._held = self.reading.held(z, z0, call).detach()  # the forward pass does not change
        return (self.reading.formula(self.theta, g, self._held),)

    @property
    def rule(self) -> Rule:
        """The plugin as the engine takes it."""
        return Rule(self, "learned", reads_output=False)

    def _shaped(self, g: Tensor) -> Tensor:
        if self._channel is None:
            return g
        kept = {0, self._channel % g.dim()}
        return g.new_empty([size if dim in kept else 1 for dim, size in enumerate(g.shape)])
