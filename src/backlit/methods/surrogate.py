"""LIME and KernelSHAP: a linear model of the score, fitted to images of which some superpixels are hidden."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb

import torch
from torch import Tensor

from backlit._errors import check, check_positive, check_whole, is_number
from backlit._random import stable_seed
from backlit.methods.images import baselines_of, require
from backlit.methods.job import Job, Maps
from backlit.methods.passes import Replacing
from backlit.methods.superpixels import Superpixels, superpixels

_MOST = 16  # superpixels of which all subsets may be run: 2 ** 16 of them


@dataclass(frozen=True, eq=False)
class Design:
    """The images that a linear model is fitted to: which superpixels are seen in each, and how much each counts.

    Attributes:
        seen: 1 where a superpixel is seen, (copies, m).
        weights: The weight of each copy (copies,).
        present: 1 for each superpixel that there is (m,), 0 for those that another image of the chunk has more.
    """

    seen: Tensor
    weights: Tensor
    present: Tensor

    @classmethod
    def of(cls, seen: Tensor, weights: Tensor) -> Design:
        """Return the design of one image."""
        return cls(seen, weights, torch.ones_like(seen[0]))


@dataclass(frozen=True, eq=False)
class Fit:
    """A linear model of the scores of each target and image.

    Attributes:
        coefficients: What a superpixel gives to the score (t, n, m).
        start: The score that it predicts with all of the image hidden (t, n).
        r2: The share of the scores' weighted variance that it explains (t, n).
    """

    coefficients: Tensor
    start: Tensor
    r2: Tensor


class Surrogate(Replacing):
    """A linear model of the score, of superpixels that are seen or hidden.

    A pixel's value is its superpixel's coefficient over the number of its pixels, so that the map's sum is what the model
    says all of them give. ``parts["coefficient"]`` has the coefficients themselves.

    Attributes:
        segments: About how many superpixels SLIC makes of each image (scikit-image); at most one for each pixel.
        labels: Superpixels of your own in their place: whole numbers (h, w) for all images or (n, h, w), a tuple for several
            inputs. Pixels with the same number are hidden together.
        samples: Number of images with some superpixels hidden. Images with as many superpixels share the draws.
    """

    segments: int = 50
    labels: Tensor | tuple[Tensor, ...] | None = None
    samples: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("segments", self.segments, high=1_000_000)
        check_whole("samples", self.samples, high=10_000_000)
        whole = all(
            isinstance(g, Tensor) and g.dim() in (2, 3) and not g.is_floating_point() and not g.is_complex()
            for g in self._given
        )
        must = "whole numbers (h, w) or (n, h, w), or a tuple with such for each input"
        require(whole and (self.labels is None or bool(self._given)), "labels", self.labels, must)

    @property
    def _given(self) -> tuple[Tensor, ...]:
        given = self.labels
        return () if given is None else given if isinstance(given, tuple) else (given,)

    @property
    def forward_passes(self) -> float:
        return 1.0 + self.samples

    def design(self, m: int) -> Design:
        """Draw what is seen in each copy of an image with m superpixels, in double precision on the CPU."""
        raise NotImplementedError

    def fit(self, design: Design, scores: Tensor, own: Tensor) -> Fit:
        """Fit the model.

        Args:
            design: What is seen (n, copies, m), and the weights (n, copies).
            scores: The copies' scores (t, n, copies).
            own: The images' own scores (t, n).
        """
        raise NotImplementedError

    def account(self, fit: Fit, own: Tensor) -> dict[str, Tensor]:
        """The numbers that say how well the model fits."""
        return {"r2": fit.r2}

    def explain(self, job: Job) -> Maps:
        inputs = job.inputs
        output, targets = self.clean(job)
        baselines = baselines_of(job, self.baseline)
        parts = superpixels(job, self.segments, self._given)
        designs = [self._designs(p, x) for p, x in zip(parts, inputs, strict=True)]

        def alter(i: int, block: slice) -> Tensor:
            seen = parts[i].pixels(designs[i].seen[:, block].transpose(0, 1))
            return torch.where(seen[:, :, None] > 0, inputs[i], baselines[i])

        scores = self.scores(job, targets, [d.seen.shape[1] for d in designs], alter)
        own = self.scores_of_clean(output, targets)
        fits = [self.fit(d, s.transpose(1, 2).to(d.seen), own.to(d.seen)) for d, s in zip(designs, scores, strict=True)]
        shares = [f.coefficients / p.sizes for f, p in zip(fits, parts, strict=True)]
        accounts = [self.account(f, own.to(f.start)) for f in fits]
        said = {name: torch.stack([a[name] for a in accounts]).mean(0) for name in accounts[0]}
        return Maps.of_outputs(
            output,
            _maps(parts, shares, inputs),
            targets,
            job,
            parts={"coefficient": _maps(parts, [f.coefficients for f in fits], inputs)},
            completeness={name: value.to(own) for name, value in said.items()},
            notes={"superpixels": "given" if self._given else "SLIC"},
        )

    def _designs(self, parts: Superpixels, x: Tensor) -> Design:
        """The designs of all images, (n, copies, m) and (n, copies): padded by copies that do not count."""
        made = {m: self.design(m) for m in sorted(set(parts.counts))}
        copies, most = max(len(d.weights) for d in made.values()), max(made)
        dtype = torch.float32 if x.device.type == "mps" else torch.float64
        seen, weights = torch.zeros(len(made), copies, most, dtype=dtype), torch.zeros(len(made), copies, dtype=dtype)
        for i, (m, one) in enumerate(made.items()):
            seen[i, : len(one.weights), :m], weights[i, : len(one.weights)] = one.seen, one.weights
        which = torch.tensor([list(made).index(m) for m in parts.counts])
        present = torch.arange(most) < torch.tensor(parts.counts)[:, None]
        return Design(seen[which].to(x.device), weights[which].to(x.device), present.to(x.device, dtype))


def _maps(parts: list[Superpixels], values: list[Tensor], inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(p.pixels(v)[:, :, None].to(x) for p, v, x in zip(parts, values, inputs, strict=True))


def _explained(design: Design, scores: Tensor, predicted: Tensor) -> Tensor:
    """The share (t, n) of the scores' weighted variance that the predicted scores (t, n, copies) explain; 1 where there is none."""
    weights = design.weights / design.weights.sum(1, keepdim=True).clamp(min=1e-30)
    mean = (weights * scores).sum(2, keepdim=True)
    variance = (weights * (scores - mean).square()).sum(2)
    rest = (weights * (scores - predicted).square()).sum(2)
    return torch.where(variance > 0, 1 - rest / torch.where(variance > 0, variance, 1), 1.0)


