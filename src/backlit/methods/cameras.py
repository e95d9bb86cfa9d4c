"""CAMERAS: features and gradients of copies of the image at several sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from backlit._errors import BacklitError, InputError, check, check_whole, is_number
from backlit._features import find_features
from backlit.capture import Propagation
from backlit.methods.account import wide
from backlit.methods.cam import ActivationMap, distinct
from backlit.methods.cam_layers import Layer, Wanted, named_layers, notes_of
from backlit.methods.chunks import out_of_memory, run_in_chunks
from backlit.methods.job import Job, Maps, activation_bytes
from backlit.methods.targets import gradients

_AT_ONCE = 32  # channels that are enlarged at once


@dataclass(frozen=True, eq=False)
class _Scale:
    """A layer's features (n, c, h, w) and their gradients (t, n, c, h, w) at one size of the images."""

    activation: Tensor
    gradient: Tensor


class CAMERAS(ActivationMap):
    """CAMERAS (Jalwana et al. 2021): features and gradients, averaged over sizes of the image at its own, then multiplied.

    The image and enlarged copies of it run through the network. The feature map and its gradient of each are brought to the
    image's size and averaged; the map is the ReLU of their product's sum over channels. The network must take images of
    other sizes. Several inputs are enlarged together.

    Attributes:
        steps: Number of sizes, the image's own among them; 8 in the authors' published code.
        largest: Size of the largest copy, as a multiple of the image's own; the authors' code goes from 224 to 924 pixels in
            steps of 100.
    """

    name = "cameras"
    title = "CAMERAS"
    kind = "one-sided"
    summary = "features times gradients, each averaged over several sizes of the image"
    source = "Jalwana et al. 2021"
    answers = "Which region raises the score, seen at several sizes of the image?"
    needs = "gradients, a network that takes other sizes"
    memory_factor = 8.0
    own_size = False

    steps: int = 8
    largest: float = 924 / 224

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("steps", self.steps, high=1000)
        largest = self.largest
        check(
            is_number(largest) and 0.1 <= largest <= 100, "largest", largest, "a number from 0.1 to 100 times the image"
        )
        if self.grid is not None:
            raise InputError(
                f"grid must be None for CAMERAS, whose copies of the image have other grids, but is {self.grid!r}. Leave it out."
            )

    @property
    def scales(self) -> list[float]:
        """Tell the sizes of the copies, as multiples of the image's own."""
        return [1 + (self.largest - 1) * j / max(1, self.steps - 1) for j in range(self.steps)]

    @property
    def forward_passes(self) -> float:
        return 3 * sum(scale**2 for scale in self.scales)

    def explain(self, job: Job) -> Maps:
        run = self.clean_run(job.inputs)
        output, targets = run.output.detach(), job.pick(run.output)
        chosen = self.layers(run, targets)
        layers = distinct(chosen)
        outputs = tuple(run.kept[layer.site.name].output for layer in layers)
        scaled = [[_Scale(v.layout.arrange(a.detach()), v.layout.arrange(g, lead=1))]
                    for v, a, g in zip(layers, outputs, gradients(run, targets, to=outputs), strict=True)]  # fmt: skip
        known = {"coverage": run.coverage, "activation_bytes": activation_bytes(run.trace, job.inputs[0])}
        del run, outputs  # and their graph
        classes = [[k for own in chosen for k, v in own.items() if v is layer] for layer in layers]
        for scale in self.scales[1:]:
            copies = tuple(_resized(x, scale) for x in job.inputs)
            for own, more in zip(scaled, self._at(copies, targets, layers, classes, scale), strict=True):
                own.append(more)
        values = []
        for x in job.inputs:
            maps = {layer: _product(own, x.shape[-2:]) for layer, own in zip(layers, scaled, strict=True)}
            values.append(self.enlarged_to(x, targets, chosen, maps))
        return Maps.of(tuple(values), output, targets, notes=notes_of(chosen), **known)

    def _again(self, run: Propagation, layers: Sequence[Layer], classes: Sequence[list[int]]) -> list[Layer]:
        """The layers in a run of other sizes; the places of a plane are known, those of others are looked for once more."""
        planes = [_plane(layer, tuple(run.kept[layer.site.name].output.shape)) for layer in layers]
        known = [plane for plane in planes if plane is not None]
        if len(known) == len(layers):
            return known
        features = find_features(self.network, run.inputs, run.trace)
        wanted = [Wanted(layer.site.name, self.channels, None) for layer in layers]
        pairs = zip(wanted, classes, strict=True)
        return [next(iter(named_layers(features, torch.tensor(k), one).values())) for one, k in pairs]

    def _at(
        self,
        copies: tuple[Tensor, ...],
        targets: Tensor,
        layers: Sequence[Layer],
        classes: Sequence[list[int]],
        scale: float,
    ) -> list[_Scale]:
        """The layers' features and gradients of resized images, as many at once as take the memory of those of the chunk."""

        def of(rows: slice) -> list[_Scale]:
            run = self.clean_run(tuple(x[rows] for x in copies))
            own = self._again(run, layers, classes)
            outputs = tuple(run.kept[layer.site.name].output for layer in own)
            grads = gradients(run, targets[rows], to=outputs)
            pairs = zip(own, outputs, grads, strict=True)
            return [_Scale(v.layout.arrange(a.detach()), v.layout.arrange(g, lead=1)) for v, a, g in pairs]

        parts = _some_at_once(of, copies, scale)
        return [
            _Scale(torch.cat([p.activation for p in part]), torch.cat([p.gradient for p in part], 1))
            for part in zip(*parts, strict=True)
        ]


