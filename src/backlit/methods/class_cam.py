"""The class activation map of Zhou et al.: a classifier's weights, put on the feature map whose places it averages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from backlit._errors import InputError, check
from backlit._features import Features, Node, find_features
from backlit.capture import Propagation, Site
from backlit.capture.watch import INPUT
from backlit.methods.base import Kind
from backlit.methods.cam import ActivationMap, distinct
from backlit.methods.cam_layers import Layer, notes_of
from backlit.methods.job import Job, Maps
from backlit.methods.targets import gradients


class CAM(ActivationMap):
    """CAM (Zhou et al. 2016, Eq. 2): the feature map's channels under the classifier's weights for the class.

    The head must average the map over its places and be linear in the averages (a linear layer, or a convolution of one
    pixel before or after the pool); then the map's mean is the logit, but for the head's biases. Whether it does is read
    from the dataflow and from the gradient, which is then the weight over the number of places, everywhere. Where a rectifier
    stands between such a convolution and the pool, as in SqueezeNet, the map is that of the class, which the head averages.

    Attributes:
        relu: Cut off what is negative, as Grad-CAM does.
    """

    name = "cam"
    title = "CAM"
    kind = "signed"
    summary = "last feature map under the classifier's weights, for a head that averages it"
    source = "Zhou et al. 2016"
    answers = "Which places of the last feature map does the classifier count for the class, and which against it?"
    needs = "a head of average pool and linear layer"
    any_head = False

    relu: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check(isinstance(self.relu, bool), "relu", self.relu, "True or False")
        if isinstance(self.layer, tuple):
            raise InputError(
                f"layer must be one layer for CAM, the map that the head averages, but is {self.layer!r}. GradCAM takes several."
            )

    @property
    def kind_of_map(self) -> Kind:
        return "one-sided" if self.relu else self.kind

    def explain(self, job: Job) -> Maps:
        run = self.clean_run(job.inputs)
        targets = job.pick(run.output)
        features = find_features(self.network, run.inputs, run.trace)
        (layers,) = self.layers_in(features, targets)
        if self.layer is None:
            own = {k: _read_by_head(features, layer, k) for k, layer in layers.items()}
            by_site = {layer.site.name: layer for layer in own.values()}
            layers = {k: by_site[layer.site.name] for k, layer in own.items()}
        maps = {
            layer: self._map(run, targets, layer, _classes(layers, layer), features) for layer in distinct([layers])
        }
        values = tuple(self.enlarged_to(x, targets, [layers], maps) for x in job.inputs)
        return Maps.of_run(run, values, targets, notes=notes_of([layers]))

    def _map(self, run: Propagation, targets: Tensor, layer: Layer, classes: list[int], features: Features) -> Tensor:
        """The map (t, n, 1, h, w), right for the targets among ``classes``."""
        for k in classes:
            why = _not_linear(features, layer, k)
            if why is not None:
                raise _refusal(layer, why)
        output = run.kept[layer.site.name].output
        gradient = layer.layout.arrange(gradients(run, targets, to=(output,))[0], lead=1)
        places = gradient.flatten(3)
        spread = (places.amax(3) - places.amin(3)).amax(2)  # (t, n)
        own = torch.isin(targets.T, torch.tensor(classes, device=targets.device))
        uneven = spread > torch.finfo(places.dtype).eps ** 0.5 * places.abs().amax((2, 3))
        if bool((uneven & own).any()):
            raise _refusal(layer, "its places have different weights there")
        weights = gradient.mean((3, 4), keepdim=True) * places.shape[3]
        value = (weights * layer.layout.arrange(output.detach())).sum(2, keepdim=True)
        return value.relu() if self.relu else value


@dataclass(frozen=True)
class _Head:
    """The operations between a feature map and a score."""

    sites: tuple[Site, ...]
    alone: bool


def _head(features: Features, name: str, target: int) -> _Head:
    """What is made of the output of a site on the way to the target's score, and whether nothing else of the image reaches it."""
    way = features.read([target]).on_the_way
    made = {name}
    for node in features.nodes.values():  # in the order of their calls
        if node.name in way and not made.isdisjoint(node.parents):
            made.add(node.name)
    sites = tuple(features.nodes[n].site for n in features.nodes if n in made and n != name)
    return _Head(sites, not any(_reaches_image(features, name, way)))


def _reaches_image(features: Features, name: str, way: frozenset[str]) -> Iterator[bool]:
    """Tell, of each value that the score is made of beside the site ``name``, whether it reads the image itself."""
    parents = {n: step.parents for step in features.steps for n in step.names}
    pending, seen = [features.output], {name, features.output}
    while pending:
        current = pending.pop()
        if current == name:
            continue
        for parent in parents[current]:
            yield parent.startswith(f"{INPUT}.")
            if parent not in seen and parent in way:
                seen.add(parent)
                pending.append(parent)


def _not_linear(features: Features, layer: Layer, target: int) -> str | None:
    """What keeps the target's score from being linear in the layer's map alone; None if nothing does."""
    head = _head(features, layer.site.name, target)
    bent = next((site for site in head.sites if site.kind != "affine"), None)
    if bent is not None:
        return f"{bent} is not linear"
    return None if head.alone else "the score reads other values of the image beside it"


def _read_by_head(features: Features, layer: Layer, target: int) -> Layer:
    """The last map with weights behind it; the very last of all, if the head is not linear in that one."""
    if _not_linear(features, layer, target) is None:
        return layer
    read = features.read([target]).places
    maps = [n for n in features.nodes.values() if n.name in read and n.first and _is_made(n) and features.layout(n)]
    if not maps or maps[-1].name == layer.site.name:
        return layer
    last = maps[-1]
    layout = features.layout(last)
    assert layout is not None
    other = replace(
        layer, site=features.site(last), layout=layout, how="the map that the head averages, of the classes"
    )
    return layer if _not_linear(features, other, target) is not None else other


def _is_made(node: Node) -> bool:
    """Whether the node's values are its own, and not another's that were moved."""
    return not node.site.has("moves")


def _classes(layers: dict[int, Layer], layer: Layer) -> list[int]:
    return [k for k, own in layers.items() if own is layer]


def _refusal(layer: Layer, why: str) -> InputError:
    return InputError(
        f"model must average a feature map over its places and be linear in the averages for CAM, but behind {layer.site} {why}. "
        "Use GradCAM, which is the same map on such a head and holds on any other; or HiResCAM, which weighs each place by itself."
    )
