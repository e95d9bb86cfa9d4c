"""Steps behind any method: a map filtered in the frequency domain, or smoothed, as a new Attribution that says so."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from types import NoneType
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from backlit._errors import (
    MOST_PIXELS,
    InputError,
    check,
    check_positive,
    check_type,
    check_word,
    is_number,
    is_several,
    nearest,
)
from backlit.attribution import Attribution, Reduce
from backlit.metrics import Examples, Metric


@dataclass(frozen=True)
class PostStep(ABC):
    """A step from an attribution to another one of the same images; its fields are its options.

    Attributes:
        reduce: Make one channel of the map's first ("sum", "abs", "max" or "norm", as :meth:`Attribution.heatmap` has them);
            None keeps the channels. Of a gradient, filtering magnitudes is another thing than filtering signs.
    """

    name: ClassVar[str]

    reduce: Reduce | None = None

    def __post_init__(self) -> None:
        check_word("reduce", self.reduce, get_args(Reduce), none=True)

    @abstractmethod
    def filtered(self, values: Tensor) -> Tensor:
        """Return the map (n, c, h, w) after the step."""

    def __call__(self, attribution: Attribution) -> Attribution:
        """Take the step.

        The map's sum stays as it is, channel by channel, so that what ``completeness`` says stays true unless channels were
        reduced otherwise than by their sum: then it is left out. Parts are filtered, too, but for masks, and left out where
        channels are reduced. The provenance lists the steps under "post".
        """
        values = attribution.values if self.reduce is None else attribution.heatmap(self.reduce)
        parts = {} if self.reduce is not None else attribution.parts
        before = attribution.provenance.get("post", [])
        return replace(
            attribution,
            values=self._in_float(values),
            parts={k: v if k.startswith("mask") else self._in_float(v) for k, v in parts.items()},
            completeness=attribution.completeness if self.reduce in (None, "sum") else {},
            provenance={**attribution.provenance, "post": [*before, self.told]},
        )

    def _in_float(self, values: Tensor) -> Tensor:
        """Filter in at least single precision, which a Fourier transform needs."""
        wide = values.detach().to(torch.promote_types(values.dtype, torch.float32))
        return self.filtered(wide).to(values.dtype)

    @property
    def told(self) -> dict[str, object]:
        """The step as the provenance has it, plain JSON values."""
        return {"step": self.name, **{k: v for k, v in asdict(self).items() if v is not None}}


@dataclass(frozen=True)
class LowPass(PostStep):
    """A cut of the map's high spatial frequencies (FORGrad, Muzellec et al. 2023).

    Attributes:
        cutoff: The highest frequency that is kept, as a share of the highest that pixels hold along an axis: from 0 to 1,
            where 1 cuts nothing but the corners of the spectrum. The 15 of FORGrad's published code for images of 224 pixels is
            15 / 112 = 0.134.
        shape: "ideal" keeps what is below and nothing else, as FORGrad does; "gaussian" lets a Gaussian with that standard
            deviation through, which rings less.
        reduce: Make one channel of the map's first; None keeps the channels.
    """

    name = "low_pass"

    cutoff: float = 15 / 112
    shape: Literal["ideal", "gaussian"] = "ideal"

    def __post_init__(self) -> None:
        super().__post_init__()
        check(is_number(self.cutoff) and 0 < self.cutoff <= 1, "cutoff", self.cutoff, "a number above 0 and at most 1")
        check_word("shape", self.shape, ("ideal", "gaussian"))

    def filtered(self, values: Tensor) -> Tensor:
        h, w = values.shape[-2:]
        like = {"device": values.device, "dtype": values.dtype}
        rows, columns = torch.fft.fftfreq(h, **like), torch.fft.rfftfreq(w, **like)
        frequency = 2 * (rows[:, None].square() + columns.square()).sqrt()
        if self.shape == "ideal":
            passed = frequency <= self.cutoff * (1 + 1e-6)
        else:
            passed = torch.exp(-frequency.square() / (2 * self.cutoff**2))
        return torch.fft.irfft2(torch.fft.rfft2(values) * passed.to(values.dtype), s=(h, w))


@dataclass(frozen=True)
class Smooth(PostStep):
    """A Gaussian over the map; beyond its edges the map is mirrored.

    Attributes:
        sigma: Standard deviation in pixels.
        reduce: Make one channel of the map's first; None keeps the channels.
    """

    name = "smooth"

    sigma: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("sigma", self.sigma, high=MOST_PIXELS)

    def filtered(self, values: Tensor) -> Tensor:
        for dim in (-2, -1):  # a mirrored signal is one period of an even one
            size = values.shape[dim]
            frequency = torch.fft.rfftfreq(2 * size, device=values.device, dtype=values.dtype)
            passed = torch.exp(-2 * (math.pi * self.sigma * frequency).square())
            spectrum = torch.fft.rfft(torch.cat([values, values.flip(dim)], dim).movedim(dim, -1))
            values = torch.fft.irfft(spectrum * passed, n=2 * size)[..., :size].movedim(-1, dim)
        return values


STEPS: tuple[type[PostStep], ...] = (LowPass, Smooth)


def read_step(text: str) -> PostStep:
    """Return the step that a word of a command line means: "low_pass:0.2" or "smooth:3".

    Raises:
        InputError: If there is no such step, or its number cannot be used.
    """
    name, colon, number = text.partition(":")
    kinds = {kind.name: kind for kind in STEPS}
    if name not in kinds:
        raise InputError(f"post must be low_pass:CUTOFF or smooth:SIGMA, but is {text!r}.{nearest(name, list(kinds))}")
    if not colon:
        return kinds[name]()
    try:
        value = float(number)
    except ValueError:
        raise InputError(f"post must have a number behind {name}:, but is {text!r}.") from None
    return LowPass(cutoff=value) if name == LowPass.name else Smooth(sigma=value)


@dataclass(frozen=True)
class Cutoffs:
    """A choice of a cut-off by a metric.

    Attributes:
        best: The cut-off with the best mean score.
        scores: The mean score of each cut-off that was tried; under None that of the map without a cut.
    """

    best: float
    scores: dict[float | None, float]


def choose_cutoff(
    network: nn.Module,
    examples: Examples,
    attribution: Attribution,
    metric: Metric,
    cutoffs: Sequence[float] = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0),
    step: LowPass | None = None,
) -> Cutoffs:
    """Choose the cut-off at which a metric scores these maps best, as FORGrad does once for a network and a method.

    Args:
        network: The network that was explained.
        examples: The images of the maps, with what the metric needs; not those on which the choice is judged later.
        attribution: The maps.
        metric: What decides, such as ``Insertion()``; one that explains again cannot.
        cutoffs: The cut-offs to try.
        step: A step whose other options count; None for :class:`LowPass`'s own.

    Raises:
        InputError: If there is no cut-off, one is out of range, or the metric scores none of the images.
    """
    check_type("attribution", attribution, Attribution, "an Attribution")
    check_type("metric", metric, Metric, "a metric, such as Insertion()")
    check_type("step", step, (LowPass, NoneType), "a LowPass or None")
    check(is_several(cutoffs), "cutoffs", cutoffs, "a list of numbers from 0 to 1")
    cutoffs = list(cutoffs)
    if not cutoffs:
        raise InputError("cutoffs must hold at least one number from 0 to 1, but is empty.")
    steps = {made.cutoff: made for made in (replace(step or LowPass(), cutoff=c) for c in cutoffs)}
    maps = {"": attribution, **{str(c): made(attribution) for c, made in steps.items()}}
    scores = metric(network, examples, maps)
    means: dict[float | None, float] = {None: scores.estimate("").value}
    means |= {c: scores.estimate(str(c)).value for c in steps}
    sign = 1 if metric.higher_is_better else -1
    known = {c: sign * v for c, v in means.items() if c is not None and math.isfinite(v)}
    if not known:
        raise InputError(f"metric: {metric.title} scores none of these images. Give others, or another metric.")
    return Cutoffs(max(known, key=lambda c: known[c]), means)
