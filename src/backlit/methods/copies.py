"""Passes over many altered copies of the images: points of a path, noisy, masked and blurred ones.

A block holds some copies of *all* images of a chunk, (v, n, c, h, w) as one batch of v * n images: a network that holds a
constant for each image of its batch then runs with one copy of each at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backlit._errors import BacklitError
from backlit._forward import unchanged
from backlit.capture.refuse import check_output
from backlit.methods.account import wide
from backlit.methods.chunks import out_of_memory, run_in_chunks
from backlit.methods.inputs import probability, why_not
from backlit.methods.job import scores_of

Result = TypeVar("Result")
Score = Literal["logit", "probability"]
"""What is read from a copy's output: the target's logit, or its probability among the network's classes."""

_CACHED = 600_000  # numbers of a batch that a CPU's caches hold: four images of 224 pixels (benchmarks/perturbation.py)


def in_blocks(
    network: nn.Module,
    run: Callable[[slice], Result],
    count: int,
    inputs: tuple[Tensor, ...],
    chunk: int | None = None,
) -> list[Result]:
    """Run copies 0 to ``count`` - 1 of all images in blocks, and return the blocks' results in order.

    Memory that runs out halves a block; what has been done stays. A network that takes its images only together is run with
    one copy of them at a time.

    Args:
        network: The network that runs them.
        run: What to do with the copies of a block; it may be called again for a block that failed.
        count: Number of copies of each image.
        inputs: The images, a chunk of n.
        chunk: How many images may run at once; None for a number that suits the device.
    """
    tried = slice(0, 0)

    def noting(block: slice) -> Result:
        nonlocal tried
        tried = block
        return run(block)

    def blocks(size: int) -> list[Result]:
        return run_in_chunks(noting, lambda _: 0.0, n=count, chunk=size, device=inputs[0].device)

    together = max(1, (chunk or _at_once(inputs[0])) // len(inputs[0]))
    if min(together, count) > 1:
        try:
            return blocks(together)
        except Exception:
            copies = tuple(repeated(x, tried.stop - tried.start) for x in inputs)
            if why_not(network, copies) is None:  # the network takes so many images: the fault is another one
                raise
    return blocks(1)


def _at_once(x: Tensor) -> int:
    """Return how many images run fastest at once: on a CPU, as many as its caches hold."""
    if x.device.type == "cpu":
        return min(64, max(4, _CACHED // x[0].numel()))
    return 64 if x.device.type == "cuda" else 16


def sum_of_blocks(
    network: nn.Module,
    run: Callable[[slice], tuple[Tensor, ...]],
    count: int,
    inputs: tuple[Tensor, ...],
    chunk: int | None = None,
) -> tuple[Tensor, ...]:
    """Run copies as :func:`in_blocks` does, and add up the blocks' results in single precision at least.

    No more than one block's result is held beside the sums, however many blocks there are.
    """
    sums: list[Tensor] = []

    def add(block: slice) -> None:
        results = [wide(r) for r in run(block)]
        if block.start == 0:  # also where all copies run anew, one at a time
            sums[:] = [r.clone() for r in results]
            return
        for total, result in zip(sums, results, strict=True):
            total += result

    in_blocks(network, add, count, inputs, chunk)
    return tuple(sums)


@contextmanager
def plain_passes(network: nn.Module, inputs: tuple[Tensor, ...]) -> Iterator[Callable[..., Tensor]]:
    """Give a function from copies, a tensor for each input, to the network's output (v * n, k), without gradients.

    Args:
        network: The network.
        inputs: The images, a chunk of n; they must not be written.

    Raises:
        ModelStateError: At the end, if the network drew at random or wrote to itself.
    """
    with torch.no_grad(), unchanged(network, inputs):

        def output_of(*copies: Tensor) -> Tensor:
            output = network(*copies)
            check_output(output, len(copies[0]))
            return output

        yield output_of


def true_gradients(network: nn.Module, inputs: tuple[Tensor, ...], targets: Tensor) -> tuple[Tensor, ...] | None:
    """The gradients (t, n, ...) of the targets' logits, targets (n, t), by a plain pass forward and back.

    Returns:
        One for each input; None if autograd cannot go back through the network as it is written.

    Raises:
        ModelStateError: If the network drew at random or wrote to itself.
    """
    leaves = tuple(x.detach().requires_grad_() for x in inputs)
    try:
        with torch.enable_grad(), unchanged(network, leaves):
            output = network(*(x.clone() for x in leaves))  # it may write to its input
        check_output(output, len(inputs[0]))
        one_hot = F.one_hot(targets.T, output.shape[1]).to(output.dtype)
        several = len(one_hot) > 1
        weights = one_hot if several else one_hot[0]
        grads = torch.autograd.grad(output, leaves, weights, is_grads_batched=several, allow_unused=True)
    except RuntimeError as error:
        if isinstance(error, BacklitError) or out_of_memory(error):
            raise
        return None
    lead = targets.T.shape[:1]
    return tuple(
        x.new_zeros((*lead, *x.shape)) if g is None else g if several else g[None]
        for g, x in zip(grads, leaves, strict=True)
    )


def repeated(values: Tensor, count: int) -> Tensor:
    """Values (n, ...) of n images, for ``count`` copies of all: (count * n, ...)."""
    return values.expand(count, *values.shape).flatten(0, 1)


def target_scores(output: Tensor, targets: Tensor, score: Score) -> Tensor:
    """The targets' scores (t, v, n) in the output (v * n, k) of v copies, for targets (n, t).

    A network of one output has no probabilities: its score is taken as it is.
    """
    count = len(output) // len(targets)
    wanted = repeated(targets, count)
    chances = probability(output, wanted) if score == "probability" else None
    return (scores_of(output, wanted) if chances is None else chances).unflatten(1, (count, len(targets)))
