"""Options of a method as fields of a form: a kind of field, its default and its help, read from the dataclass."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

from backlit._errors import InputError, check_word
from backlit._options import default_of, option_docs, option_names
from backlit.methods.base import Method

Kind = Literal["choice", "switch", "whole", "number", "text"]
_NOT_HERE = frozenset(
    {"chunk", "seed", "callback", "progress", "fitted", "rules", "of", "dtype", "compile", "layer", "grid"}
)
"""Options that are no part of a form: for programs, or for more than one network."""


@dataclass(frozen=True)
class OptionField:
    """A field of a form.

    Attributes:
        name: The option.
        kind: How it is filled in: chosen from words, switched on, a whole number, a number, or text.
        default: What it is if nobody touches it.
        help: What it means.
        choices: The words, of a choice.
    """

    name: str
    kind: Kind
    default: object
    help: str
    choices: tuple[str, ...] = ()


def option_fields(method: type[Method]) -> list[OptionField]:
    """Return the fields of a method's form; an option that takes what no form can hold is left out."""
    types = {f.name: str(f.type) for f in fields(method)}
    meanings = option_docs(method)
    made = []
    for name in option_names(method):
        if name in _NOT_HERE:
            continue
        default = default_of(method, name)
        kind, choices = _kind(types[name], default)
        if kind is not None:
            made.append(OptionField(name, kind, default, meanings.get(name, ""), choices))
    return made


def _kind(written: str, default: object) -> tuple[Kind | None, tuple[str, ...]]:
    if isinstance(default, bool):
        return "switch", ()
    if written.startswith("Literal[") and (choices := _choices(written)):
        return "choice", choices
    if isinstance(default, int):
        return "whole", ()
    if isinstance(default, float):
        return "number", ()
    return ("text", ()) if isinstance(default, str) else (None, ())


def _choices(written: str) -> tuple[str, ...]:
    inside = written[len("Literal[") : written.index("]")]
    try:
        values = ast.literal_eval(f"({inside},)")
    except (ValueError, SyntaxError):
        return ()
    return tuple(value for value in values if isinstance(value, str))


def filled_in(method: type[Method], given: Mapping[str, object]) -> dict[str, object]:
    """Return the options of a form that are not the defaults, each of its kind.

    Raises:
        InputError: If a field holds something else.
    """
    options = {}
    for field in option_fields(method):
        value = given.get(field.name, field.default)
        if value is None or value == "":
            continue
        value = _of_kind(field, value)
        if value != field.default:
            options[field.name] = value
    return options


def _of_kind(field: OptionField, value: object) -> object:
    if field.kind == "switch":
        return bool(value)
    if field.kind == "choice":
        check_word(field.name, value, field.choices)
        return value
    if field.kind in ("whole", "number"):
        try:
            number = float(str(value))
        except ValueError as error:
            raise InputError(f"{field.name} must be a number, but is {value!r}.") from error
        return int(number) if field.kind == "whole" and number.is_integer() else number
    return str(value)
