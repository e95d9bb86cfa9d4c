"""PatternNet and PatternAttribution: back-propagation with patterns learned from data in the place of the weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from backlit.capture import propagate
from backlit.inverse import FitStep, Patterns, fit_patterns
from backlit.inverse.data import Data
from backlit.methods.base import Maps, activation_bytes, check
from backlit.methods.fitted import FittedMethod, FittedOptions
from backlit.methods.inputs import pick
from backlit.rules.patterns import PatternRule, pattern_table


@dataclass(frozen=True)
class PatternOptions(FittedOptions):
    """Options of the pattern methods.

    Attributes:
        estimator: "two_component" (a+ where a neuron is positive, a- elsewhere) or "linear" (one a for both).
    """

    estimator: Literal["two_component", "linear"] = "two_component"

    def __post_init__(self) -> None:
        super().__post_init__()
        known = ("two_component", "linear")
        check(self.estimator in known, "estimator", self.estimator, "'two_component' or 'linear'")


class PatternNet(FittedMethod):
    """PatternNet (Kindermans et al. 2018, Sec. 4): the signal, the logit back-propagated with patterns for weights.

    ``parts["source"]`` is the map itself: an estimate of the part of the input that the logit follows.
    """

    name = "pattern_net"
    title = "PatternNet"
    summary = "signal of the logit, by patterns learned from data"
    source = "Kindermans et al. 2018"
    artefact = "pattern"
    Options = PatternOptions
    times_weight: ClassVar[bool] = False

    @classmethod
    def fit(
        cls,
        model: nn.Module,
        data: Data,
        *,
        out: str | Path | None = None,
        description: str = "",
        progress: Callable[[FitStep], None] = lambda step: None,
        **options: Any,
    ) -> Patterns:
        """Learn the patterns; see :func:`backlit.inverse.fit_patterns`. PatternNet and PatternAttribution share them."""
        return fit_patterns(model, data, out=out, description=description, progress=progress, **options)

    def explain(self, inputs: tuple[Tensor, ...], targets: Tensor | None) -> Maps:
        self.learned.check_inputs(inputs)
        names = ("linear",) if self.options.estimator == "linear" else ("positive", "negative")
        layers = self.learned.to(inputs[0].device, inputs[0].dtype)
        chosen = {layer: {name: found[name] for name in names} for layer, found in layers.items()}
        table = pattern_table(PatternRule(chosen, times_weight=self.times_weight))
        run = propagate(self.model, inputs, table, fold=True)
        targets = pick(run.output, targets)
        output = run.output.detach().gather(1, targets).T
        weights = F.one_hot(targets.T, run.output.shape[1]).to(run.output.dtype) * output[..., None]
        grads = run.gradient(weights if len(weights) > 1 else weights[0])
        values = grads if len(weights) > 1 else tuple(g[None] for g in grads)
        return Maps(
            values=values,
            targets=targets,
            output=output,
            coverage=run.coverage,
            activation_bytes=activation_bytes(run.trace, inputs[0]),
            parts={} if self.times_weight else {"source": values},
            notes={"fitted": str(self.learned)},
        )


class PatternAttribution(PatternNet):
    """PatternAttribution (Kindermans et al. 2018, Sec. 4): the logit back-propagated with weights times patterns."""

    name = "pattern_attribution"
    title = "PatternAttribution"
    summary = "how much each pixel's signal gives to the logit"
    times_weight = True
