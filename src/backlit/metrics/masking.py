"""Multiply the image by its map and watch the probability: average drop, increase and gain."""

from __future__ import annotations

from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from backlit._errors import check, check_word
from backlit.metrics.base import Case, Metric, Scores, to_numbers
from backlit.metrics.changed import Activation, Made, Read, probability_of, run_changed, run_unchanged


class _Masked(Metric):
    """A comparison of the target's probability before and after the image is multiplied by its map, scaled to 0 to 1.

    Attributes:
        rectify: Set negative values to 0 before the map is scaled, as class activation maps are made; False lets the least value of
            a signed map hide a pixel, and 0 dim it.
        activation: What makes probabilities of logits: "softmax", or "sigmoid" for networks with one decision a class.
    """

    explains = "prediction"
    range = (0.0, 1.0)

    rectify: bool = True
    activation: Activation = "softmax"

    def __post_init__(self) -> None:
        super().__post_init__()
        check(isinstance(self.rectify, bool), "rectify", self.rectify, "True or False")
        check_word("activation", self.activation, ("softmax", "sigmoid"))

    @property
    def forward_passes(self) -> str:
        return "1, and 1 that all maps of an image share"

    @abstractmethod
    def compare(self, before: Tensor, after: Tensor) -> Tensor:
        """Compute the score of each image from the two probabilities."""

    def measure(self, case: Case) -> Scores:
        def read(logits: Tensor, which: Tensor) -> Tensor:
            return probability_of(logits, case.explained[which], self.activation)

        before = run_unchanged(case.network, case.examples, read, self.chunk)
        values, flat, unknown = {}, 0, 0
        for name, heat in case.heat.items():
            mask, constant = unit(heat.clamp(min=0) if self.rectify else heat)
            score = self.compare(before, self._after(case, mask.to(case.examples.inputs), read))
            values[name] = to_numbers(torch.where(constant, torch.nan, score))
            flat, unknown = flat + int(constant.sum()), unknown + int((score.isnan() & ~constant).sum())
        counts = {
            "maps not scored: all pixels are equal, which makes no mask": flat,
            "maps not scored: the image's probability is 0, or not finite": unknown,
        }
        return Scores(self, case.examples.names, values, counts=counts)

    def _after(self, case: Case, mask: Tensor, read: Read) -> Tensor:
        """Compute the probability of each image under its mask (n,)."""
        x = case.examples.inputs
        every = torch.arange(len(x), device=x.device)

        def masked(part: slice) -> Made:
            return x[part] * mask[part], every[part]

        return run_changed(case.network, case.examples, len(x), masked, read, self.chunk)


def unit(heat: Float[Tensor, "n 1 h w"]) -> tuple[Tensor, Tensor]:
    """Scale each map from its own smallest value to its largest, to 0 to 1, and tell which (n,) are constant."""
    low, high = (end(heat.double(), (1, 2, 3), keepdim=True) for end in (torch.amin, torch.amax))
    span = high - low
    return (heat - low) / torch.where(span > 0, span, 1), (span == 0)[:, 0, 0, 0]


class AverageDrop(_Masked):
    """Average drop (Chattopadhay et al. 2018, Sec. 4.1.1): the share of the probability that is lost under the mask."""

    name = "average_drop"
    title = "Average drop"
    summary = "share of the probability that is lost when the image is multiplied by its map"
    source = "Chattopadhay et al. 2018, Sec. 4.1.1"
    higher_is_better = False

    def compare(self, before: Tensor, after: Tensor) -> Tensor:
        return (before - after).clamp(min=0) / before


class AverageIncrease(_Masked):
    """Average increase, or increase in confidence (Chattopadhay et al. 2018, Sec. 4.1.2): how often the mask raises it."""

    name = "average_increase"
    title = "Average increase"
    summary = "share of the images whose probability rises when they are multiplied by their map"
    source = "Chattopadhay et al. 2018, Sec. 4.1.2"
    higher_is_better = True

    def compare(self, before: Tensor, after: Tensor) -> Tensor:
        return (after > before).double().where((before - after).isfinite(), torch.nan)


class AverageGain(_Masked):
    """Average gain (Zhang et al. 2024, Opti-CAM): the share of what is missing to 1 that the probability wins under the mask."""

    name = "average_gain"
    title = "Average gain"
    summary = "share of what the probability lacks of 1 that it wins when the image is multiplied by its map"
    source = "Zhang et al. 2024 (Opti-CAM)"
    higher_is_better = True

    def compare(self, before: Tensor, after: Tensor) -> Tensor:
        lacks = 1 - before
        return torch.where(lacks == 0, 0.0 * after, (after - before).clamp(min=0) / lacks)
