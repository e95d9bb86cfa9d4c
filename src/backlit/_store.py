"""The folder of one run: what was asked, what is finished, and one way to go on after an interruption.

    COMPARISON = Kind("comparison", files=("results.jsonl", "report.html"), folders=("maps",))
    asked = {"model": "digits", "pixels": digest, ...}      # plain JSON values: all that can change a number
    with claim("out", COMPARISON, asked, force=False) as store:
        finished = store.rows("results.jsonl", lambda row: row["image"])      # of an earlier, interrupted call, too
        if (path := store.sound("maps/cat.safetensors")) is None:   # missing, or not as it was written
            path = store.write("maps/cat.safetensors", data)
        finished.add({"image": "cat", "score": 0.5})                # on the disk when this returns
    with reopen("out", COMPARISON) as store:                      # later, to add a file
        store.write("report.html", page)

What it promises:

* **One process at a time.** The second is told which process holds the folder; a lock ends with its process.
* **One run a folder.** Another plan is refused with what differs. ``force=True`` begins anew, and warns with the names of
  the files that it replaces. A folder is free if it holds nothing but what a killed start left behind.
* **Nobody else's file is replaced or removed.** Each file is listed with its sha256 before it takes its place
  (``.backlit/files.jsonl``). Only what has a listed content under a listed name is Backlit's own. What was changed since is
  set aside as NAME.bad with a warning; what was never listed is an error that names it. Links inside the folder are never
  followed.
* **Nothing damaged is used.** Files and lines of journals carry a checksum and the identity of the plan; what does not match
  is reported, set aside, and to be computed again.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Concatenate, ParamSpec, TypeVar

from backlit._claim import DIGEST, FILES, HIDDEN, Claim, Kind, foreign, has_lost, listed_files, plan_identity, read_plan
from backlit._errors import FileError
from backlit._files import PARTIAL, absolute, file_digest, make_folder, refusals, write_whole
from backlit._journal import Journal, Rows, free_name, sound_entries
from backlit._json import JsonObject
from backlit._lock import HOLDER, LOCK, alone
from backlit._version import __version__
from backlit._warn import warn

P = ParamSpec("P")
T = TypeVar("T")
_JOURNAL = "journal"  # in the place of a checksum: its lines have their own


def _refusals(method: Callable[Concatenate[Store, P], T]) -> Callable[Concatenate[Store, P], T]:
    """Let a method of :class:`Store` raise the system's refusals as FileError."""

    @functools.wraps(method)
    def wrapped(self: Store, *args: P.args, **kwargs: P.kwargs) -> T:
        with refusals(self._argument):
            return method(self, *args, **kwargs)

    return wrapped


