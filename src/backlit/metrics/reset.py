"""Re-draw the network's layers and explain again: a map that stays the same does not depend on what was learned."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from backlit._errors import InputError, check, check_whole, check_word, nearest
from backlit._forward import of_image
from backlit._random import seeded, stable_seed
from backlit.capture import propagate
from backlit.methods.base import Method
from backlit.metrics.base import Case, Metric, Scores, to_numbers
from backlit.metrics.examples import Examples
from backlit.metrics.ranking import spearman
from backlit.metrics.similarity import scaled, ssim
from backlit.rules import presets


class _Reset(Metric):
    """Spearman correlation of the maps of the trained network with those of one with reset layers.

    Attributes:
        draw: "normal" draws each parameter from the normal distribution with the mean and the standard deviation that it
            has in the trained network; "own" calls the layer's own ``reset_parameters`` where it has one.
        layers: Module paths to reset, in this order; None finds them, from the last that the network calls to the first.
    """

    higher_is_better = False
    range = (-1.0, 1.0)
    needs = ("methods",)
    ties = "equal pixels share their mean rank; a constant map has no correlation and is not scored"

    draw: Literal["normal", "own"] = "normal"
    layers: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        given = (self.layers,) if isinstance(self.layers, str) else self.layers
        listed = isinstance(given, (list, tuple)) and all(isinstance(path, str) for path in given)
        check(given is None or listed, "layers", given, "a tuple of module paths, or None")
        object.__setattr__(self, "layers", given and tuple(given))
        check_word("draw", self.draw, ("normal", "own"))

    @property
    def direction(self) -> str:
        return "nearest 0 is best"

    def compared(self, values: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
        """The mean's distance from 0: a map that only turns its sign around has kept as much as one that stays."""
        return np.abs(self.statistic(values, groups))

    def check(self, network: nn.Module, examples: Examples, methods: Mapping[str, Method] | None) -> None:
        super().check(network, examples, methods)
        check_layers(network, self.layers or ())

    def stages_of(self, layers: Sequence[str]) -> list[tuple[str, ...]]:
        """List the layers that are reset at each stage, from all layers, last first."""
        raise NotImplementedError

    def explained_by(self, method: Method, network: nn.Module) -> Method:
        """Return what explains a network in the place of a method's own."""
        return replace(method, model=network)

    def trained(self, case: Case) -> Mapping[str, Tensor]:
        """Return the maps (n, 1, h, w) of the trained network, by method."""
        return case.heat

    def again(self, name: str, case: Case, network: nn.Module) -> Tensor:
        """Explain another network by the method of that name: its maps (n, 1, h, w)."""
        method = self.explained_by(case.methods[name], network)
        with torch.enable_grad():
            maps = method.attribute(case.examples.inputs, case.examples.target)
        return self.heatmap(name, maps, case.examples)

    def measure(self, case: Case) -> Scores:
        network, examples, heat = case.network, case.examples, self.trained(case)
        layers = self.layers or layers_from_the_top(network, examples.inputs)
        stages = self.stages_of(layers)
        measures = ("spearman", "spearman of magnitudes", *(("ssim",) if min(examples.inputs.shape[-2:]) >= 11 else ()))
        alike = {name: {m: np.empty((len(examples), len(stages))) for m in measures} for name in heat}
        pictures: dict[str, list[Tensor]] = {name: [] for name in heat}
        for i, stage in enumerate(stages):
            blank = reset(network, stage, seed=self.seed, draw=self.draw)
            for name, before in heat.items():
                after = self.again(name, case, blank)
                for measure, number in _alike(before, after, measures).items():
                    alike[name][measure][:, i] = to_numbers(number)
                pictures[name].append(after[:, 0].cpu())
        undefined = {k: int(np.isnan(v["spearman"]).any(1).sum()) for k, v in alike.items()}
        return Scores(
            self,
            examples.names,
            {name: numbers["spearman"].mean(1) for name, numbers in alike.items()},
            curves={name: _from_one(numbers["spearman"]) for name, numbers in alike.items()} if len(stages) > 1 else {},
            positions=np.array([0, *(len(s) / len(layers) for s in stages)]) if len(stages) > 1 else None,
            extra={m: {name: numbers[m].mean(1) for name, numbers in alike.items()} for m in measures[1:]},
            pictures={name: torch.stack(after) for name, after in pictures.items()},
            labels=[stage[-1] or "<model>" for stage in stages],
            counts={f"images of {name} not scored: a map is constant": n for name, n in undefined.items()},
        )


