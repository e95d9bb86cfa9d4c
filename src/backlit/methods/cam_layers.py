"""The feature map of a class activation map: found by the dataflow, or named and then checked against it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from backlit._errors import InputError, nearest, shown
from backlit._features import Features, Node
from backlit._places import Layout, given_layout, is_somewhere
from backlit.capture import Site


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


@dataclass(frozen=True)
class Wanted:
    """The layer that an option names, and how to read it; ``called`` is what messages call the option."""

    name: str
    channels: str | None
    grid: tuple[int, int] | None
    called: str = "layer"


def named_layers(features: Features, targets: Tensor, wanted: Wanted) -> dict[int, Layer]:
    """Find the layer that is named, for each target.

    Raises:
        InputError: If it is not there, not on the way to a target's score, or cannot be read as a map.
    """
    classes = targets.unique().tolist()
    return dict.fromkeys(classes, _read_as(features, _named(features, wanted, classes), wanted))


def last_layers(features: Features, targets: Tensor) -> dict[int, Layer]:
    """Find the last map of each target: one for all, unless their scores read different branches.

    Raises:
        UnsupportedOp: If the network has no feature map, or if it cannot be told how the last one is laid out.
    """
    classes = targets.unique().tolist()
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


def _named(features: Features, wanted: Wanted, classes: list[int]) -> Node:
    """The last feature map of a module, or of a site, on the way to the score of each class."""
    layer, called = wanted.name, wanted.called
    nodes = [
        n for n in features.nodes.values() if layer in (n.name, n.site.module) or n.site.module.startswith(f"{layer}.")
    ]
    nodes = [n for n in nodes if _has_map(features, n)]
    reads = [features.read([k]) for k in classes]
    if not nodes:
        there = [n for n in features.nodes.values() if n.name in reads[0].places and features.layout(n)]
        known: list[str] = list(dict.fromkeys(n.site.module for n in there if n.site.module)) + [n.name for n in there]
        raise InputError(
            f"{called} must name a module or a site with a feature map (n, c, h, w), (n, h, w, c) or (n, t, c), but is "
            f"{shown(layer)}. "
            f"The last ones are {', '.join(known[-6:])}.{nearest(layer, known)}"
        )
    for k, read in zip(classes, reads, strict=True):
        way = [n for n in nodes if n.name in read.on_the_way]
        if not way:
            raise InputError(
                f"{called} must lie on the way from the image to the score of target {k}, but nothing of {layer!r} reaches it. "
                f"Use layer=None, which finds {_advice(features, k)}."
            )
        nodes = way
    last = nodes[-1]
    for k, read in zip(classes, reads, strict=True):
        if last.name not in read.places and is_somewhere(last.mark):
            raise InputError(
                f"{called} must be a feature map that the score of target {k} reads, but of {last.site} it reads no place of the "
                f"grid (a class token alone goes on from there). Use layer=None, which finds {_advice(features, k)}."
            )
    return last


def _advice(features: Features, target: int) -> str:
    site = features.last([target]).site
    return f"{site.name!r}, in {site.module!r}" if site.module else repr(site.name)


def _has_map(features: Features, node: Node) -> bool:
    """A map, or what may be one as far as can be told."""
    return len(node.site.output_shape) in (3, 4) and (node.mark is None or is_somewhere(node.mark))


def _read_as(features: Features, node: Node, wanted: Wanted) -> Layer:
    """The named layer, as the network shows its axes, or as the options say."""
    site = features.site(node)
    if wanted.channels is None and wanted.grid is None:
        layout = features.layout(node)
        if layout is not None:
            return Layer(site, layout, "named")
        raise InputError(
            f"{wanted.called} {wanted.name!r} puts out {site.output_shape} at {site}, and it cannot be told where in the image its "
            "values stand. Say how to read it: channels='first' or 'last', and grid=(h, w) for tokens; or name another layer."
        )
    layout = given_layout(site.output_shape, wanted.channels, wanted.grid)
    if layout is None:
        raise InputError(
            f"channels and grid must fit the output {site.output_shape} of {wanted.called} {wanted.name!r} ({site}), but are "
            f"{wanted.channels!r} and {wanted.grid!r}. For (n, c, h, w) give channels='first', for (n, h, w, c) "
            "channels='last', for tokens (n, t, c) grid=(h, w) of at most t places."
        )
    return Layer(site, replace(layout, order=layout.order.to(features.device)), "named, axes as given")


def notes_of(chosen: Sequence[dict[int, Layer]]) -> dict[str, str]:
    """Say which layers were used, by target if they differ, how their axes were read, and how each was chosen."""
    each = [_notes(layers) for layers in chosen]
    return {key: "; ".join(dict.fromkeys(notes[key] for notes in each)) for key in each[0]}


def may_be_one(site: Site) -> bool:
    """Tell whether a site's output may be a feature map: asked before the call, when its shape is not known."""
    return any(len(shape) >= 3 for shape in site.input_shapes)


def _notes(layers: dict[int, Layer]) -> dict[str, str]:
    """The provenance of one layer for each target."""
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
