"""Guided IG: a path of its own for each image and target, which moves the pixels of small gradient first."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from backlit._errors import MOST_STEPS, check, check_whole, is_number
from backlit._forward import forward
from backlit.methods.account import wide
from backlit.methods.copies import in_blocks, repeated
from backlit.methods.images import Baseline, baselines_of, check_baseline
from backlit.methods.job import Job, Maps, scores_of
from backlit.methods.path import PathMethod
from backlit.methods.steps import Stepped


@dataclass(frozen=True)
class PathStep:
    """A report of one step on the paths of a chunk's images.

    Attributes:
        index: Number of the step, from 1.
        steps: How many there are.
        progress: How far each feature of each path has come from the baseline, 0, to the image, 1: (paths, features).
    """

    index: int
    steps: int
    progress: Tensor


class GuidedIG(Stepped, PathMethod):
    """Guided IG (Kapishnikov et al. 2021): gradients on a path that moves the pixels of the smallest gradient first.

    Each image and target has a path of its own; several inputs of a network share one. At step k of K all features stay
    within ``max_dist`` of the straight line's position k / K, and together have come as far as it has in the L1 norm. The map
    sums to F(x) - F(x'), but for what the steps miss. ``callback`` is called with a :class:`PathStep`.

    Attributes:
        baseline: As of integrated gradients: "zero", "blur", "mean", a tensor for all images (c, h, w) or for each
            (n, c, h, w), a tuple of tensors for several inputs, or a function from images to baselines.
        steps: Number of steps.
        fraction: Share of the features that is picked at once: those of the smallest gradient that may still move.
        max_dist: How far, from 0 to 1, a feature may be from the straight line: 0 is the straight line, 1 leaves all free.
    """

    name = "guided_ig"
    title = "Guided IG"
    summary = "gradients on a path that moves the pixels of small gradient first"
    source = "Kapishnikov et al. 2021"
    answers = (
        "Which pixels made the score differ from a baseline's, on a path that avoids steep changes of no importance?"
    )

    baseline: Baseline = "zero"
    steps: int = 200
    fraction: float = 0.25
    max_dist: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        check_baseline("baseline", self.baseline)
        check_whole("steps", self.steps, high=MOST_STEPS)
        share = is_number(self.fraction) and 0 < self.fraction <= 1
        check(share, "fraction", self.fraction, "a number above 0, up to 1")
        check(is_number(self.max_dist) and 0 <= self.max_dist <= 1, "max_dist", self.max_dist, "a number from 0 to 1")

    @property
    def forward_passes(self) -> float:
        return 3.0 * self.steps + 2

    def explain(self, job: Job) -> Maps:
        maps = self.clean(job)
        starts = baselines_of(job, self.baseline)
        self.tell_of_equal(job, starts)
        start = scores_of(forward(self.network, *starts), maps.targets)

        def run(block: slice) -> tuple[Tensor, ...]:
            return self._walked(job, maps.targets[:, block], starts)

        walked = in_blocks(self.network, run, maps.targets.shape[1], job.inputs, self.chunk)  # a path for each target
        return self.accounted(job, maps, tuple(torch.cat(v) for v in zip(*walked, strict=True)), start)

    def _walked(self, job: Job, targets: Tensor, starts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The maps of targets (n, t), (t, n, c, h, w) for each input, from paths that run side by side."""
        count = targets.shape[1]
        copies = tuple(repeated(x, count) for x in job.inputs)
        begins = tuple(repeated(b, count) for b in starts)
        ways = tuple(wide(x - b) for x, b in zip(copies, begins, strict=True))
        own = targets.T.reshape(-1, 1)
        path = _Paths(_flat(ways), self.fraction, self.max_dist)
        sums = torch.zeros_like(path.way)
        with self.watched(self.steps, job) as done:
            for index in range(1, self.steps + 1):
                parts = _split(path.progress * path.way, ways)
                grads = self.gradients_at(tuple(b + p.to(b) for b, p in zip(begins, parts, strict=True)), own)
                grad = _flat(tuple(wide(g[0]) for g in grads))
                sums += path.step(grad, index / self.steps) * grad
                done(index)
                if self.callback is not None:
                    self.callback(PathStep(index, self.steps, path.progress))
        return tuple(part.unflatten(0, (count, len(job))) for part in _split(sums, ways))


class _Paths:
    """Paths side by side: how far each of their features has come, from 0 at the baseline to 1 at the image.

    Args:
        way: From the baselines to the images, (paths, features).
        fraction: Share of the features that is picked at once.
        most: How far a feature may be from the straight line's position.
    """

    def __init__(self, way: Tensor, fraction: float, most: float) -> None:
        self.way = way
        self.progress = torch.zeros_like(way)
        self._length = way.abs()
        self._total = self._length.sum(1)
        self._rank = int(fraction * (way.shape[1] - 1)) + 1
        self._most = most

    def step(self, grad: Tensor, position: float) -> Tensor:
        """Move on until the straight line's ``position`` is reached in the L1 norm; return the moves of all features."""
        before = self.progress
        low, high = max(position - self._most, 0.0), min(position + self._most, 1.0)
        self.progress = before.clamp(min=low)  # what fell behind
        size, left = grad.abs(), self._total * (1 - position)
        active = self._distance() > left + 1e-9 * self._total
        while bool(active.any()):
            active = self._pick(size, left, high, active)
        return (self.progress - before) * self.way

    def _distance(self) -> Tensor:
        """L1 distance to the images, (paths,)."""
        return (self._length * (1 - self.progress)).sum(1)

    def _pick(self, size: Tensor, left: Tensor, high: float, active: Tensor) -> Tensor:
        """Move the features of the smallest gradient up to ``high``, or as far as the distance ``left`` asks for.

        Returns:
            The paths that have still to move.
        """
        free = (self.progress < high) & (self._length > 0)
        size = size.masked_fill(~free, torch.inf)
        picked = free & (size <= size.kthvalue(self._rank, 1, keepdim=True).values) & active[:, None]
        reach = (self._length * (high - self.progress) * picked).sum(1)
        needed = self._distance() - left
        share = (needed / torch.where(reach > 0, reach, 1)).clamp(0, 1)
        moved = torch.where(share[:, None] < 1, self.progress + share[:, None] * (high - self.progress), high)
        self.progress = torch.where(picked, moved, self.progress)
        return active & (needed > reach) & (reach > 0)


def _flat(values: tuple[Tensor, ...]) -> Tensor:
    """The features of all inputs side by side, (paths, features)."""
    return torch.cat([v.flatten(1) for v in values], 1)


def _split(values: Tensor, like: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Features (paths, features) as they stand in each input, (paths, c, h, w)."""
    parts = values.split([v[0].numel() for v in like], 1)
    return tuple(part.view_as(v) for part, v in zip(parts, like, strict=True))
