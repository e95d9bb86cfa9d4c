"""Images with their targets and ground truth, from files and data sets, as a plan names them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from backlit._errors import FileError, InputError, reason
from backlit._files import path_text
from backlit._forward import forward
from backlit.bench.setting import read_part
from backlit.data import CIFAR10, MNIST, VOC, ImageFolder, ImageNet, load_batch, load_examples, mosaics, select, take
from backlit.data.listing import Failure, list_images, stems
from backlit.data.sample import Dataset, Subset
from backlit.methods.scored import scored
from backlit.methods.target import Contrast, read_target
from backlit.metrics import Examples
from backlit.models import LoadedModel
from backlit.models.digits import demo_scenes

Guard = Callable[[Callable[[str], None]], AbstractContextManager[None]]
"""Runs one piece of work; what it fails with goes, as text, to the function that it is given."""


@contextmanager
def guarded(failed: Callable[[str], None]) -> Iterator[None]:
    """Run one piece of work; an exception is told to ``failed``."""
    try:
        yield
    except Exception as error:  # whatever the code of a model raises
        failed(reason(error))


@dataclass(frozen=True)
class Source:
    """A source of images, as the command line says it.

    Attributes:
        paths: Files or folders; one folder for a data set.
        data: How to read them: "images", "folder", "imagenet", "voc", "cifar10", "mnist".
        target: For images without labels: a class, a contrast of two, or "predicted".
        index: A class-index file, for folders and ImageNet.
        annotations: A folder of annotations with boxes, for ImageNet.
        scaled: The pictures of ImageNet or VOC are scaled copies of the annotated ones.
        part: Which part of a data set to take, dealt in turn: "2/2" is every second image, from the second on. "" takes all.
        limit: How many images to take of that, evenly spread.
        mosaic: Cells a side of mosaics made of the data set; 0 for none.
        seed: Of the mosaics.
    """

    paths: Sequence[Path]
    data: str
    target: str
    index: Path | None
    annotations: Path | None
    limit: int | None
    mosaic: int
    seed: int = 0
    scaled: bool = False
    part: str = ""


READERS: dict[str, Callable[[Source], Dataset]] = {
    "folder": lambda s: ImageFolder(s.paths[0], s.index),
    "imagenet": lambda s: ImageNet(s.paths[0], s.annotations, s.index, scaled=s.scaled),
    "voc": lambda s: VOC(s.paths[0], scaled=s.scaled),
    "cifar10": lambda s: CIFAR10(s.paths[0]),
    "mnist": lambda s: MNIST(s.paths[0]),
}


def logits_of(loaded: LoadedModel, images: Tensor) -> Tensor:
    """Return the network's logits (n, classes) of normalised images (n, c, h, w).

    Raises:
        InputError: If it returns something else.
    """
    logits = forward(loaded.network, loaded.placed(images))
    shape = (len(images), len(loaded.class_names))
    if not isinstance(logits, Tensor) or logits.shape != shape:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(f"model: {loaded.name!r} must return logits (n, classes) {shape}, but returned {found}.")
    return logits


def scored_for(source: Source, loaded: LoadedModel) -> tuple[LoadedModel, Source]:
    """Return the model and the source; for a contrast of two classes, "zebra - tiger", the network of one output that it is.

    Raises:
        InputError: If the target is neither a class nor a contrast of two.
    """
    if source.data != "images" or not source.paths or source.target == "predicted":
        return loaded, source
    target = read_target(source.target, loaded)
    if not isinstance(target, Contrast):
        return loaded, source
    of_one = scored(loaded, target)
    return of_one, replace(source, target=of_one.class_names[0])


def read(source: Source, loaded: LoadedModel, guard: Guard = guarded) -> tuple[Examples, str, list[Failure]]:
    """The examples, what their targets are, and the files that could not be read.

    Raises:
        InputError: If an argument cannot be used.
        FileError: If there is no image.
    """
    _refuse_unread(source)
    if source.data == "images":
        if source.mosaic:
            raise InputError("mosaic needs images with known classes: --read folder, imagenet, cifar10 or mnist.")
        if not source.paths:
            return _scenes(loaded, source.limit), "ground truth", []
        return _images(source, loaded, guard)
    if len(source.paths) != 1:
        raise InputError(
            f"IMAGES must be the one folder of the data set for --read {source.data}, but are {len(source.paths)} paths."
        )
    data = READERS[source.data](source)
    if len(data.class_names) != len(loaded.class_names):
        raise InputError(
            f"data: {source.data} at {str(source.paths[0])!r} has {len(data.class_names)} classes, but {loaded.name} has "
            f"{len(loaded.class_names)}, so its targets would be other classes. Use a model that was trained on it, or "
            "map the folders to the model's classes with --class-index."
        )
    some = _part_of(data, source.part)
    if source.mosaic:
        count = 100 if source.limit is None else source.limit
        made = mosaics(loaded.network, some, loaded.preprocess, grid=source.mosaic, count=count, seed=source.seed)
        return made.examples, "ground truth", []
    samples = _limited(some, source)
    boxed = source.data == "voc" or source.annotations is not None
    return load_examples(samples, loaded.preprocess, boxes=boxed, classes=len(loaded.class_names)), "ground truth", []


def dataset(source: Source) -> Dataset | Subset:
    """Return the samples of a data set, as many as are asked for."""
    return _limited(_part_of(READERS[source.data](source), source.part), source)


def _limited(data: Dataset | Subset, source: Source) -> Dataset | Subset:
    return data if source.limit is None else take(data, min(source.limit, len(data)))


def _part_of(data: Dataset | Subset, part: str) -> Dataset | Subset:
    """Every n-th image, from the i-th on, of "i/n"."""
    if not part:
        return data
    i, n = read_part("part", part)
    return select(data, range(i - 1, len(data), n))


def _refuse_unread(source: Source) -> None:
    """Refuse an option that the images have no use for: it was meant for others.

    Raises:
        InputError: Names the option and what it is for.
    """
    if source.data not in ("images", *READERS):
        raise InputError(f"read must be one of images, {', '.join(READERS)}, but is {source.data!r}.")
    for option, given, kinds in (
        ("annotations", source.annotations, ("imagenet",)),
        ("scaled", source.scaled or None, ("imagenet", "voc")),
        ("class-index", source.index, ("imagenet", "folder")),
        ("part", source.part or None, tuple(READERS)),
    ):
        if given is not None and source.data not in kinds:
            raise InputError(f"{option} is for --read {' or '.join(kinds)}, but read is {source.data}. Leave it out.")
    if source.target != "predicted" and (source.data != "images" or not source.paths):
        known = source.data if source.paths else "the embedded scenes"
        raise InputError(
            f"target is for images without labels, but is {source.target!r}, and the true classes of {known} are known. Leave it "
            "out."
        )
    if source.mosaic not in (0, 2, 3):
        raise InputError(f"mosaic must be 2 or 3, or 0 for none, but is {source.mosaic}.")


def _scenes(loaded: LoadedModel, limit: int | None) -> Examples:
    """The embedded two-digit scenes, for whoever just wants to see a report."""
    if loaded.name != "digits":
        raise InputError("IMAGES: name files or folders; only the embedded model, digits, brings images of its own.")
    images, labels = (part[:limit] for part in demo_scenes())
    x = loaded.preprocess.batch(images)
    both = torch.zeros(len(x), len(loaded.class_names), dtype=torch.bool).scatter_(1, labels, True)
    names = [f"scene {i + 1} of {a} and {b}" for i, (a, b) in enumerate(labels.tolist())]
    return Examples(x, labels[:, 0], both, names=names)


def _images(source: Source, loaded: LoadedModel, guard: Guard) -> tuple[Examples, str, list[Failure]]:
    files, failures = list_images(list(source.paths))
    batch, names, predicted, named = [], [], [], stems(files)
    wanted = len(files) if source.limit is None else min(source.limit, len(files))
    index = None if source.target == "predicted" else loaded.class_index(source.target)
    for file in (files[i * len(files) // wanted] for i in range(wanted)):
        with guard(lambda why, file=file: failures.append(Failure(path_text(file), why))):
            x = load_batch([file], loaded.preprocess)
            logits = logits_of(loaded, x)  # also where the class is given: an image that the model fails on is left out
            predicted.append(int(logits[0].argmax()) if index is None else index)
            batch.append(x)
            names.append(named[file])
    if not batch:
        raise FileError("IMAGES: none can be read: " + " ".join(f.error for f in failures[:3]))
    target = "predicted" if index is None else f"class {loaded.class_names[index]}"
    return Examples(torch.cat(batch), torch.tensor(predicted), names=names), target, failures
