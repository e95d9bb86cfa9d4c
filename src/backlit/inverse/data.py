"""Batches as the fits take them: any iterable that can be gone through again, checked batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from backlit._errors import InputError, ModelStateError

_AT_ONCE = 2**22  # numbers that are hashed at once
Data = Iterable[object]
"""Batches: images (n, c, h, w), or (images, class indices (n,)); images may be a tuple, if the network takes several."""


@dataclass(frozen=True)
class Batch:
    """A batch: its number, the network's inputs, and each image's class, if the data says it."""

    index: int
    inputs: tuple[Tensor, ...]
    labels: Tensor | None

    numbers: Tensor | None = None
    """Which images of the whole batch these are; None: all."""

    def rows(self, rows: Tensor) -> Batch:
        """Return these images alone."""
        labels = None if self.labels is None else self.labels[rows]
        return Batch(self.index, tuple(x[rows] for x in self.inputs), labels, rows)


@dataclass
class Digest:
    """A sum over the images of a 64-bit hash of each: it tells one data set from another, but for the order of its images.

    The hash is of all bits of the image's values (of half precision as float32) and of its label. It is cheap, and the same on
    every device and however the images are cut into batches; it guards against mistakes, not against forgery.
    """

    batches: int = 0
    samples: int = 0
    hash: int = 0

    def add(self, batch: Batch) -> None:
        """Add a batch."""
        self.batches += 1
        n = len(batch.inputs[0])
        self.samples += n
        of_image = torch.zeros(n, dtype=torch.int64, device=batch.inputs[0].device)
        for x in batch.inputs:
            of_image = _mixed(of_image + _of_bits(x.flatten(1)))
        if batch.labels is not None:
            of_image = _mixed(of_image + batch.labels + 1)
        self.hash = _wrapped(self.hash + int(of_image.sum()))

    def same(self, other: Digest) -> bool:
        """Say whether these are the same images with the same labels, in whatever order."""
        return (self.samples, self.hash) == (other.samples, other.hash)

    def __str__(self) -> str:
        return f"{self.samples} images of digest {self.hash % 2**64:016x}"


def digest_of(data: Data, model: nn.Module) -> Digest:
    """Go over the data once, and return what tells them from others.

    Raises:
        InputError: If a batch cannot be used; names it.
    """
    digest = Digest()
    for batch in batches(data, model):
        digest.add(batch)
    return digest


_ODD = -7046029254386353131  # 2^64 over the golden ratio, odd, as a signed number


def _of_bits(x: Tensor) -> Tensor:
    """Return a number (n,) for the bits of each row (n, q): the sum of their words of 32, each times an odd number of its place."""
    bits = x if x.dtype == torch.float64 else x.float()
    words = x.shape[1] * bits.element_size() // 4
    place = torch.arange(1, words + 1, device=x.device)
    factors = _mixed(place * _ODD) | 1
    at_once = max(1, _AT_ONCE // words)
    return torch.cat([(rows.contiguous().view(torch.int32) * factors).sum(1) for rows in bits.split(at_once)])


def _mixed(h: Tensor) -> Tensor:
    """Spread every bit of 64 over all of them; without it, sums over images could not tell which pixel was whose."""
    for _ in range(2):
        h = (h ^ (h >> 32)) * _ODD
    return h ^ (h >> 29)


def _wrapped(value: int) -> int:
    return (value + 2**63) % 2**64 - 2**63


def check_data(data: Data) -> None:
    """Refuse what cannot be gone through several times.

    Raises:
        InputError: If it is no iterable, a bare tensor, or an iterator that is used up by one pass.
    """
    if isinstance(data, Tensor):
        raise InputError(
            f"data must be batches, but is one tensor of shape {tuple(data.shape)}. Cut it into batches: data.split(64)."
        )
    if not isinstance(data, Iterable):
        raise InputError(f"data must be an iterable of batches (images, labels), but is {type(data).__name__}.")
    if iter(data) is data:
        raise InputError(
            f"data must be an iterable that can be gone through again, for a fit looks at the first batch and then takes its "
            f"passes, but is a {type(data).__name__}, which one pass uses up. Give a list or a DataLoader."
        )


def batches(data: Data, model: nn.Module, classes: int | None = None, *, again: bool = False) -> Iterator[Batch]:
    """Yield the batches of one pass, checked, on the model's device and in its dtype.

    ``classes`` is how many there are, where the labels are used; ``again`` says that an earlier pass had batches.

    Raises:
        InputError: If a batch is no batch of finite images, or its labels do not go with it; names the batch.
    """
    home = next((t for t in chain(model.parameters(), model.buffers()) if t.is_floating_point()), None)
    sizes: list[str] = []
    for index, item in enumerate(data):
        images, labels = item if isinstance(item, (tuple, list)) and len(item) == 2 else (item, None)
        inputs = _images(images if isinstance(images, (tuple, list)) else (images,), index)
        own = ["x".join(map(str, x.shape[1:])) for x in inputs]
        sizes = sizes or own
        for size, first in zip(own, sizes, strict=False):
            if size != first:
                raise InputError(
                    f"data: the images of batch {index} must have the size of batch 0, {first}, but have {size}. Scale them to "
                    "one size."
                )
        if home is not None:
            inputs = tuple(x.to(home.device, home.dtype) for x in inputs)
        if labels is not None:
            labels = _labels(labels, len(inputs[0]), index, classes).to(inputs[0].device)
        yield Batch(index, inputs, labels)
    if not sizes:
        raise InputError(
            "data gave batches in one pass and none in a later one, so it cannot be gone through again. Give a list or a "
            "DataLoader."
            if again
            else "data must hold at least one batch, but holds none."
        )


def _labels(labels: object, n: int, index: int, classes: int | None) -> Tensor:
    must_be = f"data: the labels of batch {index} must be {n} class indices, one an image, but are"
    try:
        indices = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{must_be} {type(labels).__name__}: {error}.") from error
    if indices.is_floating_point() or indices.dtype == torch.bool or indices.shape != (n,):
        raise InputError(f"{must_be} {indices.dtype} of shape {tuple(indices.shape)}.")
    indices = indices.long()  # a class may lie beyond what a label of 8 bits holds
    wrong = indices[(indices < 0) | (indices >= classes)] if classes is not None else indices[:0]
    if len(wrong):
        raise InputError(
            f"data: the labels of batch {index} must be class indices from 0 to {(classes or 0) - 1}, but one is {int(wrong[0])}. "
            "Map them to the network's classes, or leave such images out."
        )
    return indices


def check_values(values: Iterable[Tensor], what: str, batch: Batch) -> None:
    """Refuse NaN and Inf among what the network computed.

    Raises:
        ModelStateError: Names the layer, the batch and the images in it.
    """
    for value in values:
        rows = _not_finite(value)
        if len(rows):
            rows = rows if batch.numbers is None else batch.numbers[rows]
            images = ", ".join(map(str, rows.tolist()[:5]))
            raise ModelStateError(
                f"The activations at {what} are not finite for image {images} of batch {batch.index}, so no regression on them "
                "is. Check the weights and the normalisation, or compute in float32 or float64."
            )


def _not_finite(values: Tensor) -> Tensor:
    """Return the rows that hold NaN or Inf."""
    if bool(values.sum().isfinite()):  # then no term is NaN or Inf; a sum is far cheaper to take
        return values.new_zeros(0, dtype=torch.int64)
    return (~values.flatten(1).isfinite().all(1)).nonzero().flatten()


def _images(images: Iterable[object], index: int) -> tuple[Tensor, ...]:
    """Return a batch of images for each input of the network; refuse what is none."""
    inputs: list[Tensor] = []
    for x in images:
        if not isinstance(x, Tensor) or x.dim() < 2 or not x.is_floating_point() or not len(x):
            what = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise InputError(
                f"data: batch {index} must be at least one image as the network takes it, floating point (n, c, h, w), but is "
                f"{what}. Give batches of images, or of (images, labels)."
            )
        rows = _not_finite(x)
        if len(rows):
            named = ", ".join(map(str, rows.tolist()[:5]))
            raise InputError(f"data: image {named} of batch {index} holds NaN or Inf. Leave it out, or check its file.")
        inputs.append(x)
    counts = [str(len(x)) for x in inputs]
    if len(set(counts)) > 1:
        raise InputError(
            f"data: the inputs of batch {index} must hold as many images each, but hold {', '.join(counts)}."
        )
    return tuple(inputs)
