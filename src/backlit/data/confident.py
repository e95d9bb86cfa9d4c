"""Which pictures a network classifies right, and with certainty."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from backlit._errors import InputError, ModelStateError, check, check_type, is_number, is_whole
from backlit._forward import forward
from backlit.data.examples import check_classes, prepared
from backlit.data.sample import Sample
from backlit.models.preprocess import Preprocess


@dataclass(frozen=True)
class Known:
    """A picture that the network classifies right: its index in the data set, its name, and its true classes."""

    index: int
    name: str
    target: int
    labels: frozenset[int]


def confident(
    network: nn.Module,
    dataset: Sequence[Sample],
    preprocess: Preprocess,
    confidence: float,
    batch: int,
    views: Sequence[Callable[[Tensor], Tensor]] = (),
) -> tuple[list[Known], int]:
    """The pictures whose target the network gives a probability above ``confidence``, and the number of its classes.

    In each of ``views``, a change of normalised images (n, c, h, w), the target must still be the most probable class.

    Raises:
        InputError: An option out of range, or a sample whose class the network does not have.
        ModelStateError: The network is in train mode.
    """
    probable = is_number(confidence) and 0 <= confidence < 1
    check(probable, "confidence", confidence, "at least 0 and below 1, a probability")
    check(is_whole(batch) and batch >= 1, "batch", batch, "at least 1 image")
    check_type("network", network, nn.Module, "a torch.nn.Module")
    check_type("dataset", dataset, Sequence, "a sequence of samples, such as a data set")
    if any(module.training for module in network.modules()):
        raise ModelStateError("network is in train mode, in which an image's class depends on its batch. Call .eval().")
    found: list[Known] = []
    classes = 0
    for known, images in _batches(dataset, preprocess, batch):
        for view in (None, *views):
            if not known:
                break
            probability = probabilities(network, images if view is None else view(images))
            classes = probability.shape[1]
            for each in known:
                check_classes(each.name, max(each.labels), classes)
            target = torch.tensor([each.target for each in known])
            right = probability.argmax(1) == target
            if view is None:
                right &= probability.gather(1, target[:, None])[:, 0] > confidence
            known, images = [each for each, keep in zip(known, right.tolist(), strict=True) if keep], images[right]
        found += known
    return found, classes


def _batches(
    dataset: Sequence[Sample], preprocess: Preprocess, batch: int
) -> Iterator[tuple[list[Known], Float[Tensor, "b c h w"]]]:
    if not len(dataset):
        raise InputError("dataset must hold at least one sample, but holds none.")
    for start in range(0, len(dataset), batch):
        known, images = [], []
        for index in range(start, min(start + batch, len(dataset))):
            sample = dataset[index]
            check_type(f"dataset[{index}]", sample, Sample, "a Sample")
            known.append(Known(index, sample.name, sample.target, frozenset((sample.target, *sample.true_classes))))
            images.append(prepared(sample, preprocess))
        yield known, torch.stack(images)


def probabilities(network: nn.Module, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
    """The network's probabilities, float64 on the CPU; computed where the network is and in its dtype.

    Raises:
        InputError: The network does not take images of this size, or gives no logits (n, k).
    """
    like = next((p for p in network.parameters() if p.is_floating_point()), images)
    try:
        logits = forward(network, images.to(like.device, like.dtype))
    except torch.OutOfMemoryError:  # says itself what is wrong: the batch, not the size, is too large
        raise
    except RuntimeError as error:
        raise InputError(
            f"network does not take images of {images.shape[-1]} x {images.shape[-2]} pixels (width x height), "
            f"{images.shape[1]} channel(s): {error}"
        ) from error
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(images):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(
            f"network must give logits (n, k), but for {len(images)} images of {images.shape[-1]} x {images.shape[-2]} "
            f"pixels (width x height) it gives {shape}."
        )
    return logits.double().cpu().softmax(1)
