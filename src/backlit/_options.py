"""Values whose fields are their options: what methods and metrics have in common."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Self, dataclass_transform

from torch import Tensor, nn

from backlit._errors import InputError, nearest
from backlit._other_names import written_here

NO_OPTION: Mapping[str, bool] = {"option": False}
"""Metadata of a field that is no option: what a value is made for, such as the network, or what it keeps for itself."""

_ATTRIBUTES = "Attributes:\n"


@dataclass_transform(frozen_default=True, kw_only_default=True, eq_default=False, field_specifiers=(field,))
class Configured:
    """A frozen dataclass, each subclass by itself: annotated names are fields, given by keyword, and the fields are its options.

    ``dataclasses.replace`` makes another one, ``inspect.signature`` shows the options, and a value prints with those of them
    that are not the defaults. Two values are equal only if they are the same object: options may be tensors.

    A class' docstring ends with an ``Attributes`` section for its own fields; those of its bases are added to it.
    """

    title: ClassVar[str]
    Options: ClassVar[type]
    """The class itself, by the name that the class of its options had: code that reads their fields there goes on."""

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if cls.__doc__ is not None:
            cls.__doc__ = _with_attributes(cls)
        dataclass(frozen=True, eq=False, repr=False, kw_only=True)(cls)
        cls.Options = cls

    @property
    def options(self) -> Self:
        """The value itself, by the name that its options had: ``method.options.steps`` is ``method.steps``."""
        return self

    if not TYPE_CHECKING:  # a type checker sees the dataclass' own __init__ alone

        def __new__(cls, *_: Any, **given: Any) -> Any:
            known = {f.name for f in _fields(cls) if f.init}
            for key in given:
                if key not in known:
                    names = option_names(cls)
                    has = f"it has {', '.join(names)}" if names else "it has none"
                    other = written_here(key) or nearest(key, names)
                    raise InputError(f"{key!r} is no option of {cls.title}: {has}.{other}")
            return super().__new__(cls)

    def __repr__(self) -> str:
        made_for = [_shown(getattr(self, f.name)) for f in _fields(self) if f.init and not _is_option(f)]
        return f"{type(self).__name__}({', '.join([*made_for, *_own_options(self)])})"


def option_names(kind: object) -> list[str]:
    """The names of a dataclass' options, of the class or of a value."""
    return [f.name for f in _fields(kind) if _is_option(f)]


def options_of(value: Any) -> dict[str, Any]:
    """The options of a value by name."""
    return {name: getattr(value, name) for name in option_names(value)}


def default_of(kind: Any, name: str) -> Any:
    """An option's default; None where it has none, or the class no such option."""
    for f in _fields(kind):
        if f.name == name and f.default is not MISSING:
            return f.default
    return None


def option_docs(kind: type) -> dict[str, str]:
    """Return what the docstrings of a class and its bases say of each option, those of the base classes first."""
    found: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        section = inspect.cleandoc(one.__dict__.get("__doc__") or "").partition(_ATTRIBUTES)[2]
        for entry in re.split(r"^ {4}(?=\w+: )", section, flags=re.MULTILINE)[1:]:
            name, _, meaning = entry.partition(": ")
            found[name] = " ".join(meaning.partition("\n\n")[0].split())
    return found


def _with_attributes(kind: type) -> str:
    """A class' docstring, whose ``Attributes`` are those of its bases, too."""
    text = inspect.cleandoc(kind.__doc__ or "").partition(_ATTRIBUTES)[0].rstrip()
    entries = [f"    {name}: {meaning}" for name, meaning in option_docs(kind).items()]
    return "\n".join([text, "", _ATTRIBUTES.rstrip(), *entries]) if entries else text


def _fields(kind: Any) -> tuple[Field[Any], ...]:
    return fields(kind)


def _is_option(f: Field[Any]) -> bool:
    return f.init and f.metadata.get("option", True)


def own_options(value: Configured, usual: Mapping[str, object] = MappingProxyType({})) -> dict[str, Any]:
    """The options of a value that are not the defaults by name; ``usual`` holds other defaults."""
    defaults = {name: usual.get(name, default_of(value, name)) for name in option_names(value)}
    return {name: own for name, own in options_of(value).items() if not _is_same(own, defaults[name])}


def _is_same(own: object, usual: object) -> bool:
    return own is usual or (type(own) is type(usual) and not isinstance(own, Tensor) and bool(own == usual))


def _own_options(value: Configured) -> list[str]:
    return [f"{name}={_shown(own)}" for name, own in own_options(value).items()]


def _shown(value: object) -> str:
    if isinstance(value, Configured):  # as an option of another one, for the same network
        return f"{type(value).__name__}({', '.join(_own_options(value))})"
    if isinstance(value, Tensor):
        return f"Tensor{tuple(value.shape)}"
    network = getattr(value, "network", value)  # of a loaded model
    if isinstance(network, nn.Module):
        return type(network).__name__
    return value.__qualname__ if callable(value) and hasattr(value, "__qualname__") else repr(value)
