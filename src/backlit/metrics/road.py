"""ROAD: pixels are removed by noisy linear imputation, most or least relevant first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from backlit._errors import check, check_word, is_number
from backlit._random import image_bytes, stable_seed
from backlit.metrics.base import Case, Metric, Scores, to_numbers
from backlit.metrics.changed import Activation, Made, checked_percentages, probability_of, run_changed
from backlit.metrics.examples import Examples
from backlit.metrics.imputation import imputed
from backlit.metrics.ranking import drawn_orders, pixel_ranks

_BLOCK = 8  # images whose ranks are held at once


class _Road(Metric):
    """Pixels are replaced by the noisy weighted mean of their neighbours; the score is the mean probability over percentages.

    Attributes:
        percentages: Percentages of the pixels that are removed, above 0 and below 100.
        noise: Standard deviation of the Gaussian noise on removed pixels, in units of the network's input. It is drawn once an
            image, from the seed and the image, the same for all maps and percentages.
        activation: What makes probabilities of logits: "softmax", or "sigmoid" for networks with one decision a class.
    """

    range = (0.0, 1.0)
    ties = "equal pixels in an order drawn for each image, the same for all its maps"
    order: ClassVar[Literal["most relevant first", "least relevant first"]]

    percentages: tuple[float, ...] = (10, 20, 30, 40, 50, 60, 70, 80, 90)
    noise: float = 0.01
    activation: Activation = "softmax"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "percentages", checked_percentages(self.percentages))
        check(is_number(self.noise) and self.noise >= 0, "noise", self.noise, "a number from 0")
        check_word("activation", self.activation, ("softmax", "sigmoid"))

    @property
    def forward_passes(self) -> str:
        return f"{len(self.percentages)}"

    @property
    def axes(self) -> tuple[str, str]:
        return "share of pixels removed", "probability"

    def measure(self, case: Case) -> Scores:
        n = len(case.examples)
        blocks = [self._block(case, slice(start, start + _BLOCK)) for start in range(0, n, _BLOCK)]
        curves, right = to_numbers(torch.cat(blocks, 1)).transpose(3, 0, 1, 2)  # (m, n, percentages) each
        unknown = np.isnan(curves).any((0, 2))
        return Scores(
            metric=self,
            names=case.examples.names,
            values=dict(zip(case.heat, curves.mean(-1), strict=True)),
            curves=dict(zip(case.heat, curves, strict=True)),
            positions=np.array(self.percentages) / 100,
            extra={"accuracy": dict(zip(case.heat, right.mean(-1), strict=True))},
            counts={"images not scored: the network's output is not finite": int(unknown.sum())},
        )

    def remarks(self, scores: Scores) -> tuple[str, ...]:
        shown = ", ".join(f"{method} {right.mean():.3f}" for method, right in scores.extra["accuracy"].items())
        return (f"accuracy, mean over percentages: {shown}",)

    def _block(self, case: Case, part: slice) -> Tensor:
        """Compute the probability, and whether the class is the likeliest, (m, n, percentages, 2)."""
        examples, x = case.examples[part], case.examples.inputs[part]
        n, p, m = len(x), len(self.percentages), len(case.heat)
        ranks = self._ranks(examples, {name: heat[part] for name, heat in case.heat.items()})
        noise, targets = self._noise(x), case.explained[part]
        # Fewer than all pixels at any percentage, so that one is known.
        counts = torch.tensor([int(share * x.shape[-2] * x.shape[-1] / 100) for share in self.percentages]).to(x.device)

        def removed(jobs: slice) -> Made:
            job = torch.arange(jobs.start, jobs.stop, device=x.device)
            image, rest = job // (m * p), job % (m * p)
            missing = ranks[rest // p, image] < counts[rest % p].view(-1, 1, 1, 1)
            return imputed(x[image], missing) + noise[image] * missing, image

        def read(logits: Tensor, image: Tensor) -> Tensor:
            target = targets[image]
            probability = probability_of(logits, target, self.activation)
            return torch.stack([probability, (logits.argmax(1) == target).double()], 1)

        scores = run_changed(case.network, examples, n * m * p, removed, read, self.chunk)
        return scores.view(n, m, p, 2).transpose(0, 1)

    def _ranks(self, examples: Examples, heat: Mapping[str, Tensor]) -> Tensor:
        """Rank the pixels of each map, first to be removed first, (m, n, 1, h, w)."""
        drawn, ascending = drawn_orders(examples.inputs, self.seed), self.order == "least relevant first"
        ranks = [pixel_ranks(h.flatten(1), drawn, ascending=ascending).view_as(h).int() for h in heat.values()]
        return torch.stack(ranks)

    def _noise(self, x: Tensor) -> Tensor:
        """Draw the noise of each image (n, c, h, w)."""
        seeds = [stable_seed("road", self.seed, image_bytes(image)) for image in x]
        drawn = [torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(s)) for s in seeds]
        return torch.stack(drawn).to(x) * self.noise


class RoadMoRF(_Road):
    """ROAD, most relevant first (Rong et al. 2022): the probability should fall."""

    name = "road_morf"
    title = "ROAD, most relevant first"
    summary = "probability of the target when the most relevant 10 to 90 % of the pixels are imputed from the others"
    source = "Rong et al. 2022"
    higher_is_better = False
    order = "most relevant first"


class RoadLeRF(_Road):
    """ROAD, least relevant first (Rong et al. 2022): the probability should stay."""

    name = "road_lerf"
    title = "ROAD, least relevant first"
    summary = "probability of the target when the least relevant 10 to 90 % of the pixels are imputed from the others"
    source = "Rong et al. 2022"
    higher_is_better = True
    order = "least relevant first"
