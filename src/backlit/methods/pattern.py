"""PatternNet and PatternAttribution: back-propagation with patterns learned from data in the place of the weights."""

from __future__ import annotations

from math import log10
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from backlit._errors import check_word
from backlit.capture import Propagation, propagate
from backlit.inverse import PatternOptions, Patterns, fit_patterns
from backlit.methods.fitted import FittedMethod
from backlit.methods.job import Job, Maps, scores_of
from backlit.rules.patterns import pattern_table

_SEEDS = (1.0, 1e-10, 1e-20, 1e-30)
"""What the logit is taken times before it goes back, as long as the map is not finite."""


class PatternNet(FittedMethod[Patterns]):
    """PatternNet (Kindermans et al. 2018, Sec. 4): the signal, the logit back-propagated with patterns for weights.

    The map has a shape, not a unit: each is divided by its largest magnitude, and ``completeness["log10_scale"]`` is the
    logarithm of that. ``parts["source"]`` is the map itself: an estimate of the part of the input that the logit follows.

    Attributes:
        estimator: "two_component" (a+ where a neuron is positive, a- elsewhere) or "linear" (one a for both).
        fitted: What :meth:`fit` returned, or a file that it or ``backlit fit`` wrote.
    """

    name = "pattern_net"
    title = "PatternNet"
    kind = "signal"
    summary = "signal of the logit, by patterns learned from data"
    answers = "Which part of the image does the score follow?"
    source = "Kindermans et al. 2018"
    artefact = "pattern"
    fit_options = PatternOptions
    learner = staticmethod(fit_patterns)
    times_weight: ClassVar[bool] = False
    gives_source = True

    estimator: Literal["two_component", "linear"] = "two_component"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_word("estimator", self.estimator, ("two_component", "linear"))

    def explain(self, job: Job) -> Maps:
        inputs = job.inputs
        self.learned.check_inputs(inputs)
        names = ("linear",) if self.estimator == "linear" else ("positive", "negative")
        layers = self.parameters(inputs[0])
        chosen = {layer: {name: found[name] for name in names} for layer, found in layers.items()}
        table = pattern_table(chosen, times_weight=self.times_weight)
        run = propagate(self.network, inputs, table.over(self.rules), fold=True)
        targets = job.pick(run.output)
        output = scores_of(run.output, targets)
        values, scale = self._back(run, F.one_hot(targets.T, run.output.shape[1]).to(output.dtype) * output[..., None])
        return Maps.of_run(
            run,
            values,
            targets,
            parts={"source": values} if self.gives_source else {},
            completeness={"log10_scale": scale},
            notes={"fitted": str(self.learned)},
        )

    def _back(self, run: Propagation, weights: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """The maps (t, n, ...) of weights (t, n, k), each for its image and target; log10 (t, n) of what each was divided by.

        The way back is linear in its seed, so a small one reaches where a seed of 1 overflows.
        """
        values, scale, bad = (), weights.new_zeros(weights.shape[:2]), None
        for seed in _SEEDS if self.times_weight else _SEEDS[1:]:
            seeded = weights * seed
            grads = run.gradient(seeded if len(weights) > 1 else seeded[0], retain_graph=True)
            found = grads if len(weights) > 1 else tuple(g[None] for g in grads)
            size = torch.zeros_like(scale)
            if seed != 1:
                found, size = _shaped(found)
                size = torch.where(size > 0, size.log10() - log10(seed), 0)
            if bad is not None:
                found = tuple(torch.where(_along(bad, g), g, old) for g, old in zip(found, values, strict=True))
                size = torch.where(bad, size, scale)
            values, scale = found, size
            bad = ~torch.stack([g.flatten(2).isfinite().all(2) for g in values]).all(0)
            if not bool(bad.any()):
                break
        return values, scale


def _shaped(maps: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], Tensor]:
    """Maps (t, n, ...) over their largest magnitude (t, n), which is the second result; maps of zeros stay."""
    largest = torch.stack([g.abs().flatten(2).amax(2) for g in maps]).amax(0)
    divisor = torch.where(largest > 0, largest, 1)
    return tuple(g / _along(divisor, g) for g in maps), largest


def _along(numbers: Tensor, maps: Tensor) -> Tensor:
    return numbers.view(*numbers.shape, *[1] * (maps.dim() - 2))


class PatternAttribution(PatternNet):
    """PatternAttribution (Kindermans et al. 2018, Sec. 4): the logit back-propagated with weights times patterns.

    The map has the logit's unit. One that overflows is scaled as PatternNet's are; ``completeness["log10_scale"]`` says so.
    """

    name = "pattern_attribution"
    title = "PatternAttribution"
    kind = "signed"
    summary = "how much each pixel's signal gives to the logit"
    answers = "How much does each part of that signal add to the score?"
    times_weight = True
    gives_source = False
