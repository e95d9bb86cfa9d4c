"""How few pixels hold a map: its Gini index and its entropy; the network is not asked."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from backlit.metrics.base import Case, Metric, Scores, to_numbers


class _OfMagnitudes(Metric):
    """A number that the magnitudes of a map's pixels have, whatever the network does."""

    @abstractmethod
    def of(self, magnitudes: Float[Tensor, "n p"]) -> Float[Tensor, " n"]:
        """Compute the score of each map."""

    def measure(self, case: Case) -> Scores:
        values, zeros = {}, 0
        for name, heat in case.heat.items():
            magnitudes = heat.flatten(1).double().abs()
            largest = magnitudes.amax(1, keepdim=True)
            empty = largest[:, 0] == 0
            # Both scores are of shares of the sum: scaled first, the sum of a map of huge values is finite.
            score = self.of(magnitudes / torch.where(largest > 0, largest, 1))
            values[name] = to_numbers(torch.where(empty, torch.nan, score))
            zeros += int(empty.sum())
        counts = {"maps not scored: they are zero everywhere": zeros}
        return Scores(self, case.examples.names, values, counts=counts)


class Sparseness(_OfMagnitudes):
    """Sparseness (Chalasani et al. 2020, Sec. 4): the Gini index of the pixels' magnitudes.

    0 where all pixels have the same magnitude, 1 - 1 / pixels where one pixel has all of it.
    """

    name = "sparseness"
    title = "Sparseness"
    summary = "Gini index of the pixels' magnitudes"
    source = "Chalasani et al. 2020, Sec. 4"
    higher_is_better = True
    range = (0.0, 1.0)

    def of(self, magnitudes: Tensor) -> Tensor:
        p = magnitudes.shape[1]
        ordered = magnitudes.sort(1).values
        places = torch.arange(1, p + 1, dtype=ordered.dtype, device=ordered.device)
        return ((2 * places - p - 1) * ordered).sum(1) / (p * ordered.sum(1))


class Complexity(_OfMagnitudes):
    """Complexity (Bhatt et al. 2020, Definition 3): the entropy of the pixels' shares of the magnitude, in nats.

    0 where one pixel has all of it, the logarithm of the number of pixels where all have the same.
    """

    name = "complexity"
    title = "Complexity"
    summary = "entropy of the pixels' shares of the map's magnitude, in nats"
    source = "Bhatt et al. 2020, Definition 3"
    higher_is_better = False
    range = (0.0, np.inf)

    def of(self, magnitudes: Tensor) -> Tensor:
        return torch.special.entr(magnitudes / magnitudes.sum(1, keepdim=True)).sum(1)
