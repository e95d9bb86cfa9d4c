"""From the words of a command line to what the library takes."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from backlit._errors import BacklitError, InputError, nearest, reason
from backlit._forward import forward
from backlit.inverse import Fitted
from backlit.methods import BASELINES, METHODS, FittedMethod, Method
from backlit.methods.lookup import find_method, same_name
from backlit.metrics import Metric
from backlit.metrics.lookup import find_metric
from backlit.models import LoadedModel, Preprocess, load_model

Kind = TypeVar("Kind", type[Method], type[Metric])


@dataclass(frozen=True)
class Compute:
    """Where, in what precision and with which seed a command computes."""

    device: str
    dtype: str
    seed: int


@dataclass(frozen=True)
class Chosen:
    """A method with its options, still without a model."""

    method: type[Method]
    options: dict[str, Any]


def preprocessing(size: int | None, mean: str | None, std: str | None, crop: str | None) -> dict[str, Any]:
    """Changes to a model's preprocessing, from the options that were given."""
    given = {"size": size, "mean": _numbers("mean", mean), "std": _numbers("std", std), "crop": crop}
    return {name: value for name, value in given.items() if value is not None}


def load(
    name: str, weights: str | None, compute: Compute, changes: dict[str, Any], *, bare: bool = False
) -> LoadedModel:
    """The model of a command; ``bare`` prefers a model's own weights to random ones, but does not need any.

    Raises:
        InputError: If it cannot be had, or cannot run on images of the size that was asked for.
    """
    loaded = _load(name, weights, compute, changes, bare)
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


def _load(name: str, weights: str | None, compute: Compute, changes: dict[str, Any], bare: bool) -> LoadedModel:
    if bare:
        try:
            return load_model(name, device=compute.device, dtype=compute.dtype, **changes)
        except InputError as error:
            if "weights" not in str(error):
                raise
    return load_model(name, weights=weights, device=compute.device, dtype=compute.dtype, **changes)


def methods(names: str, options: list[str], seed: int) -> list[Chosen]:
    """The methods named, by comma, each with the options that are for it.

    Raises:
        InputError: An unknown method or option, with the nearest name.
    """
    found = _named(names, "method", lambda name: find_method(name, METHODS))
    chosen, unused = _with_options(found, options, seed)
    _refuse(unused, found)
    return [Chosen(method, own) for method, own in chosen]


def fitted_methods() -> list[type[FittedMethod]]:
    """The methods that learn from data."""
    return [m for m in METHODS if issubclass(m, FittedMethod)]


def with_fitted(chosen: list[Chosen], files: Sequence[Path]) -> list[Chosen]:
    """The methods, those that learn from data with the file that is for them.

    Raises:
        InputError: If a method has no file, or a file no method.
        FileError: If a file cannot be read.
    """
    found = {file: Fitted.load(file) for file in files}
    by_kind = {fitted.kind: fitted for fitted in found.values()}
    result = []
    for one in chosen:
        if issubclass(one.method, FittedMethod) and "fitted" not in one.options:
            if one.method.artefact not in by_kind:
                raise InputError(
                    f"method {one.method.name} learns from data first: `backlit fit --method {one.method.artefact} ... --out "
                    "FILE`, then --fitted FILE."
                )
            one = replace(one, options={**one.options, "fitted": by_kind[one.method.artefact]})
        result.append(one)
    used = {one.options["fitted"].kind for one in result if isinstance(one.options.get("fitted"), Fitted)}
    idle = [str(file) for file, fitted in found.items() if fitted.kind not in used]
    if idle:
        raise InputError(
            f"fitted: no method that was asked for uses {idle[0]!r}, which is for {found[Path(idle[0])].kind}."
        )
    return result


def with_bounds(chosen: Sequence[Chosen], preprocess: Preprocess) -> list[Chosen]:
    """The methods, those whose rules bound the pixels with what black and white are behind the preprocessing."""
    low, high = preprocess.bounds
    return [
        replace(one, options={"low": low, "high": high, **one.options})
        if {"low", "high"} <= set(option_names(one.method))
        else one
        for one in chosen
    ]


def methods_and_metrics(names: str, metrics: str, options: list[str], seed: int) -> tuple[list[Chosen], list[Metric]]:
    """The methods and metrics named, by comma, each with the options that are for it: ``insertion.steps=20``.

    Raises:
        InputError: An unknown name or option, with the nearest one.
    """
    found = _named(names, "methods", lambda name: find_method(name, METHODS + BASELINES))
    scored = _named(metrics, "metrics", find_metric)
    chosen, unused = _with_options(found, options, seed)
    measured, unused = _with_options(scored, options, seed, unused)
    _refuse(unused, [*found, *scored])
    return [Chosen(method, own) for method, own in chosen], [metric(**own) for metric, own in measured]


def _named(names: str, argument: str, find: Callable[[str], Kind]) -> list[Kind]:
    found = [find(name.strip()) for name in names.split(",") if name.strip()]
    if not found:
        kind = argument.rstrip("s")
        raise InputError(
            f"{argument} must name at least one {kind}, by comma, but is {names!r}. See `backlit {kind}s`."
        )
    return list(dict.fromkeys(found))


def _with_options(
    kinds: list[Kind], texts: list[str], seed: int, unused: list[str] | None = None
) -> tuple[list[tuple[Kind, dict[str, Any]]], list[str]]:
    """Each kind with the options that are for it, and the texts that were for none of them (and not used before)."""
    rest = dict.fromkeys(texts if unused is None else unused)
    chosen = []
    for kind in kinds:
        own: dict[str, Any] = {"seed": seed}
        known = option_names(kind)
        for text in texts:
            name, value = _pair(text)
            owner, dot, key = name.rpartition(".")
            if key in known and (not dot or same_name(owner, kind.name) or same_name(owner, kind.__name__)):
                own[key] = value
                rest.pop(text, None)
        kind.Options(**own)  # a value that cannot be is an error before any image is read
        chosen.append((kind, own))
    return chosen, list(rest)


def _refuse(unused: list[str], kinds: Sequence[type[Method] | type[Metric]]) -> None:
    if unused:
        known = sorted({name for kind in kinds for name in option_names(kind)})
        key = _pair(unused[0])[0].rpartition(".")[2]
        raise InputError(
            f"option {unused[0]!r} fits nothing that was asked for; there are {', '.join(known)}.{nearest(key, known)}"
        )


def option_names(kind: type[Method] | type[Metric]) -> list[str]:
    """The options that a command line can set."""
    return [f.name for f in fields(kind.Options) if f.name not in ("callback", "progress", "fitted", "rules")]


def _pair(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InputError(f"option must be KEY=VALUE, such as steps=40, but is {text!r}.")
    if name.rpartition(".")[2] == "dtype":
        dtype = getattr(torch, value, None)
        return name, dtype if isinstance(dtype, torch.dtype) else value
    if value.lower() in ("true", "false"):  # as they are written outside of Python, too
        value = value.capitalize()
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # the last two: nested too deeply
        return name, value


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
