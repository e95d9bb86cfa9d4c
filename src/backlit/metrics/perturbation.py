"""Change pixels in the order of the map and watch the network: what insertion, deletion, MoRF and LeRF have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from backlit._errors import InputError, check, check_whole, check_word, is_number
from backlit._layout import fast_layout
from backlit.attribution import Attribution
from backlit.methods.base import Method
from backlit.metrics.base import Case, Explained, Metric, Scores, to_numbers
from backlit.metrics.changed import Activation, Made, logit_of, probabilities, run_changed
from backlit.metrics.examples import Examples
from backlit.metrics.ranking import drawn_orders, pixel_ranks
from backlit.metrics.replacement import REPLACEMENTS, Replacement, check_blur, replaced
from backlit.metrics.statistics import Statistic, median, ratio_of_means

Score = Literal["probability", "logit", "logit_ratio", "change"]
_BLOCK = 8  # images whose ranks are held at once
_SHOWN: dict[Score, str] = {
    "probability": "probability",
    "logit": "logit",
    "logit_ratio": "logit over its own",
    "change": "change of the logit over its own",
}
_RANGES: dict[Score, tuple[float, float]] = {
    "probability": (0.0, 1.0),
    "logit": (-np.inf, np.inf),
    "logit_ratio": (-np.inf, np.inf),
    "change": (0.0, np.inf),
}
Action = Literal["reveal", "remove"]
"""From the replacement to the image, or from the image to its replacement."""
Order = Literal["most relevant first", "least relevant first"]
Subject = Literal["target", "others"]
"""Whose scores a curve shows: the target's, or those of the image's other true classes."""
_SHOWN_PIXELS: dict[tuple[Action, Order], Subject] = {
    ("reveal", "most relevant first"): "target",
    ("reveal", "least relevant first"): "others",
    ("remove", "most relevant first"): "others",
    ("remove", "least relevant first"): "target",
}
"""Whose pixels the images along a curve show, if the map is right."""
_TIES = "equal pixels in an order drawn for each image, the same for all its maps"


class Perturbation(Metric):
    """Pixels of one image replace those of another in the order of the map; the score is the area under the curve.

    Attributes:
        steps: Number of equal steps; the curve has one point more. More than there are pixels to change count as as many.
            None: steps of ``pixels_per_step`` pixels.
        pixels_per_step: Pixels that change at a step, for ``steps=None``; the last step may have fewer.
        fraction: Share of the pixels that have been changed at the last step.
        replacement: What stands where the image does not: its "blur" (Gaussian, edges reflected), its "folded_blur" (the kernel
            of RISE's published code, zeros outside the image), "zero" (in the network's own, normalised input), or the
            "mean" of its channel.
        blur_size: Pixels a side of the blur's kernel, odd.
        blur_sigma: Its standard deviation, pixels.
        score: What the curve shows: the target's "probability" or "logit"; "logit_ratio", the logit over the image's
            own; "change", the logit's absolute change over the image's own logit.
        activation: What makes probabilities of logits: "softmax", or "sigmoid" for networks with one decision a class, as a
            network of one output always has.
        absolute: Names of the methods whose summed maps are ranked by magnitude (``DMBP.name``, not yours for it).
        explains: Whose map and score it is: of the examples' "target", or of the class that the network predicts, "prediction".
    """

    ties = _TIES
    action: ClassVar[Action]
    order: ClassVar[Order] = "most relevant first"
    curve_of: ClassVar[Subject] = "target"

    steps: int | None = 50
    pixels_per_step: int | None = None
    fraction: float = 1.0
    replacement: Replacement = "blur"
    blur_size: int = 51
    blur_sigma: float = 10.0
    score: Score = "probability"
    activation: Activation = "softmax"
    absolute: tuple[str, ...] = ()
    explains: Explained = "target"  # pyright: ignore[reportIncompatibleVariableOverride]  an option, here

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_steps()
        check(is_number(self.fraction) and 0 < self.fraction <= 1, "fraction", self.fraction, "above 0 and at most 1")
        check_word("replacement", self.replacement, REPLACEMENTS)
        check_whole("blur_size", self.blur_size)
        check(self.blur_size % 2 == 1, "blur_size", self.blur_size, "a positive odd integer")
        sigma = self.blur_sigma
        check(is_number(sigma) and 1e-3 <= sigma <= 1e6, "blur_sigma", sigma, "from 0.001 to 1,000,000 pixels")
        check_word("score", self.score, ("probability", "logit", "logit_ratio", "change"))
        listed = isinstance(self.absolute, (list, tuple)) and all(isinstance(name, str) for name in self.absolute)
        check(listed, "absolute", self.absolute, "a tuple of names of methods")
        object.__setattr__(self, "absolute", tuple(self.absolute))
        check_word("activation", self.activation, ("softmax", "sigmoid"))
        check_word("explains", self.explains, ("target", "prediction"))

    def _check_steps(self) -> None:
        check_whole("steps", self.steps, none=True)
        check_whole("pixels_per_step", self.pixels_per_step, none=True)
        if (self.steps is None) == (self.pixels_per_step is None):
            raise InputError(
                f"steps and pixels_per_step say the same in two ways, but are {self.steps} and {self.pixels_per_step}. Give one "
                "of them, and None for the other."
            )

    @property
    def higher_is_better(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]  options decide
        """Tell whether the images of a good map show what the curve is of: then scores stay high, and changes small."""
        shows_it = _SHOWN_PIXELS[self.action, self.order] == self.curve_of
        return not shows_it if self.score == "change" else shows_it

    @property
    def range(self) -> tuple[float, float]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return _RANGES[self.score]

    @property
    def beside(self) -> Mapping[str, Statistic]:
        """The median, and the ratio of the mean logits, beside a mean of ratios to logits that may be small."""
        return {"median": median, "ratio of means": ratio_of_means} if self.score == "logit_ratio" else {}

    @property
    def forward_passes(self) -> str:
        shared = 1 + (self.fraction == 1)
        if self.steps is None:
            return (
                f"1 for every {self.pixels_per_step:,} pixels that change, and {shared} that all maps of an image share"
            )
        return f"{self.steps + 1 - shared}, and {shared} that all maps of an image share"

    @property
    def axes(self) -> tuple[str, str]:
        return "share of pixels changed", _SHOWN[self.score]

    def check(self, network: nn.Module, examples: Examples, methods: Mapping[str, Method] | None) -> None:
        super().check(network, examples, methods)
        if self.replacement == "blur":
            check_blur(self.blur_size, examples.inputs)

    def measure(self, case: Case) -> Scores:
        network, examples, heat = case.network, replace(case.examples, target=case.explained), case.heat
        ranked = {k: v.abs() if _method_of(k, case.maps[k]) in self.absolute else v for k, v in heat.items()}
        blocks = []
        for start in range(0, len(examples), _BLOCK):
            part = slice(start, start + _BLOCK)
            blocks.append(self._curves(network, examples[part], {k: v[part] for k, v in ranked.items()}))
        raw = torch.cat(blocks, 1)  # (m, n, points)
        own = self._own(network, examples, raw)
        curves, counts = self.scored(raw, own)
        numbers = to_numbers(curves)
        area = (numbers[..., 1:] + numbers[..., :-1]).mean(-1) / 2
        return Scores(
            metric=self,
            names=examples.names,
            values=dict(zip(heat, area, strict=True)),
            curves=dict(zip(heat, numbers, strict=True)),
            positions=self._positions(examples.inputs),
            groups=None if own is None or not self.beside else to_numbers(own),
            counts=counts,
            notes=self._notes(examples.inputs),
        )

    def steps_on(self, x: Tensor) -> int:
        """Count the steps on images x (n, c, h, w): no more than there are pixels to change."""
        changed = max(1, round(self.fraction * x.shape[-2] * x.shape[-1]))
        return -(-changed // (self.pixels_per_step or 1)) if self.steps is None else min(self.steps, changed)

    def _changed(self, x: Tensor) -> Tensor:
        """Count the pixels that have changed at each point of the curve, on images x (n, c, h, w): int (points,)."""
        changed, steps = self.fraction * x.shape[-2] * x.shape[-1], self.steps_on(x)
        if self.steps is None:
            at = torch.arange(steps + 1, device=x.device, dtype=torch.float32) * (self.pixels_per_step or 1)
            return at.clamp(max=changed).round().int()
        return torch.linspace(0, changed, steps + 1).round().int().to(x.device)

    def _positions(self, x: Tensor) -> np.ndarray:
        """Compute the share of the pixels that have changed at each point of the curve (points,)."""
        if self.steps is None:
            return to_numbers(self._changed(x)) / (x.shape[-2] * x.shape[-1])
        return np.linspace(0, self.fraction, self.steps_on(x) + 1)

    def _notes(self, x: Tensor) -> tuple[str, ...]:
        steps, asked = self.steps_on(x), self.steps
        return (
            ()
            if asked is None or steps == asked
            else (f"{steps:,} steps of one pixel, of steps={asked:,}: there are no more pixels to change",)
        )

    def _own(self, network: nn.Module, examples: Examples, raw: Tensor) -> Tensor | None:
        """Compute the score of the image as it is (n,), where the curve is relative to it; mostly one of the curve's ends."""
        if self.score not in ("logit_ratio", "change"):
            return None
        if self.action == "remove":
            return raw[0, :, 0]
        if self.fraction == 1:
            return raw[0, :, -1]
        x, every = fast_layout(network, examples.inputs), torch.arange(len(examples))
        return self._run(network, len(examples), examples, lambda part: (x[part], every[part])).double()

    def scored(self, raw: Tensor, own: Tensor | None) -> tuple[Tensor, dict[str, int]]:
        """Compute the curves (m, n, points) in the units of the score; NaN for images that it does not fit, which are counted."""
        if own is None:
            return raw, {}
        own = own[None, :, None]
        ratio = self.score == "logit_ratio"
        fits = own > 0 if ratio else own != 0
        curves = raw / own if ratio else ((raw - own) / own).abs()
        must = "positive" if ratio else "other than 0"
        what = f"images not scored: their target's logit is not {must}"
        return torch.where(fits, curves, torch.nan), {what: int((~fits).sum())}

    def _curves(self, network: nn.Module, examples: Examples, heat: Mapping[str, Tensor]) -> Tensor:
        """Compute raw scores (m, n, points) of n images under m maps; what all maps of an image share runs once."""
        x = fast_layout(network, examples.inputs)
        (n, _, h, w), m, steps = x.shape, len(heat), self.steps_on(x)
        instead = replaced(x, self.replacement, self.blur_size, self.blur_sigma)
        first, last = (instead, x) if self.action == "reveal" else (x, instead)
        drawn = drawn_orders(x, self.seed)
        ascending = self.order == "least relevant first"
        ranked = [pixel_ranks(v.flatten(1), drawn, ascending=ascending) for v in heat.values()]
        ranks = torch.stack(ranked).view(m, n, 1, h, w).int()
        counts = self._changed(x)
        whole = self.fraction == 1
        inner = torch.arange(1, steps + (not whole), device=x.device)

        def changed(part: slice) -> Made:
            job = torch.arange(part.start, part.stop, device=x.device)
            image, rest = job // (m * len(inner)), job % (m * len(inner))
            of_map, step = rest // len(inner), inner[rest % len(inner)]
            taken = ranks[of_map, image] < counts[step].view(-1, 1, 1, 1)
            start, stop = part.start // (m * len(inner)), (part.stop - 1) // (m * len(inner))
            # Most chunks are of one image: then it is broadcast, not copied.
            some = slice(start, start + 1) if start == stop else image
            return torch.where(taken, last[some], first[some]), image

        curves = x.new_empty(m, n, steps + 1, dtype=torch.float64)
        curves[..., 0] = self._run(network, n, examples, lambda part: (first[part], torch.arange(n)[part]))
        if whole:
            curves[..., -1] = self._run(network, n, examples, lambda part: (last[part], torch.arange(n)[part]))
        if len(inner):
            between = self._run(network, n * m * len(inner), examples, changed)
            curves[..., inner] = between.view(n, m, -1).transpose(0, 1)
        return curves

    def _run(
        self,
        network: nn.Module,
        jobs: int,
        examples: Examples,
        make: Callable[[slice], Made],
    ) -> Tensor:
        """Compute the score of each job, (jobs,): ``make`` gives the images of some, and which example each is of."""

        def read(logits: Tensor, which: Tensor) -> Tensor:
            return self.read(logits, examples, which)

        return run_changed(network, examples, jobs, make, read, self.chunk)

    def read(self, logits: Float[Tensor, "j k"], examples: Examples, which: Tensor) -> Tensor:
        """Read the target's score in the logits of j perturbed images, of the examples ``which``."""
        values = probabilities(logits, self.activation) if self.score == "probability" else logits
        return logit_of(values, examples.target[which])


