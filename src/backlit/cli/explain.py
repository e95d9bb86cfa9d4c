"""`backlit explain`: images in, pictures, maps and a summary out; interrupted, the same command goes on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

from rich.text import Text
from torch import Tensor

from backlit._errors import FileError, InputError, nearest
from backlit._files import file_digest
from backlit._json import JsonObject
from backlit._options import option_names
from backlit.bench.explain import PAGE, MapFolder, map_folder
from backlit.cli.console import counted, shown
from backlit.cli.output import Output, Prediction, Said
from backlit.cli.progress import Pace, paced
from backlit.cli.settings import Chosen, Compute, logits_of
from backlit.cli.stopping import Hopeless, one_failure, said_when_stopped
from backlit.cli.targets import Choice, Target, explained, targets
from backlit.data.images import check_file, load_batch
from backlit.data.listing import Failure, list_images
from backlit.methods import FittedMethod
from backlit.methods.base import NO_NETWORK
from backlit.methods.lookup import SHORT
from backlit.models import LoadedModel
from backlit.post import PostStep
from backlit.report.card import Style

_PREDICTED = 5  # predictions of an image that are told


@dataclass(frozen=True)
class Run:
    """What a command asks for, the same for all images.

    Attributes:
        loaded: The model.
        target: Classes: names, indices, top:K, A-B, by comma.
        methods: The methods.
        compute: Where and how to compute.
        force: Replace maps of the same images and methods that were asked for otherwise.
        style: What is drawn: "card", "overlay", "jet" or "bare".
        scale: "image": all classes of an image have one colour scale by one method; "own": each has its own.
        post: Steps behind each method.
    """

    loaded: LoadedModel
    target: str
    methods: Sequence[Chosen]
    compute: Compute
    force: bool = False
    style: str = "card"
    scale: str = "image"
    post: Sequence[PostStep] = ()

    def __post_init__(self) -> None:
        for name, known in (("style", get_args(Style)), ("scale", ("image", "own"))):
            if (found := getattr(self, name)) not in known:
                raise InputError(f"{name} must be one of {', '.join(known)}, but is {found!r}.{nearest(found, known)}")


def run(paths: list[Path], asked: Run, output: Output) -> list[Failure]:
    """Explain every image with every method; returns the failures, which the summary lists, too.

    Maps that an earlier call made are kept: those of the same command are not computed again, others stay beside the new ones.

    Raises:
        InputError: If the target or a method does not fit the model: then no image could be explained.
        FileError: If there is no image at all, or the folder cannot be written, is in use, or holds maps of the same images and
            methods that were asked for otherwise.
    """
    out, choose = output.out, targets(asked.target, asked.loaded)
    for chosen in asked.methods:
        if issubclass(chosen.method, FittedMethod):  # refuses a file for another network before any image is read
            chosen.method(asked.loaded.network, **chosen.options)
    images, failures = list_images(paths)
    for failure in failures:
        output.failed("failed", failure.image, failure.error)
    compute = asked.compute
    with map_folder(out, asked.loaded, device=compute.device, dtype=compute.dtype, seed=compute.seed) as record:
        work = _Work(asked, choose, record, failures, output)
        wanted = work.readable(images)
        _make_room(wanted, work, out)
        work.record.write_summary(failures)  # now, so that a file of somebody else stops nothing that was computed
        work.record.check_page()
        kept = partial("{0.count} maps are kept in {1}, and the same command goes on".format, work, shown(out))
        with said_when_stopped(kept):
            try:
                with paced(output.progress, len(wanted) * len(asked.methods)) as pace:
                    for image, digest in wanted.items():
                        with one_failure(partial(work.fail, image)):
                            work.explain(image, digest, pace)
                        work.record.write_summary(failures, if_due=True)
            finally:  # what was computed before an interruption is listed, too
                work.record.write_summary(failures)
            work.record.write_page()
    _say_all(work, len(images))
    return failures


def _say_all(work: _Work, images: int) -> None:
    output = work.output
    output.table()
    before = f"; {work.kept} of them were there" if work.kept else ""
    maps, pictures = counted(work.count, "map"), counted(images, "image")
    output.into.print(f"{maps} of {pictures} in {shown(output.out)} (summary.json lists them){before}")
    output.into.print(f"open {shown(output.out / PAGE)}")
    if work.count and any(chosen.name == SHORT for chosen in work.asked.methods):
        output.into.print(
            f"{SHORT} is DMBP's short schedule; --method dmbp is the paper's, and takes ten times as long"
        )
    if work.failures:
        output.into.print(Text.assemble((f"{len(work.failures)} failed", "red"), "; summary.json says why"))


def _make_room(wanted: dict[Path, str], work: _Work, out: Path) -> None:
    """See that no map stands where another one will.

    Raises:
        FileError: If some do, and ``force`` does not say to replace them.
    """
    others: dict[str, str] = {}
    for image, digest in wanted.items():
        for chosen in work.asked.methods:
            others |= work.record.others(image, work.identity(digest, chosen))
    if not others:
        return
    names = ", ".join(list(others)[:4]) + ", ..." * (len(others) > 4)
    why = next(iter(others.values()))
    if not work.asked.force:
        raise FileError(
            f"out: {shown(out)!r} holds {len(others)} maps of the same images and methods that were asked for otherwise: {names} "
            f"({why}). Nothing was written. Choose another folder, or use --force to replace them."
        )
    work.output.into.print(f"--force replaces {len(others)} maps: {names} ({why})")
    work.record.drop(list(others))


@dataclass(frozen=True)
class _Seen:
    """An image, its file's digest, what the network takes and predicts, and the targets with their probabilities."""

    image: Path
    digest: str
    x: Tensor
    predicted: list[Prediction]
    targets: dict[Target, float | None]


