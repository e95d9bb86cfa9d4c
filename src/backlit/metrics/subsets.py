"""Sensitivity-n: does the map's sum over any n pixels foretell what the logit loses without them?"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from backlit._errors import MOST_STEPS, check_whole
from backlit._random import image_bytes, stable_seed
from backlit.metrics.base import Case, Metric, Scores, to_numbers
from backlit.metrics.changed import Made, checked_percentages, logit_of, run_changed, run_unchanged
from backlit.metrics.ranking import pearson


class SensitivityN(Metric):
    """Sensitivity-n (Ancona et al. 2018, Sec. 3.3): correlation of the map's sum over n pixels and the logit's drop.

    For each size n, sets of n pixels are drawn and set to zero in the network's own input; the score is the mean over sizes. The
    paper draws features; a pixel here is all its channels.

    Attributes:
        percentages: Sizes of the sets, in percent of the pixels.
        subsets: Number of sets of each size; the paper draws 100. They follow from the seed and the image, the same for all maps.
    """

    name = "sensitivity_n"
    title = "Sensitivity-n"
    summary = "correlation between the map's sum over sets of pixels and the logit's drop without them"
    source = "Ancona et al. 2018, Sec. 3.3"
    higher_is_better = True
    range = (-1.0, 1.0)

    percentages: tuple[float, ...] = (1, 5, 10, 20, 40, 60, 80)
    subsets: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "percentages", checked_percentages(self.percentages))
        check_whole("subsets", self.subsets, low=3, high=MOST_STEPS)

    @property
    def forward_passes(self) -> str:
        return f"0, and {len(self.percentages) * self.subsets + 1:,} that all maps of an image share"

    @property
    def axes(self) -> tuple[str, str]:
        return "share of pixels removed", "correlation"

    def measure(self, case: Case) -> Scores:
        x, target = case.examples.inputs, case.explained
        own = run_unchanged(case.network, case.examples, lambda logits, i: logit_of(logits, target[i]), self.chunk)
        maps = torch.stack([heat.flatten(1) for heat in case.heat.values()]).double()  # (m, n, p)
        curves = torch.stack([self._of_image(case, i, own[i], maps[:, i]) for i in range(len(x))], 1)
        constant = (maps == maps[..., :1]).all(-1)
        numbers = to_numbers(curves.where(~constant[..., None], torch.nan))
        counts = {
            "maps not scored: all pixels are equal": int(constant.sum()),
            "maps not scored: the sums or the logits of some sets are all equal, or not finite": int(
                (curves.isnan().any(-1) & ~constant).sum()
            ),
        }
        return Scores(
            metric=self,
            names=case.examples.names,
            values=dict(zip(case.heat, numbers.mean(-1), strict=True)),
            curves=dict(zip(case.heat, numbers, strict=True)),
            positions=np.array(self.percentages) / 100,
            counts=counts,
        )

    def _of_image(self, case: Case, i: int, own: Tensor, maps: Tensor) -> Tensor:
        """Compute the correlations of maps (m, p) of one image, for each size (m, sizes)."""
        image = case.examples[i : i + 1]
        x, target = image.inputs, case.explained[i]
        sets = self._sets(x)

        def without(jobs: slice) -> Made:
            gone = sets[jobs].to(x.device)
            return x * ~gone.view(-1, 1, *x.shape[-2:]), torch.zeros(len(gone), dtype=torch.int64, device=x.device)

        def read(logits: Tensor, which: Tensor) -> Tensor:
            return logit_of(logits, target.expand(len(which)))

        drops = own - run_changed(case.network, image, len(sets), without, read, self.chunk)
        sums = torch.cat([maps @ part.to(maps).T for part in sets.split(self.subsets)], 1)
        shape = (len(self.percentages), self.subsets)
        return pearson(sums.view(-1, *shape), drops.view(shape).expand(len(maps), *shape))

    def _sets(self, x: Tensor) -> Bool[Tensor, "s p"]:
        """Draw the sets of pixels of an image, on the host, all of one size after the other."""
        p = x.shape[-2] * x.shape[-1]
        generator = torch.Generator().manual_seed(stable_seed("sensitivity-n", self.seed, image_bytes(x[0])))
        sets = []
        for percentage in self.percentages:
            drawn = torch.rand(self.subsets, p, generator=generator, dtype=torch.float64)
            count = max(1, round(percentage * p / 100))
            sets.append(drawn <= drawn.kthvalue(count, 1, keepdim=True).values)
        return torch.cat(sets)
