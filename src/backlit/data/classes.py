"""From the name of a folder to the index of a class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from backlit._errors import FileError, InputError, nearest
from backlit._json import parse

Classes: TypeAlias = "str | Path | Mapping[str, int] | Sequence[Any]"

_FORMS = 'a list of {"index", "wnid", "name"}, a list of folder names, or {folder name: index}'
_LISTED = 5
_MOST = 1 << 20
"""Classes: every index up to the largest gets a name, so a larger one would fill the memory."""
_LARGEST = 1 << 26  # bytes of a file


@dataclass(frozen=True)
class ClassIndex:
    """What class a folder holds.

    Attributes:
        indices: The index of every folder name.
        names: The classes' names, by index.
    """

    indices: Mapping[str, int]
    names: tuple[str, ...]

    def check(self, folders: Iterable[str]) -> None:
        """See that every folder is a class.

        Raises:
            InputError: Some are not: lists them, each with the nearest class.
        """
        unknown = [folder for folder in folders if folder not in self.indices]
        if unknown:
            listed = " ".join(f"{name!r}.{nearest(name, self.indices)}" for name in unknown[:_LISTED])
            more = f" And {len(unknown) - _LISTED} more." if len(unknown) > _LISTED else ""
            raise InputError(
                f"classes: {len(unknown)} folder(s) are not among the {len(self.names)} classes: {listed}{more} Rename "
                "them, take them away, or give the class index that they belong to."
            )


def class_index(classes: Classes) -> ClassIndex:
    """Read a class index: a JSON file, or what such a file holds.

    A list of {"index", "wnid", "name"} is found by wnid or by name; a name that several classes share finds none.

    Raises:
        InputError: Another form, an index twice, or one below 0.
        FileError: The file is missing or is no JSON.
    """
    source = f"{str(classes)!r}" if isinstance(classes, str | Path) else "classes"
    content = _read(Path(classes)) if isinstance(classes, str | Path) else classes
    if isinstance(content, Mapping) and content and all(_is_index(value) for value in content.values()):
        return _by_index(source, {int(index): str(folder) for folder, index in content.items()}, len(content))
    listed = content if isinstance(content, Sequence) and not isinstance(content, str) else ()
    if listed and all(isinstance(entry, str) for entry in listed):
        return _by_index(source, dict(enumerate(listed)), len(set(listed)))
    if listed and all(_is_entry(entry) for entry in listed):
        return _of_entries(source, listed)
    raise InputError(f"classes: {source} must hold {_FORMS}, indices from 0, but it does not.")


def _read(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST + 1)
        if len(text) > _LARGEST:
            raise FileError(f"classes: {str(path)!r} is larger than {_LARGEST} bytes; a class index never is.")
        return parse(text)
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"classes: cannot read {str(path)!r} ({error.strerror or error}). It must be JSON.") from error
    except ValueError as error:
        raise FileError(f"classes: {str(path)!r} is not JSON ({error}). It must be {_FORMS}.") from error


def _is_index(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_entry(entry: object) -> bool:
    return isinstance(entry, Mapping) and _is_index(entry.get("index")) and isinstance(entry.get("wnid"), str)


def _by_index(source: str, folders: Mapping[int, str], entries: int) -> ClassIndex:
    if len(folders) != entries:
        raise InputError(f"classes: {source} must give every class its own index and folder, but some share one.")
    indices = {folder: index for index, folder in folders.items()}
    return ClassIndex(indices, _names(source, folders))


def _of_entries(source: str, entries: Sequence[Any]) -> ClassIndex:
    names = {int(entry["index"]): str(entry.get("name", entry["wnid"])) for entry in entries}
    indices = {entry["wnid"]: int(entry["index"]) for entry in entries}
    if len(names) != len(entries) or len(indices) != len(entries):
        raise InputError(f"classes: {source} must give every class its own index and wnid, but some share one.")
    shared = Counter(names.values())
    by_name = {name: index for index, name in names.items() if shared[name] == 1}
    return ClassIndex({**by_name, **indices}, _names(source, names))


def _names(source: str, names: Mapping[int, str]) -> tuple[str, ...]:
    if (highest := max(names)) >= _MOST:
        raise InputError(
            f"classes: {source} must have indices below {_MOST}, but {names[highest]!r} has {highest}. Number the classes in "
            "the order of the model's outputs, from 0."
        )
    return tuple(names.get(index, f"class {index}") for index in range(highest + 1))
