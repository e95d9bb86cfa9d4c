"""An append-only record of finished work: one JSON line each, on the disk before the next piece begins."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

from backlit._errors import FileError
from backlit._files import write_whole


class Journal:
    """Finished work in a file; a tail that an interruption has broken is set aside, and reported.

    Args:
        path: The file, made if it is not there.

    Raises:
        FileError: If it cannot be read or written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            data = self.path.read_bytes() if self.path.exists() else b""
        except OSError as error:
            raise FileError(f"out: cannot read {str(path)!r} ({error.strerror or error}).") from error
        self.rows, sound = _sound_lines(data)
        if sound < len(data):
            self._set_aside(data, sound)

    def _set_aside(self, data: bytes, sound: int) -> None:
        tail = self.path.with_suffix(self.path.suffix + ".bad")
        write_whole(tail, data[sound:])
        write_whole(self.path, data[:sound])
        warnings.warn(
            f"{self.path}: the last {len(data) - sound} bytes are no whole line, as an interruption leaves them; they are "
            f"kept in {tail.name}, the {len(self.rows)} lines before them count.",
            stacklevel=3,
        )

    def append(self, row: dict[str, Any]) -> None:
        """Add a line and wait until it is on the disk.

        Raises:
            FileError: If it cannot be written.
        """
        line = json.dumps(row) + "\n"  # NaN stays NaN, which Python reads back
        try:
            with self.path.open("ab") as file:
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise FileError(
                f"out: cannot write {str(self.path)!r} ({error.strerror or error}). What was written before is kept."
            ) from error
        self.rows.append(row)


def _sound_lines(data: bytes) -> tuple[list[dict[str, Any]], int]:
    """The rows up to the first line that is cut or damaged, and the number of bytes they take."""
    rows: list[dict[str, Any]] = []
    start = 0
    while (end := data.find(b"\n", start)) >= 0:
        try:
            row = json.loads(data[start:end])
        except ValueError:
            break
        if not isinstance(row, dict):
            break
        rows.append(row)
        start = end + 1
    return rows, start
