"""Commands run in this process as the installed script does, with what they left."""

from __future__ import annotations

import io
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass

from backlit.cli import main


@dataclass
class Done:
    """What a command left: exit code and output."""

    returncode: int
    stdout: str
    stderr: str


def command(*words: object) -> Done:
    """Run the command line."""
    stdout, stderr = io.StringIO(), io.StringIO()
    argv, columns = sys.argv, os.environ.get("COLUMNS")
    sys.argv, os.environ["COLUMNS"] = ["backlit", *map(str, words)], "200"
    code = 0
    try:
        with redirect_stdout(stdout), redirect_stderr(stderr):
            main()
    except SystemExit as error:
        code = int(error.code or 0)
    finally:
        sys.argv = argv
        os.environ.pop("COLUMNS")
        if columns is not None:
            os.environ["COLUMNS"] = columns
    return Done(code, stdout.getvalue(), stderr.getvalue())
