"""Whose a folder is: what a run must see there before it takes it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from backlit._errors import FileError
from backlit._files import PARTIAL, file_digest
from backlit._journal import Entry, sound_entries
from backlit._json import JsonObject

HIDDEN, FILES, DIGEST = ".backlit", "files.jsonl", "sha256 of the file"
_DIFFERENCES = 4  # that an error lists


@dataclass(frozen=True)
class Kind:
    """A kind of run that keeps its results in a folder.

    Attributes:
        noun: What it is: "comparison".
        files: Names that it will write: a file of somebody else's there is refused before anything runs.
        folders: Folders in it that it will write to.
        plan_file: Where the plan is written.
        argument: What errors call the folder.
        beside: Folders of other processes of the same run, each with a lock of its own, which are no strangers.
        way_out: What errors advise where the folder is taken, ``force`` apart.
    """

    noun: str
    files: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    plan_file: str = "plan.json"
    argument: str = "out"
    beside: tuple[str, ...] = ()
    way_out: str = "Choose another folder, or ask for the same again to go on"


@dataclass(frozen=True)
class Claim:
    """A run that asks for a folder.

    Attributes:
        folder: The folder.
        kind: What runs.
        asked: The plan, as it stands in its file.
        force: Whether to begin anew; None if the caller has no such option.
    """

    folder: Path
    kind: Kind
    asked: JsonObject
    force: bool | None

    @cached_property
    def plan(self) -> str:
        """The identity of what is asked."""
        return plan_identity(self.asked)

    @property
    def list_is_damaged(self) -> bool:
        """Tell whether the list of files cannot tell for certain which are Backlit's."""
        return self.list_is_lost or has_lost(sound_entries(self.folder / HIDDEN / FILES))

    @property
    def list_is_lost(self) -> bool:
        """Tell whether the plan is this run's, but no file is listed."""
        found = read_plan(self.folder / self.kind.plan_file)
        known = any(sound_entries(self.folder / HIDDEN / FILES))
        return not known and found is not None and plan_identity(found) == self.plan

    def anew(self) -> bool:
        """Tell whether what another or an earlier run left must be removed first. Nothing is written.

        Raises:
            FileError: If the folder cannot be taken: what is there, and the way out.
        """
        self._refuse_no_folder()
        entries = listed_files(sound_entries(self.folder / HIDDEN / FILES))
        self._refuse_foreign(entries)
        if self._there(entries):
            return bool(self.force)
        others = {entry.plan for entry in self._last(entries) if self._exists(entry)} - {self.plan}
        if self.force:
            return bool(entries)
        if others:
            raise self._refused(f"holds the files of another run, whose {self.kind.plan_file} is damaged or lost")
        claimed = self.list_is_lost or any(entry.plan == self.plan for entry in entries)
        if not claimed and next(self._strangers(entries), None):
            raise self._refused(f"exists and holds something else than this {self.kind.noun}; nothing was written")
        return False

    def _refuse_no_folder(self) -> None:
        """Refuse a file or link where the run needs a folder."""
        if os.path.lexists(self.folder) and not self.folder.is_dir():
            raise FileError(
                f"{self.kind.argument}: {str(self.folder)!r} must be a folder, but is a file. Choose another name."
            )
        for name in (HIDDEN, *self.kind.folders):
            if (path := self.folder / name).is_symlink() or (path.exists() and not path.is_dir()):
                raise foreign(path, self.kind.argument)

    def _refuse_foreign(self, entries: list[Entry]) -> None:
        """Refuse a file that would be replaced, and is not Backlit's."""
        listed = {entry.row.get("file") for entry in entries}
        for name in (self.kind.plan_file, *self.kind.files):
            path = self.folder / name
            if not os.path.lexists(path) or (name in listed and not path.is_symlink()):
                continue
            if path.is_symlink() or not path.is_file() or not (self.list_is_damaged or any(sound_entries(path))):
                raise foreign(path, self.kind.argument)

    def _there(self, entries: list[Entry]) -> bool:
        """Whether the folder holds this run's plan.

        Raises:
            FileError: If it holds another one, and ``force`` does not say to begin anew.
        """
        path = self.folder / self.kind.plan_file
        digests = {entry.row.get(DIGEST) for entry in entries if entry.row.get("file") == self.kind.plan_file}
        found = read_plan(path)
        if found is None or file_digest(path) not in digests:
            return False
        if plan_identity(found) != self.plan and not self.force:
            raise self._refused(f"holds another {found.get('kind', 'run')}: {differences(found, self.asked)}")
        return True

    def _last(self, entries: list[Entry]) -> list[Entry]:
        """The last entry of each file but the plan's."""
        return list({e.row["file"]: e for e in entries if e.row["file"] != self.kind.plan_file}.values())

    def _exists(self, entry: Entry) -> bool:
        return os.path.lexists(self.folder / entry.row["file"])

    def _strangers(self, entries: list[Entry]) -> Iterator[Path]:
        """Files that no Backlit wrote."""
        listed = {Path(entry.row["file"]) for entry in entries}
        for root, _, names in os.walk(self.folder):
            place = Path(root).relative_to(self.folder)
            if place.parts and place.parts[0] in (HIDDEN, *self.kind.beside):
                continue
            for path in (place / name for name in names):
                if not (path.match(PARTIAL) or path.with_name(path.name.partition(".bad")[0]) in listed):
                    yield path

    def _refused(self, what: str) -> FileError:
        way_out = self.kind.way_out
        if self.force is not None:
            way_out += ", or use --force (force=True) to begin anew"
        return FileError(f"{self.kind.argument}: {str(self.folder)!r} {what}. {way_out}.")


