"""Performance information curves: how well the network does with how much information, AIC and SIC."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from importlib.util import find_spec
from math import ceil

import numpy as np
import torch
from PIL import features
from torch import Tensor, nn

from backlit._errors import InputError, check, check_word, is_number
from backlit._random import image_bytes, stable_seed
from backlit.methods.base import Method
from backlit.metrics.base import Case, Metric, Scores, to_numbers
from backlit.metrics.changed import Activation, Made, logit_of, probability_of, run_changed
from backlit.metrics.examples import Examples
from backlit.metrics.pictures import POINTS, Levels, area, entropy, filled, information_curve
from backlit.metrics.ranking import drawn_orders, pixel_ranks

_DRAWN = 10  # of the curve's points one in so many is kept to draw
_SKIPPED = (
    "their score is below `least`",
    "without pixels they take as many bytes",
    "without pixels they score as high",
)
Numbers = tuple[float, ...] | None


class _Information(Metric):
    """The area under the curve of a score against the information that a picture shows (Kapishnikov et al. 2019, Sec. 4.1).

    The picture begins with 1 % of the pixels, drawn at random, and linear between them; the most relevant pixels come in. Its
    information is the size of its lossless WebP. Both axes run from that picture's value to the image's.

    Attributes:
        thresholds: Shares of the pixels that have come in at each point of the curve.
        fraction: Share of the pixels that are there from the start, drawn from the seed and the image.
        least: Images whose own score is lower are not scored.
        monotone: Whether a point counts with the largest score up to it.
        mean: What was subtracted from each channel in 0 to 1, to have the picture again; None takes each image's range for 0 to 1.
        std: What each channel was divided by afterwards; given with ``mean``.
        activation: What makes probabilities of logits: "softmax", or "sigmoid" for networks with one decision a class.
    """

    higher_is_better = True
    range = (0.0, 1.0)
    ties = "equal pixels in an order drawn for each image, the same for all its maps"

    thresholds: tuple[float, ...] = (0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.07, 0.10, 0.13, 0.21, 0.34, 0.5, 0.75)
    fraction: float = 0.01
    least: float = 0.8
    monotone: bool = True
    mean: Numbers = None
    std: Numbers = None
    activation: Activation = "softmax"

    def __post_init__(self) -> None:
        super().__post_init__()
        given = self.thresholds
        listed = isinstance(given, (tuple, list)) and len(given) > 0 and all(is_number(t) and 0 < t < 1 for t in given)
        rising = listed and list(given) == sorted(given)
        check(rising, "thresholds", given, "rising numbers above 0 and below 1, such as (0.01, 0.1, 0.5)")
        object.__setattr__(self, "thresholds", tuple(given))
        for name in ("fraction", "least"):
            value = getattr(self, name)
            check(is_number(value) and 0 <= value <= 1, name, value, "from 0 to 1")
        check(isinstance(self.monotone, bool), "monotone", self.monotone, "True or False")
        check_word("activation", self.activation, ("softmax", "sigmoid"))
        _check_normalisation(self.mean, self.std)

    @property
    def forward_passes(self) -> str:
        return f"{len(self.thresholds)}, and 2 that all maps of an image share"

    @property
    def axes(self) -> tuple[str, str]:
        return "share of the information", "score over its range"

    @abstractmethod
    def score(self, logits: Tensor, target: Tensor) -> Tensor:
        """Compute the score of each picture from the logits."""

    def check(self, network: nn.Module, examples: Examples, methods: Mapping[str, Method] | None) -> None:
        super().check(network, examples, methods)
        channels = examples.inputs.shape[1]
        if channels not in (1, 3) or len(self.mean or (0,) * channels) != channels:
            raise InputError(
                f"{self.title} needs pictures of 1 or 3 channels, and as many numbers in mean and std, but the images have "
                f"{channels} channels, and mean is {self.mean}."
            )
        if find_spec("scipy") is None:
            raise InputError(f"{self.title} needs SciPy, which scikit-image brings: pip install 'backlit[regions]'.")
        if not features.check("webp"):
            raise InputError(f"{self.title} needs a Pillow that writes WebP: pip install --force-reinstall pillow.")

    def measure(self, case: Case) -> Scores:
        n, names = len(case.examples), list(case.heat)
        curves, skipped = np.full((len(names), n, POINTS + 1), np.nan), [0, 0, 0]
        for i in range(n):
            reason = self._image(case, i, curves[:, i])
            if reason is not None:
                skipped[reason] += 1
        return Scores(
            metric=self,
            names=case.examples.names,
            values={name: np.array([area(curve) for curve in curves[m]]) for m, name in enumerate(names)},
            curves={name: curves[m, :, ::_DRAWN] for m, name in enumerate(names)},
            positions=np.arange(0, POINTS + 1, _DRAWN) / POINTS,
            counts={f"images not scored: {why}": count for why, count in zip(_SKIPPED, skipped, strict=True)},
        )

    def _image(self, case: Case, i: int, curves: np.ndarray) -> int | None:
        """Write the curves of one image's maps (m, points), or return the number of the reason why it has none."""
        levels = Levels.of(case.examples.inputs[i], self.mean, self.std)
        picture = levels.picture(case.examples.inputs[i])
        known = self._first(case.examples.inputs[i])
        nothing = filled(picture, known)
        top, low = self._scores(case, i, levels, [picture, nothing])
        most, least = entropy(picture), entropy(nothing)
        if not top >= self.least:
            return 0
        if least >= most:
            return 1
        if not low < top:
            return 2
        for m, ranks in enumerate(self._ranks(case, i)):
            pictures = [filled(picture, known | (ranks < self._count(t, ranks.size))) for t in self.thresholds]
            scores = (self._scores(case, i, levels, pictures) - low) / (top - low)
            shares = [(entropy(p) - least) / (most - least) for p in pictures]
            curves[m] = information_curve(shares, scores, monotone=self.monotone)
        return None

    @staticmethod
    def _count(threshold: float, pixels: int) -> int:
        """Count the pixels that are not below the quantile of 1 - threshold, were all different."""
        return pixels - ceil((pixels - 1) * (1 - threshold))

    def _first(self, image: Tensor) -> np.ndarray:
        """Draw the pixels that are there from the start (h, w)."""
        height, width = image.shape[-2:]
        generator = torch.Generator().manual_seed(stable_seed("information", self.seed, image_bytes(image)))
        known = torch.zeros(height * width, dtype=torch.bool)
        known[torch.randperm(len(known), generator=generator)[: int(self.fraction * len(known))]] = True
        return known.view(height, width).numpy()

    def _ranks(self, case: Case, i: int) -> np.ndarray:
        """Rank the pixels of each map of an image, most relevant first (m, h, w)."""
        drawn = drawn_orders(case.examples.inputs[i : i + 1], self.seed)
        ranks = [pixel_ranks(heat[i : i + 1].flatten(1), drawn).view_as(heat[i, 0]) for heat in case.heat.values()]
        return torch.stack(ranks).cpu().numpy()

    def _scores(self, case: Case, i: int, levels: Levels, pictures: list[np.ndarray]) -> np.ndarray:
        """Compute the score of pictures of one image."""
        one, target = case.examples[i : i + 1], case.explained[i]

        def shown(jobs: slice) -> Made:
            some = levels.images(pictures[jobs]).to(one.inputs)
            return some, torch.zeros(len(some), dtype=torch.int64, device=some.device)

        def read(logits: Tensor, which: Tensor) -> Tensor:
            return self.score(logits, target.expand(len(which)))

        return to_numbers(run_changed(case.network, one, len(pictures), shown, read, self.chunk))


