"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from backlit._errors import FileError


def write_whole(path: str | Path, data: bytes, argument: str = "path") -> None:
    """Write a file beside its place and move it there: an interruption leaves the old file, not half of the new one.

    Raises:
        FileError: If it cannot be written; names ``argument``.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        partial.write_bytes(data)
        os.replace(partial, path)  # noqa: PTH105  atomic, also over an existing file
    except OSError as error:
        raise FileError(
            f"{argument}: cannot write {str(path)!r} ({error.strerror or error}). Check that its folder exists, is writable "
            "and has space left, or choose another."
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def make_folder(path: str | Path, argument: str = "out") -> None:
    """Make a folder and see that it can be written to.

    Raises:
        FileError: If it cannot; names ``argument``.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(
            f"{argument}: cannot write to {str(path)!r} ({error.strerror or error}). Choose another folder."
        ) from error
    probe = folder / ".backlit"
    write_whole(probe, b"", argument)
    probe.unlink()
