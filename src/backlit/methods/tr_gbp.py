"""TR-GBP: guided back-propagation with the biases as inputs, and with what the likeliest classes share taken away."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backlit._errors import InputError, check, check_word, is_word
from backlit._warn import warn
from backlit.capture import Call, Propagation, Tap
from backlit.capture.geometry import Geometry
from backlit.methods.base import Kind
from backlit.methods.biases import BiasMethod, Channels, bias_of, propagated, site_names, with_biases
from backlit.methods.images import enlarged
from backlit.methods.job import Job, Maps
from backlit.rules import presets

_SPREAD: dict[int, Any] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_GATHER: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_BARE = (
    "All biases of the network are zero, or it has none: TR-GBP is then guided back-propagation, summed over colours{}, and "
    "ones and normalise_kernel change nothing. Use GuidedBackprop for the map {}."
)


class TRGBP(BiasMethod):
    """TR-GBP (submitted to ICLR 2022, Eq. 8 to 10): guided back-propagation to the image and to every bias.

    The map has one channel. Each layer's bias is an input of ones behind filters filled with it (Eq. 8); the guided
    gradient of that input, bilinearly enlarged, is added to the image's (Eq. 9). What the likeliest classes have in
    common is subtracted (Eq. 10). The parts are the summands, each contrasted: their sum is the map.

    Attributes:
        contrast: Over how many of the likeliest classes the mean is taken that is subtracted (Eq. 10): a number from 2
            to the number of classes, "all", or None (or 1) for no contrast: Eq. 9 alone.
        ones: Channels of a layer's input of ones: as many as the "layer" reads, or "one". Eq. 8's vector filled with b
            has the size of the layer's own filters, so that with "layer" a bias counts once for each channel that a filter
            reads (each feature, of a linear layer). The default, as insertion and box accuracy are higher so.
        normalise_kernel: Divide each bias's filled kernel by the number of its elements, so that it adds b to a map of ones
            rather than that many times b; ``ones`` then changes nothing. Eq. 8 fills the kernel with b itself.
        fold: Fold batch norm into the layer that feeds it, whose bias its shift then is. Without it a batch norm is a
            layer of its own, a 1 x 1 convolution.
        layers: Return each layer's map as a part, next to the input's; otherwise their sum, as one part. On ResNet-50
            the layers' maps are 11 MB an image.
    """

    name = "tr_gbp"
    title = "TR-GBP"
    kind = "contrast"
    summary = "guided backprop to the image and every bias, minus the mean of the likeliest classes"
    answers = "Which pixels and biases speak for this class more than for the likeliest others?"
    source = "TR-GBP, ICLR 2022 submission"
    memory_factor = 6.0
    subtracts = True

    contrast: int | Literal["all"] | None = 5
    ones: Literal["one", "layer"] = "layer"
    normalise_kernel: bool = False
    fold: bool = True
    layers: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        whole = isinstance(self.contrast, int) and not isinstance(self.contrast, bool) and self.contrast >= 1
        holds = whole or self.contrast is None or is_word(self.contrast, ("all",))
        check(holds, "contrast", self.contrast, "a number of classes, 'all', or None for no contrast")
        check_word("ones", self.ones, ("one", "layer"))
        for name in ("normalise_kernel", "fold", "layers"):
            check(isinstance(getattr(self, name), bool), name, getattr(self, name), "True or False")

    @property
    def kind_of_map(self) -> Kind:
        return "magnitude" if self.contrast in (None, 1) else self.kind

    @property
    def forward_passes(self) -> float:
        likeliest = 1000 if self.contrast == "all" else self.contrast or 1
        return 3.0 + 2 * (likeliest if likeliest > 1 else 0)  # a pass back for the class and for each of the likeliest

    def explain_together(self, job: Job) -> Maps:
        inputs = job.inputs
        sizes: list[Tensor] = []
        channels = Channels()

        def reader(call: Call, output: Tensor) -> Tap | None:
            channels.behind(call)
            bias = bias_of(call)
            if bias is None:
                return None
            sizes.append(bias.abs().amax())
            filled = bias * self._filling(call)
            return ones_input(call, output, filled, self.network, len(job), channels.last)

        run = with_biases(self.network, inputs, presets.guided.over(self.rules), reader, fold=self.fold)
        if not sizes or not bool(torch.stack(sizes).any()):
            bare = self.contrast in (None, 1)
            less = "" if bare else ", less the mean of the likeliest classes"
            warn(_BARE.format(less, "with its colours" if bare else "without that contrast"))
        targets = job.pick(run.output)
        leaves = (*run.inputs, *(t.inputs[0] for t in run.taps.values()))
        maps = self._contrasted(run, targets, leaves)
        images = [m.sum(2, keepdim=True) for m in maps[: len(inputs)]]
        names = site_names([t.site for t in run.taps.values()])
        parts = {"input": tuple(images)} | {
            name: tuple(enlarged(m, x.shape[-2:]) for x in inputs)
            for name, m in zip(names, maps[len(inputs) :], strict=True)
        }
        if not self.layers:
            parts = _summed(parts)
        values: Any = tuple(sum(p[i] for p in parts.values()) for i in range(len(inputs)))
        return Maps.of_run(run, values, targets, parts=parts, notes={"biases": len(sizes)})

    def _filling(self, call: Call) -> float:
        """What a bias is multiplied by for its input of ones of one channel to stand for the one that the options ask for."""
        if not call.primitive.has("convolution"):
            return _features(call) if self.ones == "layer" and not self.normalise_kernel else 1
        weight = call["weight"]
        if self.normalise_kernel:
            return 1 / prod(weight.shape[2:])
        if self.ones == "one":
            return 1
        return weight.shape[0] // call.get("groups", 1) if call.primitive.has("transposed") else weight.shape[1]

    def _contrasted(self, run: Propagation, targets: Tensor, leaves: tuple[Tensor, ...]) -> list[Tensor]:
        """Eq. 9's summands for the targets less their mean over the contrasted classes: a (t, n, ...) for each leaf."""
        output, contrast = run.output.detach(), self.contrast
        k = output.shape[1]
        if contrast in (None, 1):
            return propagated(run, targets, leaves)
        if k == 1 or (contrast != "all" and contrast > k):
            most = f"at most the number of classes, {k}" if k > 1 else "None for a network of one class"
            raise InputError(
                f"contrast must be {most}, but is {contrast!r}. Use contrast={'all' if k > 1 else None!r}"
                f"{', or None for no contrast' if k > 1 else ''}."
            )
        if contrast == "all":
            total: list[Tensor] = [torch.zeros_like(leaf) for leaf in leaves]
            for index in range(k):
                found = propagated(run, torch.full_like(targets[:, :1], index), leaves)
                total = [a + f[0] for a, f in zip(total, found, strict=True)]
            return [m - a / k for m, a in zip(propagated(run, targets, leaves), total, strict=True)]
        classes, places = _classes(output, targets, contrast)
        found = propagated(run, classes, leaves)
        return [_picked(m, places) - m[:contrast].mean(0) for m in found]


