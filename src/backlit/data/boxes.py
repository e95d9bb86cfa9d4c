"""Boxes through a network's preprocessing, and the papers' choices of images by their boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import torch
from jaxtyping import Float
from torch import Tensor

from backlit._errors import InputError, check, is_number
from backlit.data.sample import Sample, Subset
from backlit.metrics.examples import Examples, inside
from backlit.models.preprocess import Preprocess


def placed(preprocess: Preprocess, height: int, width: int) -> tuple[int, int, int, int]:
    """Tell where `Preprocess` puts a picture of this size: its height and width once scaled, then the crop's top and left.

    The same numbers as the preprocessing of pixels, which rounds as torchvision does; the tests hold both together.
    """
    out_height, out_width = preprocess.size
    scaled = _scaled(preprocess, height, width) if preprocess.crop == "center" else preprocess.size
    return (*scaled, round((scaled[0] - out_height) / 2), round((scaled[1] - out_width) / 2))


def _scaled(preprocess: Preprocess, height: int, width: int) -> tuple[int, int]:
    out_height, out_width = preprocess.size
    if preprocess.resize is not None:
        short = min(height, width)
        scaled = (preprocess.resize * height // short, preprocess.resize * width // short)
        if scaled[0] >= out_height and scaled[1] >= out_width:
            return scaled
    cover = max(out_height / height, out_width / width)
    return max(out_height, round(height * cover)), max(out_width, round(width * cover))


def resized(boxes: Float[Tensor, "b 4"], preprocess: Preprocess, height: int, width: int) -> Float[Tensor, "d 4"]:
    """The boxes of a picture of ``height`` x ``width`` pixels, in pixels of the network's input.

    Scaled and shifted as the picture is, and clipped to the crop; those with no area left there are dropped.
    """
    scaled_height, scaled_width, top, left = placed(preprocess, height, width)
    out_height, out_width = preprocess.size
    across, down = scaled_width / width, scaled_height / height
    x0, y0, x1, y1 = boxes.double().unbind(1)
    x0, x1 = ((x * across - left).clamp(0, out_width) for x in (x0, x1))
    y0, y1 = ((y * down - top).clamp(0, out_height) for y in (y0, y1))
    # Compared in float32, as they are returned: a sliver of 1e-9 pixels would become an empty box.
    found = torch.stack([x0, y0, x1, y1], 1).float()
    return found[(found[:, 2] > found[:, 0]) & (found[:, 3] > found[:, 1])]


@overload
def single_small_object(samples: Examples, share: float) -> Examples: ...
@overload
def single_small_object(samples: Sequence[Sample], share: float) -> Subset: ...
def single_small_object(samples: Examples | Sequence[Sample], share: float) -> Examples | Subset:
    """Those images with one box only that covers less than ``share`` of the image.

    0.5 in the energy-based pointing game (TR-GBP, Appendix C), 0.33 in box accuracy (MIP-IN, Sec. 6.3).

    Args:
        samples: `Examples`, judged by the pixels of the network's input whose centres the box holds, as the metrics do;
            or samples, judged by the box's area in the whole picture, each of which is loaded for its size.
        share: Above 0, at most 1.

    Raises:
        InputError: Images without boxes, ``share`` out of range, or no image that fits.
    """
    check(is_number(share) and 0 < share <= 1, "share", share, "above 0 and at most 1")
    if isinstance(samples, Examples):
        kept = _of_examples(samples, share)
        return _subset(samples, kept)
    kept = [i for i in range(len(samples)) if _covers_less(samples[i], share)]
    _check_some(kept, len(samples), share)
    return Subset(samples, kept)


def _of_examples(examples: Examples, share: float) -> list[int]:
    if examples.boxes is None:
        raise InputError("samples must have boxes, but these examples have none. Load them with boxes=True.")
    height, width = examples.inputs.shape[-2:]
    areas = [inside(boxes, height, width).double().mean().item() for boxes in examples.boxes]
    kept = [i for i, boxes in enumerate(examples.boxes) if len(boxes) == 1 and areas[i] < share]
    _check_some(kept, len(examples), share)
    return kept


def _covers_less(sample: Sample, share: float) -> bool:
    if sample.boxes is None:
        raise InputError(f"samples must have boxes, but {sample.name!r} has none. Give the data set its annotations.")
    if len(sample.boxes) != 1:
        return False
    height, width = sample.size
    x0, y0, x1, y1 = sample.boxes[0].tolist()
    return (x1 - x0) * (y1 - y0) < share * height * width


def _check_some(kept: list[int], n: int, share: float) -> None:
    if not kept:
        raise InputError(f"share: none of the {n} images has one box only that covers less than {share:.0%} of it.")


def _subset(examples: Examples, kept: list[int]) -> Examples:
    assert examples.boxes is not None
    return Examples(
        examples.inputs[kept],
        examples.target[kept],
        None if examples.labels is None else examples.labels[kept],
        [examples.boxes[i] for i in kept],
        None if examples.cells is None else examples.cells[kept],
        [examples.names[i] for i in kept],
    )
