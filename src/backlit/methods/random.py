"""The baseline of every comparison: a map that knows nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from backlit._forward import forward
from backlit._random import image_bytes, stable_seed
from backlit.capture import Coverage
from backlit.capture.refuse import check_output
from backlit.methods.base import Maps, Method
from backlit.methods.inputs import pick, probability


class Random(Method):
    """Uniform noise from -1 to 1, drawn for each image from the seed and its bytes: what a map is worth that looks at nothing."""

    name = "random"
    title = "Random"
    kind = "noise"
    summary = "noise that looks at neither image nor network"
    source = "baseline"
    cost = "none"
    takes_rules = False

    def explain(self, inputs: tuple[Tensor, ...], targets: Tensor | None) -> Maps:
        output = forward(self.model, *inputs)
        check_output(output, len(inputs[0]))
        targets = pick(output, targets)
        return Maps(
            values=tuple(self._noise(x).expand(targets.shape[1], *x.shape).clone() for x in inputs),
            targets=targets,
            output=output.gather(1, targets).T,
            probability=probability(output, targets),
            coverage=Coverage(),
            activation_bytes=64.0 * inputs[0][0].numel() * inputs[0].element_size(),
        )

    def _noise(self, x: Tensor) -> Tensor:
        """(n, c, h, w); an image's noise does not depend on its batch."""
        seeds = [stable_seed("random", self.options.seed, image_bytes(image)) for image in x]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        drawn = [torch.rand(x.shape[1:], generator=g, dtype=torch.float64) for g in generators]
        return (torch.stack(drawn) * 2 - 1).to(x)
