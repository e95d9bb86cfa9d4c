"""FullGrad: the logit as what the input and what every bias gives, and the map that its authors make of it."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from backlit._errors import check, check_word
from backlit.capture import Call, Tap, named
from backlit.methods.base import Kind
from backlit.methods.biases import (
    BiasMethod,
    Channels,
    check_told,
    offset,
    propagated,
    site_names,
    with_biases,
)
from backlit.methods.images import enlarged
from backlit.methods.job import Job, Maps, scores_of
from backlit.rules import presets

_LAYERS = named("convolution") | {"batch_norm"}
_TINY = 1e-6  # the authors' guard against a constant map


class FullGrad(BiasMethod):
    """FullGrad (Srinivas and Fleuret 2019): gradient times input, and at every bias gradient times bias.

    The map has one channel. ``completeness`` is the decomposition itself, which is exact on any architecture: "input" is
    <dF/dx, x>, "layers" what the biases of convolutions and batch norms give, "others" what all other sites add, "gap"
    what is left of the logit: rounding.

    Attributes:
        process: "published" makes each map of terms its magnitude, rescales it from 0 to 1 over all its channels, enlarges
            it bilinearly, and sums channels and layers. "raw" leaves the terms as they are and spreads each over the
            image so that its sum stays: then the map's sum and ``completeness["unplaced"]`` are the logit.
        biases: Whose terms the map sums: "layers" are convolutions and batch norms, as published; "all" is every site
            that adds something at image positions, such as a ReLU6 that is cut off or a GELU.
        layers: Return each layer's map as a part, next to the input's.
    """

    name = "fullgrad"
    title = "FullGrad"
    kind = "magnitude"
    summary = "magnitudes of gradient times input and of gradient times bias in every layer"
    answers = "Where do the image and all biases together make the logit?"
    source = "Srinivas and Fleuret 2019"
    memory_factor = 6.0

    process: Literal["published", "raw"] = "published"
    biases: Literal["layers", "all"] = "layers"
    layers: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_word("process", self.process, ("published", "raw"))
        check_word("biases", self.biases, ("layers", "all"))
        check(isinstance(self.layers, bool), "layers", self.layers, "True or False")

    @property
    def kind_of_map(self) -> Kind:
        return "signed" if self.process == "raw" else self.kind

    def explain_together(self, job: Job) -> Maps:
        inputs = job.inputs
        run = with_biases(self.network, inputs, presets.gradient.over(self.rules), self._reader(len(job)))
        targets = job.pick(run.output)
        output = scores_of(run.output, targets)
        check_told(run.trace)
        taps = list(run.taps.values())
        leaves = (*run.inputs, *(leaf for tap in taps for leaf in tap.inputs))
        grads = propagated(run, targets, leaves)
        products = [g * x for g, x in zip(grads, inputs, strict=False)]
        found = iter(grads[len(inputs) :])
        terms = [
            (tap.site, *(next(found) for _ in tap.inputs)) for tap in taps
        ]  # site, sum (t, n), map (t, n, 1, h, w)
        parts = {"input": tuple(self._of_input(p) for p in products)}
        placed = [term for term in terms if len(term) == 3]
        for name, (_, _, plane) in zip(site_names([site for site, *_ in placed]), placed, strict=True):
            parts[name] = tuple(self._at(plane, x) for x in inputs)
        zero = torch.zeros_like(output)
        completeness = {
            "input": sum((p.flatten(2).sum(2) for p in products), zero),
            "layers": sum((s for site, s, *_ in terms if site.primitive in _LAYERS), zero),
            "others": sum((s for site, s, *_ in terms if site.primitive not in _LAYERS), zero),
        }
        completeness["gap"] = output - sum(completeness.values(), zero)
        if self.process == "raw":
            completeness["unplaced"] = sum((s for _, s, *plane in terms if not plane), zero)
        values: Any = tuple(sum(p[i] for p in parts.values()) for i in range(len(inputs)))
        notes = {"biases": len(terms), "maps": len(parts)}
        own = parts if self.layers else {}
        return Maps.of_run(run, values, targets, parts=own, completeness=completeness, notes=notes)

    def _reader(self, n: int) -> Any:
        channels = Channels()

        def reader(call: Call, output: Tensor) -> Tap | None:
            """A site's terms: their sum, and, where they have image positions and are wanted, their map."""
            channels.behind(call)
            added = offset(call, output)
            if added is None:
                return None
            wanted = self.biases == "all" or call.primitive.name in _LAYERS
            placed = wanted and output.dim() == 4 and output.shape[0] == n and not channels.last

            def read(grad: Tensor) -> tuple[Tensor, ...]:
                terms = grad * added
                whole = terms.reshape(n, -1).sum(1)
                return (whole, self._processed(terms)) if placed else (whole,)

            plane = (output.new_zeros(n, 1, *output.shape[2:]),) if placed else ()
            return Tap((output.new_zeros(n), *plane), read)

        return reader

    def _processed(self, terms: Tensor) -> Tensor:
        """Terms (n, c, h, w) as a map (n, 1, h, w), before it is enlarged."""
        if self.process == "raw":
            return terms.sum(1, keepdim=True)
        size = terms.abs()
        low, high = size.amin((1, 2, 3), keepdim=True), size.amax((1, 2, 3), keepdim=True)
        return ((size - low) / (high - low + _TINY)).sum(1, keepdim=True)

    def _of_input(self, product: Tensor) -> Tensor:
        return torch.stack([self._processed(p) for p in product])

    def _at(self, plane: Tensor, x: Tensor) -> Tensor:
        """A layer's map (t, n, 1, h, w) at the image's size: enlarged as the authors do it, or spread with its sum kept."""
        return spread(plane, x) if self.process == "raw" else enlarged(plane, x.shape[-2:], corners=True)


def spread(plane: Tensor, x: Tensor) -> Tensor:
    """A map (t, n, 1, h, w) over the image's pixels, bilinearly, each position's own share summing to what it was."""
    rows, columns = (_shares(a, b, plane) for a, b in zip(plane.shape[-2:], x.shape[-2:], strict=True))
    return rows @ plane @ columns.T


def _shares(size: int, pixels: int, like: Tensor) -> Tensor:
    """(pixels, size): how one position of a side is shared out among the pixels; columns sum to 1."""
    fine, coarse = max(size, pixels), min(size, pixels)
    eye = torch.eye(coarse, dtype=like.dtype, device=like.device)[None]
    shares = F.interpolate(eye, fine, mode="linear", align_corners=False)[0]
    shares = shares.T if size <= pixels else shares
    return shares / shares.sum(0)
