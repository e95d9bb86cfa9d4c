"""`backlit explain`: images in, pictures, maps and a summary out; one bad image does not stop the others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text
from torch import Tensor

from backlit._errors import BacklitError, FileError, InputError
from backlit._files import make_folder, write_whole
from backlit.attribution import Attribution
from backlit.cli.console import bars, console, say_failed, shown
from backlit.cli.settings import Chosen, Compute, logits_of
from backlit.cli.stopping import Hopeless, one_failure, said_when_stopped
from backlit.data.images import find_images, load_batch
from backlit.methods import FittedMethod
from backlit.models import LoadedModel
from backlit.report.figure import render_overlay, save_png

_LONGEST = 120  # bytes of a name, before method and class: file systems take 255 for all


@dataclass(frozen=True)
class Failure:
    """An image that could not be explained, by one method or at all, and why."""

    image: str
    error: str
    method: str | None = None


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
    into = console()
    rows: list[dict[str, Any]] = []
    names = stems(images)

    def fail(image: Path, why: str, chosen: Chosen | None = None) -> None:
        failures.append(Failure(shown(image), why, chosen and chosen.method.name))
        say_failed(into, "failed", shown(image) + (f" ({chosen.method.name})" if chosen else ""), why)

    job = _Job(loaded, choose, methods, out, rows.append, fail)
    kept = lambda: f"{len(rows)} maps are kept in {shown(out)} (summary.json lists them)"  # noqa: E731
    with said_when_stopped(kept):
        try:
            with _progress(into) as bar:
                for image in images:
                    with one_failure(partial(fail, image)):
                        _one_image(image, names[image], job, bar)
        finally:  # what was computed before an interruption is listed, too
            _write_summary(out, loaded, rows, failures, compute)
    into.print(f"{len(rows)} maps of {len(images)} images in {out} (summary.json lists them)")
    if failures:
        into.print(Text.assemble((f"{len(failures)} failed", "red"), "; summary.json says why"))
    return failures


@dataclass(frozen=True)
class _Job:
    """What is the same for all images."""

    loaded: LoadedModel
    choose: Callable[[Tensor], list[int]]
    methods: list[Chosen]
    out: Path
    add: Callable[[dict[str, Any]], None]
    fail: Callable[[Path, str, Chosen], None]


def _one_image(image: Path, stem: str, job: _Job, bar: Callable[[str, Chosen], Any]) -> None:
    """Write the maps of one image; a method that fails on it does not stop the others."""
    loaded = job.loaded
    x = loaded.placed(load_batch([image], loaded.preprocess))
    logits = logits_of(loaded, x)
    classes = job.choose(logits[0])
    probabilities = logits.float().softmax(1)[0]
    for chosen in job.methods:
        with one_failure(lambda why, chosen=chosen: job.fail(image, why, chosen)):
            with bar(image.name, chosen) as options:
                explanations = chosen.method(loaded.network, **options).each(x, [classes])
            for index, explanation in zip(classes, explanations, strict=True):
                files = _write(job.out, f"{stem}.{chosen.method.name}.{index}", explanation, loaded)
                row = {
                    "image": shown(image),
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
                job.add(row)


def _write(out: Path, stem: str, explanation: Attribution, loaded: LoadedModel) -> dict[str, Any]:
    scale = explanation.scale()
    assert explanation.inputs is not None
    picture = loaded.preprocess.restore(explanation.inputs[0].float())
    overlay = render_overlay(picture, explanation.heatmap()[0].float(), scale=scale)
    try:
        save_png(out / f"{stem}.png", overlay)
        explanation.save(out / f"{stem}.safetensors")
    except FileError as error:
        raise Hopeless(str(error)) from error
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
    images: dict[Path, None] = {}
    failures: list[Failure] = []
    for path in paths:
        try:
            images |= dict.fromkeys(find_images([path]))
        except BacklitError as error:
            if len(paths) == 1:
                raise
            failures.append(Failure(shown(path), str(error)))
    if not images:
        raise FileError("images: none of the paths holds an image: " + " ".join(f.error for f in failures))
    return list(images), failures


def stems(images: list[Path]) -> dict[Path, str]:
    """A file name for each image, made unique where two folders hold the same one."""
    names: dict[Path, str] = {}
    taken = set()
    for image in images:
        stem = short_name(image)
        name = next(n for i in count(1) if (n := stem if i == 1 else f"{stem}-{i}") not in taken)
        taken.add(name)
        names[image] = name
    return names


def short_name(image: Path) -> str:
    """An image's name without its ending, as every file system takes it: no control characters, unique where it is cut."""
    whole = shown(image.stem)
    stem = "".join(c if c.isprintable() else "_" for c in whole)
    if len(stem.encode()) <= _LONGEST:
        return stem
    digest = hashlib.sha256(whole.encode()).hexdigest()[:12]
    return f"{stem.encode()[: _LONGEST - 13].decode(errors='ignore')}-{digest}"


def _write_summary(
    out: Path, loaded: LoadedModel, rows: list[dict[str, Any]], failures: list[Failure], compute: Compute
) -> None:
    summary = {
        "model": loaded.name,
        "device": compute.device,
        "dtype": compute.dtype,
        "seed": compute.seed,
        "maps": rows,
        "failures": [{k: v for k, v in asdict(f).items() if v is not None} for f in failures],
    }
    text = json.dumps(summary, indent=1, ensure_ascii=False) + "\n"
    write_whole(out / "summary.json", text.encode(), "out")


@contextmanager
def _progress(into: Console) -> Iterator[Callable[[str, Chosen], Any]]:
    """A bar with steps and the time left for each image and method; gives the options with the bar's callback."""
    with bars(into) as progress:

        @contextmanager
        def of(image: str, chosen: Chosen) -> Iterator[dict[str, Any]]:
            task = progress.add_task(f"{image}  {chosen.method.title}", total=1)
            stepped = "callback" in {f.name for f in fields(chosen.method.Options)}
            step = {"callback": lambda s: progress.update(task, completed=s.index, total=s.steps)} if stepped else {}
            try:
                yield {**chosen.options, **step}
            finally:
                progress.remove_task(task)

        yield of
