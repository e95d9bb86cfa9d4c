"""Path methods: gradients at points between a baseline and the image, added up times the way between the points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from backlit._errors import MOST_STEPS, InputError, check, check_whole, check_word
from backlit._forward import forward
from backlit._options import NO_OPTION
from backlit._random import stable_seed
from backlit._warn import Once, warn
from backlit.capture import Propagation, propagate
from backlit.methods.account import account, wide
from backlit.methods.axes import ANY
from backlit.methods.base import Method
from backlit.methods.copies import in_blocks, plain_passes, repeated, sum_of_blocks, target_scores, true_gradients
from backlit.methods.images import (
    BASELINE_IMAGES,
    Baseline,
    References,
    baselines_of,
    check_baseline,
    check_references,
    reference_sets,
    sets_of,
)
from backlit.methods.job import Job, Maps, scores_of
from backlit.methods.targets import gradients
from backlit.rules import presets

Points = Callable[[slice], tuple[Tensor, ...]]
"""Makes copies ``slice`` of each input, (v, n, c, h, w)."""
Term = Callable[[slice, tuple[Tensor, ...]], tuple[Tensor, ...]]
"""Makes of the gradients (t, v, n, c, h, w) at these copies what they give to each input's map, (t, n, c, h, w)."""
Rule = Literal["gauss_legendre", "midpoint"]

MOST_NODES = 1000
"""How many points a Gauss-Legendre rule may have: they are the eigenvalues of a matrix of that size."""