def _classes(output: Tensor, targets: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The likeliest ``count`` classes and the targets that are not among them, (n, m), and where each target stands, (n, t)."""
    top = output.topk(count).indices
    hit = targets[:, :, None] == top[:, None]  # (n, t, count)
    missing = ~hit.any(2)
    extra = int(missing.sum(1).max())  # an image that needs fewer repeats some
    order = missing.int().argsort(dim=1, descending=True, stable=True)[:, :extra]
    classes = torch.cat([top, targets.gather(1, order)], 1)
    return classes, (targets[:, :, None] == classes[:, None]).int().argmax(2)


def _picked(maps: Tensor, places: Tensor) -> Tensor:
    """Of maps (m, n, ...), those at places (n, t): (t, n, ...)."""
    return maps[places.T, torch.arange(maps.shape[1], device=maps.device)]


def _summed(parts: Mapping[str, tuple[Tensor, ...]]) -> dict[str, tuple[Tensor, ...]]:
    """The input's map and the sum of the others."""
    others = [p for name, p in parts.items() if name != "input"]
    whole = tuple(sum(p[i] for p in others) for i in range(len(parts["input"]))) if others else ()
    return {"input": parts["input"], **({"biases": whole} if others else {})}  # type: ignore[dict-item]


def _features(call: Call) -> int:
    """How many features a linear layer reads, however it is spelled; 1 of what is no layer of filters."""
    name = call.primitive.name
    if name == "linear":
        return call["weight"].shape[-1]
    if name == "addmm":  # what both matrices have in common
        return call.signals[0].shape[-1 if call.places[0][0] == "mat1" else -2]
    return 1


def ones_input(call: Call, output: Tensor, bias: Tensor, model: nn.Module, images: int, channels_last: bool) -> Tap:
    """A site's bias as an input of ones behind filters filled with it (Eq. 8).

    The gradient of that input is the output's gradient, contracted with the bias over channels, behind the adjoint of a
    one-channel layer of ones with the site's geometry. Where a site's positions are no plane (a linear layer on features,
    a sequence of tokens, a 3d convolution), its map is one number, the mean over its positions.
    """
    name = call.primitive.name
    geometry = Ones.of(call, model) if call.primitive.has("convolution") else None
    added = call.primitive.has("adds")
    last = (
        name == "linear" or (name == "layer_norm" and len(call["normalized_shape"]) == 1) or (added and channels_last)
    )
    axis = output.dim() - 1 if last or output.dim() == 1 else 1
    positions = geometry.size if geometry else output.shape[1:axis] + output.shape[axis + 1 :]
    # Behind a linear layer a constant may be added to what is no plane, such as attention's scores.
    plane = len(positions) == 2 and output.shape[0] == images and not (added and last)
    by_channel = axis == 1 and tuple(bias.shape) == (output.shape[1], *[1] * (output.dim() - 2))

    def read(grad: Tensor) -> tuple[Tensor]:
        if by_channel:  # one pass over memory
            rows = bias.reshape(1, 1, -1) @ grad.reshape(*grad.shape[:2], -1)
            found = rows.reshape(-1, 1, *grad.shape[2:])
        else:
            found = (grad * bias).sum(axis)
            found = found[:, None] if found.dim() else found
        if geometry:
            found = geometry.back(found)
        return (found if plane else found.reshape(images, -1).mean(1)[:, None, None, None],)

    return Tap((output.new_ones(images, 1, *(positions if plane else (1, 1))),), read)


@dataclass(frozen=True)
class Ones:
    """The adjoint of a convolution's one-channel layer of ones, for an input of that size."""

    size: tuple[int, ...]
    window: Geometry
    wrapped: tuple[Tensor, ...]
    """Of a module with another padding than zeros, by dimension: which of its input each padded position repeats."""

    @classmethod
    def of(cls, call: Call, model: nn.Module) -> Ones:
        """The layer of ones of a convolution's call."""
        size = tuple(call.signals[0].shape[-call.primitive.spatial :])
        wrapped = _wrapped(model, call, size)
        return cls(tuple(m.shape[1] for m in wrapped) or size, Geometry.of(call), wrapped)

    def back(self, grad: Tensor) -> Tensor:
        """From the output's positions (n, 1, ...) to the input's: each gets the sum over the windows that it is in."""
        window, d = self.window, len(self.size)
        ones = grad.new_ones(1, 1, *window.kernel)
        if window.transposed:
            gathered = _GATHER[d](grad, ones, None, window.stride, window.padding, window.dilation)
            return gathered[(..., *(slice(s) for s in self.size))]
        if max(window.kernel) > 1 or max(window.stride) > 1:
            grad = _SPREAD[d](grad, ones, None, window.stride, 0, 0, 1, window.dilation)
        padded = tuple(m.shape[0] for m in self.wrapped) or self.size
        edges = [(-a, s + a - g) for a, s, g in zip(window.padding, padded, grad.shape[-d:], strict=True)]
        grad = F.pad(grad, [e for edge in reversed(edges) for e in edge])
        for i, matrix in enumerate(self.wrapped):
            grad = (grad.movedim(i - d, -1) @ matrix).movedim(-1, i - d)
        return grad


def _wrapped(model: nn.Module, call: Call, padded: tuple[int, ...]) -> tuple[Tensor, ...]:
    """The padding that a module with ``padding_mode`` made before the call, as one matrix (padded, size) a dimension."""
    module = model.get_submodule(call.site.module)
    mode = getattr(module, "padding_mode", "zeros")
    if mode == "zeros" or not isinstance(module, nn.modules.conv._ConvNd):
        return ()
    both = module._reversed_padding_repeated_twice
    edges = [(both[i], both[i + 1]) for i in range(0, len(both), 2)][::-1]
    matrices = []
    for size, (low, high) in zip(padded, edges, strict=True):
        index = torch.arange(size - low - high, dtype=torch.float64, device=call.signals[0].device)
        index = F.pad(index[None, None], (low, high), mode=mode)[0, 0].long()
        matrices.append(F.one_hot(index, size - low - high).to(call.signals[0].dtype))
    return tuple(matrices)
