"""What class activation maps have in common: the layers that they read, and how maps of several layers become one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from backlit._errors import InputError, check, check_word
from backlit._features import Features, find_features
from backlit.capture import Propagation, propagate
from backlit.methods.base import Method
from backlit.methods.cam_layers import Layer, Wanted, last_layers, may_be_one, named_layers, notes_of
from backlit.methods.images import enlarged
from backlit.methods.job import Job, Maps
from backlit.methods.targets import gradients
from backlit.rules import presets


class ActivationMap(Method):
    """A feature map of the network, weighted and enlarged to the image's size: a map of one channel.

    Attributes:
        layer: The feature map: a module's path ("features.12", whose last feature map counts; of a module that is called
            twice, the last call's) or a site ("relu[25]"). It must lie on the way from the image to the score. None finds it:
            what the last layer with weights on that way ends in before anything is pooled (its activation, its norm, its
            block's residual add or concat), leaving out a layer whose channels are the scores themselves. Where a class token
            alone is read after the last attention, it is the norm that this attention reads. The result's provenance says
            which it was, how its axes were read, and how it was found. A tuple of names takes several layers, whose maps are
            enlarged and made one: each divided by its largest magnitude, and their mean, unless the method has its own way.
        channels: "first" or "last", how to read a named layer: (n, c, h, w) or (n, h, w, c), (n, c, t) or (n, t, c). None
            follows the image's rows and columns through the network and refuses where it cannot tell. Of several layers it
            holds for each.
        grid: Height and width of the grid of a named layer's tokens (n, t, c), row by row; those in front of it, such as a
            class token, are left out. None follows the network, as above. Of several layers it holds for each.
    """

    stops_at_map = True
    reads_map = True

    layer: str | tuple[str, ...] | None = None
    channels: str | None = None
    grid: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        layer, grid = self.layer, self.grid
        if isinstance(layer, (tuple, list)):
            named = bool(layer) and all(isinstance(name, str) for name in layer)
            check(named, "layer", layer, "a module path, a site, a tuple of them, or None")
            object.__setattr__(self, "layer", tuple(layer))
        else:
            must = "a module path, a site, a tuple of them, or None"
            check(layer is None or isinstance(layer, str), "layer", layer, must)
        check_word("channels", self.channels, ("first", "last"), none=True)
        if grid is not None:
            pair = isinstance(grid, (tuple, list)) and len(grid) == 2 and all(type(s) is int and s > 0 for s in grid)
            check(pair, "grid", grid, "the height and the width of the tokens' grid, as in (14, 14), or None")
            object.__setattr__(self, "grid", tuple(grid))
        if layer is None and (self.channels is not None or grid is not None):
            raise InputError("channels and grid say how to read a named layer, but layer is None. Give layer as well.")

    def clean_run(self, inputs: tuple[Tensor, ...]) -> Propagation:
        """Run the images through the network, by the gradient's rules, and keep what may be a feature map."""
        return propagate(self.network, inputs, presets.gradient.over(self.rules), keep=may_be_one)

    def layers(self, run: Propagation, targets: Tensor) -> list[dict[int, Layer]]:
        """Find the layers that are read, for each target: one, or as many as are named.

        Raises:
            InputError: If a named layer is not there, not on the way to a target's score, or cannot be read as a map.
            UnsupportedOp: If the network has no feature map, or if it cannot be told how the last one is laid out.
        """
        return self.layers_in(find_features(self.network, run.inputs, run.trace), targets)

    def layers_in(self, features: Features, targets: Tensor) -> list[dict[int, Layer]]:
        """Find the same among a network's maps."""
        if self.layer is None:
            return [last_layers(features, targets)]
        if isinstance(self.layer, str):
            return [named_layers(features, targets, Wanted(self.layer, self.channels, self.grid))]
        wanted = [Wanted(n, self.channels, self.grid, f"layer[{i}]") for i, n in enumerate(self.layer)]
        return [named_layers(features, targets, one) for one in wanted]

    def fused(self, maps: Sequence[Tensor]) -> Tensor:
        """Make one map of those of several layers, each (t, n, 1, h, w) at the image's size."""
        return torch.stack([over_largest(m) for m in maps]).mean(0)

    def enlarged_to(
        self, x: Tensor, targets: Tensor, chosen: Sequence[dict[int, Layer]], maps: Mapping[Layer, Tensor]
    ) -> Tensor:
        """The maps of all layers at the size of the images ``x``, as one (t, n, 1, h, w).

        Args:
            x: The images.
            targets: Classes (n, t).
            chosen: The layers, each with the targets that it is for.
            maps: The map (t, n, 1, h, w) of each layer, at its own size.
        """
        size = x.shape[-2:]
        single = [_by_target(targets, layers, lambda layer: enlarged(maps[layer], size)) for layers in chosen]
        return (single[0] if len(single) == 1 else self.fused(single)).to(x)


class GradientMap(ActivationMap):
    """A class activation map made from a feature map and the gradient of the target's score to it."""

    def explain(self, job: Job) -> Maps:
        run = self.clean_run(job.inputs)
        targets = job.pick(run.output)
        chosen = self.layers(run, targets)
        layers = distinct(chosen)
        outputs = tuple(run.kept[layer.site.name].output for layer in layers)
        maps = {
            layer: self.weighed(layer.layout.arrange(output.detach()), layer.layout.arrange(gradient, lead=1))
            for layer, output, gradient in zip(layers, outputs, gradients(run, targets, to=outputs), strict=True)
        }
        values = tuple(self.enlarged_to(x, targets, chosen, maps) for x in job.inputs)
        return Maps.of_run(run, values, targets, notes=notes_of(chosen))

    @abstractmethod
    def weighed(self, activation: Tensor, gradient: Tensor) -> Tensor:
        """Make the map (t, n, 1, h, w) of a feature map (n, c, h, w) and the gradients to it (t, n, c, h, w)."""


def distinct(chosen: Sequence[dict[int, Layer]]) -> list[Layer]:
    """The layers that are read for any target, each once."""
    return list(dict.fromkeys(layer for layers in chosen for layer in layers.values()))


def over_largest(maps: Tensor) -> Tensor:
    """Maps (t, n, 1, h, w), each divided by its largest magnitude; a map of zeros stays one."""
    largest = maps.abs().amax((2, 3, 4), keepdim=True)
    return maps / torch.where(largest == 0, 1, largest)


def _by_target(targets: Tensor, layers: dict[int, Layer], map_of: Callable[[Layer], Tensor]) -> Tensor:
    """The map of each target's own layer, (t, n, 1, h, w)."""
    own = distinct([layers])
    value = map_of(own[0])
    for layer in own[1:]:
        classes = torch.tensor([k for k, v in layers.items() if v is layer], device=targets.device)
        value = torch.where(torch.isin(targets.T, classes)[:, :, None, None, None], map_of(layer), value)
    return value
