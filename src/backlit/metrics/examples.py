"""What a metric judges on: images as the network takes them, and what is known of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import NoneType

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from backlit._errors import InputError, check, check_type


@dataclass(frozen=True, eq=False)
class Examples:
    """n images with their targets, and whatever ground truth the data has.

    Attributes:
        inputs: Images (n, c, h, w) as the network takes them.
        target: The class to explain of each, int64 (n,): the ground truth, in the papers' protocols.
        labels: All classes that are true of each image, bool (n, k); None where the data has one class an image.
        boxes: For each image the boxes (b, 4) of its target's objects, as x0, y0, x1, y1 in pixels of ``inputs``, edges
            of an area that holds the pixels whose centres are inside; an image without any has (0, 4). None: no boxes.
        cells: The cell of each mosaic that shows the target, (n, 4), as a box; None where the images are no mosaics.
        names: A name for each image, unique; numbered if not given.
    """

    inputs: Float[Tensor, "n c h w"]
    target: Int64[Tensor, " n"]
    labels: Bool[Tensor, "n k"] | None = None
    boxes: Sequence[Float[Tensor, "_ 4"]] | None = None
    cells: Float[Tensor, "n 4"] | None = None
    names: Sequence[str] = ()

    def __post_init__(self) -> None:
        self._check_types()
        if self.inputs.dim() != 4 or not self.inputs.is_floating_point() or not len(self.inputs):
            raise InputError(
                f"inputs must be at least one normalised image, (n, c, h, w) floating point, but are "
                f"{self.inputs.dtype} of shape {tuple(self.inputs.shape)}."
            )
        n = len(self.inputs)
        if self.target.shape != (n,) or self.target.dtype != torch.int64:
            raise InputError(
                f"target must be one class index an image, int64 ({n},), but is {self.target.dtype} of shape "
                f"{tuple(self.target.shape)}."
            )
        if not len(self.names):
            object.__setattr__(self, "names", tuple(f"image {i}" for i in range(n)))
        self._check_names(n)
        if self.labels is not None:
            self._check_labels(self.labels)
        if self.boxes is not None:
            if len(self.boxes) != n:
                raise InputError(f"boxes must hold one tensor (b, 4) an image ({n}), but hold {len(self.boxes)}.")
            self._check_each("boxes", self.boxes)
        if self.cells is not None:
            if self.cells.shape != (n, 4):
                raise InputError(f"cells must have shape ({n}, 4), but have {tuple(self.cells.shape)}.")
            self._check_each("cells", [cell[None] for cell in self.cells])

    def _check_types(self) -> None:
        for name in ("inputs", "target"):
            check_type(name, getattr(self, name), Tensor, "a tensor")
        for name in ("labels", "cells"):
            check_type(name, getattr(self, name), (Tensor, NoneType), "a tensor or None")
        listed = isinstance(self.names, Sequence) and not isinstance(self.names, str)
        check(listed, "names", self.names, "a list or a tuple of texts")
        if self.boxes is not None:
            check_type("boxes", self.boxes, Sequence, "a list with a tensor (b, 4) for each image, or None")
            for boxes in self.boxes:
                check_type("boxes", boxes, Tensor, "a tensor (b, 4) for each image")

    def _check_names(self, n: int) -> None:
        if not all(isinstance(name, str) for name in self.names):
            raise InputError(f"names must be texts, but hold {type(next(iter(self.names))).__name__}. Use str(name).")
        if len(self.names) != n or len(set(self.names)) != n:
            raise InputError(f"names must be {n} different names, one an image, but are {len(set(self.names))}.")

    def _check_each(self, argument: str, boxes_of_images: Sequence[Tensor]) -> None:
        for name, boxes in zip(self.names, boxes_of_images, strict=True):
            self._check_boxes(argument, name, boxes)

    def _check_labels(self, labels: Tensor) -> None:
        if labels.dim() != 2 or len(labels) != len(self.target) or labels.dtype != torch.bool:
            raise InputError(
                f"labels must be bool (n, k) with n = {len(self.target)}, but are {labels.dtype} of shape "
                f"{tuple(labels.shape)}."
            )
        if int(self.target.min()) < 0 or int(self.target.max()) >= labels.shape[1]:
            raise InputError(
                f"target must be among the {labels.shape[1]} classes of labels, but reaches from "
                f"{int(self.target.min())} to {int(self.target.max())}."
            )

    def _check_boxes(self, argument: str, name: str, boxes: Tensor) -> None:
        if boxes.dim() != 2 or boxes.shape[1] != 4:
            raise InputError(f"{argument} of {name!r} must have shape (b, 4), but have {tuple(boxes.shape)}.")
        height, width = self.inputs.shape[-2:]
        x0, y0, x1, y1 = boxes.unbind(1)
        if not bool(boxes.isfinite().all()) or bool(((x1 <= x0) | (y1 <= y0)).any()):
            raise InputError(
                f"{argument} of {name!r} must be x0, y0, x1, y1 with x0 < x1 and y0 < y1, but one of {boxes.tolist()} is "
                "empty. Drop it, or give corners, not width and height."
            )
        if bool(((x0 < 0) | (y0 < 0) | (x1 > width) | (y1 > height)).any()):
            raise InputError(
                f"{argument} of {name!r} must lie inside the image of {width} x {height} pixels (width x height), but are "
                f"{boxes.tolist()}. Scale and crop them as the image was, or clip them."
            )

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: slice) -> Examples:
        """Return these images alone."""
        return Examples(
            self.inputs[index],
            self.target[index],
            None if self.labels is None else self.labels[index],
            None if self.boxes is None else self.boxes[index],
            None if self.cells is None else self.cells[index],
            self.names[index],
        )

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Examples:
        """Return the same examples on a device, the images in a dtype."""
        return Examples(
            self.inputs.to(device, dtype),
            self.target.to(device),
            None if self.labels is None else self.labels.to(device),
            None if self.boxes is None else [b.to(device) for b in self.boxes],
            None if self.cells is None else self.cells.to(device),
            self.names,
        )


def inside(boxes: Float[Tensor, "b 4"], height: int, width: int) -> Bool[Tensor, "h w"]:
    """Mark the pixels whose centres lie in any of the boxes."""
    return each_inside(boxes, height, width).any(0)


def each_inside(boxes: Float[Tensor, "b 4"], height: int, width: int) -> Bool[Tensor, "b h w"]:
    """Mark the pixels whose centres lie in each box."""
    x = torch.arange(width, device=boxes.device) + 0.5
    y = torch.arange(height, device=boxes.device) + 0.5
    x0, y0, x1, y1 = (b[:, None] for b in boxes.unbind(1))
    across, down = (x >= x0) & (x < x1), (y >= y0) & (y < y1)
    return down[:, :, None] & across[:, None, :]
