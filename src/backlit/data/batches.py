"""Samples in batches, loaded when they are needed, as often as they are gone through: what fits learn from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from backlit._errors import check, check_type, is_whole
from backlit.data.examples import check_classes, prepared
from backlit.data.images import load_batch
from backlit.data.sample import Sample
from backlit.models.preprocess import Preprocess


class Batches:
    """Batches of normalised images (n, c, h, w), each with its targets (n,), or of bare images for a list of files.

    Args:
        samples: Samples of a data set, or files.
        preprocess: The network's.
        batch: Images in one.
        classes: How many classes the network has; a sample of another one is an error.
    """

    def __init__(
        self,
        samples: Sequence[Sample] | Sequence[Path],
        preprocess: Preprocess,
        *,
        batch: int = 64,
        classes: int | None = None,
    ) -> None:
        check_type("samples", samples, Sequence, "a sequence of samples or of files")
        check_type("preprocess", preprocess, Preprocess, "a Preprocess")
        check(is_whole(batch) and batch >= 1, "batch", batch, "a positive integer")
        check(classes is None or is_whole(classes), "classes", classes, "a number of classes or None")
        self._samples, self._preprocess, self._batch, self._classes = samples, preprocess, batch, classes

    @property
    def images(self) -> int:
        """Tell how many images one pass gives."""
        return len(self._samples)

    def __len__(self) -> int:
        return -(-len(self._samples) // self._batch)

    def __iter__(self) -> Iterator[Tensor | tuple[Tensor, Tensor]]:
        for start in range(0, len(self._samples), self._batch):
            found = [self._samples[i] for i in range(start, min(start + self._batch, len(self._samples)))]
            images = torch.stack([self._image(one) for one in found])
            targets = [one.target for one in found if isinstance(one, Sample)]
            yield (images, torch.tensor(targets)) if targets else images

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """Give each image (c, h, w) by itself, with its name or file."""
        for i in range(len(self._samples)):
            one = self._samples[i]
            yield one.name if isinstance(one, Sample) else str(one), self._image(one)

    def _image(self, one: Sample | Path) -> Tensor:
        if isinstance(one, Path):
            return load_batch([one], self._preprocess)[0]
        check_type("samples", one, Sample, "samples or files")
        check_classes(one.name, one.target, self._classes)
        return prepared(one, self._preprocess)
