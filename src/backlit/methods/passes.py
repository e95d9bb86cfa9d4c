"""Methods that run the network forward on altered copies of the images, and look at nothing but the targets' scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

from torch import Tensor

from backlit._errors import check_word
from backlit._forward import forward
from backlit._layout import fast_layout
from backlit.capture.refuse import check_output
from backlit.methods.account import wide
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


class ForwardOnly(Stepped):
    """A method of forward passes alone: the network may be scripted or compiled, and need not be differentiable.

    Several inputs are altered in turn, the others then stay as they are. ``callback`` is called with a :class:`CopyStep`
    after each block of copies.
    """

    kind = "signed"
    needs = "forward passes alone"
    takes_rules = False
    traces = False

    def clean(self, job: Job) -> tuple[Tensor, Tensor]:
        """Run the images themselves: the network's output (n, k) and the targets (n, t)."""
        output = forward(self.network, *job.inputs)
        check_output(output, len(job))
        return output, job.pick(output)

    def copies_scores(self, job: Job, targets: Tensor, counts: list[int], alter: Alter, score: Score) -> list[Tensor]:
        """Run ``counts[i]`` altered copies of each input i, the other inputs as they are.

        Args:
            job: The images.
            targets: Their targets (n, t).
            counts: Number of copies of each image, for each input.
            alter: Makes the copies of a block.
            score: What is read from their outputs.

        Returns:
            The targets' scores in the copies, (t, count, n) for each input, in at least single precision.
        """
        inputs, steps = job.inputs, sum(counts)
        results: list[Tensor] = []
        with plain_passes(self.network, inputs) as output_of, self.watched(steps, job) as done:
            for i, count in enumerate(counts):
                before = sum(counts[:i])
                kept = targets.new_empty(targets.shape[1], count, len(job), dtype=wide(inputs[i][:0]).dtype)

                def run(block: slice, i: int = i, before: int = before, kept: Tensor = kept) -> None:
                    v = block.stop - block.start
                    copies = [x.expand(v, *x.shape).flatten(0, 1) for x in inputs]
                    altered = alter(i, block)
                    copies[i] = altered.flatten(0, 1) if altered.dim() == 5 else altered
                    if len(copies) == 1:
                        copies = [fast_layout(self.network, copies[0])]
                    scores = wide(target_scores(output_of(*copies), targets, score))
                    done(before + block.stop)
                    if self.callback is not None:
                        self.callback(CopyStep(before + block.stop, steps, scores))
                    kept[:, block] = scores  # a tensor of its own for each block would leave holes in the memory

                in_blocks(self.network, run, count, inputs, self.chunk)
                results.append(kept)
        return results


class Passes(ForwardOnly):
    """A method of forward passes that reads the targets' logits or their probabilities.

    Attributes:
        score: What is read from the network's output: the target's "logit", or its "probability". A network of one output
            has no probability: its score is taken as it is.
    """

    score: Score = "logit"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_word("score", self.score, get_args(Score))

    def scores(self, job: Job, targets: Tensor, counts: list[int], alter: Alter) -> list[Tensor]:
        """Run ``counts[i]`` altered copies of each input i, and return the targets' scores in them, (t, count, n) each."""
        return self.copies_scores(job, targets, counts, alter, self.score)

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