class ComplementaryInsertion(Perturbation):
    """Complementary insertion (DMBP, Sec. 4.1): least relevant first; mean probability of the other true classes."""

    name = "complementary_insertion"
    action = "reveal"
    title = "Complementary insertion"
    summary = "mean probability of the other true classes while pixels come in, least relevant first"
    source = "DMBP, Sec. 4.1"
    needs = ("labels",)
    order = "least relevant first"
    curve_of = "others"

    def read(self, logits: Tensor, examples: Examples, which: Tensor) -> Tensor:
        assert examples.labels is not None
        if examples.labels.shape[1] != logits.shape[1]:
            raise InputError(
                f"labels must have one column a class of the model ({logits.shape[1]}), but have {examples.labels.shape[1]}."
            )
        others = examples.labels.scatter(1, examples.target[:, None], False)[which]
        values = probabilities(logits, self.activation) if self.score == "probability" else logits
        return (values.double() * others).sum(1) / others.sum(1)  # NaN where there is no other class

    def scored(self, raw: Tensor, own: Tensor | None) -> tuple[Tensor, dict[str, int]]:
        curves, counts = super().scored(raw, own)
        alone = raw[0, :, 0].isnan()
        counts = {what: n - int(alone.sum()) for what, n in counts.items()}
        return curves, {"images not scored: they have no other true class": int(alone.sum()), **counts}