class LIME(Surrogate):
    """LIME (Ribeiro et al. 2016): a ridge regression of the score, in which images near the image itself count more.

    Each superpixel is seen in half of the copies; a copy counts by the authors' kernel, sqrt(exp(-d^2 / width^2)), of the
    cosine distance d between what is seen of it and of the image. ``completeness["r2"]`` is the share of the scores' weighted
    variance that the linear model explains: where it is low, the coefficients say little.

    Attributes:
        width: Width of the kernel: 0.25, as the authors' code has for images.
        ridge: Strength of the ridge regression: 1, as there.
    """

    name = "lime"
    title = "LIME"
    summary = "coefficients of a linear model of the score, fitted to images with superpixels hidden"
    source = "Ribeiro et al. 2016"
    answers = "What does each superpixel give to the score, in the linear model that fits best near the image?"

    width: float = 0.25
    ridge: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("width", self.width)
        check(is_number(self.ridge) and self.ridge >= 0, "ridge", self.ridge, "a number from 0 on")

    def design(self, m: int) -> Design:
        generator = torch.Generator().manual_seed(stable_seed("lime", self.seed, self.samples, m))
        seen = (torch.rand(self.samples, m, generator=generator, dtype=torch.float64) < 0.5).double()
        seen[0] = 1  # the image itself
        distance = 1 - (seen.mean(1)).sqrt()
        return Design.of(seen, torch.exp(-((distance / self.width) ** 2)).sqrt())

    def fit(self, design: Design, scores: Tensor, own: Tensor) -> Fit:
        weights = design.weights / design.weights.sum(1, keepdim=True)
        middle = (weights[..., None] * design.seen).sum(1)
        mean = (weights * scores).sum(2)
        centred, rest = design.seen - middle[:, None], scores - mean[..., None]
        weighted = (design.weights[..., None] * centred).mT  # (n, m, copies)
        ridge = self.ridge * torch.eye(middle.shape[1], device=middle.device, dtype=middle.dtype)
        solved = torch.linalg.pinv(weighted @ centred + ridge, hermitian=True) @ (weighted @ rest.permute(1, 2, 0))
        coefficients = solved.permute(2, 0, 1)
        start = mean - (coefficients * middle).sum(2)
        predicted = start[..., None] + (design.seen @ solved).permute(2, 0, 1)
        return Fit(coefficients, start, _explained(design, scores, predicted))


