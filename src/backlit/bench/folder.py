"""Where a comparison lives: its plan, its journal and its maps, so that an interrupted one goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from backlit._errors import FileError
from backlit._files import make_folder, write_whole
from backlit.bench.journal import Journal

PLAN, RESULTS, MAPS, PROTOCOLS, REPORT = "plan.json", "results.jsonl", "maps", "protocols.json", "report.html"
TABLES = ("scores", "curves", "ranking", "differences")
_OURS = (RESULTS, f"{RESULTS}.bad", PROTOCOLS, REPORT, *(f"{table}.parquet" for table in TABLES), PLAN)


def open_folder(out: Path, plan: dict[str, Any], *, force: bool) -> Journal:
    """The journal of this plan in the folder: a new one, or the one that an interruption left.

    Raises:
        FileError: If the folder holds something else, and ``force`` does not say to begin anew.
    """
    if out.exists() and not out.is_dir():
        raise FileError(f"out: {str(out)!r} must be a folder, but is a file. Choose another name.")
    found = _plan_of(out)
    if force:
        if found is not None:
            _clear(out)
    elif found is None and out.is_dir() and any(p.name != MAPS or any(p.iterdir()) for p in out.iterdir()):
        damaged = (out / PLAN).exists()
        what = f"a damaged {PLAN}" if damaged else "something else than this comparison"
        raise FileError(
            f"out: {str(out)!r} exists and holds {what}; nothing was written. Choose another folder, or use --force "
            "(force=True) to write into it."
        )
    elif found is not None and found != plan:
        keys = [k for k in {**found, **plan} if found.get(k) != plan.get(k)]
        said = "; ".join(f"{k} were {_short(found.get(k))} and are {_short(plan.get(k))}" for k in sorted(keys))
        raise FileError(
            f"out: {str(out)!r} holds another comparison: {said}. Choose another folder, ask for the same again to go on, "
            "or use --force (force=True) to begin anew."
        )
    make_folder(out / MAPS)
    write_whole(out / PLAN, (json.dumps(plan, indent=1) + "\n").encode())
    return Journal(out / RESULTS)


def _plan_of(out: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((out / PLAN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "backlit" in found else None


def _clear(out: Path) -> None:
    """Remove the files that a comparison writes, and nothing else; the plan last, so that an interruption can be repeated."""
    try:
        for path in (*(out / MAPS).glob("*.safetensors"), *(out / name for name in _OURS)):
            path.unlink(missing_ok=True)
    except OSError as error:
        raise FileError(f"out: cannot remove {error.filename!r} ({error.strerror or error}).") from error


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