class _Work:
    """One image after the other.

    Attributes:
        asked: What the command asks for.
        record: The maps in the folder.
        failures: What failed.
        output: Where it is told.
        count: The maps of this command that are there.
        kept: Those of them that an earlier call had made.
    """

    def __init__(self, asked: Run, choose: Choice, record: MapFolder, failures: list[Failure], output: Output) -> None:
        self.asked, self.record, self.failures, self.output = asked, record, failures, output
        self._choose = choose
        self.count = self.kept = 0

    def fail(self, image: Path, why: str, chosen: Chosen | None = None) -> None:
        """List a failure, and say it."""
        self.failures.append(Failure(shown(image), why, chosen and chosen.name))
        self.output.failed("failed", shown(image) + (f" ({chosen.name})" if chosen else ""), why)

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

    def identity(self, digest: str, chosen: Chosen) -> JsonObject:
        """Return all that can change a method's map of an image, but for its class."""
        asked = self.record.asked(digest, chosen.name, chosen.method(NO_NETWORK, **chosen.options))
        return {**asked, "post": [step.told for step in self.asked.post]} if self.asked.post else asked

    def explain(self, image: Path, digest: str, pace: Pace) -> None:
        """Write the maps and pictures of one image; a method that fails on it does not stop the others."""
        seen = self._seen(image, digest)
        for chosen in self.asked.methods:
            pace.begin(f"{chosen.title} of {image.name}", len(seen.targets))
            with one_failure(lambda why, chosen=chosen: self.fail(image, why, chosen)):
                self._by_one(chosen, seen, pace)
            pace.end()

    def _seen(self, image: Path, digest: str) -> _Seen:
        """Run the network on an image, and choose the targets."""
        loaded = self.asked.loaded
        x = loaded.placed(load_batch([image], loaded.preprocess))
        logits = logits_of(loaded, x)[0]
        chances = logits.float().softmax(0)
        likely = chances.topk(min(_PREDICTED, len(chances)))
        pairs = zip(likely.values.tolist(), likely.indices.tolist(), strict=True)
        known = len(logits) > 1  # the softmax of one output is 1, whatever it says
        predicted = [Prediction(loaded.class_names[index], chance if known else None) for chance, index in pairs]
        targets = {t: float(chances[t.index]) if known else None for t in self._choose(logits)}
        return _Seen(image, digest, x, predicted, targets)

    def _by_one(self, chosen: Chosen, seen: _Seen, pace: Pace) -> None:
        """Compute, draw and tell of what one method makes of an image."""
        asked = self.identity(seen.digest, chosen)
        there = {target for target in seen.targets if self.record.has(seen.image, target, asked)}
        self.count += len(there)
        self.kept += len(there)
        if len(there) < len(seen.targets):  # all at once, as if none were there: bit for bit the same
            options = {**chosen.options, **_stepped(chosen, pace)}
            found = explained(chosen, self.asked.loaded, seen.x, list(seen.targets), options)
            for step in self.asked.post:
                found = {target: step(explanation) for target, explanation in found.items()}
            for target in (target for target in found if target not in there):
                with _hopeless():
                    self.record.add(seen.image, asked, target, found[target], seen.targets[target])
                self.count += 1
        with _hopeless():
            self.record.draw(seen.image, asked, self.asked.style, self.asked.scale)
        rows = self.record.summaries(seen.image, asked)
        for target in seen.targets:
            self.output.add(Said(shown(seen.image), seen.predicted, chosen.title, rows[target.key], target in there))


def _stepped(chosen: Chosen, pace: Pace) -> dict[str, Any]:
    """The callback of a method that takes many steps."""
    if "callback" not in option_names(chosen.method):
        return {}
    return {"callback": lambda step: pace.step(step.index, step.steps)}


@contextmanager
def _hopeless() -> Iterator[None]:
    """Write; where there is no space or no permission, no other image would fare better."""
    try:
        yield
    except FileError as error:
        if isinstance(error.__cause__, OSError):
            raise Hopeless(str(error)) from error
        raise
