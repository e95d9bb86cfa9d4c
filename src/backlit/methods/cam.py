"""Class activation maps: the last feature map, weighted by what its channels do for the class."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from backlit._errors import InputError, nearest
from backlit._features import Features, Node, find_features
from backlit._options import option_names, options_of
from backlit._places import Layout, given_layout, is_somewhere
from backlit.capture import Propagation, Site, propagate
from backlit.methods.base import Method, check
from backlit.methods.gradient import TimesInput
from backlit.methods.images import enlarged
from backlit.methods.job import Job, Maps
from backlit.methods.targets import gradients
from backlit.rules import presets


class CAM(Method):
    """A class activation map of some kind: a feature map, weighted.

    Attributes:
        layer: The feature map: a module's path ("features.12", whose last feature map counts; of a module that is called
            twice, the last call's) or a site ("relu[25]"). It must lie on the way from the image to the score. None finds it:
            what the last layer with weights on that way ends in before anything is pooled (its activation, its norm, its
            block's residual add or concat), leaving out a layer whose channels are the scores themselves. Where a class token
            alone is read after the last attention, it is the norm that this attention reads. The result's provenance says
            which it was, how its axes were read, and how it was found.
        channels: "first" or "last", how to read a named layer: (n, c, h, w) or (n, h, w, c), (n, c, t) or (n, t, c). None
            follows the image's rows and columns through the network and refuses where it cannot tell.
        grid: Height and width of the grid of a named layer's tokens (n, t, c), row by row; those in front of it, such as a
            class token, are left out. None follows the network, as above.
    """

    layer: str | None = None
    channels: str | None = None
    grid: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        layer, grid = self.layer, self.grid
        check(layer is None or isinstance(layer, str), "layer", layer, "a module path, a site, or None")
        check(self.channels in (None, "first", "last"), "channels", self.channels, "'first', 'last', or None")
        if grid is not None:
            pair = isinstance(grid, (tuple, list)) and len(grid) == 2 and all(type(s) is int and s > 0 for s in grid)
            check(pair, "grid", grid, "the height and the width of the tokens' grid, as in (14, 14), or None")
            object.__setattr__(self, "grid", tuple(grid))
        if layer is None and (self.channels is not None or grid is not None):
            raise InputError("channels and grid say how to read a named layer, but layer is None. Give layer as well.")


class GradCAM(CAM):
    """Grad-CAM (Selvaraju et al. 2017, Eq. 1 and 2): ReLU of the feature map's channels, weighted by their mean gradient.

    The map has one channel, bilinearly enlarged to the image's size.
    """

    name = "grad_cam"
    title = "Grad-CAM"
    kind = "one-sided"
    summary = "last feature map, its channels weighted by their mean gradient"
    source = "Selvaraju et al. 2017"

    def explain(self, job: Job) -> Maps:
        inputs = job.inputs
        run = propagate(self.network, inputs, presets.gradient.over(self.rules), keep=_may_be_one)
        targets = job.pick(run.output)
        layers = find_layers(find_features(self.network, inputs, run.trace), targets, self)
        values = [torch.zeros((*targets.T.shape, 1, *x.shape[-2:]), dtype=x.dtype, device=x.device) for x in inputs]
        for layer in dict.fromkeys(layers.values()):
            cam = class_activation(run, targets, layer)
            own = torch.tensor([k for k, v in layers.items() if v == layer], device=targets.device)
            mine = torch.isin(targets.T, own)[:, :, None, None, None]
            values = [torch.where(mine, enlarged(cam, x.shape[-2:]), v) for x, v in zip(inputs, values, strict=True)]
        return Maps.of_run(run, tuple(values), targets, notes=_notes(layers))


class GuidedGradCAM(CAM, TimesInput):
    """Guided Grad-CAM (Selvaraju et al. 2017, Sec. 3.2): guided back-propagation times Grad-CAM, enlarged.

    Its options are those of Grad-CAM, and ``times_input`` as guided back-propagation has it.
    """

    name = "guided_grad_cam"
    title = "Guided Grad-CAM"
    kind = "magnitude"
    summary = "guided backprop where Grad-CAM is positive"
    source = "Selvaraju et al. 2017"

    @property
    def forward_passes(self) -> float:
        return 6.0

    def explain(self, job: Job) -> Maps:
        own = {name: value for name, value in options_of(self).items() if name in option_names(GradCAM)}
        coarse = GradCAM(self.model, **own).explain(job)
        run = propagate(self.network, job.inputs, presets.guided.over(self.rules))
        fine = zip(gradients(run, coarse.targets), job.inputs, coarse.values, strict=True)
        return replace(coarse, values=tuple(self.value(g, x) * c for g, x, c in fine), coverage=run.coverage)


@dataclass(frozen=True, eq=False)
class Layer:
    """A feature map to weight: its site, how its output becomes (n, c, h, w), and how it was found."""

    site: Site
    layout: Layout
    how: str

    @property
    def axes(self) -> str:
        """The names of the output's axes, and its grid."""
        return self.layout.describe(self.site.output_shape)


def class_activation(run: Propagation, targets: Tensor, layer: Layer) -> Tensor:
    """Grad-CAM before it is enlarged, (t, n, 1, h, w)."""
    output = run.kept[layer.site.name].output
    (grads,) = gradients(run, targets, to=(output,))
    channels = layer.layout.arrange(grads, lead=1).mean((3, 4), keepdim=True)
    return (channels * layer.layout.arrange(output.detach())).sum(2, keepdim=True).relu()


def find_layers(features: Features, targets: Tensor, options: CAM) -> dict[int, Layer]:
    """The layer of each target: one for all, unless their scores read different branches.

    Raises:
        InputError: If the named layer is not there, not on the way to a target's score, or cannot be read as a map.
        UnsupportedOp: If the network has no feature map, or if it cannot be told how the last one is laid out.
    """
    classes = targets.unique().tolist()
    if options.layer is not None:
        node = _named(features, options.layer, classes)
        return dict.fromkeys(classes, _read_as(features, node, options))
    common = features.last(classes)
    nodes = {
        k: common if len(classes) == 1 or common.name in features.read([k], only=common.name).places else None
        for k in classes
    }
    nodes = {k: features.last([k]) if node is None else node for k, node in nodes.items()}
    layers: dict[str, Layer] = {}
    for k, node in nodes.items():
        if node.name not in layers:
            layout = features.layout(node)
            assert layout is not None
            how = "the last map on the way to the score"
            how = how if features.is_alone(node, [k]) else f"{how}, which reads others beside it"
            layers[node.name] = Layer(features.site(node), layout, how)
    return {k: layers[node.name] for k, node in nodes.items()}


def _named(features: Features, layer: str, classes: list[int]) -> Node:
    """The last feature map of a module, or of a site, on the way to the score of each class."""
    nodes = [
        n for n in features.nodes.values() if layer in (n.name, n.site.module) or n.site.module.startswith(f"{layer}.")
    ]
    nodes = [n for n in nodes if _has_map(features, n)]
    reads = [features.read([k]) for k in classes]
    if not nodes:
        there = [n for n in features.nodes.values() if n.name in reads[0].places and features.layout(n)]
        known: list[str] = list(dict.fromkeys(n.site.module for n in there if n.site.module)) + [n.name for n in there]
        raise InputError(
            f"layer must name a module or a site with a feature map (n, c, h, w), (n, h, w, c) or (n, t, c), but is {layer!r}. "
            f"The last ones are {', '.join(known[-6:])}.{nearest(layer, known)}"
        )
    for k, read in zip(classes, reads, strict=True):
        way = [n for n in nodes if n.name in read.on_the_way]
        if not way:
            raise InputError(
                f"layer must lie on the way from the image to the score of target {k}, but nothing of {layer!r} reaches it. "
                f"Use layer=None, which finds {_advice(features, k)}."
            )
        nodes = way
    last = nodes[-1]
    for k, read in zip(classes, reads, strict=True):
        if last.name not in read.places and is_somewhere(last.mark):
            raise InputError(
                f"layer must be a feature map that the score of target {k} reads, but of {last.site} it reads no place of the "
                f"grid (a class token alone goes on from there). Use layer=None, which finds {_advice(features, k)}."
            )
    return last


def _advice(features: Features, target: int) -> str:
    site = features.last([target]).site
    return f"{site.name!r}, in {site.module!r}" if site.module else repr(site.name)


def _has_map(features: Features, node: Node) -> bool:
    """A map, or what may be one as far as can be told."""
    return len(node.site.output_shape) in (3, 4) and (node.mark is None or is_somewhere(node.mark))


def _read_as(features: Features, node: Node, options: CAM) -> Layer:
    """The named layer, as the network shows its axes, or as the options say."""
    site = features.site(node)
    if options.channels is None and options.grid is None:
        layout = features.layout(node)
        if layout is not None:
            return Layer(site, layout, "named")
        raise InputError(
            f"layer {options.layer!r} puts out {site.output_shape} at {site}, and it cannot be told where in the image its values "
            "stand. Say how to read it: channels='first' or 'last', and grid=(h, w) for tokens; or name another layer."
        )
    layout = given_layout(site.output_shape, options.channels, options.grid)
    if layout is None:
        raise InputError(
            f"channels and grid must fit the output {site.output_shape} of layer {options.layer!r} ({site}), but are "
            f"{options.channels!r} and {options.grid!r}. For (n, c, h, w) give channels='first', for (n, h, w, c) "
            "channels='last', for tokens (n, t, c) grid=(h, w) of at most t places."
        )
    return Layer(site, replace(layout, order=layout.order.to(features.device)), "named, axes as given")


def _notes(layers: dict[int, Layer]) -> dict[str, str]:
    """The provenance: the layer, its axes and how it was found; by target, if they differ."""
    different = list(dict.fromkeys(layers.values()))
    if len(different) == 1:
        (layer,) = different
        return {"layer": str(layer.site), "layer_axes": layer.axes, "layer_choice": layer.how}
    own = {layer: [k for k, v in layers.items() if v is layer] for layer in different}
    return {
        "layer": "; ".join(f"{v.site} for target {', '.join(map(str, k))}" for v, k in own.items()),
        "layer_axes": "; ".join(v.axes for v in different),
        "layer_choice": different[0].how,
    }


def _may_be_one(site: Site) -> bool:
    """Asked before the call, when the output's shape is not known."""
    return any(len(shape) >= 3 for shape in site.input_shapes)
