"""Class activation maps: the last feature map, weighted by what its channels do for the class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from backlit._errors import InputError, UnsupportedOp, nearest
from backlit._features import last_features
from backlit.capture import Propagation, Site, propagate
from backlit.methods.base import Maps, Method, Options, activation_bytes, check
from backlit.methods.inputs import pick
from backlit.methods.targets import gradients
from backlit.rules import presets


@dataclass(frozen=True)
class CAMOptions(Options):
    """Options of class activation maps.

    Attributes:
        layer: The feature map: a module's path ("features.12", whose last feature map counts) or a site ("relu[25]");
            None finds it: what the last convolution ends in before anything is pooled (its activation, its block's
            residual add or concat), leaving out a convolution whose channels are the classes themselves. The result's
            provenance says which it was.
    """

    layer: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.layer is None or isinstance(self.layer, str), "layer", self.layer, "a module path, a site, or None")


class GradCAM(Method):
    """Grad-CAM (Selvaraju et al. 2017, Eq. 1 and 2): ReLU of the feature map's channels, weighted by their mean gradient.

    The map has one channel, bilinearly enlarged to the image's size.
    """

    name = "grad_cam"
    title = "Grad-CAM"
    summary = "last feature map, its channels weighted by their mean gradient"
    source = "Selvaraju et al. 2017"
    Options = CAMOptions

    def explain(self, inputs: tuple[Tensor, ...], targets: Tensor | None) -> Maps:
        run = propagate(self.model, inputs, presets.gradient.over(self.options.rules), keep=_may_be_one)
        targets = pick(run.output, targets)
        cam, layer = class_activation(run, targets, self.options.layer)
        values = tuple(_enlarged(cam, x) for x in inputs)
        return Maps(
            values=values,
            targets=targets,
            output=run.output.detach().gather(1, targets).T,
            coverage=run.coverage,
            activation_bytes=activation_bytes(run.trace, inputs[0]),
            notes={"layer": str(layer)},
        )


class GuidedGradCAM(Method):
    """Guided Grad-CAM (Selvaraju et al. 2017, Sec. 3.2): guided back-propagation times Grad-CAM, enlarged."""

    name = "guided_grad_cam"
    title = "Guided Grad-CAM"
    summary = "guided backprop where Grad-CAM is positive"
    source = "Selvaraju et al. 2017"
    Options = CAMOptions

    def explain(self, inputs: tuple[Tensor, ...], targets: Tensor | None) -> Maps:
        coarse = GradCAM(self.model, layer=self.options.layer, rules=self.options.rules).explain(inputs, targets)
        run = propagate(self.model, inputs, presets.guided.over(self.options.rules))
        return Maps(
            values=tuple(g * c for g, c in zip(gradients(run, coarse.targets), coarse.values, strict=True)),
            targets=coarse.targets,
            output=coarse.output,
            coverage=run.coverage,
            activation_bytes=coarse.activation_bytes,
            notes=coarse.notes,
        )


def class_activation(run: Propagation, targets: Tensor, layer: str | None) -> tuple[Tensor, Site]:
    """Grad-CAM before it is enlarged, (t, n, 1, h, w), and the site whose output it weights.

    Raises:
        InputError: If the layer is not there or has no feature map.
        UnsupportedOp: If the network has no feature map at all.
    """
    site = feature_map(run, layer)
    maps = run.kept[site.name].output
    (grads,) = gradients(run, targets, to=(maps,))
    channels = grads.mean((3, 4), keepdim=True)
    return (channels * maps.detach()).sum(2, keepdim=True).relu(), site


def feature_map(run: Propagation, layer: str | None) -> Site:
    """The site of a layer's last feature map; of the network's last one that is no map of classes, if none is named."""
    found = [s for s in run.trace if s.name in run.kept and _is_feature_map(s) and s.primitive != "dropout"]
    if not found:
        raise UnsupportedOp("The network has no feature map (n, c, h, w) of more than one position to weight.")
    if layer is None:
        return last_features([s for s in found if s.output_shape[1] != run.output.shape[1]] or found)
    matching = [s for s in found if layer in (s.name, s.module) or s.module.startswith(f"{layer}.")]
    if not matching:
        known: list[str] = list(dict.fromkeys(s.module for s in found if s.module)) + [s.name for s in found]
        shown = ", ".join(known[-6:])
        raise InputError(
            f"layer must name a module or a site with a feature map (n, c, h, w), but is {layer!r}. The last ones are "
            f"{shown}.{nearest(layer, known)}"
        )
    return matching[-1]


def _may_be_one(site: Site) -> bool:
    """Asked before the call, when the output's shape is not known."""
    return any(len(shape) == 4 for shape in site.input_shapes)


def _is_feature_map(site: Site) -> bool:
    return len(site.output_shape) == 4 and max(site.output_shape[2:]) > 1


def _enlarged(cam: Tensor, x: Tensor) -> Tensor:
    """Bilinear, (t, n, 1, h, w) to the image's height and width."""
    size: Any = x.shape[-2:]
    return torch.stack([F.interpolate(c, size, mode="bilinear", align_corners=False) for c in cam])
