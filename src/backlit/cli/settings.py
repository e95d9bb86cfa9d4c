"""From the words of a command line to what the library takes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from backlit._errors import BacklitError, InputError, reason
from backlit.bench.chosen import (
    Chosen,
    fitted_methods,
    methods,
    methods_and_metrics,
    settable,
    short_schedule,
    with_attention,
    with_bounds,
    with_fitted,
)
from backlit.bench.setting import Options
from backlit.bench.source import logits_of
from backlit.cli.console import console
from backlit.models import LoadedModel, load_model

__all__ = [
    "Chosen",
    "Compute",
    "fitted_methods",
    "load",
    "logits_of",
    "methods",
    "methods_and_metrics",
    "preprocessing",
    "settable",
    "short_schedule",
    "whole_numbers",
    "with_attention",
    "with_bounds",
    "with_fitted",
]


@dataclass(frozen=True)
class Compute:
    """Where, in what precision and with which seed a command computes.

    ``device`` "auto" becomes the fastest that is there: cuda, mps (which has no float64), or cpu.
    """

    device: str
    dtype: str
    seed: int

    def __post_init__(self) -> None:
        if self.device == "auto":
            object.__setattr__(self, "device", fastest_device(self.dtype))


def fastest_device(dtype: str = "float32") -> str:
    """The name of the fastest device that is there and computes in this precision."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() and dtype != "float64" else "cpu"


def preprocessing(size: int | None, mean: str | None, std: str | None, crop: str | None) -> Options:
    """Changes to a model's preprocessing, from the options that were given."""
    given = {"size": size, "mean": _numbers("mean", mean), "std": _numbers("std", std), "crop": crop}
    return {name: value for name, value in given.items() if value is not None}


def load(
    name: str,
    weights: str | None,
    compute: Compute,
    changes: Options,
    *,
    bare: bool = False,
    download: bool = False,
) -> LoadedModel:
    """The model of a command; ``bare`` prefers a model's own weights to random ones, but does not need any.

    With ``download`` its published weights may be fetched, which is said on the standard error before.

    Raises:
        InputError: If it cannot be had, or cannot run on images of the size that was asked for.
    """
    told = console(stderr=True).print if download else False
    loaded = _load(name, weights, compute, {**changes, "download": told}, bare and not download)
    if "size" in changes:  # found here, it is said once, and not of every image
        height, width = loaded.preprocess.size
        try:
            logits_of(loaded, torch.zeros(1, loaded.preprocess.channels, height, width))
        except BacklitError:
            raise
        except Exception as error:
            raise InputError(
                f"size: {name} cannot run on images of {height} x {width} pixels: {reason(error)}. Give another size."
            ) from error
    return loaded


def _load(name: str, weights: str | None, compute: Compute, changes: Options, bare: bool) -> LoadedModel:
    if bare:
        try:
            return load_model(name, device=compute.device, dtype=compute.dtype, **changes)
        except InputError as error:
            if "weights" not in str(error):
                raise
    return load_model(name, weights=weights, device=compute.device, dtype=compute.dtype, **changes)


def _numbers(name: str, text: str | None) -> tuple[float, ...] | float | None:
    if text is None:
        return None
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{name} must be numbers by comma, such as 0.485,0.456,0.406, but is {text!r}.") from None
    return tuple(numbers) if len(numbers) > 1 else numbers[0]


def whole_numbers(name: str, text: str) -> list[int]:
    """Whole numbers by comma.

    Raises:
        InputError: If one is none.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{name} must be whole numbers by comma, such as 0,7,12, but are {text!r}.") from None
