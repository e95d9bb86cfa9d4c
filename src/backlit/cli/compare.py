"""`backlit compare`: images in, one report with maps, curves, ranks and protocols out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn
from rich.table import Table

from backlit._errors import FileError, InputError
from backlit._options import option_names
from backlit._store import reopen
from backlit.bench.compare import compare
from backlit.bench.folder import COMPARISON, REPORT
from backlit.cli.console import console, say_failed, shown
from backlit.cli.culprit import culprit_named
from backlit.cli.progress import Description, bars
from backlit.cli.settings import Chosen, Compute, logits_of
from backlit.cli.stopping import one_failure, said_when_stopped
from backlit.comparison import Comparison
from backlit.data import CIFAR10, MNIST, VOC, ImageFolder, ImageNet, load_batch, load_examples, mosaics, take
from backlit.data.listing import Failure, list_images, stems
from backlit.data.sample import Dataset
from backlit.metrics import Examples, Metric
from backlit.models import LoadedModel
from backlit.models.digits import demo_scenes
from backlit.report.comparison import render, tables_in

_KEPT = "what is done is kept, and the same command goes on from there"


@dataclass(frozen=True)
class Source:
    """A source of images, as the command line says it.

    Attributes:
        paths: Files or folders; one folder for a data set.
        data: How to read them: "images", "folder", "imagenet", "voc", "cifar10", "mnist".
        target: For images without labels: a class, or "predicted".
        index: A class-index file, for folders and ImageNet.
        annotations: A folder of annotations with boxes, for ImageNet.
        scaled: The pictures of ImageNet or VOC are scaled copies of the annotated ones.
        limit: How many images to take of a data set, evenly spread.
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


READERS: dict[str, Callable[[Source], Dataset]] = {
    "folder": lambda s: ImageFolder(s.paths[0], s.index),
    "imagenet": lambda s: ImageNet(s.paths[0], s.annotations, s.index, scaled=s.scaled),
    "voc": lambda s: VOC(s.paths[0], scaled=s.scaled),
    "cifar10": lambda s: CIFAR10(s.paths[0]),
    "mnist": lambda s: MNIST(s.paths[0]),
}


def from_words(images: Sequence[Path], data: str | None, read: str | None) -> tuple[list[Path], str]:
    """The paths, and how to read them, from IMAGE, --data and --read; --data also takes what --read does, as it once did.

    Raises:
        InputError: If they say two things.
    """
    kinds = ("images", *READERS)
    if data in kinds and read is None and not (Path(data).exists() and not images):
        return list(images), data
    if data is not None and images:
        raise InputError(
            f"data must be the data set's folder, in the place of IMAGE, but is {data!r} beside {shown(images[0])!r}. Give one of "
            f"them; how to read it is for --read: {', '.join(kinds)}."
        )
    return ([Path(data)] if data is not None else list(images)), read or "images"


def run(
    source: Source,
    loaded: LoadedModel,
    methods: Sequence[Chosen],
    metrics: Mapping[str, Metric],
    out: Path,
    compute: Compute,
    *,
    classes: int,
    force: bool,
) -> list[Failure]:
    """Compare the methods on the images and write the report; returns the images that could not be read.

    Raises:
        InputError: If a metric needs what the images lack, or an argument cannot be used.
        FileError: If there is no image, or ``out`` holds something else.
    """
    into = console()
    examples, target, failures = read(source, loaded)
    for failure in failures:
        say_failed(into, "left out", failure.image, failure.error)
    with (
        said_when_stopped(lambda: _KEPT),
        culprit_named(loaded, lambda: zip(examples.names, examples.inputs, strict=True)),
        _progress(into) as (progress, step),
    ):
        found = compare(
            loaded,
            _placed(examples, loaded),
            {c.name: c.method(loaded.network, **c.options, **_stepped(c, step)) for c in methods},
            metrics,
            out=out,
            classes=classes,
            target=target,
            force=force,
            progress=progress,
        )
    page = out / REPORT
    with reopen(out, COMPARISON) as store:
        store.write(REPORT, render(found, tables_in(out)).encode())
    _print(found, into)
    into.print(f"open {shown(os.path.relpath(page))}")
    if failures:
        into.print(f"{len(failures)} of {len(failures) + len(examples)} images were left out, as said above")
    return failures


