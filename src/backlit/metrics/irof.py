"""IROF: superpixels go, most relevant first."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor, nn

from backlit._errors import InputError, check_whole, check_word
from backlit._random import image_bytes, stable_seed
from backlit.methods.base import Method
from backlit.methods.job import Job
from backlit.methods.superpixels import Superpixels, superpixels
from backlit.metrics.base import Case, Metric, Scores, to_numbers
from backlit.metrics.changed import Activation, Made, Read, probability_of, run_changed, run_unchanged
from backlit.metrics.examples import Examples
from backlit.metrics.ranking import pixel_ranks


class IROF(Metric):
    """Iterative removal of features, IROF (Rieger and Hansen 2020, Sec. 3): superpixels become the image's mean colour.

    They go in the order of their mean relevance, one after the other; the score is the area over the curve of the probability, over
    its first value.

    Attributes:
        segments: About how many superpixels of an image SLIC is asked for.
        activation: What makes probabilities of logits: "softmax", or "sigmoid" for networks with one decision a class.
    """

    name = "irof"
    title = "Iterative removal of features (IROF)"
    summary = "area over the curve of the probability while superpixels become the mean colour, most relevant first"
    source = "Rieger and Hansen 2020, Sec. 3"
    higher_is_better = True
    range = (-np.inf, 1.0)
    ties = "equal superpixels in an order drawn for each image, the same for all its maps"

    segments: int = 100
    activation: Activation = "softmax"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("segments", self.segments, low=2)
        check_word("activation", self.activation, ("softmax", "sigmoid"))

    @property
    def forward_passes(self) -> str:
        return f"about {self.segments}, and 1 that all maps of an image share"

    def check(self, network: nn.Module, examples: Examples, methods: Mapping[str, Method] | None) -> None:
        super().check(network, examples, methods)
        if find_spec("skimage") is None:
            raise InputError(
                f"{self.title} needs scikit-image, which is not installed: pip install 'backlit[regions]'."
            )
        pixels = examples.inputs.shape[-2] * examples.inputs.shape[-1]
        if self.segments > pixels:
            raise InputError(
                f"segments must be at most {pixels}, the pixels of an image, but is {self.segments}. Use fewer."
            )

    def measure(self, case: Case) -> Scores:
        def read(logits: Tensor, which: Tensor) -> Tensor:
            return probability_of(logits, case.explained[which], self.activation)

        own = run_unchanged(case.network, case.examples, read, self.chunk)
        (pieces,) = superpixels(Job((case.examples.inputs,), None), self.segments, ())
        values, unknown = {}, torch.zeros_like(own, dtype=torch.bool)
        for name, heat in case.heat.items():
            score = self._score(case, pieces, self._steps(case.examples.inputs, heat, pieces), own, read)
            values[name], unknown = to_numbers(score), unknown | score.isnan()
        counts = {"images not scored: their probability is 0, or not finite": int(unknown.sum())}
        return Scores(self, case.examples.names, values, counts=counts)

    def _steps(self, x: Tensor, heat: Tensor, pieces: Superpixels) -> Tensor:
        """Return the step at which each pixel goes, from 0 (n, 1, h, w)."""
        labels, most = pieces.labels.flatten(1), max(pieces.counts)
        sums = heat.new_zeros(len(x), most, dtype=torch.float64).scatter_add_(1, labels, heat.flatten(1).double())
        there = torch.arange(most, device=x.device) < torch.tensor(pieces.counts, device=x.device)[:, None]
        # In single precision, where the means of equal pixels are equal whatever their number.
        means = (sums / pieces.sizes).float().where(there, -torch.inf)
        # The draw does not depend on the other images: what an image has not comes last.
        seeds = [stable_seed("irof", self.seed, image_bytes(image)) for image in x]
        drawn = [
            torch.cat([torch.randperm(count, generator=torch.Generator().manual_seed(seed)), torch.arange(count, most)])
            for seed, count in zip(seeds, pieces.counts, strict=True)
        ]
        return pixel_ranks(means, torch.stack(drawn).to(x.device)).gather(1, labels).view_as(heat)

    def _score(self, case: Case, pieces: Superpixels, steps: Tensor, own: Tensor, read: Read) -> Tensor:
        """Compute the area over the curve of each image (n,)."""
        x, counts = case.examples.inputs, torch.tensor(pieces.counts)
        image = torch.arange(len(x)).repeat_interleave(counts).to(x.device)
        gone = torch.cat([torch.arange(1, count + 1) for count in pieces.counts]).to(x.device)
        mean = x.mean((2, 3), keepdim=True)

        def without(jobs: slice) -> Made:
            which = image[jobs]
            return torch.where(steps[which] < gone[jobs].view(-1, 1, 1, 1), mean[which], x[which]), which

        after = run_changed(case.network, case.examples, len(image), without, read, self.chunk) / own[image]
        # Trapezoids of 1 / count: the first point is 1, and the last counts half.
        weight = torch.where(gone == counts.to(x.device)[image], 0.5, 1.0).to(after)
        area = torch.zeros_like(own).index_add_(0, image, weight * after)
        return 1 - (area + 0.5) / counts.to(own)
