"""`backlit fit`: learn from data what a method needs, and write it to one file; interrupted, it goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from backlit._errors import FileError, InputError, nearest
from backlit._files import make_folder
from backlit.cli.console import console, say_failed, shown
from backlit.cli.culprit import culprit_named
from backlit.cli.progress import bars
from backlit.cli.settings import fitted_methods
from backlit.cli.stopping import one_failure, said_when_stopped
from backlit.data import CIFAR10, MNIST, ImageFolder, ImageNet, find_images, load_batch, take
from backlit.data.batches import Batches
from backlit.data.listing import Failure
from backlit.data.sample import Dataset
from backlit.inverse import FitOptions, FitStep, Fitted
from backlit.inverse.artefact import check_free, weights_of
from backlit.inverse.data import digest_of
from backlit.models import LoadedModel
from backlit.models.digits import digits_images


@dataclass(frozen=True)
class Source:
    """What to learn from, as the command line says it.

    Attributes:
        folder: The data; None for the embedded digits.
        read: How to read it: "images", "folder", "imagenet", "mnist", "cifar10".
        index: A class-index file, for class folders.
        limit: How many images to take, evenly spread.
        batch: Images in one.
        train: The part of a data set that has two.
    """

    folder: Path | None
    read: str
    index: Path | None
    limit: int | None
    batch: int
    train: bool


OPTIONS: dict[str, tuple[str, ...]] = {
    "mip_in": ("start", "reading", "samples", "classes", "ridge"),
    "pda": ("window", "padding"),
}
"""The options of each kind of fit that has some."""

READERS: dict[str, Callable[[Source], Dataset]] = {
    "folder": lambda s: ImageFolder(s.folder or "", s.index),
    "imagenet": lambda s: ImageNet(s.folder or "", None, s.index),
    "mnist": lambda s: MNIST(s.folder or "", train=s.train),
    "cifar10": lambda s: CIFAR10(s.folder or "", train=s.train),
}


def run(
    method: str, loaded: LoadedModel, source: Source, out: Path, options: dict[str, Any], *, force: bool = False
) -> list[Failure]:
    """Learn and write ``out``; finished layers, or the sums so far, are kept beside it until all is done.

    Returns the images that could not be read and were left out.

    Raises:
        InputError: If an argument, the data or the network cannot be used.
        FileError: If the data cannot be read, or ``out`` not be written or is something else than this fit.
    """
    into, start = console(), time.perf_counter()
    known = {m.artefact: m for m in reversed(fitted_methods())}
    kind = next((m.artefact for m in fitted_methods() if method in (m.name, m.artefact)), None)
    if kind is None:
        raise InputError(
            f"method must be one that learns from data, {' or '.join(known)}, but is {method!r}.{nearest(method, known)}"
        )
    strange = next((name for name in options if name not in OPTIONS.get(kind, ())), None)
    if strange is not None:
        owner = next(k for k, names in OPTIONS.items() if strange in names)
        raise InputError(f"--{strange} is for {owner}; {kind} has no such option. Leave it out.")
    make_folder(out.absolute().parent)
    data, description, failures = _data(source, loaded)
    for failure in failures:
        say_failed(into, "left out", failure.image, failure.error)
    _make_room(kind, loaded, out, data, {"description": description, **options}, force)
    images = getattr(data, "images", None)
    kept = f"the same command goes on from what {out}.parts keeps"
    with (
        said_when_stopped(lambda: kept),
        culprit_named(loaded, lambda: _named(data)),
        _progress(into, images) as progress,
    ):
        found = known[kind].fit(loaded.network, data, out=out, description=description, progress=progress, **options)
    seconds = time.perf_counter() - start
    into.print(f"{found}, {len(found.layers)} layers, {found.bytes / 1e6:.1f} MB in {seconds:.1f} s: {out}")
    into.print(f"backlit explain IMAGE --method {known[kind].name} --fitted {out} ...")
    return failures


def _make_room(kind: str, loaded: LoadedModel, out: Path, data: Any, asked: dict[str, Any], force: bool) -> None:
    """See that no other fit is replaced unasked; the same one is made again, and other files are the library's to refuse.

    Raises:
        FileError: If there is an earlier fit of another network, of other data or with other options, and no ``force``.
    """
    if not out.is_dir():
        check_free(out, kind, "out")
    try:
        there = Fitted.load(out) if out.is_file() else None
    except FileError:  # damaged
        there = None
    if there is None:
        return
    wanted = {"network": weights_of(loaded.network), **asked}
    known = {"network": there.network, "classes": list(there.classes), **there.facts}
    known["start"] = there.facts.get("asked", known.get("start"))  # "features", not the site that it was then
    if kind == "mip_in":  # an option that is not given is its default, and not that of the earlier fit
        defaults, given = FitOptions(), FitOptions(**{k: v for k, v in asked.items() if k != "description"})
        names = ("start", "samples", "ridge", "reading", "products", "ridge_at", "constant")
        known = {name: getattr(defaults, name) for name in names} | known
        wanted = {name: getattr(given, name) for name in names} | wanted
    differs = [name for name, value in wanted.items() if known.get(name) != value]
    if not differs:  # of the same name; whether of the same content is told by a pass over the data
        now, then = digest_of(data, loaded.network), there.facts.get("data")
        if not isinstance(then, dict) or (then.get("samples"), then.get("hash")) != (now.samples, now.hash):
            differs = ["content of its images, or labels"]
    if not differs:
        return
    said = f"an earlier fit: {there}, from {there.facts.get('description')}"
    if not force:
        raise FileError(
            f"out: {shown(out)!r} is {said}. This one has another {' and '.join(differs)}. Choose another name, or use --force to "
            "replace it."
        )
    console().print(f"--force replaces {shown(out)}, {said}")


def _data(source: Source, loaded: LoadedModel) -> tuple[Any, str, list[Failure]]:
    """The batches, what they are, and the files that cannot be read."""
    failures: list[Failure] = []
    classes = len(loaded.class_names)
    if source.folder is None:
        if loaded.name != "digits":
            raise InputError("data: name a folder; only the embedded model, digits, brings images of its own.")
        images, labels = digits_images()
        count = min(source.limit or len(images), len(images))
        images, labels = (part[torch.arange(count) * len(part) // count] for part in (images, labels))
        x = loaded.preprocess.batch(images)
        return (
            list(zip(x.split(source.batch), labels.split(source.batch), strict=True)),
            f"{len(x)} embedded digits",
            [],
        )
    if source.read == "images":
        files: Any = find_images(source.folder)
    elif source.read in READERS:
        files = READERS[source.read](source)
        if len(files.class_names) != classes:
            raise InputError(
                f"data: {source.read} at {str(source.folder)!r} has other classes than the {classes} of {loaded.name}, so its "
                "labels mean others. Map the folders with --class-index, or read bare images."
            )
    else:
        raise InputError(f"read must be one of images, {', '.join(READERS)}, but is {source.read!r}.")
    if source.limit is not None:
        count = min(source.limit, len(files))
        files = (
            [files[i * len(files) // count] for i in range(count)] if source.read == "images" else take(files, count)
        )
    if source.read == "images":
        files = _readable(files, loaded, failures)
    batches = Batches(files, loaded.preprocess, batch=source.batch, classes=classes)
    return batches, f"{batches.images} images of {shown(source.folder)} read as {source.read}", failures


def _readable(files: list[Path], loaded: LoadedModel, failures: list[Failure]) -> list[Path]:
    """The files that can be read: a fit goes over all of them several times, so one that cannot is left out at once."""
    found = []
    for file in files:
        with one_failure(lambda why, file=file: failures.append(Failure(shown(file), why))):
            load_batch([file], loaded.preprocess)
            found.append(file)
    if not found:
        raise FileError("data: none of the images can be read: " + " ".join(f.error for f in failures[:3]))
    return found


def _named(data: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(data, Batches):
        yield from data.named()
    else:
        yield from ((f"digit {i}", image) for i, image in enumerate(image for batch, _ in data for image in batch))


@contextmanager
def _progress(into: Console, images: int | None) -> Iterator[Callable[[FitStep], None]]:
    """A bar for each pass over the data."""
    with bars(into) as passes:
        tasks: dict[int, Any] = {}

        def progress(step: FitStep) -> None:
            if step.number not in tasks:
                tasks[step.number] = passes.add_task("", total=images)
            learned = ", ".join(step.layers[:2]) + ", ..." * (len(step.layers) > 2)
            passes.update(
                tasks[step.number],
                completed=step.samples,
                total=step.total or images,
                description=f"pass {step.number}: {learned}",
            )

        yield progress
