"""Batches as the fits take them: any iterable that can be gone through again, checked batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from backlit._errors import InputError, ModelStateError

Data = Iterable[Any]
"""Batches: images (n, c, h, w), or (images, class indices (n,)); images may be a tuple, if the network takes several."""


@dataclass(frozen=True)
class Batch:
    """One batch: its number, the network's inputs, and each image's class, if the data says it."""

    index: int
    inputs: tuple[Tensor, ...]
    labels: Tensor | None

    def rows(self, rows: Tensor) -> Batch:
        """These images alone."""
        labels = None if self.labels is None else self.labels[rows]
        return Batch(self.index, tuple(x[rows] for x in self.inputs), labels)


@dataclass
class Digest:
    """What tells one data set from another: numbers of batches and images, sum of all values."""

    batches: int = 0
    samples: int = 0
    total: float = 0.0

    def add(self, batch: Batch) -> None:
        self.batches += 1
        self.samples += len(batch.inputs[0])
        self.total += sum(float(x.sum(dtype=torch.float64)) for x in batch.inputs)

    def same(self, other: Digest) -> bool:
        """Equal but for the order of the images."""
        near = abs(self.total - other.total) <= 1e-6 * max(abs(self.total), abs(other.total), 1.0)
        return self.samples == other.samples and near


def check_data(data: Data) -> None:
    """Refuse what cannot be gone through once a layer.

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
            f"data must be an iterable that can be gone through again, for each layer takes one pass, but is a "
            f"{type(data).__name__}, which one pass uses up. Give a list or a DataLoader."
        )


def batches(data: Data, model: nn.Module) -> Iterator[Batch]:
    """The batches of one pass, checked, on the model's device and in its dtype.

    Raises:
        InputError: If a batch is no batch of finite images, or its labels do not go with it; names the batch.
    """
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    index = -1
    for index, item in enumerate(data):
        images, labels = item if isinstance(item, (tuple, list)) and len(item) == 2 else (item, None)
        inputs = tuple(images) if isinstance(images, (tuple, list)) else (images,)
        for x in inputs:
            _check(x, index)
        n = len(inputs[0])
        if parameter is not None:
            inputs = tuple(x.to(parameter.device, parameter.dtype) for x in inputs)
        if labels is not None:
            labels = torch.as_tensor(labels, device=inputs[0].device)
            if labels.is_floating_point() or labels.dim() != 1 or len(labels) != n:
                raise InputError(
                    f"data: the labels of batch {index} must be {n} class indices, one an image, but are {labels.dtype} of shape "
                    f"{tuple(labels.shape)}."
                )
        yield Batch(index, inputs, labels)
    if index < 0:
        raise InputError("data must hold at least one batch, but holds none.")


def check_values(values: Iterable[Tensor], what: str, index: int) -> None:
    """Refuse NaN and Inf among what the network computed.

    Raises:
        ModelStateError: Names the layer and the batch.
    """
    for value in values:
        finite = value.flatten(1).isfinite().all(1)
        if not bool(finite.all()):
            images = ", ".join(map(str, (~finite).nonzero().flatten().tolist()[:5]))
            raise ModelStateError(
                f"The activations at {what} are not finite for image {images} of batch {index}, so no regression on them is. "
                "Check the weights and the normalisation, or compute in float32 or float64."
            )


def _check(x: Any, index: int) -> None:
    if not isinstance(x, Tensor) or x.dim() < 2 or not x.is_floating_point() or not len(x):
        found = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise InputError(
            f"data: batch {index} must be at least one image as the network takes it, floating point (n, c, h, w), but is {found}. "
            "Give batches of images, or of (images, labels)."
        )
    finite = x.flatten(1).isfinite().all(1)
    if not bool(finite.all()):
        images = ", ".join(map(str, (~finite).nonzero().flatten().tolist()[:5]))
        raise InputError(f"data: image {images} of batch {index} holds NaN or Inf. Leave it out, or check its file.")
