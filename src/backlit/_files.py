"""Files that are there whole or not at all.

Every file that Backlit writes goes through :func:`write_whole`. A temporary file is made beside the final one, under a name
that nobody can foresee and that did not exist; it is on the disk before it takes the final name. A link is never followed:
where the final name is one, the link is replaced and its target stays as it was.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from backlit._errors import FileError, check_type

PARTIAL = ".backlit-*.part"
"""The names of temporary files; one that is left there belongs to a process that was killed."""


def path_text(path: str | Path) -> str:
    """Return a path as text that every file and stream can hold: bytes that are no UTF-8 become escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def check_path(path: object, argument: str) -> None:
    """Refuse what is no path of a file or folder.

    Raises:
        InputError: With the type that it is of; names ``argument``.
    """
    check_type(argument, path, (str, Path), "a path: a text or a pathlib.Path")


def write_whole(path: str | Path, data: bytes, argument: str = "path") -> None:
    """Write a file beside its place and move it there: an interruption leaves the old file, not half of the new one.

    The file gets the permissions that the process gives to new files (its umask). A link of that name is replaced, not
    followed.

    Raises:
        FileError: If it cannot be written; names ``argument``.
    """
    check_path(path, argument)
    path = Path(path)
    partial = None
    try:
        partial = _new_beside(path.parent, data)
        os.replace(partial, path)  # noqa: PTH105  atomic, also over an existing file
        sync_folder(path.parent)
    except (OSError, ValueError) as error:  # a NUL byte in the name
        why = getattr(error, "strerror", None) or error
        raise FileError(
            f"{argument}: cannot write {str(path)!r} ({why}). Check that its folder exists, is writable "
            "and has space left, or choose another."
        ) from error
    finally:
        if partial is not None:
            with suppress(OSError):
                partial.unlink(missing_ok=True)


@contextmanager
def refusals(argument: str) -> Iterator[None]:
    """Turn what the system refuses (no permission, no space, a disk that only reads) into an error that says what to do.

    Raises:
        FileError: With the file and the reason; names ``argument``.
    """
    try:
        yield
    except FileError:
        raise
    except OSError as error:
        raise FileError(
            f"{argument}: cannot use {str(error.filename)!r} ({error.strerror or error}). Check that you may read and write it and "
            "its folder, or choose another folder."
        ) from error


def absolute(path: str | Path, argument: str = "out") -> Path:
    """Return a path that stays the same when the process goes to another folder.

    Raises:
        FileError: If no file can have that name; names ``argument``.
    """
    check_path(path, argument)
    found = Path(path).absolute()
    try:
        os.lstat(found)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise FileError(
            f"{argument}: {str(path)!r} cannot be a name of a file ({why}). Choose another name."
        ) from error
    return found


def make_folder(path: str | Path, argument: str = "out") -> None:
    """Make a folder and see that it can be written to.

    Raises:
        FileError: If it cannot; names ``argument``.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _new_beside(folder, b"").unlink()
    except OSError as error:
        raise FileError(
            f"{argument}: cannot write to {str(path)!r} ({error.strerror or error}). Choose another folder."
        ) from error


def file_digest(path: Path) -> str:
    """Return the sha256 (64 hexadecimal digits) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, where the system can say so."""
    with suppress(OSError):  # Windows opens no folder
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def _new_beside(folder: Path, data: bytes) -> Path:
    """Write a temporary file that did not exist, and wait until it is on the disk."""
    path = folder / PARTIAL.replace("*", secrets.token_hex(16))
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    number = os.open(path, flags, 0o666)  # less what the umask takes away, as for any new file
    try:
        with os.fdopen(number, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path
