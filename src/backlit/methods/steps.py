"""What methods of many steps have in common: a callback after each, and a line that says how far they are."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from backlit._errors import check
from backlit.inverse import FitStep
from backlit.methods.base import Method
from backlit.methods.job import Job

_BAR = 24  # letters
_PAUSE = 0.1  # seconds between two drawings of the line


class Stepped(Method):
    """A method that takes many steps for each image.

    Attributes:
        callback: Called with what the method knows after each step.
        progress: Say how far it is, and how long the rest will take, on the error stream: in a terminal or a notebook, and
            nothing where that goes to a file or a pipe.
    """

    callback: Callable[[Any], None] | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        good = self.callback is None or callable(self.callback)
        check(good, "callback", self.callback, "a function of a step, or None")
        check(isinstance(self.progress, bool), "progress", self.progress, "True or False")

    @contextmanager
    def watched(self, steps: int, job: Job) -> Iterator[Callable[[int], None]]:
        """Give what is to be called with the number of each step that is done, from 1; the line is gone at the end."""
        line = Line(f"{self.title}{_images(job)}") if self.progress else None
        try:
            yield (lambda done: None) if line is None else (lambda done: line.say(done, steps, "step"))
        finally:
            if line is not None:
                line.clear()


@contextmanager
def told_of_fit(title: str, progress: Callable[[FitStep], None] | bool) -> Iterator[Callable[[FitStep], None]]:
    """Give what a fit calls after each batch: the function that was given, or for True a line that says how far it is.

    Raises:
        InputError: If it is neither a function nor a truth value.
    """
    known = isinstance(progress, bool) or callable(progress)
    check(known, "progress", progress, "True, False, or a function of a FitStep")
    if not isinstance(progress, bool):
        yield progress
        return
    line = Line(title)
    number = 0

    def say(step: FitStep) -> None:
        nonlocal number
        if step.number != number:
            number = step.number
            line.begin(f"{title}, pass {number} of {step.passes}")
        line.say(step.samples, step.total, "sample")

    try:
        yield say if progress else lambda step: None
    finally:
        line.clear()


class Line:
    """One line of text that is written over itself, where somebody can see it."""

    def __init__(self, title: str) -> None:
        self._width = 0
        self._lock = threading.Lock()
        self.begin(title)

    def begin(self, title: str) -> None:
        """Start anew, with another title."""
        self._title, self._start, self._last = title, time.monotonic(), 0.0

    def say(self, done: int, whole: int | None, unit: str) -> None:
        """Write how many of a whole are done, and how long the rest will take; of an unknown whole, how many."""
        now = time.monotonic()
        if now - self._last < _PAUSE and done != whole:
            return
        self._last = now
        text = f"{self._title}: {done:,} {unit}s"
        if whole:
            left = (now - self._start) / done * (whole - done)
            filled = "#" * (_BAR * done // whole)
            text = f"{self._title} [{filled:.<{_BAR}}] {unit} {done:,} of {whole:,}, {_clock(left)} left"
        self._write(text)

    def clear(self) -> None:
        """Leave nothing behind."""
        if self._width:
            self._write("")

    def _write(self, text: str) -> None:
        stream = sys.stderr
        if not is_seen(stream):
            return
        with self._lock, suppress(OSError, ValueError):  # a stream that is closed, or whose reader is gone
            stream.write("\r" + text.ljust(self._width) + "\r" * (not text))
            stream.flush()
            self._width = len(text)


def is_seen(stream: Any) -> bool:
    """Tell whether a line that is written over itself shows there: in a terminal, or in a notebook."""
    if stream is None:
        return False
    if type(stream).__module__.startswith("ipykernel"):
        return True
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):  # no such reading, or closed
        return False


def _images(job: Job) -> str:
    """Which images of the batch run, where there are several."""
    return "" if job.images is None or job.images == 1 else f", from image {job.first + 1} of {job.images}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
