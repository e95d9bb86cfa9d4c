"""Methods that run the network forward on altered copies of the images, and look at nothing but the targets' scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from backlit._errors import check
from backlit._forward import forward
from backlit.capture.refuse import check_output
from backlit.methods.copies import Score, in_blocks, plain_passes, target_scores
from backlit.methods.images import Baseline, check_baseline
from backlit.methods.job import Job
from backlit.methods.steps import Stepped

Alter = Callable[[int, slice], Tensor]
"""Makes copies ``slice`` of input i, (v, n, c, h, w) or (v * n, c, h, w)."""


@dataclass(frozen=True)
class CopyStep:
    """A report of a block of altered copies that has run.

    Attributes:
        index: How many copies of each image have run so far.
        steps: How many there are.
        scores: The targets' scores in this block's v copies, (t, v, n).
    """

    index: int
    steps: int
    scores: Tensor


class Passes(Stepped):
    """A method of forward passes alone: the network may be scripted or compiled, and need not be differentiable.

    Several inputs are altered in turn, the others then stay as they are. ``callback`` is called with a :class:`CopyStep`
    after each block of copies.

    Attributes:
        score: What is read from the network's output: the target's "logit", or its "probability". A network of one output
            has no probability: its score is taken as it is.
    """

    kind = "signed"
    needs = "forward passes alone"
    takes_rules = False
    traces = False

    score: Score = "logit"

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.score in get_args(Score), "score", self.score, "'logit' or 'probability'")

    def clean(self, job: Job) -> tuple[Tensor, Tensor]:
        """Run the images themselves: the network's output (n, k) and the targets (n, t)."""
        output = forward(self.network, *job.inputs)
        check_output(output, len(job))
        return output, job.pick(output)

    def scores(self, job: Job, targets: Tensor, counts: list[int], alter: Alter) -> list[Tensor]:
        """Run ``counts[i]`` altered copies of each input i, the other inputs as they are.

        Args:
            job: The images.
            targets: Their targets (n, t).
            counts: Number of copies of each image, for each input.
            alter: Makes the copies of a block.

        Returns:
            The targets' scores in the copies, (t, count, n) for each input, in at least single precision.
        """
        inputs, steps = job.inputs, sum(counts)
        results: list[Tensor] = []
        with plain_passes(self.network, inputs) as output_of, self.watched(steps, job) as done:
            for i, count in enumerate(counts):
                before = sum(counts[:i])

                def run(block: slice, i: int = i, before: int = before) -> Tensor:
                    v = block.stop - block.start
                    copies = [x.expand(v, *x.shape).flatten(0, 1) for x in inputs]
                    altered = alter(i, block)
                    copies[i] = altered.flatten(0, 1) if altered.dim() == 5 else altered
                    scores = wide(target_scores(output_of(*copies), targets, self.score))
                    done(before + block.stop)
                    if self.callback is not None:
                        self.callback(CopyStep(before + block.stop, steps, scores))
                    return scores

                results.append(torch.cat(in_blocks(run, count, inputs, self.chunk), 1))
        return results

    def scores_of_clean(self, output: Tensor, targets: Tensor) -> Tensor:
        """Return the targets' scores (t, n) in the images' own output (n, k)."""
        return wide(target_scores(output, targets, self.score))[:, 0]


class Replacing(Passes):
    """A method that replaces pixels of the images by those of a baseline.

    Attributes:
        baseline: What stands where the image is hidden: "zero" (the mean colour of the training set, for a normalised
            input), "blur" (a Gaussian of 10 pixels), "mean" (each image's mean colour), a tensor for all images (c, h, w) or
            for each (n, c, h, w), a tuple of tensors for several inputs, or a function from images to baselines.
    """

    baseline: Baseline = "zero"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_baseline("baseline", self.baseline)


def wide(values: Tensor) -> Tensor:
    """Return values in at least single precision, for sums."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