class PathMethod(Method):
    """A method that adds up gradients along a path that ends at the image."""

    axes = ANY
    kind = "signed"

    _said: Once = field(default_factory=Once, init=False, metadata=NO_OPTION)

    def propagated(self, inputs: tuple[Tensor, ...]) -> Propagation:
        """Run the network on images or copies, the gradient by the user's rules behind it."""
        return propagate(self.network, inputs, presets.gradient.over(self.rules))

    def clean(self, job: Job) -> Maps:
        """Run the images themselves; the maps are still to come."""
        run = self.propagated(job.inputs)
        return Maps.of_run(run, (), job.pick(run.output))

    def summed(self, job: Job, targets: Tensor, count: int, points: Points, term: Term) -> tuple[Tensor, ...]:
        """Add up what the gradients of the targets (n, t) at ``count`` copies of each image give, in blocks."""

        def run(block: slice) -> tuple[Tensor, ...]:
            copies = points(block)
            v, n = copies[0].shape[:2]
            grads = self.gradients_at(tuple(c.flatten(0, 1) for c in copies), repeated(targets, v))
            return term(block, tuple(wide(g).unflatten(1, (v, n)) for g in grads))

        return sum_of_blocks(self.network, run, count, job.inputs, self.chunk)

    def gradients_at(self, copies: tuple[Tensor, ...], targets: Tensor) -> tuple[Tensor, ...]:
        """The gradients (t, n, ...) of the copies' targets (n, t): by autograd alone, unless the user has rules.

        A network that writes over what autograd needs is run through the engine, which keeps it.
        """
        if self.rules is None:
            grads = true_gradients(self.network, copies, targets)
            if grads is not None:
                return grads
        return gradients(self.propagated(copies), targets)

    def scores_at(self, job: Job, targets: Tensor, count: int, points: Points) -> Tensor:
        """The targets' scores at the copies, (t, count, n), from plain passes."""
        with plain_passes(self.network, job.inputs) as output_of:

            def run(block: slice) -> Tensor:
                output = output_of(*(c.flatten(0, 1) for c in points(block)))
                return wide(target_scores(output, targets, "logit"))

            return torch.cat(in_blocks(self.network, run, count, job.inputs, self.chunk), 1)

    def straight(
        self, job: Job, targets: Tensor, starts: tuple[Tensor, ...], nodes: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, ...]:
        """Integrate along the straight line from ``starts``, in single precision at least: (t, n, c, h, w) for each input.

        Args:
            job: The images.
            targets: Their targets (n, t).
            starts: Baselines shaped as the images.
            nodes: Positions on the line, 0 at the start and 1 at the image, and their weights.
        """
        positions, weights = nodes

        def term(block: slice, grads: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return tuple(torch.einsum("v,tvnchw->tnchw", weights[block].to(g), g) for g in grads)

        means = self.summed(job, targets, len(positions), on_line(job.inputs, starts, positions), term)
        return tuple((x - start) * mean for x, start, mean in zip(job.inputs, starts, means, strict=True))

    def accounted(self, job: Job, maps: Maps, values: tuple[Tensor, ...], start: Tensor) -> Maps:
        """Complete the clean images' maps with values in the images' dtype, and with what they account for."""
        maps = self.with_values(job, maps, values)
        return replace(maps, completeness=account(maps.values, maps.output, wide(start)))

    def with_values(self, job: Job, maps: Maps, values: tuple[Tensor, ...]) -> Maps:
        """Complete the clean images' maps with values in the images' dtype."""
        return replace(maps, values=tuple(v.to(x) for v, x in zip(values, job.inputs, strict=True)))

    def tell_of_equal(self, job: Job, starts: tuple[Tensor, ...]) -> None:
        """Warn, once, of an image that equals its baseline: there is no way to go, and its map is zero."""
        same = torch.stack([(x == b).flatten(1).all(1) for x, b in zip(job.inputs, starts, strict=True)]).all(0)
        if bool(same.any()) and self._said.first():
            place = job.first + int(same.nonzero()[0])
            warn(f"{self.title}: image {place} equals its baseline, so that its map is zero. Give another baseline.")


def on_line(inputs: tuple[Tensor, ...], starts: tuple[Tensor, ...], positions: Tensor) -> Points:
    """Return what makes the points at these positions of the straight lines from the starts to the images."""

    def points(block: slice) -> tuple[Tensor, ...]:
        return tuple(
            b + positions[block].to(x).view(-1, 1, 1, 1, 1) * (x - b) for x, b in zip(inputs, starts, strict=True)
        )

    return points


def nodes_of(rule: Rule, steps: int) -> tuple[Tensor, Tensor]:
    """Positions and weights, in double precision, of a rule that integrates from 0 to 1 by ``steps`` points."""
    if rule == "midpoint":
        return (torch.arange(steps, dtype=torch.float64) + 0.5) / steps, torch.full((steps,), 1 / steps).double()
    positions, weights = np.polynomial.legendre.leggauss(steps)
    return torch.from_numpy((positions + 1) / 2), torch.from_numpy(weights / 2)


class IntegratedGradients(PathMethod):
    """Integrated gradients (Sundararajan et al. 2017): (x - x') times the mean gradient on the line from a baseline x' to x.

    The map sums to F(x) - F(x'), but for what the points miss: ``completeness`` has the sum, the difference and the gap.

    Attributes:
        baseline: "zero" (the mean colour of the training set, for a normalised input), "blur" (a Gaussian of 10 pixels),
            "mean" (each image's mean colour), a tensor for all images (c, h, w) or for each (n, c, h, w), a tuple of
            tensors for several inputs, or a function from images to baselines.
        steps: Number of points on the line.
        rule: Where they stand: "gauss_legendre" (up to 1,000 points), or in the "midpoint" of equal steps.
        idgi: Share out each step's change of the score by the squared gradient where the step begins (Yang et al. 2023,
            Algorithm 1), instead of the gradient times the step; the steps are equal, and ``rule`` is left out.
    """

    name = "integrated_gradients"
    title = "Integrated gradients"
    summary = "mean gradient on the way from a baseline, times that way"
    source = "Sundararajan et al. 2017"
    answers = "Which pixels made the score differ from that of a baseline, by the gradients on the way from it?"

    baseline: Baseline = "zero"
    steps: int = 50
    rule: Rule = "gauss_legendre"
    idgi: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_baseline("baseline", self.baseline)
        check_whole("steps", self.steps, high=MOST_STEPS)
        check_word("rule", self.rule, ("gauss_legendre", "midpoint"))
        check(isinstance(self.idgi, bool), "idgi", self.idgi, "True or False")
        if self.rule != "gauss_legendre" and self.idgi:
            raise InputError(
                f"rule must be left out with idgi=True, whose steps are equal and begin at the baseline, but is {self.rule!r}."
            )
        if self.rule == "gauss_legendre" and self.steps > MOST_NODES and not self.idgi:
            raise InputError(
                f"steps must be at most {MOST_NODES:,} with rule='gauss_legendre', but is {self.steps:,}. More points need "
                "rule='midpoint'."
            )

    @property
    def forward_passes(self) -> float:
        return 3.0 * self.steps + (self.steps if self.idgi else 1) + 1

    def explain(self, job: Job) -> Maps:
        maps = self.clean(job)
        starts = baselines_of(job, self.baseline)
        self.tell_of_equal(job, starts)
        if self.idgi:
            return self._by_score(job, maps, starts)
        start = scores_of(forward(self.network, *starts), maps.targets)
        values = self.straight(job, maps.targets, starts, nodes_of(self.rule, self.steps))
        return self.accounted(job, maps, values, start)

    def _by_score(self, job: Job, maps: Maps, starts: tuple[Tensor, ...]) -> Maps:
        """Share out the score's change on each step by the squared gradient at its beginning."""
        begin = torch.arange(self.steps, dtype=torch.float64) / self.steps
        points = on_line(job.inputs, starts, begin)
        scores = self.scores_at(job, maps.targets, self.steps, points)
        change = torch.cat([scores, wide(maps.output)[:, None]], 1).diff(dim=1)  # (t, steps, n)

        def term(block: slice, grads: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            squares = [g**2 for g in grads]
            size = torch.stack([s.flatten(3).sum(3) for s in squares]).sum(0)
            share = torch.where(size > 0, change[:, block] / torch.where(size > 0, size, 1), 0)
            return tuple(torch.einsum("tvn,tvnchw->tnchw", share, s) for s in squares)

        values = self.summed(job, maps.targets, self.steps, points, term)
        return self.accounted(job, maps, values, scores[:, 0])


class ExpectedGradients(PathMethod):
    """Expected gradients (Erion et al. 2021): integrated gradients from many references, a random point of each line.

    The positions are random within equal strata of the line, and the references are drawn in turns, so that each is used
    as often as any other, to one. The map sums to F(x) less the mean score of the references drawn, but for what the
    samples miss. All images get the same draws.

    Attributes:
        references: Images (r, c, h, w) to come from, such as some of the training set, or a tuple of as many for each
            input; None for each image's zero, blurred and mean reference.
        samples: Number of points, each on the line from one reference.
    """

    name = "expected_gradients"
    title = "Expected gradients"
    summary = "integrated gradients averaged over references, by random points"
    source = "Erion et al. 2021"
    answers = "Which pixels made the score differ from the mean score of a set of references?"

    references: References = None
    samples: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        check_references(self.references)
        check_whole("samples", self.samples, high=MOST_STEPS)

    @property
    def forward_passes(self) -> float:
        sets = sets_of(self.references)
        return 3.0 * self.samples + min(self.samples, len(sets[0]) if sets else len(BASELINE_IMAGES)) + 1

    def explain(self, job: Job) -> Maps:
        maps = self.clean(job)
        sets = reference_sets(job, self.references)
        which, positions = self._draw(sets[0].shape[1])
        used, counts = which.unique(return_counts=True)

        def of_references(places: Tensor) -> tuple[Tensor, ...]:
            return tuple(s[:, places.to(s.device)].transpose(0, 1) for s in sets)

        def points(block: slice) -> tuple[Tensor, ...]:
            at = positions[block].view(-1, 1, 1, 1, 1)
            return tuple(b + at.to(x) * (x - b) for x, b in zip(job.inputs, of_references(which[block]), strict=True))

        def term(block: slice, grads: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            starts = of_references(which[block])
            return tuple((g * (x - b)).sum(1) for g, x, b in zip(grads, job.inputs, starts, strict=True))

        sums = self.summed(job, maps.targets, self.samples, points, term)
        scores = self.scores_at(job, maps.targets, len(used), lambda block: of_references(used[block]))
        start = torch.einsum("u,tun->tn", counts.to(scores), scores) / self.samples
        return self.accounted(job, maps, tuple(s / self.samples for s in sums), start)

    def _draw(self, r: int) -> tuple[Tensor, Tensor]:
        """Which of r references each sample comes from, and where on the line it stands."""
        generator = torch.Generator().manual_seed(stable_seed("expected_gradients", self.seed))
        rounds = -(-self.samples // r)
        which = torch.cat([torch.randperm(r, generator=generator) for _ in range(rounds)])[: self.samples]
        strata = torch.randperm(self.samples, generator=generator)
        within = torch.rand(self.samples, generator=generator, dtype=torch.float64)
        return which, (strata + within) / self.samples
