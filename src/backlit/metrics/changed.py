"""Run a network on changed copies of the examples, chunk by chunk, and read the target's score."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from backlit._errors import BacklitError, InputError, check, is_number
from backlit._forward import forward
from backlit._layout import fast_layout
from backlit.methods.chunks import run_in_chunks
from backlit.methods.inputs import chances, check_takes
from backlit.metrics.examples import Examples

Activation = Literal["softmax", "sigmoid"]
Made = tuple[Tensor, Tensor]
"""Changed images (j, c, h, w), and the index (j,) of the example that each was made of."""
Read = Callable[[Tensor, Tensor], Tensor]
"""Makes a row for each image (j, ...) from logits (j, k) and the examples' indices (j,)."""
_FOOTPRINT = 64  # bytes that a forward pass takes at its peak, over those of its images


def checked_percentages(given: object) -> tuple[float, ...]:
    """Return percentages of the pixels as a tuple.

    Raises:
        InputError: Unless they are numbers above 0 and below 100.
    """
    listed = isinstance(given, (tuple, list)) and len(given) > 0 and all(is_number(p) and 0 < p < 100 for p in given)
    check(listed, "percentages", given, "numbers above 0 and below 100, such as (10, 50, 90)")
    return tuple(given)  # pyright: ignore[reportArgumentType]


def run_changed(
    network: nn.Module,
    examples: Examples,
    jobs: int,
    make: Callable[[slice], Made],
    read: Read,
    chunk: int | None,
) -> Tensor:
    """Run the network on each of the jobs' images and return what is read of its logits, (jobs, ...).

    Args:
        network: The network, in eval mode.
        examples: What the images are made of.
        jobs: Number of changed images.
        make: Gives the images of some jobs.
        read: What to read of the logits.
        chunk: Number of images that run at once; None lets it follow from the memory that is free.

    Raises:
        InputError: If the network does not take the images.
    """
    x = examples.inputs

    def run(part: slice) -> Tensor:
        images, which = make(part)
        try:
            logits = forward(network, fast_layout(network, images))
        except BacklitError:
            raise
        except Exception:
            check_takes(network, (x,), (images,))
            raise
        return read(logits, which.to(logits.device))

    size = x[0].numel() * x.element_size() * _FOOTPRINT
    return torch.cat(run_in_chunks(run, lambda _: size, n=jobs, chunk=chunk, device=x.device))


def run_unchanged(network: nn.Module, examples: Examples, read: Read, chunk: int | None) -> Tensor:
    """Run the network on the examples as they are and return what is read of its logits, (n, ...)."""
    every = torch.arange(len(examples), device=examples.inputs.device)
    return run_changed(network, examples, len(examples), lambda part: (examples.inputs[part], every[part]), read, chunk)


def logit_of(logits: Float[Tensor, "j k"], target: Int64[Tensor, " j"]) -> Float[Tensor, " j"]:
    """Return the logit of each row's target, in float64.

    Raises:
        InputError: If there is no such class.
    """
    low, high = int(target.min()), int(target.max())
    if low < 0 or high >= logits.shape[1]:
        raise InputError(
            f"target must be a class index from 0 to {logits.shape[1] - 1}, but reaches from {low} to {high}; the model has "
            f"{logits.shape[1]} classes."
        )
    return logits.gather(1, target[:, None])[:, 0].double()


def probability_of(
    logits: Float[Tensor, "j k"], target: Int64[Tensor, " j"], activation: Activation
) -> Float[Tensor, " j"]:
    """Return the probability of each row's target, in float64.

    Raises:
        InputError: If there is no such class.
    """
    return logit_of(probabilities(logits.double(), activation), target)


def probabilities(logits: Float[Tensor, "j k"], activation: Activation) -> Float[Tensor, "j k"]:
    """Return the probabilities of all outputs; a single one has its sigmoid, for its softmax is 1 whatever it is.

    Of the difference of two classes that is the probability of the one, if it is one of the two. Rows that are probabilities
    already, as of a network that ends in a softmax, stay as they are.
    """
    return logits.sigmoid() if activation == "sigmoid" or logits.shape[1] == 1 else chances(logits)
