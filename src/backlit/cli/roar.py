"""`backlit roar`: remove what each method calls important, retrain, and see what accuracy is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from backlit._errors import FileError, InputError
from backlit.bench.roar import RoarData, RoarOptions, RoarResult, RoarStep, roar
from backlit.cli import settings
from backlit.cli.console import console
from backlit.cli.progress import bars
from backlit.cli.settings import Chosen
from backlit.cli.stopping import said_when_stopped
from backlit.data import CIFAR10, MNIST, load_examples, take
from backlit.data.sample import Dataset
from backlit.metrics import Examples
from backlit.models import Preprocess, cifar
from backlit.models.cifar_cnn import CifarCNN

_MNIST = Preprocess(size=(28, 28), mean=(0.1307,), std=(0.3081,), channels=1)
_KEPT = "what is done is kept, and the same command goes on from the last whole epoch"
_RANDOM = "random"  # always runs beside


@dataclass(frozen=True)
class Setting:
    """The words of a command line beside methods and options of ROAR.

    Attributes:
        data: Folder of CIFAR-10 or MNIST.
        out: Folder of the experiment.
        limit: How many images of each part to take, evenly spread.
        width: Channels of the network's first convolution.
        dropout: The network's dropout.
        device: Where to compute.
    """

    data: Path
    out: Path
    limit: int | None
    width: int
    dropout: float
    device: str


def run(setting: Setting, methods: Sequence[Chosen], options: RoarOptions) -> RoarResult:
    """Run ROAR with a bar, and print its table.

    Raises:
        InputError: If an argument cannot be used.
        FileError: If the data cannot be read, or ``out`` holds something else.
    """
    into = console()
    train, test, preprocess = _parts(setting.data)
    data = RoarData(_examples(train, preprocess, setting), _examples(test, preprocess, setting))
    make = partial(
        CifarCNN,
        len(train.class_names),
        channels=preprocess.channels,
        size=preprocess.size[0],
        width=setting.width,
        dropout=setting.dropout,
    )
    named = {c.name: partial(c.method, **c.options) for c in settings.with_bounds(methods, preprocess)}
    with said_when_stopped(lambda: _KEPT), _progress(into) as progress:
        result = roar(data, make, named, options, out=setting.out, progress=progress)
    into.print(result.table())
    for note in result.notes():
        into.print(note)
    into.print(f"every training is in {setting.out}: runs.jsonl, result.json, table.txt")
    return result


def chosen(names: str, options: list[str], seed: int) -> list[Chosen]:
    """The methods named, by comma, without the random ranking, which always runs beside."""
    others = [name for name in names.split(",") if name.strip() and name.strip() != _RANDOM]
    if not others:
        raise InputError(f"method must name one beside {_RANDOM}, which always runs, but is {names!r}.")
    return settings.with_fitted(settings.methods(",".join(others), options, seed), [])


def fractions(text: str) -> tuple[float, ...]:
    """Shares by comma.

    Raises:
        InputError: If one is no number.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"fractions must be numbers by comma, such as .5,.7,.9, but are {text!r}.") from None


def _parts(folder: Path) -> tuple[Dataset, Dataset, Preprocess]:
    """Training and test set, and how their pictures are normalised."""
    refused = []
    for kind, preprocess in ((CIFAR10, cifar.PREPROCESS), (MNIST, _MNIST)):
        try:
            return kind(folder, train=True), kind(folder, train=False), preprocess
        except FileError as error:
            refused.append(f"as {kind.__name__}: {error}")
    raise FileError(f"data must be a folder of CIFAR-10 or MNIST, but {str(folder)!r} is not. " + " ".join(refused))


def _examples(dataset: Dataset, preprocess: Preprocess, setting: Setting) -> Examples:
    count = len(dataset) if setting.limit is None else min(setting.limit, len(dataset))
    found = load_examples(take(dataset, count), preprocess)
    try:
        return found.to(torch.device(setting.device))
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device: {setting.device!r} cannot be used ({str(error).splitlines()[0]}).") from error


@contextmanager
def _progress(into: Console) -> Iterator[Callable[[RoarStep], None]]:
    """One bar of all trainings, and one of the epochs or images of what runs now."""
    with bars(into) as both:
        trainings, now = both.add_task("trainings", total=None), both.add_task("", total=None)

        def progress(step: RoarStep) -> None:
            share = f" {step.fraction:.0%}" if step.fraction else ""
            what = "images explained by" if step.stage == "explain" else "epochs of"
            both.update(trainings, completed=step.run, total=step.runs)
            text = f"{what} {step.method}{share}, seed {step.seed}"
            both.update(now, description=text, completed=step.done, total=step.total)

        yield progress
