"""The baseline of every comparison: a map that knows nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from backlit._forward import forward
from backlit._random import image_bytes, stable_seed
from backlit.capture.refuse import check_output
from backlit.methods.axes import ANY
from backlit.methods.base import Method
from backlit.methods.job import Job, Maps


class Random(Method):
    """Uniform noise from -1 to 1, drawn for each image from the seed and its bytes: what a map is worth that looks at nothing."""

    axes = ANY
    name = "random"
    title = "Random"
    kind = "noise"
    summary = "noise that looks at neither image nor network"
    answers = "What is a map worth that looks at nothing?"
    needs = "nothing"
    source = "baseline"
    follows_target = False
    takes_rules = False
    traces = False

    @property
    def forward_passes(self) -> float:
        return 1.0

    def explain(self, job: Job) -> Maps:
        output = forward(self.network, *job.inputs)
        check_output(output, len(job))
        targets = job.pick(output)
        values = tuple(self._noise(x).expand(targets.shape[1], *x.shape).clone() for x in job.inputs)
        return Maps.of_outputs(output, values, targets, job)

    def _noise(self, x: Tensor) -> Tensor:
        """(n, c, h, w); an image's noise does not depend on its batch."""
        seeds = [stable_seed("random", self.seed, image_bytes(image)) for image in x]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        drawn = [torch.rand(x.shape[1:], generator=g, dtype=torch.float64) for g in generators]
        return (torch.stack(drawn) * 2 - 1).to(x)
