"""Reset checks that answer what was found wrong with them: maps averaged over noise, and complexity in the place of likeness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from backlit._errors import MOST_STEPS, check, check_positive, check_whole, check_word
from backlit.methods.average import SmoothGrad
from backlit.methods.base import Method
from backlit.metrics.base import Case, Metric, Scores, to_numbers
from backlit.metrics.examples import Examples
from backlit.metrics.reset import CascadingReset, check_layers, layers_from_the_top, reset


class SmoothMPRT(CascadingReset):
    """Smooth MPRT (Hedström et al. 2024): the cascading reset of maps that are averaged over noisy copies of the image.

    Both maps are averaged, that of the trained network and that of the reset one, so that a correlation is not low because single
    maps are noisy. Layers are reset from the bottom: from the top, all below pass on what they had learned.

    Attributes:
        samples: Number of noisy copies of each image.
        noise: Standard deviation of the noise, as a share of the image's own range.
        order: From the "bottom", the first layer first, or from the "top".
    """

    name = "smooth_mprt"
    title = "Smooth MPRT"
    summary = "mean rank correlation of maps averaged over noise while layers are drawn anew from the bottom"
    source = "Hedström et al. 2024"

    samples: int = 50
    noise: float = 0.1
    order: Literal["bottom", "top"] = "bottom"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("samples", self.samples, high=MOST_STEPS)
        check_positive("noise", self.noise)
        check_word("order", self.order, ("bottom", "top"))

    @property
    def axes(self) -> tuple[str, str]:
        return f"share of the layers reset, from the {self.order}", "rank correlation"

    @property
    def forward_passes(self) -> str:
        networks = f"the trained network and {self.stages or 'one for each layer'} reset ones"
        return f"those of the method, {self.samples + 1:,} times for each of {networks}"

    def explained_by(self, method: Method, network: nn.Module) -> Method:
        own = replace(method, model=network)
        return SmoothGrad(network, of=own, samples=self.samples, sigma=self.noise, seed=self.seed, chunk=method.chunk)

    def trained(self, case: Case) -> Mapping[str, Tensor]:
        return {name: self.again(name, case, case.network) for name in case.heat}

    def stages_of(self, layers: Sequence[str]) -> list[tuple[str, ...]]:
        return super().stages_of(layers if self.order == "top" else layers[::-1])


class EfficientMPRT(Metric):
    """Efficient MPRT (Hedström et al. 2024): how much more complex the maps become when the whole network is drawn anew.

    The relative rise of the entropy of a histogram of the map. Two networks are explained, whatever the number of layers, and
    none of the maps is compared with another pixel by pixel. A map without a structure to lose is as complex as before: 0.

    Attributes:
        bins: Number of equal parts from a map's least value to its largest.
        draw: How the parameters are drawn; see :class:`LastLayerReset`.
        layers: Module paths to reset; None for all that the network calls and that have parameters.
    """

    name = "efficient_mprt"
    title = "Efficient MPRT"
    summary = "relative rise of the maps' entropy when all layers are drawn anew"
    source = "Hedström et al. 2024"
    higher_is_better = True
    range = (-1.0, float("inf"))
    needs = ("methods",)

    bins: int = 100
    draw: Literal["normal", "own"] = "normal"
    layers: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("bins", self.bins, high=MOST_STEPS)
        check(self.bins > 1, "bins", self.bins, "at least 2")
        check_word("draw", self.draw, ("normal", "own"))
        given = (self.layers,) if isinstance(self.layers, str) else self.layers
        listed = isinstance(given, (list, tuple)) and all(isinstance(path, str) for path in given)
        check(given is None or listed, "layers", given, "a tuple of module paths, or None")
        object.__setattr__(self, "layers", given and tuple(given))

    @property
    def forward_passes(self) -> str:
        return "those of the method"

    def check(self, network: nn.Module, examples: Examples, methods: Mapping[str, Method] | None) -> None:
        super().check(network, examples, methods)
        check_layers(network, self.layers or ())

    def measure(self, case: Case) -> Scores:
        examples = case.examples
        layers = self.layers or layers_from_the_top(case.network, examples.inputs)
        blank = reset(case.network, layers, seed=self.seed, draw=self.draw)
        values, before, after = {}, {}, {}
        for name, heat in case.heat.items():
            with torch.enable_grad():
                maps = replace(case.methods[name], model=blank).attribute(examples.inputs, examples.target)
            again = self.heatmap(name, maps, examples)
            one, two = entropy(heat, self.bins), entropy(again, self.bins)
            before[name], after[name] = to_numbers(one), to_numbers(two)
            values[name] = to_numbers(torch.where(one > 0, (two - one) / one, torch.nan))
        undefined = {k: int((v == 0).sum()) for k, v in before.items()}
        return Scores(
            self,
            examples.names,
            values,
            extra={"entropy": before, "entropy, all layers reset": after},
            counts={f"images of {name} not scored: a map is constant": n for name, n in undefined.items()},
        )


def entropy(heat: Float[Tensor, "n 1 h w"], bins: int) -> Float[Tensor, " n"]:
    """Compute the entropy, in nats, of the histogram of each map's values, in equal bins from its least to its largest."""
    values = heat.flatten(1).double()
    low, high = values.amin(1, keepdim=True), values.amax(1, keepdim=True)
    span = torch.where(high > low, high - low, 1)
    place = ((values - low) / span * bins).long().clamp(max=bins - 1)
    counts = torch.zeros(len(values), bins, dtype=values.dtype, device=values.device)
    share = counts.scatter_add_(1, place, torch.ones_like(values)) / values.shape[1]
    return torch.special.entr(share).sum(1)