class _Five(Perturbation):
    """LPR's: the first 5 % of the pixels, to zero, in steps of 0.5 %; the logit over its first value."""

    action = "remove"

    steps: int | None = 10
    fraction: float = 0.05
    replacement: Replacement = "zero"
    score: Score = "logit_ratio"


class _Hundred(Perturbation):
    """TR-GBP's: all pixels, to zero, in steps of 10 %; the logit's absolute change over its first value."""

    action = "remove"

    steps: int | None = 10
    replacement: Replacement = "zero"
    score: Score = "change"


class MoRF5(_Five):
    """Most relevant first, 5 % (LPR, Sec. 4.1; Samek et al. 2016): the logit should fall."""

    name = "morf_5"
    title = "MoRF, 5 %"
    summary = "logit over its first value while the most relevant 5 % of the pixels are zeroed"
    source = "LPR, Sec. 4.1; Samek et al. 2016"


class LeRF5(_Five):
    """Least relevant first, 5 % (LPR, Sec. 4.1): what speaks against the class goes, and the logit should rise."""

    name = "lerf_5"
    title = "LeRF, 5 %"
    summary = "logit over its first value while the least relevant 5 % of the pixels are zeroed"
    source = "LPR, Sec. 4.1"
    order = "least relevant first"


class MoRF100(_Hundred):
    """Most relevant first, all pixels (TR-GBP, Sec. 5.3.2 and Fig. 6): the larger the change, the better."""

    name = "morf_100"
    title = "MoRF, 100 %"
    summary = "absolute change of the logit, over its first value, while all pixels are zeroed, most relevant first"
    source = "TR-GBP, Sec. 5.3.2, Appendix D"


class LeRF100(_Hundred):
    """Least relevant first, all pixels (TR-GBP, Sec. 5.3.2 and Fig. 6): the smaller the change, the better.

    Guided backprop and guided integrated gradients are ranked by magnitude, as in the paper (Appendix D).
    """

    name = "lerf_100"
    title = "LeRF, 100 %"
    summary = "absolute change of the logit, over its first value, while all pixels are zeroed, least relevant first"
    source = "TR-GBP, Sec. 5.3.2, Appendix D"
    order = "least relevant first"

    absolute: tuple[str, ...] = ("guided_backprop", "guided_integrated_gradients")


def _method_of(key: str, maps: Attribution | Tensor) -> str:
    """Return the method's own name, whatever the user calls its maps; a bare tensor has only that."""
    return str(maps.provenance.get("method", key)) if isinstance(maps, Attribution) else key
