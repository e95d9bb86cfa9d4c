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
            FileError: If it cannot be written, or belongs to another fit; says what differs.
        """
        if out is None:
            yield cls(None)
            return
        folder = Path(f"{out}.parts")
        make_folder(folder)
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


def _check_plan(folder: Path, plan: dict[str, Any]) -> None:
    try:
        found = json.loads((folder / _PLAN).read_text())
    except (OSError, ValueError) as error:
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
