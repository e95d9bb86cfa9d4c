"""An append-only record of finished work: one JSON line each, with a checksum, on the disk before the next piece begins."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Hashable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from backlit._errors import FileError
from backlit._files import write_whole
from backlit._json import JsonObject
from backlit._warn import warn

_ADDED = ("plan", "line", "sha256")


@dataclass(frozen=True)
class Entry:
    """A line whose checksum holds: its row, the identity of the plan that it belongs to, and its number from 1."""

    row: JsonObject
    plan: str
    line: int


class Journal:
    """Finished work in a file. A line that is cut, changed or copied is set aside and reported; the others count.

    A line is its row, then ``plan`` (the identity of what was asked), ``line`` (its number) and ``sha256`` (of all before).

    Attributes:
        rows: The rows of this plan, in the order in which they were written.
        entries: The sound lines, of other plans, too, if ``any_plan``.

    Args:
        path: The file; it is made with the first row.
        plan: The identity of what was asked.
        any_plan: Keep the lines of other plans, instead of setting them aside.
        keeps: Keep rows and entries in memory; else they are on the disk alone, where :func:`rows_in` reads them one by one.
        argument: What errors call the file.

    Raises:
        FileError: If it cannot be read or written.
    """

    def __init__(
        self, path: Path, plan: str, *, any_plan: bool = False, keeps: bool = True, argument: str = "out"
    ) -> None:
        self.path, self.plan, self._keeps, self._argument = path, plan, keeps, argument
        self.entries: list[Entry] = []
        bad: list[tuple[int, bytes]] = []
        known: set[int] = set()
        line = b"\n"
        for number, line in enumerate(_lines(path, argument), 1):
            entry = _entry(line)
            if entry is None or entry.line in known or not (any_plan or entry.plan == plan):
                bad.append((number, line))
            else:
                known.add(entry.line)
                if keeps:
                    self.entries.append(entry)
        self.entries.sort(key=lambda entry: entry.line)  # the order of writing, whatever became of the file's
        self.rows = [entry.row for entry in self.entries if entry.plan == plan]
        self._next = max(known, default=0) + 1
        if bad or not line.endswith(b"\n"):
            if keeps:
                self._set_aside(bad)
            else:  # mended by one that reads it whole
                Journal(path, plan, any_plan=any_plan, argument=argument)

    def append(self, row: JsonObject) -> None:
        """Add a line and wait until it is on the disk.

        Raises:
            FileError: If it cannot be written.
        """
        assert not set(_ADDED) & set(row), f"a row has none of {_ADDED}: they are added to it"
        entry = Entry(row, self.plan, self._next)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        try:
            with os.fdopen(os.open(self.path, flags, 0o666), "ab") as file:
                before = file.tell()
                try:
                    file.write(_text(entry))
                    file.flush()
                    os.fsync(file.fileno())
                except OSError:  # half a line would spoil the next one
                    with suppress(OSError):
                        os.truncate(self.path, before)
                    raise
        except OSError as error:
            raise FileError(
                f"{self._argument}: cannot write {str(self.path)!r} ({error.strerror or error}). What was written before is kept."
            ) from error
        self._next += 1
        if self._keeps:
            self.entries.append(entry)
            self.rows.append(row)

    def _set_aside(self, bad: list[tuple[int, bytes]]) -> None:
        if bad:
            there = free_name(self.path)
            write_whole(there, b"".join(line for _, line in bad), self._argument)
            numbers = ", ".join(str(number) for number, _ in bad[:10]) + ", ..." * (len(bad) > 10)
            warn(
                f"{self.path}: line{'s' * (len(bad) > 1)} {numbers} cannot be used: cut short, changed since written, there "
                f"twice, or of another run. Kept in {there.name}; what they told is computed again, and the other "
                f"{len(self.entries)} lines count."
            )
        write_whole(self.path, b"".join(map(_text, self.entries)), self._argument)


class Rows:
    """The rows of a journal by key, the last one of a key counts; without a journal they are kept in memory alone.

    Args:
        journal: Where rows come from and go to; None keeps nothing on the disk.
        key: Tells what a row is of.
    """

    def __init__(self, journal: Journal | None, key: Callable[[JsonObject], Hashable]) -> None:
        self._journal, self._key = journal, key
        self._rows: dict[Hashable, JsonObject] = {}
        for row in journal.rows if journal else ():
            self._rows[key(row)] = row

    def add(self, row: JsonObject) -> None:
        """Add a row; it is on the disk when this returns.

        Raises:
            FileError: If it cannot be written.
        """
        if self._journal is not None:
            self._journal.append(row)
        self._rows[self._key(row)] = row

    def __getitem__(self, key: Hashable) -> JsonObject:
        return self._rows[key]

    def __contains__(self, key: Hashable) -> bool:
        return key in self._rows

    def __iter__(self) -> Iterator[JsonObject]:
        return iter(self._rows.values())


def sound_entries(path: Path) -> Iterator[Entry | None]:
    """Read the lines of a journal without changing it; None stands for a line that is damaged."""
    return map(_entry, _lines(path, "out"))


def rows_in(path: Path, plan: str) -> Iterator[JsonObject]:
    """Read the sound rows of a plan one by one, without changing the file: another process may be adding to it.

    Raises:
        FileError: If the file cannot be read.
    """
    return (entry.row for entry in sound_entries(path) if entry is not None and entry.plan == plan)


def free_name(path: Path) -> Path:
    """Return a name for what is set aside: NAME.bad, or NAME.bad-2 and so on if that is taken."""
    number, found = 1, path.with_name(f"{path.name}.bad")
    while os.path.lexists(found):
        number += 1
        found = path.with_name(f"{path.name}.bad-{number}")
    return found


def _lines(path: Path, argument: str) -> Iterator[bytes]:
    """Read lines one by one, each with its end; none if there is no file."""
    try:
        if not path.exists():
            return
        if not path.is_file():
            raise OSError(0, "it is no file, but a folder or a pipe")
        with path.open("rb") as file:
            yield from file
    except OSError as error:
        raise FileError(
            f"{argument}: cannot read {str(path)!r} ({error.strerror or error}). Move it away, or choose another folder."
        ) from error


def _text(entry: Entry) -> bytes:
    body = {**entry.row, "plan": entry.plan, "line": entry.line}  # NaN stays NaN, which Python reads back
    return f"{json.dumps({**body, 'sha256': _digest(body)})}\n".encode()


def _entry(line: bytes) -> Entry | None:
    try:
        body = json.loads(line)
        plan, number, digest = (body[name] for name in _ADDED)
        sound = type(number) is int and isinstance(plan, str)
        del body["sha256"]
        if not sound or digest != _digest(body):
            return None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return Entry({k: v for k, v in body.items() if k not in _ADDED}, plan, number)


def _digest(body: JsonObject) -> str:
    return hashlib.sha256(json.dumps(body).encode()).hexdigest()