def has_lost(entries: Iterable[Entry | None]) -> bool:
    """Tell whether a line of a journal is damaged, or its number is missing among the others."""
    numbers = {entry.line if entry else None for entry in entries}
    return numbers != set(range(1, len(numbers) + 1))


def written_in(folder: Path) -> set[str]:
    """Return the names of the files that Backlit says it wrote in a folder; reads nothing else than its list."""
    if not (folder / HIDDEN / FILES).is_file():
        return set()
    return {entry.row["file"] for entry in listed_files(sound_entries(folder / HIDDEN / FILES))}


def listed_files(entries: Iterable[Entry | None]) -> list[Entry]:
    """Take the entries of a list of files that are sound, and name a file inside the folder."""
    return [e for e in entries if e is not None and _inside(e.row.get("file")) and isinstance(e.row.get(DIGEST), str)]


def _inside(name: Any) -> bool:
    """Whether a name stays in its folder: the list may have been planted."""
    if not isinstance(name, str) or "\\" in name or "\0" in name:
        return False
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and path.parts[0] != HIDDEN


def plan_identity(asked: JsonObject) -> str:
    """Return the sha256 of a plan: of every value, with its type (1, 1.0 and true differ), whatever the order of names."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def read_plan(path: Path) -> JsonObject | None:
    """Read a plan; None if there is none, or it is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() and not path.is_symlink() else None
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def foreign(path: Path, argument: str = "out") -> FileError:
    """The error for what stands in the way and is not Backlit's."""
    kind = "link" if path.is_symlink() else "folder" if path.is_dir() else "file"
    return FileError(
        f"{argument}: {str(path)!r} is a {kind} that Backlit did not write here, or that an earlier version wrote without a "
        "checksum; it is not replaced. Move it away, or choose another folder."
    )


def differences(found: JsonObject, asked: JsonObject) -> str:
    """Say in which values two plans differ."""
    there, wanted = ({n: json.dumps(v) for n, v in _flat(plan)} for plan in (found, asked))
    names = [n for n in {**there, **wanted} if there.get(n) != wanted.get(n)]
    said = [f"{n} was {_short(there.get(n))} and is {_short(wanted.get(n))}" for n in names[:_DIFFERENCES]]
    more = len(names) - len(said)
    return "; ".join(said) + (f"; and {more} more" if more else "")


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else key)
    else:
        yield name, value


def _short(text: str | None) -> str:
    text = "not given" if text is None else text
    return text if len(text) <= 80 else f"{text[:77]}..."
