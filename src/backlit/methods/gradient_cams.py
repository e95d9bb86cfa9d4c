"""Class activation maps that weigh a feature map by the gradient of the score to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from backlit._errors import check, check_positive, check_word
from backlit._options import option_names, options_of
from backlit.capture import propagate
from backlit.methods.base import Kind
from backlit.methods.cam import GradientMap, over_largest
from backlit.methods.gradient import TimesInput
from backlit.methods.job import Job, Maps
from backlit.methods.targets import gradients
from backlit.rules import presets

Identity = Literal["conv1x1", "conv3x3", "scaling", "bias"]
"""The layers that NormGrad may put behind a feature map, each of which leaves it as it is."""


class GradCAM(GradientMap):
    """Grad-CAM (Selvaraju et al. 2017, Eq. 1 and 2): ReLU of the feature map's channels, weighted by their mean gradient.

    The map has one channel, bilinearly enlarged to the image's size.
    """

    name = "grad_cam"
    title = "Grad-CAM"
    kind = "one-sided"
    summary = "last feature map, its channels weighted by their mean gradient"
    source = "Selvaraju et al. 2017"
    answers = "Which region of the last feature map raises the score, by channels that raise it on average?"
    needs = "gradients, a feature map"

    def weighed(self, activation: Tensor, gradient: Tensor) -> Tensor:
        return _weighted(gradient.mean((3, 4), keepdim=True), activation).relu()


class GuidedGradCAM(GradCAM, TimesInput):
    """Guided Grad-CAM (Selvaraju et al. 2017, Sec. 3.2): guided back-propagation times Grad-CAM, enlarged.

    Its options are those of Grad-CAM, and ``times_input`` as guided back-propagation has it.
    """

    name = "guided_grad_cam"
    title = "Guided Grad-CAM"
    kind = "magnitude"
    summary = "guided backprop where Grad-CAM is positive"
    answers = "Which patterns inside Grad-CAM's region does guided backprop show?"
    stops_at_map = False

    @property
    def forward_passes(self) -> float:
        return 6.0

    def explain(self, job: Job) -> Maps:
        own = {name: value for name, value in options_of(self).items() if name in option_names(GradCAM)}
        coarse = GradCAM(self.model, **own).explain(job)
        run = propagate(self.network, job.inputs, presets.guided.over(self.rules))
        fine = zip(gradients(run, coarse.targets), job.inputs, coarse.values, strict=True)
        return replace(coarse, values=tuple(self.value(g, x) * c for g, x, c in fine), coverage=run.coverage)


class GradCAMPlusPlus(GradientMap):
    """Grad-CAM++ (Chattopadhay et al. 2018, Eq. 7 and 19): channels weighted by a mean of their positive gradients.

    The mean's weights are the paper's alphas for the score exp(logit) of a network of straight pieces,
    1 / (2 + g * sum(A)). The factor exp(logit), common to all of an image's weights, is left out.

    Attributes:
        normalise: Divide the alphas of a channel by their sum over the places with a positive gradient, as the authors'
            published code does and the paper does not.
    """

    name = "grad_cam_plus_plus"
    title = "Grad-CAM++"
    kind = "one-sided"
    summary = "last feature map, its channels weighted by their positive gradients"
    source = "Chattopadhay et al. 2018"
    answers = "Which region raises the score, where several objects of the class count alike?"
    needs = "gradients, a feature map"

    normalise: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check(isinstance(self.normalise, bool), "normalise", self.normalise, "True or False")

    def weighed(self, activation: Tensor, gradient: Tensor) -> Tensor:
        below = 2 + gradient * activation.sum(
            (2, 3), keepdim=True
        )  # the paper's fraction, divided by the gradient's square
        alpha = torch.where(below == 0, gradient.square(), 1 / torch.where(below == 0, 1, below)) * (gradient > 0)
        if self.normalise:
            total = alpha.sum((3, 4), keepdim=True)
            alpha = alpha / torch.where(total == 0, 1, total)
        return _weighted((alpha * gradient).sum((3, 4), keepdim=True), activation).relu()


class XGradCAM(GradientMap):
    """XGrad-CAM (Fu et al. 2020): channels weighted by their gradient, averaged by their own activation.

    A channel whose activations sum to zero has the weight 0.
    """

    name = "xgrad_cam"
    title = "XGrad-CAM"
    kind = "one-sided"
    summary = "last feature map, its channels weighted by the gradient where they are active"
    source = "Fu et al. 2020"
    answers = "Which region raises the score, by weights that split it among the channels?"
    needs = "gradients, a feature map"

    def weighed(self, activation: Tensor, gradient: Tensor) -> Tensor:
        total = activation.sum((2, 3), keepdim=True)
        shares = (gradient * activation).sum((3, 4), keepdim=True) / torch.where(total == 0, 1, total)
        return _weighted(shares * (total != 0), activation).relu()


class HiResCAM(GradientMap):
    """HiResCAM (Draelos and Carin 2020): the feature map times its gradient, summed over channels, place by place.

    Where one linear layer follows the feature map, the places' values sum to the logit but for that layer's bias.

    Attributes:
        relu: Cut off what is negative, as Grad-CAM does.
    """

    name = "hires_cam"
    title = "HiResCAM"
    kind = "signed"
    summary = "feature map times gradient, summed over its channels"
    source = "Draelos and Carin 2020"
    answers = "Which places of the last feature map speak for the class, and which against it?"
    needs = "gradients, a feature map"

    relu: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check(isinstance(self.relu, bool), "relu", self.relu, "True or False")

    @property
    def kind_of_map(self) -> Kind:
        return "one-sided" if self.relu else self.kind

    def weighed(self, activation: Tensor, gradient: Tensor) -> Tensor:
        value = _weighted(gradient, activation)
        return value.relu() if self.relu else value


class LayerCAM(GradientMap):
    """LayerCAM (Jiang et al. 2021): the feature map weighted, place by place, by its positive gradients.

    The maps of several layers are scaled by ``tanh(gamma * map / max)`` (Eq. 9), and the largest value counts at each pixel.

    Attributes:
        gamma: The scale of maps that are fused.
    """

    name = "layer_cam"
    title = "LayerCAM"
    kind = "one-sided"
    summary = "feature map times its positive gradient, summed over its channels"
    source = "Jiang et al. 2021"
    answers = "Which places of a layer, of an early one too, raise the score?"
    needs = "gradients, a feature map"

    gamma: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("gamma", self.gamma)

    def weighed(self, activation: Tensor, gradient: Tensor) -> Tensor:
        return _weighted(gradient.relu(), activation).relu()

    def fused(self, maps: Sequence[Tensor]) -> Tensor:
        return torch.stack([torch.tanh(self.gamma * over_largest(m)) for m in maps]).amax(0)


class NormGrad(GradientMap):
    """NormGrad (Rebuffi et al. 2020): how much the gradient of a layer of weights takes from each place.

    A layer that changes nothing is put behind the feature map; each place's share of the gradient of its weights has a norm.
    Of a 1 x 1 convolution that is the norm of the place's activations times the norm of their gradients. The maps of several
    layers are stretched to 0 to 1 and multiplied, as in the authors' published code; a constant one changes nothing.

    Attributes:
        identity: The layer that is put there: "conv1x1", "conv3x3", "scaling" (a factor for each channel) or "bias".
    """

    name = "norm_grad"
    title = "NormGrad"
    kind = "magnitude"
    summary = "norm of the features times norm of their gradient, place by place"
    source = "Rebuffi et al. 2020"
    answers = "Which places would move the weights of a layer the most, if it were trained on this score?"
    needs = "gradients, a feature map"

    identity: Identity = "conv1x1"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_word("identity", self.identity, get_args(Identity))

    def weighed(self, activation: Tensor, gradient: Tensor) -> Tensor:
        if self.identity == "scaling":
            return (activation * gradient).norm(dim=2, keepdim=True)
        size = gradient.norm(dim=2, keepdim=True)
        if self.identity == "bias":
            return size
        squares = activation.square().sum(1, keepdim=True)
        if self.identity == "conv3x3":  # the norm of the patch that each place reads
            squares = F.avg_pool2d(squares, 3, stride=1, padding=1, divisor_override=1)
        return squares.sqrt() * size

    def fused(self, maps: Sequence[Tensor]) -> Tensor:
        return torch.stack([_stretched(m) for m in maps]).prod(0)


def _weighted(weights: Tensor, activation: Tensor) -> Tensor:
    """The sum over channels of a feature map (n, c, h, w) under weights (t, n, c, ...), as (t, n, 1, h, w)."""
    return (weights * activation).sum(2, keepdim=True)


def _stretched(maps: Tensor) -> Tensor:
    """Maps (t, n, 1, h, w) from 0 to 1, each by its own least and largest value; a constant one is 1."""
    least, largest = (f((2, 3, 4), keepdim=True) for f in (maps.amin, maps.amax))
    spread = largest - least
    return torch.where(spread == 0, 1, (maps - least) / torch.where(spread == 0, 1, spread))
