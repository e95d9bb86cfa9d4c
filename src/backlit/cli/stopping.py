"""Ctrl-C and SIGTERM: told apart from what the code of a model raises, and answered with what was kept."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from backlit._errors import BacklitError, reason
from backlit.cli.console import console

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_received: list[int] = []
_watching = False


class Stopped(BaseException):
    """A command that was interrupted: no error, and nothing that typer or a handler of exceptions would take."""


@contextmanager
def watched() -> Iterator[None]:
    """Turn the signals that stop a program into ``KeyboardInterrupt`` and remember that they came.

    Elsewhere than in the main thread, where Python takes no signals, nothing changes.
    """
    global _watching
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _frame: FrameType | None) -> None:
        _received.append(number)
        raise KeyboardInterrupt

    _received.clear()
    before = {number: signal.signal(number, stop) for number in _SIGNALS}
    _watching = True
    try:
        yield
    finally:
        _watching = False
        _received.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_code() -> int:
    """The exit code of a program that was stopped: 128 and the signal's number."""
    return 128 + (_received[0] if _received else int(signal.SIGINT))


def asked_to_stop(error: BaseException | None = None) -> bool:
    """Tell whether the user wants the program to stop; an interrupt without a signal came from the code of a model."""
    return bool(_received) or (isinstance(error, KeyboardInterrupt) and not _watching)


@contextmanager
def said_when_stopped(kept: Callable[[], str]) -> Iterator[None]:
    """Say what is kept where the command is interrupted.

    Raises:
        Stopped: In place of the interrupt, so that it is said once.
    """
    try:
        yield
    except BaseException as error:
        if not asked_to_stop(error):
            raise
        console(stderr=True).print(f"stopped; {kept()}")
        raise Stopped from error


@contextmanager
def one_failure(failed: Callable[[str], None]) -> Iterator[None]:
    """Run one piece of work; whatever it fails with, also `sys.exit` in the code of a model, goes to ``failed``.

    An interruption by the user, and an error that every other piece would meet as well, goes on.
    """
    try:
        yield
    except Hopeless:
        raise
    except BaseException as error:
        if asked_to_stop(error):
            raise
        failed(reason(error))
    if asked_to_stop():  # the code of a model may have swallowed the interrupt
        raise KeyboardInterrupt


class Hopeless(BacklitError):
    """An error that no other image would escape."""
