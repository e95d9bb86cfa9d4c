"""One picture with what is true of it, and sequences of them that load a picture when it is asked for."""

from __future__ import annotations

import operator
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from backlit._errors import InputError, check, check_type, is_whole, shown
from backlit.models.pixels import to_planes

BEYOND = 1.0  # pixels: annotations round outwards, but a box of another scale misses by far more


@dataclass(frozen=True, eq=False)
class Sample:
    """One picture with what is true of it.

    Attributes:
        image: The picture as stored: Pillow, or uint8 as an array (h, w[, c]) or a tensor ([c,] h, w).
        name: Its name, unique in its dataset.
        target: Index of the class to explain, which is true of the picture.
        labels: Indices of all classes that are true of it; None where the data has one class a picture.
        boxes: The boxes (b, 4) of the target's objects, as x0, y0, x1, y1 in pixels of ``image``: half-open edges, so a
            picture of w pixels reaches from 0 to w. (0, 4): none of them has a box. None: the data has no boxes.

    Raises:
        InputError: A class index below 0, labels without the target, or boxes that are empty or outside of the picture.
            Up to one pixel outside is taken for rounding, and clipped.
    """

    image: Image.Image | np.ndarray | Tensor
    name: str
    target: int
    labels: tuple[int, ...] | None = None
    boxes: Float[Tensor, "b 4"] | None = None

    def __post_init__(self) -> None:
        check_type("name", self.name, str, "a text")
        labels = (0,) if self.labels is None else self.labels
        several = isinstance(labels, (tuple, list, set, frozenset)) and all(is_whole(k) and k >= 0 for k in labels)
        if not several or not is_whole(self.target) or self.target < 0:
            raise InputError(
                f"target and labels of {self.name!r} must be class indices from 0, but are {shown(self.target)} and "
                f"{shown(self.labels)}."
            )
        if self.labels is not None and self.target not in self.labels:
            raise InputError(
                f"labels of {self.name!r} must hold its target, {self.target}, but are {self.labels}. They are all the "
                "classes that are true of the picture."
            )
        if self.boxes is not None:
            check_type("boxes", self.boxes, Tensor, "a tensor (b, 4) or None")
            object.__setattr__(self, "boxes", checked_boxes(self.boxes, *self.size, f"boxes of {self.name!r}"))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the picture."""
        if isinstance(self.image, Image.Image):
            return self.image.height, self.image.width
        height, width = to_planes(self.image).shape[:2]
        return height, width

    @property
    def true_classes(self) -> tuple[int, ...]:
        """All classes that are true of the picture: its labels, or its target alone."""
        return (self.target,) if self.labels is None else self.labels


def checked_boxes(boxes: Float[Tensor, "b 4"], height: int, width: int, what: str) -> Float[Tensor, "b 4"]:
    """The boxes, clipped by at most a pixel to a picture of this size.

    Raises:
        InputError: A box is empty or reaches further out; names ``what``.
    """
    if boxes.dim() != 2 or boxes.shape[1] != 4 or not boxes.is_floating_point():
        raise InputError(f"{what} must be floating point (b, 4), but are {boxes.dtype} of shape {tuple(boxes.shape)}.")
    x0, y0, x1, y1 = boxes.unbind(1)
    empty = ~boxes.isfinite().all(1) | (x1 <= x0) | (y1 <= y0)
    if bool(empty.any()):
        raise InputError(
            f"{what} must be x0, y0, x1, y1 with x0 < x1 and y0 < y1, but one is {boxes[empty][0].tolist()}: it is empty. "
            "Correct or drop it; give corners, not width and height."
        )
    limits = torch.tensor([width, height, width, height], dtype=boxes.dtype, device=boxes.device)
    outside = ((boxes < -BEYOND) | (boxes > limits + BEYOND)).any(1)
    clipped = torch.minimum(boxes.clamp(min=0), limits)
    outside |= (clipped[:, 2] <= clipped[:, 0]) | (clipped[:, 3] <= clipped[:, 1])
    if bool(outside.any()):
        raise InputError(
            f"{what} must lie inside the picture of {width} x {height} pixels (width x height), but one is "
            f"{boxes[outside][0].tolist()}. Was the picture scaled or turned after it was annotated?"
        )
    return clipped


class Dataset(Sequence[Sample]):
    """A sequence of samples, each loaded when it is asked for.

    Attributes:
        class_names: The classes' names in the order of their indices.
        targets: Every sample's target, int64 (n,); known without a picture being loaded.
    """

    class_names: tuple[str, ...]
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.targets)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Subset: ...
    def __getitem__(self, index: int | slice) -> Sample | Subset:
        if isinstance(index, slice):
            return Subset(self, range(len(self))[index])
        return self.load(range(len(self))[operator.index(index)])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} samples, {len(self.class_names)} classes)"

    @abstractmethod
    def load(self, index: int) -> Sample:
        """The sample at ``index``, 0 <= index < n."""


class Subset(Sequence[Sample]):
    """Some samples of a sequence, by index; what the sequence loads lazily stays lazy."""

    def __init__(self, samples: Sequence[Sample], indices: Iterable[int]) -> None:
        self.samples = samples
        self.indices = tuple(indices)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The classes' names, where the whole sequence has them."""
        return getattr(self.samples, "class_names", None)

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Subset: ...
    def __getitem__(self, index: Any) -> Sample | Subset:
        if isinstance(index, slice):
            return Subset(self.samples, self.indices[index])
        return self.samples[self.indices[index]]

    def __repr__(self) -> str:
        return f"Subset({len(self)} of {self.samples!r})"


def select(dataset: Sequence[Sample], indices: Iterable[int]) -> Subset:
    """The samples at these indices, in this order.

    Raises:
        InputError: An index that the dataset does not have.
    """
    _check_dataset(dataset)
    check_type("indices", indices, Iterable, "whole numbers")
    try:
        chosen = [operator.index(index) for index in indices]
    except TypeError as error:
        raise InputError(f"indices must be whole numbers, but are {shown(indices)}.") from error
    wrong = [index for index in chosen if not 0 <= index < len(dataset)]
    if wrong:
        raise InputError(
            f"indices must be from 0 to {len(dataset) - 1}, as the dataset has {len(dataset)} samples, but one is {wrong[0]}."
        )
    return Subset(dataset, chosen)


def take(dataset: Sequence[Sample], count: int, seed: int | None = None) -> Subset:
    """``count`` samples in the dataset's order: evenly spaced, or drawn without replacement if a seed is given.

    Raises:
        InputError: ``count`` is below 1 or above the dataset's size.
    """
    _check_dataset(dataset)
    n = len(dataset)
    check(is_whole(count) and 1 <= count <= n, "count", count, f"from 1 to {n}, the size of the dataset")
    check(seed is None or (is_whole(seed) and seed >= 0), "seed", seed, "an integer from 0 or None")
    if seed is None:
        return Subset(dataset, (i * n // count for i in range(count)))
    drawn = np.random.default_rng(seed).choice(n, count, replace=False)
    return Subset(dataset, sorted(int(i) for i in drawn))


def _check_dataset(dataset: object) -> None:
    check_type("dataset", dataset, Sequence, "a sequence of samples, such as a data set")
