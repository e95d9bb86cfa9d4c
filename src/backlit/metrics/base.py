"""What every metric shares: options, checks, the case that it measures, its protocol, and its scores with their intervals."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from backlit._errors import InputError, check_type, check_word
from backlit._forward import forward
from backlit._json import JsonObject
from backlit._options import Configured, own_options
from backlit._plain import described
from backlit.attribution import Attribution, Reduce
from backlit.capture.refuse import check_model
from backlit.methods.base import Method, check_common
from backlit.methods.chunks import run_in_chunks
from backlit.methods.inputs import check_takes
from backlit.metrics.examples import Examples
from backlit.metrics.statistics import FEWEST, Estimate, Statistic, difference, estimate, mean

Need = Literal["labels", "boxes", "cells", "methods", "source"]
_ROUNDING = 1e-5  # of the largest logit, or four steps of its precision: what another size of the batch may change
Explained = Literal["target", "prediction"]
_CHANNELS: dict[Reduce, str] = {"sum": "sum", "abs": "sum of magnitudes", "max": "largest", "norm": "norm"}
WHO_HAS_IT: dict[Need, str] = {
    "labels": "all true classes of each image (Examples.labels; VOC, two-object scenes and mosaics have them)",
    "boxes": "boxes of the target (Examples.boxes; VOC and ImageNet with its annotations have them)",
    "cells": "the target's cell of a mosaic (Examples.cells; backlit.data.mosaics makes them)",
    "methods": "the methods themselves, to run them again (the argument `methods`)",
    "source": "a source signal (Attribution.parts['source']; MIP-IN and PatternNet give one)",
}


@dataclass(frozen=True)
class Protocol:
    """A record of what exactly was measured; kept with every result, as JSON can hold it."""

    metric: str
    title: str
    source: str
    higher_is_better: bool
    direction: str
    range: tuple[float, float]
    channels: str
    ties: str
    forward_passes: str
    axes: tuple[str, str]
    options: JsonObject
    explains: Explained = "target"

    def to_json(self) -> JsonObject:
        """Return it as a dictionary; infinite ends of the range are None."""
        ends = [end if np.isfinite(end) else None for end in self.range]
        return {**asdict(self), "range": ends, "axes": list(self.axes), "options": dict(self.options)}


@dataclass(frozen=True, eq=False)
class Scores:
    """A metric's scores of several methods' maps of the same n images.

    Attributes:
        metric: The metric, with its options.
        names: The images' names.
        values: One number an image by method, float64 (n,); NaN for an image that the protocol does not score.
        curves: By method, the curve of each image (n, points), for metrics that have one.
        positions: Where the curves' points stand (points,), as a share of the pixels.
        groups: What a statistic over images needs besides the values (n,): the class, or whether the network was right.
        extra: Further numbers (n,) by name and method, such as "ssim".
        pictures: Further maps (layers, n, h, w) by method, such as those of networks with reset layers.
        labels: What the layers of ``pictures`` are.
        counts: How many images or maps of these did not fit the protocol, by what is the matter with them.
        notes: What else a reader must know.
    """

    metric: Metric
    names: Sequence[str]
    values: Mapping[str, np.ndarray]
    curves: Mapping[str, np.ndarray] = field(default_factory=dict)
    positions: np.ndarray | None = None
    groups: np.ndarray | None = None
    extra: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    pictures: Mapping[str, Tensor] = field(default_factory=dict)
    labels: Sequence[str] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def protocol(self) -> Protocol:
        """The record of what exactly was measured."""
        return self.metric.protocol

    def beside(self, method: str) -> dict[str, Estimate]:
        """Estimate the metric's further statistics of the method's scores, by name, each with its bootstrap interval."""
        seed = self.metric.seed
        return {
            name: estimate(self.values[method], self.groups, statistic, seed=seed, intervals=self._enough(method))
            for name, statistic in self.metric.beside.items()
        }

    def _enough(self, method: str) -> bool:
        return int(np.isfinite(self.values[method]).sum()) >= FEWEST

    @property
    def remarks(self) -> tuple[str, ...]:
        """The notes, the further statistics and the counts, as a reader sees them."""
        beside = {m: self.beside(m) for m, values in self.values.items() if np.isfinite(values).any()}
        return (
            *self.notes,
            *(
                f"{name}: {', '.join(f'{method} {_shown(further[name])}' for method, further in beside.items())}"
                for name in (self.metric.beside if beside else ())
            ),
            *self.metric.remarks(self),
            *(f"{count} {what}" for what, count in self.counts.items() if count),
        )

    def estimate(self, method: str) -> Estimate:
        """Estimate the method's score over all images, with its bootstrap interval."""
        return estimate(self.values[method], self.groups, self.metric.statistic, seed=self.metric.seed)

    def difference(self, method: str, other: str) -> Estimate:
        """Estimate the paired difference of two methods on the images that both scored, with its bootstrap interval."""
        return difference(
            self.values[method],
            self.values[other],
            self.groups,
            self.metric.compared,
            seed=self.metric.seed,
        )

    @classmethod
    def cat(cls, items: Sequence[Scores]) -> Scores:
        """Join scores of different images; pictures stay with the first images."""
        first = items[0]

        def joined(values: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
            return {name: np.concatenate([v[name] for v in values]) for name in values[0]}

        return cls(
            metric=first.metric,
            names=[name for item in items for name in item.names],
            values=joined([item.values for item in items]),
            curves=joined([item.curves for item in items]),
            positions=first.positions,
            groups=None if first.groups is None else np.concatenate([i.groups for i in items if i.groups is not None]),
            extra={name: joined([item.extra[name] for item in items]) for name in first.extra},
            pictures=first.pictures,
            labels=first.labels,
            counts={what: sum(i.counts.get(what, 0) for i in items) for item in items for what in item.counts},
            notes=list(dict.fromkeys(note for item in items for note in item.notes)),
        )

    def ranking(self) -> list[tuple[str, Estimate]]:
        """Rank the methods, best first."""
        scored, goodness = [(name, self.estimate(name)) for name in self.values], self.goodness
        return sorted(scored, key=lambda row: (np.isnan(row[1].value), -goodness[row[0]]))

    @property
    def goodness(self) -> dict[str, float]:
        """Compute what the methods are ranked by, the better the higher; NaN of one that is not scored."""
        sign = 1 if self.metric.higher_is_better else -1
        return {
            name: sign * estimate(v, self.groups, self.metric.compared, intervals=False).value
            for name, v in self.values.items()
        }


@dataclass(frozen=True, eq=False)
class Case:
    """A network, images and maps to measure, after all checks.

    Attributes:
        network: The network that was explained, in eval mode.
        examples: n images with their targets and ground truth, on one device.
        heat: For each method one number a pixel of each image (n, 1, h, w).
        maps: The maps that ``heat`` was made of, with all their channels.
        methods: The method objects by the same names, for metrics that explain again; empty if none were given.
        explained: The class (n,) of each image that the maps are of: the examples' targets, or the network's predictions.
    """

    network: nn.Module
    examples: Examples
    heat: Mapping[str, Tensor]
    maps: Mapping[str, Attribution | Tensor]
    methods: Mapping[str, Method]
    explained: Tensor


class Metric(Configured, ABC):
    """A protocol that scores maps: create it with its options, call it on a network, examples and maps.

    A frozen dataclass: its fields are its options, and ``dataclasses.replace(metric, seed=1)`` makes another one.

    Attributes:
        reduce: How the channels of a map become one number a pixel; the papers' way is the sum.
        seed: Seed of whatever is drawn, the order of equal pixels first of all.
        chunk: Number of images that run at once; None lets it follow from the memory that is free.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    higher_is_better: ClassVar[bool]
    range: ClassVar[tuple[float, float]]
    needs: ClassVar[tuple[Need, ...]] = ()
    ties: ClassVar[str] = "none: the score does not order pixels"
    explains: ClassVar[Explained] = "target"
    """Whose map it scores: that of the examples' target, or of the class that the network predicts."""

    reduce: Reduce = "sum"
    seed: int = 0
    chunk: int | None = None

    def __post_init__(self) -> None:
        check_word("reduce", self.reduce, ("sum", "abs", "max", "norm"))
        check_common(self.chunk, self.seed)

    def __call__(
        self,
        network: nn.Module,
        examples: Examples,
        maps: Mapping[str, Attribution | Tensor],
        methods: Mapping[str, Method] | None = None,
    ) -> Scores:
        """Score maps of the same images.

        Args:
            network: The network that was explained, in eval mode; it is not changed.
            examples: The images, their targets, and the ground truth that the metric needs.
            maps: For each method its attribution of the examples, or a bare map (n, c, h, w).
            methods: The method objects by the same names, for metrics that explain again.

        Raises:
            InputError: If the data lacks what the metric needs, or a map does not fit the images.
        """
        check_type("examples", examples, Examples, "backlit.Examples")
        check_type("maps", maps, Mapping, "maps by the methods' names, a dictionary")
        if not maps:
            raise InputError("maps must hold the maps of at least one method, but is empty.")
        examples = examples.to(examples.inputs.device)
        self.check(network, examples, methods)
        self._check_maps(maps, methods)
        heat = {name: self.heatmap(name, m, examples) for name, m in maps.items()}
        with torch.no_grad():
            explained = self._explained(network, examples, maps)
            return self.measure(Case(network, examples, heat, maps, methods or {}, explained))

    def _explained(self, network: nn.Module, examples: Examples, maps: Mapping[str, Attribution | Tensor]) -> Tensor:
        """The classes (n,) that the maps are of.

        Raises:
            InputError: If an attribution is of others.
        """
        wanted, given = examples.target, {n: m.target for n, m in maps.items() if isinstance(m, Attribution)}
        if self.explains == "prediction":
            wanted = _predicted(network, examples.inputs, next(iter(given.values()), None), self.chunk)
        for name, target in given.items():
            if not torch.equal(target.to(wanted.device), wanted):
                whose = (
                    "the examples' targets, but explains others"
                    if self.explains == "target"
                    else f"the classes that the network predicts, as {self.title} asks, but explains others. Explain with "
                    "target=None"
                )
                raise InputError(f"maps[{name!r}] must explain {whose}.")
        return wanted

    @abstractmethod
    def measure(self, case: Case) -> Scores:
        """Score every map of a case."""

    @property
    def beside(self) -> Mapping[str, Statistic]:
        """Statistics that stand beside the score, by name; of a mean that single images can carry, what they cannot."""
        return {}

    @property
    def forward_passes(self) -> str:
        """The cost of one map of one image, in forward passes of one image."""
        return "0"

    @property
    def direction(self) -> str:
        """The better direction, in words."""
        return "higher is better" if self.higher_is_better else "lower is better"

    @property
    def axes(self) -> tuple[str, str]:
        """Names of its curves' positions and values; empty where there are none."""
        return "", ""

    @property
    def usual(self) -> Mapping[str, object]:
        """Options that are not news for it, though they are not the defaults: those of a preset."""
        return {}

    @property
    def settings(self) -> tuple[str, ...]:
        """The options that tell it from others of its class, in words, for its title: "reduce=abs"."""
        return tuple(f"{name}={value}" for name, value in own_options(self, self.usual).items() if name != "chunk")

    @property
    def protocol(self) -> Protocol:
        """The record of what exactly this metric measures."""
        return Protocol(
            metric=self.name,
            title=f"{self.title} ({', '.join(self.settings)})" if self.settings else self.title,
            source=self.source,
            higher_is_better=self.higher_is_better,
            direction=self.direction,
            range=self.range,
            channels=f"{_CHANNELS[self.reduce]} over channels",
            ties=self.ties,
            forward_passes=self.forward_passes,
            axes=self.axes,
            options=described(self),
            explains=self.explains,
        )

    def compared(self, values: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
        """Compute what methods are ranked and paired by: the statistic, unless its best value is in the middle of the range."""
        return self.statistic(values, groups)

    def remarks(self, scores: Scores) -> tuple[str, ...]:
        """Tell what a reader of these scores must know, and they do not say."""
        return ()

    def statistic(self, values: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
        """Compute the score of d samples of n images, (d, n) -> (d,): the mean, unless the paper says otherwise."""
        return mean(values, groups)

    def heatmap(self, name: str, given: Attribution | Tensor, examples: Examples) -> Tensor:
        """Return the method's map as one number a pixel (n, 1, h, w).

        Raises:
            InputError: If it is of other images, of another size, or not finite.
        """
        values = given.values if isinstance(given, Attribution) else given
        n, _, height, width = examples.inputs.shape
        if values.dim() != 4 or len(values) != n or values.shape[-2:] != (height, width):
            raise InputError(
                f"maps[{name!r}] must be (n, c, h, w) = ({n}, c, {height}, {width}) like the images, but has shape "
                f"{tuple(values.shape)}. Explain these examples, or resize the maps."
            )
        finite = values.flatten(1).isfinite().all(1)
        if not bool(finite.all()):
            wrong = torch.where(~finite)[0].tolist()
            which = ", ".join(str(examples.names[i]) for i in wrong[:3])
            raise InputError(f"maps[{name!r}] must be finite, but holds NaN or Inf for {which}.")
        if isinstance(given, Attribution):
            return given.heatmap(self.reduce).to(examples.inputs.device)
        values = values.to(examples.inputs.device)
        return Attribution(values, examples.target, examples.target.to(values.dtype)).heatmap(self.reduce)

    def check(self, network: nn.Module, examples: Examples, methods: Mapping[str, Method] | None) -> None:
        """See before anything is computed that the data has what the metric needs, and that the network is in eval mode.

        Raises:
            InputError: If the data lacks it; says what is missing, and which data has it.
            ModelStateError: If the network would draw at random, or change its statistics.
        """
        check_model(network, (examples.inputs,))
        if len(examples) > 1:
            check_takes(network, (examples.inputs,), (examples.inputs[:1],))
        have: dict[Need, bool] = {
            "labels": examples.labels is not None,
            "boxes": examples.boxes is not None,
            "cells": examples.cells is not None,
            "methods": methods is not None,
            "source": True,  # which only the maps can tell
        }
        for need in self.needs:
            if not have[need]:
                raise InputError(f"{self.title} needs {WHO_HAS_IT[need]}, and these examples come without.")

    def _check_maps(self, maps: Mapping[str, Attribution | Tensor], methods: Mapping[str, Method] | None) -> None:
        for name, given in maps.items():
            if "methods" in self.needs and name not in (methods or {}):
                raise InputError(
                    f"methods must hold the method of maps[{name!r}], by the same name, but has {list(methods or {})}."
                )
            if "source" in self.needs and not (isinstance(given, Attribution) and "source" in given.parts):
                raise InputError(f"{self.title} needs {WHO_HAS_IT['source']}; maps[{name!r}] has none.")


def _predicted(network: nn.Module, x: Tensor, given: Tensor | None, chunk: int | None) -> Tensor:
    """The classes (n,) that the network predicts; of classes whose logits are the same but for rounding, those that are given."""
    logits = torch.cat(
        run_in_chunks(
            lambda part: forward(network, x[part]).double(),
            lambda _: x[0].numel() * x.element_size() * 64,
            n=len(x),
            chunk=chunk,
            device=x.device,
        )
    )
    top, predicted = logits.max(1)
    if given is None or int(given.max()) >= logits.shape[1]:
        return predicted
    given = given.to(predicted.device)
    chosen = logits.gather(1, given[:, None])[:, 0]
    return torch.where(
        chosen >= top - max(_ROUNDING, 4 * torch.finfo(x.dtype).eps) * logits.abs().amax(1), given, predicted
    )


def _shown(e: Estimate) -> str:
    interval = f" [{e.low:.3f}, {e.high:.3f}]" if np.isfinite(e.low) else ""
    return f"{e.value:.3f}{interval}"


def to_numbers(values: Tensor) -> np.ndarray:
    """Turn a tensor into float64 numbers on the host."""
    return values.detach().double().cpu().numpy()
