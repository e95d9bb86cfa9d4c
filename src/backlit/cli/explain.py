"""`backlit explain`: images in, pictures, maps and a summary out; interrupted, the same command goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text
from torch import Tensor

from backlit._errors import FileError, InputError
from backlit._files import file_digest
from backlit._store import share
from backlit.cli.console import console, say_failed, shown
from backlit.cli.images import Failure, found_images
from backlit.cli.progress import bars
from backlit.cli.record import JOURNAL, Record
from backlit.cli.settings import Chosen, Compute, logits_of
from backlit.cli.stopping import Hopeless, one_failure, said_when_stopped
from backlit.data.images import check_file, load_batch
from backlit.methods import FittedMethod
from backlit.models import LoadedModel


@dataclass(frozen=True)
class Run:
    """What a command asks for, the same for all images.

    Attributes:
        loaded: The model.
        target: A class name, an index, or top:K.
        methods: The methods.
        compute: Where and how to compute.
        force: Replace maps of the same images and methods that were asked for otherwise.
    """

    loaded: LoadedModel
    target: str
    methods: Sequence[Chosen]
    compute: Compute
    force: bool = False


def run(paths: list[Path], asked: Run, out: Path) -> list[Failure]:
    """Explain every image with every method; returns the failures, which the summary lists, too.

    Maps that an earlier call made are kept: those of the same command are not computed again, others stay beside the new ones.

    Raises:
        InputError: If the target or a method does not fit the model: then no image could be explained.
        FileError: If there is no image at all, or ``out`` cannot be written, is in use, or holds maps of the same images and
            methods that were asked for otherwise.
    """
    choose = _targets(asked.target, asked.loaded)
    for chosen in asked.methods:
        if issubclass(chosen.method, FittedMethod):  # refuses a file for another network before any image is read
            chosen.method(asked.loaded.network, **chosen.options)
    images, failures = found_images(paths)
    with share(out, JOURNAL) as store:
        work = _Work(asked, choose, Record(store, asked.loaded, asked.compute), failures)
        wanted = work.readable(images)
        _make_room(wanted, work, out)
        work.record.write_summary(failures)  # now, so that a file of somebody else stops nothing that was computed
        kept = partial("{0.count} maps are kept in {1}, and the same command goes on".format, work, shown(out))
        with said_when_stopped(kept):
            try:
                with _progress(work.into) as bar:
                    for image, digest in wanted.items():
                        with one_failure(partial(work.fail, image)):
                            work.explain(image, digest, bar)
                        work.record.write_summary(failures, if_due=True)
            finally:  # what was computed before an interruption is listed, too
                work.record.write_summary(failures)
    before = f"; {work.kept} of them were there" if work.kept else ""
    work.into.print(f"{work.count} maps of {len(images)} images in {shown(out)} (summary.json lists them){before}")
    if failures:
        work.into.print(Text.assemble((f"{len(failures)} failed", "red"), "; summary.json says why"))
    return failures


def _make_room(wanted: dict[Path, str], work: _Work, out: Path) -> None:
    """See that no map stands where another one will.

    Raises:
        FileError: If some do, and ``force`` does not say to replace them.
    """
    others: dict[str, str] = {}
    for image, digest in wanted.items():
        for chosen in work.asked.methods:
            others |= work.record.others(image, work.record.asked(digest, chosen))
    if not others:
        return
    names = ", ".join(list(others)[:4]) + ", ..." * (len(others) > 4)
    why = next(iter(others.values()))
    if not work.asked.force:
        raise FileError(
            f"out: {shown(out)!r} holds {len(others)} maps of the same images and methods that were asked for otherwise: {names} "
            f"({why}). Nothing was written. Choose another folder, or use --force to replace them."
        )
    work.into.print(f"--force replaces {len(others)} maps: {names} ({why})")
    work.record.drop(list(others))


class _Work:
    """One image after the other.

    Attributes:
        asked: What the command asks for.
        record: The maps in the folder.
        into: The console.
        count: The maps of this command that are there.
        kept: Those of them that an earlier call had made.
    """

    def __init__(
        self, asked: Run, choose: Callable[[Tensor], list[int]], record: Record, failures: list[Failure]
    ) -> None:
        self.asked, self.record, self.into = asked, record, console()
        self._choose, self._failures = choose, failures
        self.count = self.kept = 0

    def fail(self, image: Path, why: str, chosen: Chosen | None = None) -> None:
        """List a failure, and say it."""
        self._failures.append(Failure(shown(image), why, chosen and chosen.method.name))
        say_failed(self.into, "failed", shown(image) + (f" ({chosen.method.name})" if chosen else ""), why)

    def readable(self, images: list[Path]) -> dict[Path, str]:
        """Return the images that can be read, each with the digest of its file."""
        digests = {}
        for image in images:
            with one_failure(partial(self.fail, image)):
                check_file(image)
                try:
                    digests[image] = file_digest(image)
                except OSError as error:
                    raise FileError(f"image: {shown(image)!r} cannot be read ({error.strerror or error}).") from error
        return digests

    def explain(self, image: Path, digest: str, bar: Callable[[str, Chosen], Any]) -> None:
        """Write the maps of one image; a method that fails on it does not stop the others."""
        loaded = self.asked.loaded
        x = loaded.placed(load_batch([image], loaded.preprocess))
        logits = logits_of(loaded, x)
        classes = self._choose(logits[0])
        chances = logits.float().softmax(1)[0].tolist()
        for chosen in self.asked.methods:
            with one_failure(lambda why, chosen=chosen: self.fail(image, why, chosen)):
                asked = self.record.asked(digest, chosen)
                there = [self.record.has(image, chosen, index, asked) for index in classes]
                self.count += sum(there)
                self.kept += sum(there)
                if all(there):
                    continue
                with bar(
                    image.name, chosen
                ) as options:  # all classes at once, as if none were there: bit for bit the same
                    explanations = chosen.method(loaded.network, **options).each(x, [classes])
                for index, explanation, known in zip(classes, explanations, there, strict=True):
                    if not known:
                        self._add(image, asked, explanation, chances[index])

    def _add(self, image: Path, asked: dict[str, Any], explanation: Any, chance: float) -> None:
        try:
            self.record.add(image, asked, explanation, chance)
        except FileError as error:
            if isinstance(error.__cause__, OSError):  # no space, no permission: no other image would fare better
                raise Hopeless(str(error)) from error
            raise
        self.count += 1


def _targets(target: str, loaded: LoadedModel) -> Callable[[Tensor], list[int]]:
    """What picks the classes of an image from its logits."""
    if not target.startswith("top:"):
        index = loaded.class_index(target)
        return lambda logits: [index]
    count, classes = target.removeprefix("top:"), len(loaded.class_names)
    if not count.isdecimal() or not 1 <= int(count) <= classes:
        raise InputError(f"target must be a class, or top:K with K from 1 to {classes}, but is {target!r}.")
    return lambda logits: logits.topk(int(count)).indices.tolist()


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