class KernelSHAP(Surrogate):
    """KernelSHAP (Lundberg and Lee 2017, Sec. 4.1): Shapley values of superpixels, by a weighted regression.

    Sizes of what is seen are drawn by the Shapley kernel, (m - 1) / (k (m - k)), and each draw comes with its complement; where
    there are no more subsets than samples, all are run, and the values are exact. The regression goes exactly through the
    image and through the baseline: the map's sum is the score's difference between the two, and ``completeness`` has both.
    """

    name = "kernel_shap"
    title = "KernelSHAP"
    summary = "Shapley values of superpixels, from images with some of them hidden"
    source = "Lundberg and Lee 2017"
    answers = "What is each superpixel's fair share of the score's difference from the baseline?"

    @property
    def forward_passes(self) -> float:
        return 2.0 + self.samples

    def design(self, m: int) -> Design:
        none = torch.zeros(1, m, dtype=torch.float64)
        if m <= _MOST and 2**m - 2 <= self.samples:
            seen, weights = _all_subsets(m)
        else:
            seen, weights = self._drawn(m), torch.ones(self.samples, dtype=torch.float64)
        return Design.of(torch.cat([none, seen]), torch.cat([none.new_zeros(1), weights]))

    def _drawn(self, m: int) -> Tensor:
        generator = torch.Generator().manual_seed(stable_seed("kernel_shap", self.seed, self.samples, m))
        pairs = -(-self.samples // 2)
        sizes = torch.arange(1, m, dtype=torch.float64)
        chances = (m - 1) / (sizes * (m - sizes))
        drawn = torch.multinomial(chances, pairs, replacement=True, generator=generator) + 1
        ranks = torch.rand(pairs, m, generator=generator).argsort(1).argsort(1)
        seen = (ranks < drawn[:, None]).double()
        return torch.stack([seen, 1 - seen], 1).flatten(0, 1)[: self.samples]

    def fit(self, design: Design, scores: Tensor, own: Tensor) -> Fit:
        start = scores[..., 0]  # nothing is seen
        there = design.present[..., None]  # (n, m, 1)
        even = there / there.sum(1, keepdim=True)
        weighted = (design.weights[..., None] * design.seen).mT
        gram, rest = weighted @ design.seen, weighted @ (scores - start[..., None]).permute(1, 2, 0)
        first = even * (own - start).T[:, None]  # sums to the difference, and what is added sums to zero
        inside = torch.diag_embed(design.present) - even * there.mT
        solved = first + torch.linalg.pinv(inside @ gram @ inside, hermitian=True) @ inside @ (rest - gram @ first)
        predicted = start[..., None] + (design.seen @ solved).permute(2, 0, 1)
        return Fit(solved.permute(2, 0, 1), start, _explained(design, scores, predicted))

    def account(self, fit: Fit, own: Tensor) -> dict[str, Tensor]:
        total, difference = fit.coefficients.sum(2), own - fit.start
        ratio = torch.where(difference == 0, 1 + total, total / torch.where(difference == 0, 1, difference))
        return {"total": total, "difference": difference, "ratio": ratio, "gap": difference - total, "r2": fit.r2}


def _all_subsets(m: int) -> tuple[Tensor, Tensor]:
    """All subsets of m superpixels but none and all of them, with the Shapley kernel's weights (Theorem 2)."""
    numbers = torch.arange(1, 2**m - 1)
    seen = (numbers[:, None] >> torch.arange(m) & 1).double()
    kernel = [1.0, *((m - 1) / (comb(m, k) * k * (m - k)) for k in range(1, m))]
    return seen, torch.tensor(kernel, dtype=torch.float64)[seen.sum(1).long()]