def _placed(examples: Examples, loaded: LoadedModel) -> Examples:
    like = loaded.placed(examples.inputs[:1])
    return examples.to(like.device, like.dtype)


def read(source: Source, loaded: LoadedModel) -> tuple[Examples, str, list[Failure]]:
    """The examples, what their targets are, and the files that could not be read."""
    _refuse_unread(source)
    if source.data == "images":
        if source.mosaic:
            raise InputError("mosaic needs images with known classes: --read folder, imagenet, cifar10 or mnist.")
        if not source.paths:
            return _scenes(loaded, source.limit), "ground truth", []
        return _images(source, loaded)
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
    if source.mosaic:
        count = 100 if source.limit is None else source.limit
        made = mosaics(loaded.network, data, loaded.preprocess, grid=source.mosaic, count=count, seed=source.seed)
        return made.examples, "ground truth", []
    samples = data if source.limit is None else take(data, min(source.limit, len(data)))
    boxed = source.data == "voc" or source.annotations is not None
    return load_examples(samples, loaded.preprocess, boxes=boxed, classes=len(loaded.class_names)), "ground truth", []


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


def _images(source: Source, loaded: LoadedModel) -> tuple[Examples, str, list[Failure]]:
    files, failures = list_images(list(source.paths))
    batch, names, predicted, named = [], [], [], stems(files)
    wanted = len(files) if source.limit is None else min(source.limit, len(files))
    index = None if source.target == "predicted" else loaded.class_index(source.target)
    for file in (files[i * len(files) // wanted] for i in range(wanted)):
        with one_failure(lambda why, file=file: failures.append(Failure(shown(file), why))):
            x = load_batch([file], loaded.preprocess)
            logits = logits_of(loaded, x)  # also where the class is given: an image that the model fails on is left out
            predicted.append(int(logits[0].argmax()) if index is None else index)
            batch.append(x)
            names.append(named[file])
    if not batch:
        raise FileError("IMAGES: none can be read: " + " ".join(f.error for f in failures[:3]))
    target = "predicted" if index is None else f"class {loaded.class_names[index]}"
    return Examples(torch.cat(batch), torch.tensor(predicted), names=names), target, failures


def _print(found: Comparison, into: Console) -> None:
    """The ranking, a row a metric: the three best, and how sure the first place is."""
    table = Table("metric", "best", "second", "third", "first over second")
    for protocol in found.protocols:
        rows = [r for r in found.ranking.iter_rows(named=True) if r["metric"] == protocol["metric"]]
        cells = [f"{r['method']} {_number(r['value'])}" for r in rows[:3]]
        table.add_row(protocol["title"], *cells, *[""] * (3 - len(cells)), _certainty(found, protocol["metric"], rows))
    into.print(table)
    for protocol in found.protocols:
        rows = [r for r in found.ranking.iter_rows(named=True) if r["metric"] == protocol["metric"]]
        if any(r["median"] is not None for r in rows):
            beside = [f"{r['method']} {_number(r['median'])} ({_number(r['ratio_of_means'])})" for r in rows]
            into.print(shown(f"{protocol['title']}, median (ratio of means): {', '.join(beside)}"))


def _certainty(found: Comparison, metric: str, rows: list[dict]) -> str:
    if len(rows) < 2:
        return ""
    pair = {rows[0]["method"], rows[1]["method"]}
    for row in found.differences.iter_rows(named=True):
        if row["metric"] == metric and {row["method"], row["other"]} == pair:
            if row["low"] is None:
                return "too few images to tell"
            return "significant" if row["significant"] else "not significant"
    return ""


def _number(value: float | None) -> str:
    return "not scored" if value is None else f"{value:.3f}"


def _stepped(chosen: Chosen, step: Callable[[Any], None]) -> dict[str, Any]:
    """The bar's callback, for a method that takes many steps."""
    return {"callback": step} if "callback" in option_names(chosen.method) else {}


@contextmanager
def _progress(into: Console) -> Iterator[tuple[Callable[[int, int, str], None], Callable[[Any], None]]]:
    """What to call before each piece of work, and after each step of a method that takes many."""
    with bars(into, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), Description()) as bar:
        task = bar.add_task("", step="")
        yield (
            lambda done, of, what: bar.update(task, completed=done, total=of, description=what, step=""),
            lambda s: bar.update(task, step=f", step {s.index} of {s.steps}"),
        )
