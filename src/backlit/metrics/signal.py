"""What a source signal keeps of the class: MIP-IN's average percentage change."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from backlit._forward import forward
from backlit.attribution import Attribution
from backlit.methods.chunks import run_in_chunks
from backlit.metrics.base import Case, Metric, Scores, to_numbers

_FOOTPRINT = 64  # bytes of a forward pass over those of its images


class PercentageChange(Metric):
    """Average percentage change, APC (MIP-IN, Eq. 10): the logit's relative change when the image becomes its source signal.

    The mean over the images of each class, then over classes. As a share: 0.1 is the paper's 10 %.
    """

    name = "apc"
    title = "Average percentage change (APC)"
    summary = "relative change of the logit when the input becomes its source signal"
    source = "MIP-IN, Eq. 10"
    higher_is_better = False
    range = (0.0, np.inf)
    needs = ("source",)

    @property
    def forward_passes(self) -> str:
        return "1, and 1 that all maps of an image share"

    def change(self, own: Tensor, signal: Tensor) -> Tensor:
        """Compute the numerator of Eq. 10."""
        return (own - signal).abs()

    def measure(self, case: Case) -> Scores:
        examples = case.examples
        own = self._logits(case.network, examples.inputs, examples.target)
        values, undefined = {}, "images not scored: their target's logit is 0"
        for name, attribution in case.maps.items():
            assert isinstance(attribution, Attribution)  # it has a source signal: seen before
            signal = self._logits(case.network, attribution.parts["source"].to(examples.inputs), examples.target)
            share = self.change(own, signal) / own.abs()
            values[name] = to_numbers(torch.where(own == 0, torch.nan, share))
        return Scores(
            self, examples.names, values, groups=to_numbers(examples.target), counts={undefined: int((own == 0).sum())}
        )

    def statistic(self, values: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
        """The mean over classes of the mean over their images, for each sample (d, n) -> (d,)."""
        assert groups is not None
        draws, classes = len(values), np.unique(groups)
        cell = np.arange(draws)[:, None] * len(classes) + np.searchsorted(classes, groups)
        size = draws * len(classes)
        counts = np.bincount(cell.ravel(), minlength=size)
        sums = np.bincount(cell.ravel(), weights=values.ravel(), minlength=size)
        means = np.divide(sums, counts, out=np.full(size, np.nan), where=counts > 0)
        return np.nanmean(means.reshape(draws, -1), 1)

    def _logits(self, network: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        size = x[0].numel() * x.element_size() * _FOOTPRINT
        logits = run_in_chunks(
            lambda part: forward(network, x[part]).gather(1, target[part][:, None])[:, 0],
            lambda _: size,
            n=len(x),
            chunk=self.chunk,
            device=x.device,
        )
        return torch.cat(logits).double()


class PositivePercentageChange(PercentageChange):
    """Positive APC (MIP-IN, Eq. 11): only what the source signal loses counts."""

    name = "positive_apc"
    title = "Positive APC"
    summary = "relative loss of the logit when the input becomes its source signal"
    source = "MIP-IN, Eq. 11"

    def change(self, own: Tensor, signal: Tensor) -> Tensor:
        return (own - signal).clamp(min=0)
