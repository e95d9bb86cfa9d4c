"""From the words of a command line to what the library takes."""

from __future__ import annotations

import ast
from dataclasses import dataclass, fields
from typing import Any

import torch

from backlit._errors import InputError, nearest
from backlit.methods import METHODS, Method
from backlit.methods.lookup import find_method
from backlit.models import LoadedModel, load_model


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


def preprocessing(size: int | None, mean: str | None, std: str | None) -> dict[str, Any]:
    """Changes to a model's preprocessing, from the options that were given."""
    given = {"size": size, "mean": _numbers("mean", mean), "std": _numbers("std", std)}
    return {name: value for name, value in given.items() if value is not None}


def load(
    name: str, weights: str | None, compute: Compute, changes: dict[str, Any], *, bare: bool = False
) -> LoadedModel:
    """The model of a command; ``bare`` prefers a model's own weights to random ones, but does not need any."""
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
    found = [find_method(name.strip(), METHODS) for name in names.split(",") if name.strip()]
    if not found:
        raise InputError(f"method must name at least one method, but is {names!r}. See `backlit methods`.")
    unused = dict.fromkeys(options)
    chosen = []
    for method in found:
        own: dict[str, Any] = {"seed": seed}
        known = {f.name for f in fields(method.Options)} - {"callback"}
        for text in options:
            name, value = _pair(text)
            owner, _, key = name.rpartition(".")
            if owner and find_method(owner, METHODS) is not method:
                continue
            if key in known:
                own[key] = value
                unused.pop(text, None)
        method.Options(**own)  # a value that cannot be is an error before any image is read
        chosen.append(Chosen(method, own))
    if unused:
        names_of = sorted({f.name for c in chosen for f in fields(c.method.Options)} - {"callback"})
        text = next(iter(unused))
        key = _pair(text)[0].rpartition(".")[2]
        raise InputError(
            f"option {text!r} fits no method asked for; they have {', '.join(names_of)}.{nearest(key, names_of)}"
        )
    return chosen


def _pair(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InputError(f"option must be KEY=VALUE, such as steps=40, but is {text!r}.")
    if name.rpartition(".")[2] == "dtype":
        dtype = getattr(torch, value, None)
        return name, dtype if isinstance(dtype, torch.dtype) else value
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def _numbers(name: str, text: str | None) -> tuple[float, ...] | float | None:
    if text is None:
        return None
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{name} must be numbers by comma, such as 0.485,0.456,0.406, but is {text!r}.") from None
    return tuple(numbers) if len(numbers) > 1 else numbers[0]
