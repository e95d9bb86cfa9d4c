"""One process at a time in a folder: the lock, and who holds it."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from backlit._errors import FileError
from backlit._files import write_whole

LOCK, HOLDER = "lock", "holder.json"


class InUse(FileError):
    """Another process or thread holds the folder."""


@contextmanager
def alone(hidden: Path, shown: Path, argument: str) -> Iterator[None]:
    """Hold the lock in the folder ``hidden``, which the system lets go of when the process ends, however it ends.

    Args:
        hidden: An existing folder for the lock.
        shown: What the lock is for, as errors name it.
        argument: What errors call it.

    Raises:
        InUse: If another process or thread holds it; says which one.
        FileError: If the folder cannot be locked.
    """
    lock = FileLock(hidden / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise InUse(
            f"{argument}: {str(shown)!r} is in use by {_holder(hidden)}. Wait until it is done, or choose another name."
        ) from error
    except NotImplementedError:  # a file system without locks
        pass
    except OSError as error:
        raise FileError(
            f"{argument}: cannot lock {str(shown)!r} ({error.strerror or error}). Choose another folder."
        ) from error
    try:
        write_whole(hidden / HOLDER, json.dumps(_this_process()).encode(), argument)
        yield
    finally:
        with suppress(OSError):
            (hidden / HOLDER).unlink()
        lock.release()


def _this_process() -> dict[str, str | int]:
    words = [Path(word).name if number < 2 else word for number, word in enumerate(sys.orig_argv)]  # without folders
    command = " ".join(" ".join(words).split())
    return {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": command if len(command) <= 200 else f"{command[:197]}...",
    }


def holder_of(hidden: Path) -> str:
    """Say which process holds the lock in the folder ``hidden``; empty if none does.

    It is read, not tried: a process of another machine may have been killed since.
    """
    try:
        told = json.loads((hidden / HOLDER).read_text(encoding="utf-8"))
        if told["host"] == socket.gethostname():
            os.kill(int(told["process"]), 0)  # no signal: only whether it is there
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""
    return _holder(hidden)


def _holder(hidden: Path) -> str:
    try:
        found = json.loads((hidden / HOLDER).read_text(encoding="utf-8"))
        return f"process {found['process']} on {found['host']}, since {found['since']} ({found['command']})"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "another process"
