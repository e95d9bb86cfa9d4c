"""The gradient family: one forward pass, one backward pass by a rule table, and what is made of the result."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from backlit._errors import check
from backlit.capture import propagate
from backlit.methods.axes import ANY
from backlit.methods.base import Kind, Method
from backlit.methods.job import Job, Maps, scores_of
from backlit.methods.targets import gradients
from backlit.rules import RuleTable, presets


class Gradient(Method):
    """The gradient of the target's logit (Simonyan et al. 2014, Sec. 3, before the absolute value)."""

    axes = ANY
    name = "gradient"
    title = "Gradient"
    kind = "magnitude"
    summary = "gradient of the target's logit"
    answers = "How would a small change of each pixel move the logit?"
    source = "Simonyan et al. 2014"
    table: ClassVar[RuleTable] = presets.gradient

    def explain(self, job: Job) -> Maps:
        run = propagate(self.network, job.inputs, self.table.over(self.rules))
        targets = job.pick(run.output)
        values = tuple(self.value(g, x) for g, x in zip(gradients(run, targets), job.inputs, strict=True))
        return Maps.of_run(run, values, targets, completeness=self.completeness(values, scores_of(run.output, targets)))

    def value(self, gradient: Tensor, x: Tensor) -> Tensor:
        """The map from the propagated gradient (t, n, c, h, w) and the image."""
        return gradient

    def completeness(self, values: tuple[Tensor, ...], output: Tensor) -> dict[str, Tensor]:
        """Return what the method promises of its sum; nothing by default."""
        return {}


class Saliency(Gradient):
    """|gradient| (Simonyan et al. 2014, Eq. 4 without the maximum over channels: ``heatmap("max")`` takes it)."""

    name = "saliency"
    title = "Saliency"
    kind = "magnitude"
    summary = "magnitude of the gradient"
    answers = "Where would a small change move the logit most?"

    def value(self, gradient: Tensor, x: Tensor) -> Tensor:
        return gradient.abs()


class GradientXInput(Gradient):
    """Gradient times input (Shrikumar et al. 2016); DMBP's Eq. 5. Its sum misses the logit by what the biases give."""

    name = "gradient_x_input"
    title = "Gradient × input"
    kind = "signed"
    summary = "gradient times image"
    answers = "What is each pixel's share of the logit, as far as the network is linear here?"
    source = "Shrikumar et al. 2016"

    def value(self, gradient: Tensor, x: Tensor) -> Tensor:
        return gradient * x

    def completeness(self, values: tuple[Tensor, ...], output: Tensor) -> dict[str, Tensor]:
        return {"biases": output - torch.stack([v.flatten(2).sum(2) for v in values]).sum(0)}


class TimesInput(Method):
    """A method that rectifies the gradient on its way, and gives it alone or times the image.

    Attributes:
        times_input: Multiply the propagated gradient by the image, a = c * x, as DMBP's paper (Sec. 3) and LPR's (Sec. 3.2)
            do with every gradient before they rank pixels.
    """

    times_input: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check(isinstance(self.times_input, bool), "times_input", self.times_input, "True or False")

    @property
    def kind_of_map(self) -> Kind:
        return "signed" if self.times_input else self.kind

    def value(self, gradient: Tensor, x: Tensor) -> Tensor:
        """The map from the propagated gradient (t, n, c, h, w) and the image."""
        return gradient * x if self.times_input else gradient


class Deconvnet(TimesInput, Gradient):
    """Deconvnet (Zeiler and Fergus 2014): the gradient rectified at every ReLU, whatever the ReLU's own gate says."""

    name = "deconvnet"
    title = "Deconvnet"
    kind = "magnitude"
    summary = "gradient rectified at each ReLU, gates ignored"
    answers = "Which patterns excite the class's neurons, whatever their gates say?"
    source = "Zeiler and Fergus 2014"
    table = presets.deconvnet


class GuidedBackprop(TimesInput, Gradient):
    """Guided back-propagation (Springenberg et al. 2015): the gradient gated by each ReLU and by its own sign."""

    name = "guided_backprop"
    title = "Guided backprop"
    kind = "magnitude"
    summary = "gradient rectified at each ReLU, gates kept"
    answers = "Which patterns did the network see, hardly depending on the class?"
    source = "Springenberg et al. 2015"
    table = presets.guided
