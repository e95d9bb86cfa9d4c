"""What a command says: text of files and models is shown as it is, never taken for markup or for a terminal's commands."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console
from rich.text import Text

from backlit._files import path_text as shown

__all__ = ["clean", "console", "counted", "say_failed", "shown", "warnings_said"]

_KEPT = "\n\t"


def clean(text: object) -> str:
    """Return text with every character that a terminal would act upon, or cannot show, written as its escape."""
    return "".join(c if c.isprintable() or c in _KEPT else _escaped(c) for c in str(text))


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


class _Plain(Console):
    """A console that knows no markup, and cleans what it is given."""

    def render_str(self, text: str, **options: Any) -> Text:  # type: ignore[override]
        """Return the text as rich shows it, cleaned."""
        return super().render_str(clean(text), **options)

    def on_broken_pipe(self) -> None:
        """Say nothing more where nobody reads any longer (``| head``); what is computed is in files, and goes on."""
        self.quiet = True
        with suppress(OSError, ValueError):  # what Python would still flush when it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def console(*, stderr: bool = False) -> Console:
    """Return the console of a command."""
    return _Plain(markup=False, emoji=False, highlight=False, soft_wrap=True, stderr=stderr)


def counted(number: int, thing: str) -> str:
    """Return "1 map", "2 maps"."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def say_failed(into: Console, what: str, image: str, error: str) -> None:
    """Print that something was not done for an image, and why."""
    into.print(Text.assemble((what, "red"), clean(f" {image}: {error}")))


@contextmanager
def warnings_said(into: Console) -> Iterator[None]:
    """Print warnings as one line, cleaned: their text names modules and files."""

    def say(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        into.print(f"{category.__name__}: {message}")

    before, warnings.showwarning = warnings.showwarning, say  # type: ignore[assignment]
    try:
        yield
    finally:
        warnings.showwarning = before
