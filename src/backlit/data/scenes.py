"""Scenes of two objects at the network's own input size."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from backlit._errors import InputError, check_type
from backlit.data.compose import Box, Mosaics, Targets, assembled, cells_of, check_options, draw, shown
from backlit.data.confident import Known, confident
from backlit.data.examples import prepared
from backlit.data.sample import Sample
from backlit.models.preprocess import Preprocess


def two_objects(
    network: nn.Module,
    dataset: Sequence[Sample],
    preprocess: Preprocess,
    *,
    count: int,
    seed: int = 0,
    confidence: float = 0.9,
    targets: Targets = "one",
    batch: int = 32,
) -> Mosaics:
    """Scenes of two pictures of different classes at the network's input size, for class sensitivity.

    Scene i is side by side if i is even, else one above the other. Each half shows the middle half of its picture at the
    picture's own scale. The middle must be enough to know the class by: a picture is used only if the network gives the
    right class a probability above ``confidence`` on the whole of it, and finds it the most probable on each of its middle
    halves alone (the rest 0, the mean colour).

    Args:
        network: In eval mode, on any device.
        dataset: Samples; all pictures of it are classified once, the confident ones three times.
        preprocess: The network's.
        count: How many scenes. The same seed gives the same ones.
        seed: Of the draw.
        confidence: The probability of the right class must be above it on whole pictures.
        targets: "one": the target of scene i is its first picture (left or upper) where i // 2 is even, else the second.
            "all": an image for each of the two, which makes ``2 * count`` images.
        batch: Images at once.

    Returns:
        Normalised float32 images on the CPU; both classes are labels, ``cells`` is the target's half.

    Raises:
        InputError: Too few confident pictures of different classes, an option out of range, or a class that the network
            does not have.
        ModelStateError: The network is in train mode.
    """
    check_type("preprocess", preprocess, Preprocess, "a Preprocess")
    height, width = preprocess.size
    if min(height, width) < 2:
        raise InputError(f"preprocess: an input of {preprocess.size} has no two halves.")
    check_options(count, targets, seed)
    layouts = (cells_of(1, 2, height, width), cells_of(2, 1, height, width))
    views = [_alone(*_inner(layout[0])) for layout in layouts]
    known, classes = confident(network, dataset, preprocess, confidence, batch, views)
    drawn = list(draw(known, 2, count, seed, confidence))
    cells = [layouts[i % 2] for i in range(count)]
    images = [_scene(dataset, preprocess, *pair) for pair in zip(drawn, cells, strict=True)]
    wanted = shown(count, 2, targets, hold=len(layouts))
    return assembled("scene", images, drawn, cells, wanted, classes, len(known))


def _inner(cell: Box) -> tuple[int, int]:
    return cell[3] - cell[1], cell[2] - cell[0]


def _scene(
    dataset: Sequence[Sample], preprocess: Preprocess, chosen: Sequence[Known], cells: Sequence[Box]
) -> Float[Tensor, "c h w"]:
    image = torch.zeros(preprocess.channels, *preprocess.size)
    for each, (x0, y0, x1, y1) in zip(chosen, cells, strict=True):
        rows, columns = _middle(preprocess.size, y1 - y0, x1 - x0)
        image[:, y0:y1, x0:x1] = prepared(dataset[each.index], preprocess)[:, rows, columns]
    return image


def _middle(size: tuple[int, int], height: int, width: int) -> tuple[slice, slice]:
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return slice(top, top + height), slice(left, left + width)


def _alone(height: int, width: int) -> Callable[[Tensor], Tensor]:
    """Shows the middle of images only."""

    def view(images: Tensor) -> Tensor:
        rows, columns = _middle((images.shape[-2], images.shape[-1]), height, width)
        shown = torch.zeros_like(images)
        shown[..., rows, columns] = images[..., rows, columns]
        return shown

    return view
