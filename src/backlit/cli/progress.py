"""How far a command is."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
from rich.text import Text

from backlit.cli.console import clean


def bars(into: Console, *columns: ProgressColumn) -> Progress:
    """Return bars with a description, the count and the time left, which leave nothing behind; or with other columns."""
    usual = (Description(), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*(columns or usual), console=into, transient=True)


class Description(ProgressColumn):
    """A task's description, and its step where there is one."""

    def render(self, task: Task) -> Text:
        """Return both as they are."""
        return Text(clean(f"{task.description}{task.fields.get('step', '')}"))