def _check_normalisation(mean: Numbers, std: Numbers) -> None:
    """Refuse a mean without a standard deviation, and what are no numbers.

    Raises:
        InputError: With what they must be.
    """
    for name, given in (("mean", mean), ("std", std)):
        listed = isinstance(given, (tuple, list)) and len(given) > 0 and all(is_number(v) for v in given)
        check(given is None or listed, name, given, "a number for each channel, or None")
    both = mean is None if std is None else mean is not None and len(mean) == len(std) and min(std) > 0
    check(both, "std", std, f"as many positive numbers as mean has ({mean}), or None as it is")


class AIC(_Information):
    """Accuracy information curve, AIC (Kapishnikov et al. 2019): whether the target is the likeliest class."""

    name = "aic"
    title = "Accuracy information curve (AIC)"
    summary = "area under the curve of being right against the information that the most relevant pixels hold"
    source = "Kapishnikov et al. 2019, Sec. 4.1 (PAIR)"

    def score(self, logits: Tensor, target: Tensor) -> Tensor:
        right = (logits.argmax(1) == target).double()
        return torch.where(logit_of(logits, target).isnan(), torch.nan, right)


class SIC(_Information):
    """Softmax information curve, SIC (Kapishnikov et al. 2019): the probability of the target."""

    name = "sic"
    title = "Softmax information curve (SIC)"
    summary = "area under the curve of the probability against the information that the most relevant pixels hold"
    source = "Kapishnikov et al. 2019, Sec. 4.1 (PAIR)"

    def score(self, logits: Tensor, target: Tensor) -> Tensor:
        return probability_of(logits, target, self.activation)