class LastLayerReset(_Reset):
    """Last-layer reset (DMBP, Table 3, after Adebayo et al. 2018): correlation after the last layer is drawn anew."""

    name = "last_layer_reset"
    title = "Last-layer reset"
    summary = "rank correlation of the maps before and after the last layer is drawn anew"
    source = "DMBP, Table 3; Adebayo et al. 2018"

    @property
    def forward_passes(self) -> str:
        return "those of the method"

    def stages_of(self, layers: Sequence[str]) -> list[tuple[str, ...]]:
        return [tuple(layers[:1])]


class CascadingReset(_Reset):
    """Cascading reset (TR-GBP, Sec. 5.2.2; Adebayo et al. 2018): layer after layer is drawn anew, from the top.

    Attributes:
        stages: Number of networks to explain, evenly spread over the layers; None for one a layer.
    """

    name = "cascading_reset"
    title = "Cascading reset"
    summary = "mean rank correlation with the trained network's maps while its layers are drawn anew from the top"
    source = "TR-GBP, Sec. 5.2.2; Adebayo et al. 2018"

    stages: int | None = 6

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("stages", self.stages, none=True)

    @property
    def axes(self) -> tuple[str, str]:
        return "share of the layers reset, from the top", "rank correlation"

    @property
    def forward_passes(self) -> str:
        return f"those of the method, {self.stages or 'number of layers'} times"

    def stages_of(self, layers: Sequence[str]) -> list[tuple[str, ...]]:
        count = min(self.stages or len(layers), len(layers))
        ends = np.linspace(1, len(layers), count).round().astype(int)
        return [tuple(layers[:end]) for end in ends]


def layers_from_the_top(network: nn.Module, x: Tensor) -> tuple[str, ...]:
    """List the paths of the modules with parameters of their own, from the last that the network calls to the first."""
    trace = of_image(lambda some, _: propagate(network, some[0], presets.exact).trace, (x,))
    owners = {name for name, module in network.named_modules() if any(True for _ in module.parameters(recurse=False))}
    called = [site.module for site in trace if site.module in owners]
    return tuple(dict.fromkeys(reversed(called)))


def reset(
    network: nn.Module, layers: Sequence[str], *, seed: int, draw: Literal["normal", "own"] = "normal"
) -> nn.Module:
    """Copy the network and draw these layers' parameters anew; the network itself stays as it is.

    Each parameter has a stream of its own, from the seed and its name: what a layer becomes depends neither on its
    neighbours nor on the order, and two layers of one shape are not drawn alike. Buffers, such as the running statistics
    of a batch norm, stay. A parameter that is constant has nothing to be drawn from and stays, too.

    Args:
        network: Any network.
        layers: Paths of modules.
        seed: Seed of the draw.
        draw: See :class:`LastLayerReset`.

    Raises:
        InputError: If a layer is not there, or has no parameter of its own.
    """
    check_layers(network, layers)
    blank = copy.deepcopy(network)
    for layer in layers:
        module = blank.get_submodule(layer)
        parameters = dict(module.named_parameters(recurse=False))
        own = getattr(module, "reset_parameters", None)
        if draw == "own" and callable(own):
            buffers = {name: value.clone() for name, value in module.named_buffers()}
            with seeded(stable_seed("reset", seed, layer), next(iter(parameters.values())).device):
                own()
            for name, value in module.named_buffers():
                value.copy_(buffers[name])
            continue
        for name, parameter in parameters.items():
            generator = torch.Generator().manual_seed(stable_seed("reset", seed, layer, name))
            spread, mean = torch.std_mean(parameter.detach().double(), correction=0)
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            with torch.no_grad():
                parameter.copy_((drawn * spread.cpu() + mean.cpu()).to(parameter))
    return blank


def check_layers(network: nn.Module, layers: Sequence[str]) -> None:
    """Refuse what cannot be reset.

    Raises:
        InputError: If a layer is not there, or has no parameter of its own.
    """
    known = dict(network.named_modules())
    for layer in layers:
        if layer not in known:
            raise InputError(
                f"layers must be module paths of the network, but {layer!r} is none.{nearest(layer, known)}"
            )
        if not any(True for _ in known[layer].parameters(recurse=False)):
            kind = type(known[layer]).__name__
            raise InputError(f"layers must have parameters of their own, but {layer!r} ({kind}) has none.")


def _alike(before: Tensor, after: Tensor, measures: Sequence[str]) -> dict[str, Tensor]:
    a, b = before.flatten(1), after.flatten(1)
    alike = {"spearman": spearman(a, b), "spearman of magnitudes": spearman(a.abs(), b.abs())}
    if "ssim" in measures:
        alike["ssim"] = ssim(scaled(before.double()), scaled(after.double()), span=2.0)
    return alike


def _from_one(correlations: np.ndarray) -> np.ndarray:
    """Return the curve (n, stages + 1), with the trained network's own correlation of 1 at its start."""
    return np.concatenate([np.ones((len(correlations), 1)), correlations], 1)
