"""Principal feature visualisation: the directions in which an image's last features differ the most from place to place."""

from __future__ import annotations

import torch
from torch import Tensor

from backlit._errors import check_whole
from backlit._features import Features, Node, find_features
from backlit._places import count_places, is_somewhere
from backlit.methods.account import wide
from backlit.methods.cam import ActivationMap
from backlit.methods.cam_layers import Layer, notes_of
from backlit.methods.images import enlarged
from backlit.methods.job import Job, Maps


class PFV(ActivationMap):
    """Principal feature visualisation (Bakken et al. 2020): principal components of the last features, where early ones are active.

    The places of the last feature map are projected on its principal components, enlarged, and multiplied by the sum of all
    earlier maps, summed over their channels: those that a pool or a stride makes smaller. The result has a channel for each
    component, drawn as red, green and blue in the paper, and knows no class: all targets of an image get the same. The
    components are those of each image alone, so that no map depends on its batch; the authors' code takes those of the
    batch. A component's sign is chosen so that its largest entry is positive. Of several layers that are named, the last is the
    one whose components are taken, and the others weigh it.

    Attributes:
        components: Number of principal components; of fewer places or channels the rest is 0.
    """

    name = "pfv"
    title = "Principal feature visualisation"
    kind = "magnitude"
    summary = "principal components of the last features, where the earlier ones are active"
    source = "Bakken et al. 2020"
    answers = "Which parts of the image does the network tell from each other, whatever the class?"
    needs = "one forward pass, a feature map"
    takes_rules = False
    follows_target = False

    components: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("components", self.components, high=10_000)

    @property
    def forward_passes(self) -> float:
        return 1.0

    def explain(self, job: Job) -> Maps:
        run = self.clean_run(job.inputs)
        targets = job.pick(run.output)
        features = find_features(self.network, run.inputs, run.trace)
        chosen = self.layers_in(features, targets)
        shown, weighing = chosen[-1], chosen[:-1]

        def arranged(layer: Layer) -> Tensor:
            return layer.layout.arrange(run.kept[layer.site.name].output.detach())

        values = []
        for x in job.inputs:
            maps: dict[Layer, Tensor] = {}
            for k, layer in shown.items():
                if layer not in maps:
                    early = [own[k] for own in weighing] or _before(features, layer, k)
                    value = enlarged(_projected(arranged(layer), self.components)[None], x.shape[-2:])
                    for one in early[:1]:
                        value = value * sum(_activity(arranged(e), x.shape[-2:]) for e in (one, *early[1:]))
                    maps[layer] = value.expand(targets.shape[1], *value.shape[1:])
            values.append(self.enlarged_to(x, targets, [shown], maps))
        return Maps.of_run(run, tuple(values), targets, notes=notes_of(chosen))


def _projected(feature: Tensor, count: int) -> Tensor:
    """The places of a feature map (n, c, h, w) on its first principal components, (n, count, h, w)."""
    rows = wide(feature).flatten(2).transpose(1, 2)  # (n, places, c)
    rows = rows - rows.mean(1, keepdim=True)
    directions = torch.linalg.svd(rows, full_matrices=False).Vh[:, :count]  # (n, k, c)
    largest = directions.gather(2, directions.abs().argmax(2, keepdim=True))
    projected = (directions * largest.sign()) @ rows.transpose(1, 2)
    missing = count - projected.shape[1]
    return torch.nn.functional.pad(projected, (0, 0, 0, missing)).unflatten(2, feature.shape[2:])


def _activity(feature: Tensor, size: torch.Size) -> Tensor:
    """The sum over the channels of a feature map (n, c, h, w) at the image's size, (1, n, 1, h, w)."""
    return enlarged(wide(feature).sum(1, keepdim=True)[None], size)


def _before(features: Features, layer: Layer, target: int) -> list[Layer]:
    """The maps that stand before a layer and are made smaller on the way to the target's score."""
    read = features.read([target])
    nodes = list(features.nodes)
    earlier = nodes[: nodes.index(layer.site.name)]
    layers = []
    for node in (features.nodes[name] for name in earlier if name in read.places):
        layout = features.layout(node)
        if layout is not None and node.first and _is_reduced(features, node, read.on_the_way):
            layers.append(Layer(features.site(node), layout, "before a pool or a stride"))
    return layers


def _is_reduced(features: Features, node: Node, way: frozenset[str]) -> bool:
    """Whether something on the way puts out fewer places than it read of the node."""
    after = [features.nodes[name].mark for name in features.children[node.name] if name in way]
    return any(
        mark is not None
        and is_somewhere(mark)
        and node.mark is not None
        and count_places(mark) < count_places(node.mark)
        for mark in after
    )
