"""The frame around every command: what stops one is said in one message, and gives the exit code."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from typing import Any

import typer
from rich.text import Text
from typer.core import TyperGroup

from backlit._errors import BacklitError, FileError, InputError, reason
from backlit.cli.console import clean, console, warnings_said
from backlit.cli.stopping import Stopped, asked_to_stop, exit_code, watched


class Commands(TyperGroup):
    """The commands; what stops one is said here, before typer makes a bare exit code of it."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (BacklitError, Stopped, typer.Exit, BrokenPipeError):
            raise
        except BaseException as error:
            if asked_to_stop(error):
                console(stderr=True).print("stopped; what was written before is kept")
                raise Stopped from error
            if (said := _said(error)) is None:
                raise
            raise said from error


def _said(error: BaseException) -> BacklitError | None:
    """What the user is told of an error of his model's code or of his machine; None for one of Backlit's own."""
    if isinstance(error, MemoryError) or "not enough memory" in reason(error):
        return InputError(
            f"{reason(error)}. Give fewer or smaller images, a smaller batch or chunk, or another device."
        )
    if isinstance(error, OSError):
        return FileError(f"{error.strerror or error}{f': {error.filename!r}' if error.filename else ''}.")
    through = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    if "_call_impl" in through:  # a module's call: the network's own forward pass
        return InputError(f"model: its forward pass failed: {reason(error)}.")
    if not isinstance(error, Exception):
        return InputError(f"model: its code failed: {reason(error)}.")
    return None


def run(commands: Callable[[], Any]) -> None:
    """Run the command line; errors that Backlit foresees become one message and exit code 2, an interruption 130 or 143."""
    for stream in (sys.stdout, sys.stderr):
        if (change := getattr(stream, "reconfigure", None)) is not None:
            change(errors="backslashreplace")  # a name that the terminal cannot show is no reason to stop
    with watched(), warnings_said(console(stderr=True)):
        try:
            commands()
        except BacklitError as error:
            console(stderr=True).print(Text(clean(f"error: {error}"), "red"))
            sys.exit(2)
        except (Stopped, KeyboardInterrupt):
            sys.exit(exit_code())
