"""From samples to what a metric judges on."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from backlit._errors import InputError, check, check_type, is_several, is_whole
from backlit.data.boxes import resized
from backlit.data.sample import Sample
from backlit.metrics.examples import Examples
from backlit.models.preprocess import Preprocess


def load_examples(
    samples: Iterable[Sample], preprocess: Preprocess, *, boxes: bool = False, classes: int | None = None
) -> Examples:
    """The samples as a network takes them: normalised images, targets, labels and boxes.

    Args:
        samples: Samples of a data set, or of `take`, `select` or a list; each is loaded once.
        preprocess: The network's. Boxes are scaled and cropped as it does with pictures; one with no area left in the
            crop is dropped, and an image that loses all has (0, 4).
        boxes: Whether to give the boxes.
        classes: How many classes the network has, which labels must be among; None for as many as the data set has.
            Needed for samples in a list that have labels.

    Returns:
        The examples on the CPU, inputs in float32, labels only where a sample has some.

    Raises:
        InputError: No samples, a class that the network does not have, a sample without boxes although they were asked
            for, or a picture that cannot be used; names the sample.
        FileError: A picture cannot be read; names the file.
    """
    check(is_several(samples), "samples", samples, "samples, such as a data set")
    check_type("preprocess", preprocess, Preprocess, "a Preprocess")
    check_type("boxes", boxes, bool, "True or False")
    check(classes is None or is_whole(classes), "classes", classes, "a number of classes or None")
    if classes is None:
        class_names = getattr(samples, "class_names", None)
        classes = None if class_names is None else len(class_names)
    inputs, found, names, targets, labels = [], [], [], [], []
    for sample in samples:
        check_type("samples", sample, Sample, "samples of a data set")
        check_classes(sample.name, max(sample.target, *sample.true_classes), classes)
        inputs.append(prepared(sample, preprocess))
        if boxes:
            found.append(_boxes(sample, preprocess))
        names.append(sample.name)
        targets.append(sample.target)
        labels.append(sample.labels)
    if not names:
        raise InputError("samples must be at least one, but there are none.")
    return Examples(
        torch.stack(inputs),
        torch.tensor(targets, dtype=torch.int64),
        _labels(labels, targets, classes),
        found if boxes else None,
        names=tuple(names),
    )


def prepared(sample: Sample, preprocess: Preprocess) -> Float[Tensor, "c h w"]:
    """The sample's picture, normalised; an error names the sample."""
    try:
        return preprocess(sample.image)
    except InputError as error:
        raise InputError(f"samples: {sample.name!r} cannot be used: {error}") from error


def check_classes(name: str, highest: int, classes: int | None) -> None:
    """See that the network has all classes of a sample; ``classes`` is how many it has, None if that is not known."""
    if classes is not None and highest >= classes:
        raise InputError(
            f"samples: {name!r} has class index {highest} but the model has {classes} classes, 0 to {classes - 1}. Give the "
            "data set the class index of this model, or leave the class out."
        )


def multi_hot(labels: Iterable[Iterable[int]], classes: int) -> Bool[Tensor, "n k"]:
    """The labels of each image as a row of ``classes`` flags."""
    rows = [list(row) for row in labels]
    flags = torch.zeros(len(rows), classes, dtype=torch.bool)
    for flag, row in zip(flags, rows, strict=True):
        flag[row] = True
    return flags


def _boxes(sample: Sample, preprocess: Preprocess) -> Float[Tensor, "b 4"]:
    if sample.boxes is None:
        raise InputError(f"boxes: {sample.name!r} has none. Give the data set its annotations, or boxes=False.")
    return resized(sample.boxes, preprocess, *sample.size)


def _labels(
    labels: list[tuple[int, ...] | None], targets: list[int], classes: int | None
) -> Bool[Tensor, "n k"] | None:
    if all(row is None for row in labels):
        return None
    if classes is None:
        raise InputError(
            "classes must be the number of the network's classes, because samples have labels, but is None."
        )
    return multi_hot(((target,) if row is None else row for row, target in zip(labels, targets, strict=True)), classes)
