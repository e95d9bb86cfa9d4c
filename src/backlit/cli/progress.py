"""How far a command is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
from rich.text import Text

from backlit.cli.console import clean


def bars(into: Console, *columns: ProgressColumn) -> Progress:
    """Return bars with a description, the count and the time left, which leave nothing behind; or with other columns."""
    usual = (Description(), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*(columns or usual), console=into, transient=True, disable=not into.is_terminal)


class Description(ProgressColumn):
    """A task's description, and its step where there is one."""

    def render(self, task: Task) -> Text:
        """Return both as they are."""
        return Text(clean(f"{task.description}{task.fields.get('step', '')}"))


class Pace:
    """How far a command is with so many pieces of work: a bar on a terminal, a line now and then in a pipe.

    Args:
        into: Where to say it.
        bar: The bar.
        pieces: How many pieces there are.
    """

    def __init__(self, into: Console, bar: Progress, pieces: int) -> None:
        self._into, self._bar, self._pieces = into, bar, pieces
        self._task = bar.add_task("", total=pieces)
        self._start = self._said = time.monotonic()
        self._done = self._index = self._round = 0
        self._rounds, self._part = 1, 0.0

    def begin(self, what: str, rounds: int = 1) -> None:
        """Say what is worked on now, and how many times it counts its steps: once for each target."""
        self._what, self._rounds = what, rounds
        self._index = self._round = 0
        self._say(0.0, "")

    def step(self, index: int, of: int) -> None:
        """Say how far that is: ``index`` steps of so many, counted from 1 again in each round."""
        if index <= self._index:
            self._round += 1
        self._index = index
        part = min((self._round + index / of) / self._rounds, 1.0)
        of_rounds = f" for target {self._round + 1} of {self._rounds}" if self._rounds > 1 else ""
        self._say(part, f", step {index} of {of}{of_rounds}")

    def end(self) -> None:
        """Count a piece as done."""
        self._done += 1
        self._say(0.0, "")

    @property
    def done(self) -> float:
        """Tell how many pieces are done, with the share of the one that is worked on."""
        return min(self._done + self._part, self._pieces)

    def _say(self, part: float, step: str) -> None:
        self._part = part
        done = self.done
        self._bar.update(self._task, completed=done, description=f"{self._what}{step}")
        now = time.monotonic()
        if self._into.is_terminal or now - self._said < PAUSE or done >= self._pieces:
            return
        self._said = now
        left = (now - self._start) / done * (self._pieces - done) if done > 0 else None
        rest = "" if left is None else f", about {duration(left)} left"
        self._into.print(clean(f"{self._done} of {self._pieces} done; {self._what}{step}{rest}"))


PAUSE = 10.0  # seconds between two lines in a pipe


@contextmanager
def paced(into: Console, pieces: int) -> Iterator[Pace]:
    """Show the progress of so many pieces of work meanwhile."""
    with bars(into) as bar:
        yield Pace(into, bar, pieces)


def duration(seconds: float) -> str:
    """A time in words: 40 s, 3 min, 2.5 h."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
