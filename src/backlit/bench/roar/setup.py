"""What ROAR is asked to do, checked before anything is computed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from backlit._errors import InputError, check, check_word, is_several
from backlit._json import JsonObject
from backlit._plain import kind_of, plain
from backlit.attribution import Reduce
from backlit.bench.roar.ranks import LARGEST, Explain
from backlit.bench.roar.result import ORIGINAL, RANDOM
from backlit.bench.roar.training import MakeNetwork, TrainingOptions, new_network
from backlit.methods.base import NO_NETWORK, Method
from backlit.metrics.examples import Examples

Methods = Mapping[str, Callable[[nn.Module], Explain]]
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class RoarOptions:
    """Options of ROAR.

    Attributes:
        fractions: Shares of the pixels to remove, each above 0 and below 1.
        seeds: One retraining each; the network of the first one is explained, and it orders equal pixels.
        replacement: What takes a removed pixel's place: "mean", the training set's mean of each channel (Hooker et al.'s
            uninformative value), or "zero", 0 as the network sees it.
        ranking: "largest first" removes what the map calls most important; "smallest first" keeps it, and removes the rest.
        target: The class that the maps explain, of training and test images alike: "predicted" by the network that is
            explained, as in the LPR paper, or "label", the true one. The places of removed pixels can tell the class that
            was explained; with "label" this gives the answer of the test away, see ``mask_only``.
        mask_only: Also retrain on the bare masks, removed pixels 0 and kept ones 1, as "METHOD mask": what their places
            alone tell of the class.
        reduce: How the channels of a map become one number a pixel.
        training: How every network is trained.
    """

    fractions: tuple[float, ...] = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    seeds: tuple[int, ...] = (0, 1, 2)
    replacement: Literal["mean", "zero"] = "mean"
    ranking: Literal["largest first", "smallest first"] = "largest first"
    target: Literal["predicted", "label"] = "predicted"
    mask_only: bool = False
    reduce: Reduce = "sum"
    training: TrainingOptions = field(default_factory=TrainingOptions)

    def __post_init__(self) -> None:
        for name in ("fractions", "seeds"):
            given = getattr(self, name)
            check(is_several(given), name, given, "a tuple of numbers")
            object.__setattr__(self, name, tuple(given))
        inside = all(isinstance(f, float) and 0 < f < 1 for f in self.fractions)
        check(inside and _distinct(self.fractions), "fractions", self.fractions, "different shares above 0 and below 1")
        whole = all(type(s) is int and s >= 0 for s in self.seeds)
        check(whole and _distinct(self.seeds), "seeds", self.seeds, "different integers from 0 on, one a retraining")
        check_word("replacement", self.replacement, ("mean", "zero"))
        check_word("ranking", self.ranking, ("largest first", "smallest first"))
        check_word("target", self.target, ("predicted", "label"))
        check_word("reduce", self.reduce, ("sum", "abs", "max", "norm"))
        check(isinstance(self.mask_only, bool), "mask_only", self.mask_only, "True or False")
        training = isinstance(self.training, TrainingOptions)
        check(training, "training", self.training, "TrainingOptions")


@dataclass(frozen=True, eq=False)
class RoarData:
    """Training and test images as the network takes them, with their true classes, on the device to compute on."""

    train: Examples
    test: Examples

    def __post_init__(self) -> None:
        if self.train.inputs.shape[1:] != self.test.inputs.shape[1:]:
            raise InputError(
                f"test must hold images of the size of train, {tuple(self.train.inputs.shape[1:])}, but holds "
                f"{tuple(self.test.inputs.shape[1:])}."
            )
        for name, part in self.parts().items():
            if not bool(part.inputs.isfinite().all()):
                raise InputError(
                    f"{name}.inputs must be finite, but hold NaN or Inf. Check the files or the normalisation."
                )
        classes = self.train.target.unique()
        if len(classes) < 2:
            raise InputError(
                f"train.target must hold at least two classes, but all {len(self.train)} images are of class "
                f"{int(classes[0])}: any network gets them right. Shuffle the data before taking the first of it."
            )

    def parts(self) -> dict[str, Examples]:
        """Return both parts by name."""
        return {"train": self.train, "test": self.test}


@dataclass(frozen=True)
class RoarStep:
    """A step: ``done`` of ``total`` epochs of a training, or images of a method's maps; ``run`` of ``runs`` trainings."""

    stage: Literal["train", "explain"]
    method: str
    fraction: float
    seed: int
    done: int
    total: int
    run: int
    runs: int


Progress = Callable[[RoarStep], None]


def removed_pixels(fraction: float, images: Tensor) -> int:
    """Count the pixels that a fraction of an image is."""
    return round(fraction * images.shape[-2] * images.shape[-1])


def _distinct(values: tuple[Any, ...]) -> bool:
    return len(values) > 0 and len(set(values)) == len(values)


def check_methods(methods: Methods) -> None:
    """See that there is a method, and that each can be named and made.

    Raises:
        InputError: If not.
    """
    if not methods:
        raise InputError(f"methods must hold at least one method beside the {RANDOM} ranking, but is empty.")
    for name, make in methods.items():
        if name in (ORIGINAL, RANDOM):
            raise InputError(
                f"methods must not be named {name!r}: that one always runs beside. Leave it out or rename it."
            )
        if not _NAME.fullmatch(name):
            raise InputError(
                f"methods must be named by letters, digits, '_', '-' and '.', for files are named after them, but one is "
                f"{name!r}."
            )
        if not callable(make) or isinstance(make, (Method, nn.Module)):
            raise InputError(
                f"methods[{name!r}] must make an explainer of the network that is trained here, such as Saliency or "
                f"functools.partial(Saliency, chunk=8), but is {type(make).__name__}. Give the class, not an object of it."
            )


def check_labels(data: RoarData, make_network: MakeNetwork, options: RoarOptions) -> None:
    """See before any training that the labels and the fractions fit the network and the images.

    Raises:
        InputError: If not.
    """
    x = data.train.inputs[:2]
    pixels = x.shape[-2] * x.shape[-1]
    if pixels > LARGEST:
        raise InputError(
            f"train.inputs must have at most {LARGEST} pixels an image, but have {pixels}. Scale them down."
        )
    for fraction in options.fractions:
        if not 0 < removed_pixels(fraction, x) < pixels:
            raise InputError(f"fractions must remove some of the {pixels} pixels, but {fraction} removes none or all.")
    with torch.no_grad():
        classes = new_network(make_network, options.seeds[0], x.device).eval()(x).shape[1]
    for name, part in data.parts().items():
        low, high = int(part.target.min()), int(part.target.max())
        if low < 0 or high >= classes:
            raise InputError(
                f"{name}.target must be from 0 to {classes - 1}, for the network has {classes} outputs, but reaches from {low} "
                f"to {high}."
            )


def asked_of(name: str, make: Callable[[nn.Module], Explain]) -> JsonObject:
    """Tell what a method is, to know it again: its class or function, and all that changes its maps.

    Raises:
        InputError: If it, or an option, is a lambda or a local function, which no other process would know again.
    """
    argument = f"methods[{name!r}]"
    inner = make.func if isinstance(make, partial) else make
    if isinstance(inner, type) and issubclass(inner, Method) and not getattr(make, "args", ()):
        blank = inner(NO_NETWORK, **(make.keywords if isinstance(make, partial) else {}))
        return kind_of(inner, blank, f"{argument}.")
    return {"method": plain(make, argument=argument, exact=True)}