def _plane(layer: Layer, shape: tuple[int, ...]) -> Layer | None:
    """A layer that is a plane, rows and columns each along an axis, at another size; None if it is none."""
    layout = layer.layout
    own, count = layer.site.output_shape, layout.size[0] * layout.size[1]
    places = [a for a in range(len(own)) if a not in (layout.images, layout.channels)]
    whole = tuple(own[a] for a in places) == layout.size
    if not whole or not torch.equal(layout.order, torch.arange(count, device=layout.order.device)):
        return None
    h, w = (shape[a] for a in places)
    order = torch.arange(h * w, device=layout.order.device)
    return replace(layer, layout=replace(layout, order=order, size=(h, w)))


def _some_at_once(of: Callable[[slice], list[_Scale]], copies: tuple[Tensor, ...], scale: float) -> list[list[_Scale]]:
    """Run resized images in groups, and all at once where the network takes no fewer.

    Raises:
        InputError: If the network does not take images of this size.
    """
    n = len(copies[0])
    group = max(1, min(n, int(n / scale**2)))

    def parts(size: int) -> list[list[_Scale]]:
        return run_in_chunks(of, lambda _: 0.0, n=n, chunk=size, device=copies[0].device)

    if group < n:
        with suppress(Exception):  # of a network that takes its images only together; else it comes again
            return parts(group)
    try:
        return parts(n)
    except BacklitError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        raise InputError(
            f"model must take images of other sizes for CAMERAS, but does not take {' and '.join(_size(x) for x in copies)} "
            f"({str(error).rstrip('.')}). Use steps=1 for the image's own size alone, or LayerCAM with several layers."
        ) from error


def _size(x: Tensor) -> str:
    return f"{x.shape[-2]} x {x.shape[-1]}"


def _resized(x: Tensor, scale: float) -> Tensor:
    size = [max(1, round(side * scale)) for side in x.shape[-2:]]
    return F.interpolate(x, size, mode="bicubic")


def _product(scales: Sequence[_Scale], size: Sequence[int]) -> Tensor:
    """The ReLU of the sum over channels of mean features times mean gradients, (t, n, 1, h, w) at this size."""
    t, n, c = scales[0].gradient.shape[:3]
    total = wide(scales[0].gradient).new_zeros(t, n, 1, *size)
    for start in range(0, c, _AT_ONCE):
        block = slice(start, start + _AT_ONCE)
        activation = _mean([s.activation[:, block] for s in scales], size)
        gradient = _mean([s.gradient[:, :, block].flatten(0, 1) for s in scales], size).unflatten(0, (t, n))
        total += (activation * gradient).sum(2, keepdim=True)
    return total.relu()


def _mean(values: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """The mean over maps (n, c, h, w) of several sizes, at one."""
    large = [wide(F.interpolate(v, tuple(size), mode="bilinear")) for v in values]
    return torch.stack(large).mean(0)
