"""What a fit that is under way has finished, in a folder beside its file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from backlit._errors import FileError
from backlit._files import make_folder, write_whole

try:
    import fcntl
except ImportError:  # no such thing on Windows
    fcntl = None

_PLAN = "plan.json"


class PartsFolder:
    """Layers by name, one file each; nothing is kept where ``folder`` is None.

    The folder holds what was asked for, so that another fit does not go on from it. It is removed when the fit is done.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    @classmethod
    @contextmanager
    def beside(cls, out: str | Path | None, plan: Mapping[str, Any]) -> Iterator[PartsFolder]:
        """The folder ``OUT.parts``, new or of the same plan; gone when everything went well.

        Raises:
            FileError: If it cannot be written, another fit is using it, or it belongs to another fit; says what differs.
            Or if ``out`` is a folder.
        """
        if out is None:
            yield cls(None)
            return
        if Path(out).is_dir():
            raise FileError(f"out must be a file, but {str(out)!r} is a folder. Name a file in it.")
        folder = Path(f"{out}.parts")
        make_folder(folder)
        with _alone(folder, out):
            text = json.dumps(dict(plan), sort_keys=True)
            if (folder / _PLAN).is_file():
                _check_plan(folder, json.loads(text))
            else:
                write_whole(folder / _PLAN, text.encode(), "out")
            yield cls(folder)
            shutil.rmtree(folder, ignore_errors=True)

    def __bool__(self) -> bool:
        return self._folder is not None

    def read(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and facts of a layer that is finished."""
        if self._folder is None or not (path := self._folder / f"{name}.safetensors").is_file():
            return None
        try:
            with safe_open(str(path), "pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}, json.loads(file.metadata()["facts"])  # noqa: SIM118
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise FileError(
                f"out: {str(path)!r} is damaged ({error}). Remove it; its layer is then learned again."
            ) from error

    def write(self, name: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Keep a finished layer."""
        if self._folder is not None:
            plain = {key: t.cpu().contiguous() for key, t in tensors.items()}
            write_whole(self._folder / f"{name}.safetensors", save(plain, {"facts": json.dumps(dict(facts))}), "out")


@contextmanager
def _alone(folder: Path, out: str | Path) -> Iterator[None]:
    """Hold a lock on the folder, which the system lets go of when the process ends, however it ends."""
    if fcntl is None:
        yield
        return
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FileError(
                f"out: another fit that is running now writes to {str(out)!r}. Wait for it, or choose another file."
            ) from error
        except OSError:  # a file system without locks
            pass
        yield


def _check_plan(folder: Path, plan: dict[str, Any]) -> None:
    try:
        found = dict(json.loads((folder / _PLAN).read_text()))
    except (OSError, TypeError, ValueError) as error:
        raise FileError(
            f"out: {str(folder / _PLAN)!r} is damaged ({error}). Remove the folder to begin anew."
        ) from error
    different = [key for key in {**plan, **found} if plan.get(key) != found.get(key)]
    if different:
        key = different[0]
        raise FileError(
            f"out: {str(folder)!r} holds the finished layers of another fit: its {key} is {_short(found.get(key))}, and now it is "
            f"{_short(plan.get(key))}. Go on with the same options, choose another file, or remove the folder."
        )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
