"""Gradient descent on masks of the image: what the methods share that search for one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from backlit._errors import MOST_STEPS, check_positive, check_whole, check_word
from backlit.capture import propagate
from backlit.methods.account import wide
from backlit.methods.copies import Score, in_blocks, plain_passes, repeated, target_scores
from backlit.methods.inputs import chances
from backlit.methods.job import Job, Maps
from backlit.methods.steps import Stepped
from backlit.rules import presets

Told = Callable[[int, Tensor, Tensor], None]
"""Is told of a step's number, the scores and the masks."""


@dataclass(frozen=True)
class SearchStep:
    """A report of a step of a search.

    Attributes:
        index: How many steps of one mask have been made so far.
        steps: How many there are, of all masks.
        scores: The targets' scores under the masks of this block, before the step, (v, n).
        masks: These masks, (v, n, h, w): 1 where the image is seen.
    """

    index: int
    steps: int
    scores: Tensor
    masks: Tensor


@dataclass(frozen=True, eq=False)
class Search:
    """A search for the masks of one block: v variants (a target, an area) of each of n images.

    Attributes:
        grids: What is searched for, (v, n, a, b): changed in place by every step.
        masks: Makes masks (v, n, h, w) of the grids.
        altered: Makes copies (v, n, c, h, w) of the images under masks, at a step.
        penalties: Computes the terms of the loss beside the score, (v, n) each, of grids and masks at a step.
        optimizer: Makes a step.
    """

    grids: Tensor
    masks: Callable[[Tensor], Tensor]
    altered: Callable[[Tensor, int], Tensor]
    penalties: Callable[[Tensor, Tensor, int], dict[str, Tensor]]
    optimizer: torch.optim.Optimizer


@dataclass(frozen=True, eq=False)
class Outcome:
    """The result of the searches for one input: masks (v, n, h, w), their scores (v, n), and curves (v, steps, n)."""

    masks: Tensor
    scores: Tensor
    curves: dict[str, Tensor]


class MaskSearch(Stepped):
    """A method that searches for a mask of the image by gradient descent.

    All targets (and areas) of all images of a chunk are searched for in one batch; with several inputs, one input's masks
    after the other's, while the others stay as they are. ``callback`` is called with a :class:`SearchStep`.

    Attributes:
        score: What is read from the network's output: the target's "logit", or its "probability". A network of one output
            has no probability: its score is taken as it is.
        steps: Gradient steps.
        lr: Step size.
    """

    kind = "one-sided"
    memory_factor = 8.0

    score: Score = "logit"
    steps: int = 300
    lr: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_word("score", self.score, get_args(Score))
        check_whole("steps", self.steps, high=MOST_STEPS)
        check_positive("lr", self.lr)

    def explain(self, job: Job) -> Maps:
        run = propagate(self.network, job.inputs, presets.gradient.over(self.rules))
        targets = job.pick(run.output)
        total = len(job.inputs) * self.variants * targets.shape[1] * self.steps
        with self.watched(total, job) as done:

            def told(index: int, scores: Tensor, masks: Tensor) -> None:
                done(index)
                if self.callback is not None:
                    self.callback(SearchStep(index, total, scores, masks))

            outcomes = [self._searched(job, targets, i, told) for i in range(len(job.inputs))]
        return self.maps_of(Maps.of_run(run, (), targets), job, outcomes)

    @property
    def variants(self) -> int:
        """The number of masks for each target."""
        return 1

    @abstractmethod
    def search(self, job: Job, i: int, targets: Tensor, block: slice) -> Search:
        """Begin the search for input i's masks ``block``, numbered target by target; their targets are (v, n)."""

    @abstractmethod
    def maps_of(self, maps: Maps, job: Job, outcomes: list[Outcome]) -> Maps:
        """Return the maps, without values so far, with what the searches of each input have come to."""

    def _searched(self, job: Job, targets: Tensor, i: int, told: Told) -> Outcome:
        count = self.variants * targets.shape[1]

        def run(block: slice) -> Outcome:
            wanted = targets.T.repeat_interleave(self.variants, 0)[block]
            before = (i * count + block.start) * self.steps
            return self._descend(job, i, wanted, block, lambda step, *more: told(before + len(wanted) * step, *more))

        blocks = in_blocks(self.network, run, count, job.inputs, self.chunk)
        curves = {name: torch.cat([b.curves[name] for b in blocks]) for name in blocks[0].curves}
        return Outcome(torch.cat([b.masks for b in blocks]), torch.cat([b.scores for b in blocks]), curves)

    def _descend(self, job: Job, i: int, wanted: Tensor, block: slice, told: Told) -> Outcome:
        search = self.search(job, i, wanted, block)
        curves: dict[str, list[Tensor]] = {}
        for step in range(self.steps):
            with torch.enable_grad():
                grids = search.grids.detach().requires_grad_()
                masks = search.masks(grids)
                copies = search.altered(masks, step)
                penalties = search.penalties(grids, masks, step)
                loss = torch.stack(list(penalties.values())).sum(0)
            scores, slope = self.pull(job, i, copies.detach(), wanted)
            (search.grids.grad,) = torch.autograd.grad([copies, loss], [grids], [slope, torch.ones_like(loss)])
            with torch.no_grad():
                search.optimizer.step()
                search.grids.clamp_(0, 1)
            for name, value in {"score": scores, **penalties}.items():
                curves.setdefault(name, []).append(value.detach())
            told(step + 1, scores, masks.detach())
        with torch.no_grad():
            masks = search.masks(search.grids)
            scores = self.scores_of(job, i, search.altered(masks, -1), wanted)
        return Outcome(masks, scores, {name: torch.stack(c, 1) for name, c in curves.items()})

    def pull(self, job: Job, i: int, copies: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scores (v, n) of targets (v, n) in copies (v, n, c, h, w) of input i, and what lowers the loss by them.

        The second is the gradient, to the copies, of the part of the loss that is the score.
        """
        inputs = self._beside(job, i, copies)
        run = propagate(self.network, inputs, presets.gradient.over(self.rules))
        output = run.output.detach().requires_grad_()
        with torch.enable_grad():
            scores = _chosen(output, wanted.flatten()[:, None], self.score)
            (seed,) = torch.autograd.grad(scores.sum(), output)
        (slope,) = run.gradient(self.sign * seed.to(run.output), to=(run.inputs[i],))
        return wide(scores.detach()).view_as(wanted), slope.view_as(copies)

    def scores_of(self, job: Job, i: int, copies: Tensor, wanted: Tensor) -> Tensor:
        """Return the scores (v, n) of targets (v, n) in copies (v, n, c, h, w) of input i, by plain passes."""
        inputs = self._beside(job, i, copies)
        with plain_passes(self.network, inputs) as output_of:
            output = output_of(*inputs)
        return wide(target_scores(output, wanted.flatten()[:, None], self.score)).view_as(wanted)

    @property
    def sign(self) -> int:
        """1 where the score is to fall, -1 where it is to rise."""
        return 1

    @staticmethod
    def _beside(job: Job, i: int, copies: Tensor) -> tuple[Tensor, ...]:
        """The inputs of the network with copies of input i (v, n, c, h, w), and as many of the others."""
        return tuple(copies.flatten(0, 1) if i == k else repeated(x, len(copies)) for k, x in enumerate(job.inputs))


def _chosen(output: Tensor, wanted: Tensor, score: Score) -> Tensor:
    """The scores (N,) of targets (N, 1) in an output (N, k), with a graph; as ``target_scores`` reads them."""
    if score == "probability" and output.shape[1] > 1:
        output = chances(output)
    return output.gather(1, wanted)[:, 0]
