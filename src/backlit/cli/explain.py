"""`backlit explain`: images in, pictures, maps and a summary out; one bad image does not stop the others."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import count
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from backlit._errors import BacklitError, FileError, InputError
from backlit._files import make_folder, write_whole
from backlit._forward import forward
from backlit.attribution import Attribution
from backlit.cli.settings import Chosen, Compute
from backlit.data.images import find_images, load_image
from backlit.methods import FittedMethod
from backlit.models import LoadedModel
from backlit.report.figure import render_overlay, save_png


@dataclass(frozen=True)
class Failure:
    """An image that could not be explained, and why."""

    image: str
    error: str


def run(
    paths: list[Path], loaded: LoadedModel, target: str, methods: list[Chosen], out: Path, compute: Compute
) -> list[Failure]:
    """Explain every image with every method; returns the failures, which the summary lists, too.

    Raises:
        InputError: If the target or a method does not fit the model: then no image could be explained.
        FileError: If there is no image at all, or ``out`` cannot be written.
    """
    choose = _targets(target, loaded)
    for chosen in methods:
        if issubclass(chosen.method, FittedMethod):
            chosen.method(
                loaded.network, **chosen.options
            )  # refuses a file for another network before any image is read
    images, failures = found_images(paths)
    make_folder(out)
    console = Console()
    rows: list[dict[str, Any]] = []
    names = stems(images)
    try:
        with _progress(console) as bar:
            for image in images:
                try:
                    rows += _one_image(image, names[image], loaded, choose, methods, out, bar)
                except OutputError:
                    raise
                except BacklitError as error:
                    failures.append(Failure(str(image), str(error)))
                    console.print(f"[red]failed[/red] {image}: {error}", highlight=False)
    finally:  # what was computed before an interruption is listed, too
        _write_summary(out, loaded, rows, failures, compute)
    console.print(f"{len(rows)} maps of {len(images)} images in {out} (summary.json lists them)")
    if failures:
        console.print(f"[red]{len(failures)} failed[/red]; summary.json says why")
    return failures


class OutputError(FileError):
    """The folder for the results cannot be written: no other image would fare better."""


def _one_image(
    image: Path,
    stem: str,
    loaded: LoadedModel,
    choose: Callable[[Tensor], list[int]],
    methods: list[Chosen],
    out: Path,
    bar: Callable[[str, Chosen], Any],
) -> list[dict[str, Any]]:
    parameter = next(loaded.network.parameters())
    picture = load_image(image)
    x = loaded.preprocess(picture)[None].to(parameter.device, parameter.dtype)
    logits = forward(loaded.network, x)
    classes = choose(logits[0])
    probabilities = logits.float().softmax(1)[0]
    rows = []
    for chosen in methods:
        with bar(image.name, chosen) as options:
            explanations = chosen.method(loaded.network, **options).each(x, [classes])
        for index, explanation in zip(classes, explanations, strict=True):
            files = _write(out, f"{stem}.{chosen.method.name}.{index}", explanation, loaded)
            rows.append(
                {
                    "image": str(image),
                    "method": chosen.method.name,
                    "target": index,
                    "label": loaded.class_names[index],
                    "logit": float(explanation.output[0]),
                    "probability": float(probabilities[index]),
                    "completeness": {k: float(v[0]) for k, v in explanation.completeness.items()},
                    "coverage": explanation.coverage.count(),
                    "provenance": dict(explanation.provenance),
                    **files,
                }
            )
    return rows


def _write(out: Path, stem: str, explanation: Attribution, loaded: LoadedModel) -> dict[str, Any]:
    scale = explanation.scale()
    assert explanation.inputs is not None
    picture = loaded.preprocess.restore(explanation.inputs[0].float())
    overlay = render_overlay(picture, explanation.heatmap()[0].float(), scale=scale)
    try:
        save_png(out / f"{stem}.png", overlay)
        explanation.save(out / f"{stem}.safetensors")
    except FileError as error:
        raise OutputError(str(error)) from error
    return {"picture": f"{stem}.png", "map": f"{stem}.safetensors", "colour_scale": scale}


def _targets(target: str, loaded: LoadedModel) -> Callable[[Tensor], list[int]]:
    """What picks the classes of an image from its logits."""
    if not target.startswith("top:"):
        index = loaded.class_index(target)
        return lambda logits: [index]
    count, classes = target.removeprefix("top:"), len(loaded.class_names)
    if not count.isdecimal() or not 1 <= int(count) <= classes:
        raise InputError(f"target must be a class, or top:K with K from 1 to {classes}, but is {target!r}.")
    return lambda logits: logits.topk(int(count)).indices.tolist()


def found_images(paths: list[Path]) -> tuple[list[Path], list[Failure]]:
    """The images of all paths; a path that has none is a failure of its own, unless it is the only one."""
    images: list[Path] = []
    failures: list[Failure] = []
    for path in paths:
        try:
            images += [image for image in find_images([path]) if image not in images]
        except BacklitError as error:
            if len(paths) == 1:
                raise
            failures.append(Failure(str(path), str(error)))
    if not images:
        raise FileError("images: none of the paths holds an image: " + " ".join(f.error for f in failures))
    return images, failures


def stems(images: list[Path]) -> dict[Path, str]:
    """A file name for each image, made unique where two folders hold the same one."""
    names: dict[Path, str] = {}
    taken = set()
    for image in images:
        stem = image.stem.encode("utf-8", "replace").decode()  # a name may hold bytes that are no text
        name = next(n for i in count(1) if (n := stem if i == 1 else f"{stem}-{i}") not in taken)
        taken.add(name)
        names[image] = name
    return names


def _write_summary(
    out: Path, loaded: LoadedModel, rows: list[dict[str, Any]], failures: list[Failure], compute: Compute
) -> None:
    summary = {
        "model": loaded.name,
        "device": compute.device,
        "dtype": compute.dtype,
        "seed": compute.seed,
        "maps": rows,
        "failures": [{"image": f.image, "error": f.error} for f in failures],
    }
    text = json.dumps(summary, indent=1, ensure_ascii=False) + "\n"
    write_whole(out / "summary.json", text.encode(), "out")


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[str, Chosen], Any]]:
    """A bar with steps and the time left for each image and method; gives the options with the bar's callback."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:

        @contextmanager
        def of(image: str, chosen: Chosen) -> Iterator[dict[str, Any]]:
            task = progress.add_task(f"{image}  {chosen.method.title}", total=1)
            stepped = "callback" in {f.name for f in fields(chosen.method.Options)}
            step = {"callback": lambda s: progress.update(task, completed=s.index, total=s.steps)} if stepped else {}
            yield {**chosen.options, **step}
            progress.remove_task(task)

        yield of
