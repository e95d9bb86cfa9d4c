"""One method or metric in one of several settings, as text: ``lpr; lpr(plugin=channel); lpr(sign_aware=false)``."""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from backlit._errors import InputError

Options = dict[str, Any]
"""Options of a method or metric by name."""
LONGEST = 60
"""Characters of a name that becomes part of file names."""
_FORM = re.compile(r"\s*([^()]+?)\s*(?:\((.*)\))?\s*", re.DOTALL)
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]")


@dataclass(frozen=True)
class NamedSetting:
    """A method or metric as it was asked for.

    Attributes:
        of: Its name, as it was written.
        options: The options that were set with it.
    """

    of: str
    options: Options = field(default_factory=dict)

    def name(self, own: str) -> str:
        """Return what files and rows call it: its own name, then each option that was set."""
        return safe_name(own, self.options)


def read_settings(text: str, argument: str) -> list[NamedSetting]:
    """Read settings separated by commas or semicolons.

    Raises:
        InputError: If one is not NAME or NAME(option=value, ...); names ``argument``.
    """
    return [_read(part, argument) for part in split(text, ",;", argument) if part.strip()]


def read_setting(text: str, argument: str) -> NamedSetting:
    """Read one setting.

    Raises:
        InputError: If it is none, or several; names ``argument``.
    """
    several = read_settings(text, argument)
    if len(several) != 1:
        raise InputError(
            f"{argument} must hold one name a text, such as 'lpr(plugin=channel)', but one is {text!r}. Write each on its own."
        )
    return several[0]


def value_of(name: str, text: str) -> object:
    """Return what an option's text stands for: a Python literal if it is one, else the text; of a dtype, torch's own."""
    text = text.strip()
    if name == "dtype":
        dtype = getattr(torch, text, None)
        return dtype if isinstance(dtype, torch.dtype) else text
    if text.lower() in ("true", "false"):  # as they are written outside of Python, too
        text = text.capitalize()
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # the last two: nested too deeply
        return text


def safe_name(own: str, options: Options) -> str:
    """Return a name for a setting that every file system takes: ``lpr.plugin-channel``.

    What cannot stand in a file's name, or is too long, is told by a digest, so that two settings have two names.
    """
    said = ".".join([own, *(f"{key}-{_said(value)}" for key, value in options.items())])
    name = _UNSAFE.sub("_", said)
    if name == said and len(name) <= LONGEST:
        return name
    digest = hashlib.sha256(json.dumps([own, {k: repr(v) for k, v in options.items()}]).encode()).hexdigest()[:8]
    return f"{name[: LONGEST - 9]}-{digest}"


def title_of(title: str, own: str, name: str) -> str:
    """Return a title that tells a setting from the others of the same method or metric."""
    return title if name == own else f"{title} ({name.removeprefix(f'{own}.')})"


def read_part(argument: str, text: str) -> tuple[int, int]:
    """Read which of how many parts is meant, such as 3/8.

    Raises:
        InputError: If it is none.
    """
    first, slash, last = text.partition("/")
    if not slash or not (first.isdecimal() and last.isdecimal()) or not 1 <= int(first) <= int(last):
        raise InputError(f"{argument} must be I/N, from 1/N to N/N, such as 3/8, but is {text!r}.")
    return int(first), int(last)


def split(text: str, separators: str, argument: str) -> Iterator[str]:
    """Split text where a separator stands outside of all brackets and quotes.

    Raises:
        InputError: If a bracket or quote is not closed.
    """
    inside, start, quote = 0, 0, ""
    for i, sign in enumerate(text):
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "'\"":
            quote = sign
        elif sign in separators and not inside:
            yield text[start:i]
            start = i + 1
        else:
            inside += (sign in "([{") - (sign in ")]}")
    if inside or quote:
        raise InputError(f"{argument}: a bracket or quote of {text!r} is not closed, or was never opened.")
    yield text[start:]


def _read(text: str, argument: str) -> NamedSetting:
    form = _FORM.fullmatch(text)
    pairs = [pair.partition("=") for pair in split(form[2] or "", ",", argument) if pair.strip()] if form else []
    if form is None or not all(equals and key.strip() for key, equals, _ in pairs):
        raise InputError(f"{argument} must be NAME or NAME(option=value, ...), such as lpr(steps=40), but is {text!r}.")
    options = {key.strip(): value_of(key.strip(), value) for key, _, value in pairs}
    if len(options) < len(pairs):
        raise InputError(f"{argument}: {text.strip()!r} sets an option twice. Set it once.")
    return NamedSetting(form[1], options)


def _said(value: object) -> str:
    if isinstance(value, (tuple, list)):
        return "-".join(map(_said, value))
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else str(value)