class Store:
    """The files of one run in one folder, while this process holds its lock; :func:`claim` makes it.

    Attributes:
        path: The folder.
        plan: The identity of what was asked.

    Args:
        path: The folder.
        plan: The identity of what was asked.
        argument: What errors call the folder.
        damaged: The list of files is damaged, so that a file which is not listed may be Backlit's: it is set aside.
    """

    def __init__(self, path: Path, plan: str, argument: str = "out", *, damaged: bool = False) -> None:
        self.path, self.plan, self._argument, self._damaged = path, plan, argument, damaged
        self._open_list()

    @_refusals
    def write(self, name: str, data: bytes) -> Path:
        """Write a file whole, and list it; returns its path. ``name`` is relative and may have folders, by slash.

        Raises:
            FileError: If it cannot be written, or a file that Backlit did not write has that name.
        """
        path = self._make_way(name)
        self._add(name, hashlib.sha256(data).hexdigest())
        write_whole(path, data, self._argument)
        return path

    @_refusals
    def sound(self, name: str) -> Path | None:
        """Return the path of a file that is as this run wrote it; None if it is missing or changed.

        One that was changed is set aside as NAME.bad, with a warning.

        Raises:
            FileError: If a file that Backlit did not write has that name.
        """
        path = self._at(name)
        if not os.path.lexists(path):
            return None
        listed = self._listed.get(name)
        digest = file_digest(path) if listed and path.is_file() and not path.is_symlink() else ""
        if listed and listed[-1] == (self.plan, digest):
            return path
        if digest not in (known for _, known in listed or ()):  # else of an interrupted write: replaced by the next one
            self._set_aside(name, path)
        return None

    @_refusals
    def check(self, name: str) -> None:
        """See that a file may be written under this name, long before it is.

        Raises:
            FileError: If something that is not Backlit's has the name.
        """
        path = self._at(name)
        if os.path.lexists(path) and self._is_foreign(name, path):
            raise foreign(path, self._argument)

    @_refusals
    def remove(self, name: str) -> None:
        """Remove a file that this run wrote, if it is there."""
        if self.sound(name) is not None:
            self._at(name).unlink(missing_ok=True)

    def file(self, name: str) -> StoredFile:
        """One file of the folder, by itself."""
        return StoredFile(self, name)

    @_refusals
    def journal(self, name: str, *, keeps: bool = True) -> Journal:
        """Open a journal of this run: its sound rows, in memory if it ``keeps`` them, and a place for more.

        Raises:
            FileError: If it cannot be read, or Backlit did not write it.
        """
        path = self._at(name)
        if os.path.lexists(path) and not self._owns(name, path):
            self._set_aside(name, path)
        if name not in self._listed:
            self._add(name, _JOURNAL)
        return Journal(path, self.plan, keeps=keeps, argument=self._argument)

    def rows(self, name: str, key: Callable[[JsonObject], Hashable]) -> Rows:
        """Open a journal of this run as rows by key.

        Raises:
            FileError: If it cannot be read, or Backlit did not write it.
        """
        return Rows(self.journal(name), key)

    @_refusals
    def dissolve(self) -> None:
        """Remove all that Backlit wrote, and the folder, if nothing else is in it."""
        folders = {self._at(name).parent for name in self._listed} - {self.path}
        self.clear()
        for name in (FILES, HOLDER, LOCK):
            with suppress(OSError):  # Windows removes no open lock
                (self.path / HIDDEN / name).unlink(missing_ok=True)
        for folder in (*sorted(folders, reverse=True), self.path / HIDDEN, self.path):
            with suppress(OSError):  # something else is in it
                folder.rmdir()

    @property
    def there(self) -> list[str]:
        """The listed files that exist."""
        return [name for name in self._listed if os.path.lexists(self._at(name))]

    def _open_list(self) -> None:
        """Read the list of files: the plan and checksum of each time that one was written."""
        self._list = Journal(self.path / HIDDEN / FILES, self.plan, any_plan=True, argument=self._argument)
        self._listed: dict[str, list[tuple[str, str]]] = {}
        for entry in listed_files(self._list.entries):
            self._listed.setdefault(entry.row["file"], []).append((entry.plan, entry.row[DIGEST]))

    def _add(self, name: str, digest: str) -> None:
        self._list.append({"file": name, DIGEST: digest})
        self._listed.setdefault(name, []).append((self.plan, digest))

    def _at(self, name: str) -> Path:
        """The path of a file, none of whose folders is a link."""
        path = self.path
        for part in PurePosixPath(name).parts[:-1]:
            path = path / part
            if path.is_symlink() or (path.exists() and not path.is_dir()):
                raise foreign(path, self._argument)
        return path / PurePosixPath(name).name

    def _make_way(self, name: str) -> Path:
        path = self._at(name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(
                f"{self._argument}: cannot write to {str(path.parent)!r} ({error.strerror or error}). Choose another folder."
            ) from error
        if os.path.lexists(path) and not self._owns(name, path):
            self._set_aside(name, path)
        return path

    def _owns(self, name: str, path: Path) -> bool:
        """Whether a file is one that Backlit wrote, unchanged."""
        if path.is_symlink() or not path.is_file():
            return False
        known = [digest for _, digest in self._listed.get(name, ())]
        if not known or known[-1] == _JOURNAL:
            entries = list(sound_entries(path))
            return any(entries) or (bool(known) and not entries)
        return file_digest(path) in known

    def _set_aside(self, name: str, path: Path) -> None:
        """Keep what cannot be used under another name.

        Raises:
            FileError: If it was never Backlit's.
        """
        if self._is_foreign(name, path):
            raise foreign(path, self._argument)
        there = free_name(path)
        path.rename(there)
        warn(f"{path} is not as it was written; it is kept as {there.name}, and made again where it is needed.")

    def _is_foreign(self, name: str, path: Path) -> bool:
        """Whether what stands there was never Backlit's; where the list is damaged, a file may have been."""
        return path.is_symlink() or not path.is_file() or not (name in self._listed or self._damaged)

    def clear(self) -> None:
        """Remove what Backlit wrote, the plan last; what was changed since is set aside. Begin a new list of files."""
        for name in reversed(self.there):
            path = self._at(name)
            if self._owns(name, path) and self._whole(name, path):
                path.unlink()
            else:
                self._set_aside(name, path)
        self._list.path.unlink(missing_ok=True)
        self._open_list()

    def remove_partial(self, folders: Sequence[str]) -> None:
        """Remove the temporary files that a killed process left."""
        places = {self.path, self.path / HIDDEN, *(self.path / name for name in folders)}
        places |= {self._at(name).parent for name in self._listed}
        for path in (path for place in places if not place.is_symlink() for path in place.glob(PARTIAL)):
            if path.is_file() and not path.is_symlink():
                path.unlink()

    def _whole(self, name: str, path: Path) -> bool:
        """Whether nothing of a journal was changed; of another file its checksum has told."""
        return self._listed[name][-1][1] != _JOURNAL or all(sound_entries(path))


@dataclass(frozen=True)
class StoredFile:
    """One file of a :class:`Store`, for code that has to do with no other."""

    store: Store
    name: str

    def sound(self) -> Path | None:
        """:meth:`Store.sound` of the file."""
        return self.store.sound(self.name)

    def write(self, data: bytes) -> None:
        """:meth:`Store.write` of the file."""
        self.store.write(self.name, data)

    def remove(self) -> None:
        """:meth:`Store.remove` of the file."""
        self.store.remove(self.name)


@contextmanager
def claim(path: str | Path, kind: Kind, asked: JsonObject, *, force: bool | None = None) -> Iterator[Store]:
    """Make a folder this run's own, or go on with what an earlier call left there; hold its lock meanwhile.

    Args:
        path: The folder; made if it is not there.
        kind: What runs.
        asked: All that can change a result, as plain JSON values.
        force: Begin anew where another run is; None if the caller has no such option.

    Raises:
        FileError: If the folder cannot be written, is in use, or holds another run or other files.
    """
    text = json.dumps({"backlit": __version__, "kind": kind.noun, **asked}, indent=1) + "\n"
    wanted = Claim(absolute(path, kind.argument), kind, json.loads(text), force)
    with refusals(kind.argument):
        wanted.anew()  # refuses before anything is written
    make_folder(wanted.folder, kind.argument)
    with _locked(wanted.folder, kind.argument):
        with refusals(kind.argument):
            store = _taken(wanted, text)
        yield store


def _taken(wanted: Claim, plan: str) -> Store:
    """The folder as this run's own, with its plan in it."""
    kind, anew, damaged = wanted.kind, wanted.anew(), wanted.list_is_damaged
    store = Store(wanted.folder, wanted.plan, kind.argument, damaged=damaged)
    store.remove_partial(kind.folders)
    if anew and store.there:
        _say_replaced(wanted, store.there)
        store.clear()
    if store.sound(kind.plan_file) is None:
        store.write(kind.plan_file, plan.encode())
    return store


@contextmanager
def reopen(path: str | Path, kind: Kind) -> Iterator[Store]:
    """Hold the lock of a folder that :func:`claim` made, to add to it.

    Raises:
        FileError: If it is no such folder, or in use.
    """
    folder = absolute(path, kind.argument)
    found = read_plan(folder / kind.plan_file)
    if found is None or found.get("kind") != kind.noun or not (folder / HIDDEN).is_dir():
        raise FileError(
            f"{kind.argument}: {str(path)!r} is no folder of a {kind.noun}. Give the one that it was written to."
        )
    with _locked(folder, kind.argument):
        yield Store(folder, plan_identity(found), kind.argument)


@contextmanager
def share(path: str | Path, journal: str, argument: str = "out") -> Iterator[Store]:
    """Hold the lock of a folder that many runs add to, beside files of others; it has no plan, but a journal of this name.

    Raises:
        FileError: If it cannot be written, or is in use.
    """
    folder = absolute(path, argument)
    make_folder(folder, argument)
    with _locked(folder, argument):
        listed = list(sound_entries(folder / HIDDEN / FILES))
        lost = not any(listed) and any(sound_entries(folder / journal))
        store = Store(folder, plan_identity({"kind": "shared"}), argument, damaged=lost or has_lost(listed))
        with refusals(argument):
            store.remove_partial(())
        yield store


@contextmanager
def _locked(folder: Path, argument: str) -> Iterator[None]:
    hidden = folder / HIDDEN
    with refusals(argument):
        if hidden.is_symlink():
            raise foreign(hidden, argument)
    make_folder(hidden, argument)
    with alone(hidden, folder, argument):
        yield


def _say_replaced(wanted: Claim, names: list[str]) -> None:
    some = ", ".join(names[:6]) + ", ..." * (len(names) > 6)
    warn(
        f"{wanted.kind.argument}: {str(wanted.folder)!r} begins anew; force replaces {len(names)} files of the earlier run: {some}."
    )
