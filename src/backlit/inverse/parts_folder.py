"""What a fit that is under way has finished, in a folder beside its file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from backlit._errors import FileError
from backlit._packed import pack, unpack
from backlit._store import Kind, Store, claim
from backlit.inverse.artefact import check_free

_PARTS = "backlit.parts"
_FIT = Kind("fit", way_out="Ask for the same again to go on, choose another file, or remove that folder")


class PartsFolder:
    """Layers by name, one file each; nothing is kept where ``store`` is None.

    The folder holds what was asked for, so that another fit does not go on from it. It is removed when the fit is done.
    """

    def __init__(self, store: Store | None) -> None:
        self._store = store

    @classmethod
    @contextmanager
    def beside(cls, out: str | Path | None, kind: str, plan: Mapping[str, Any]) -> Iterator[PartsFolder]:
        """The folder ``OUT.parts``, new or of the same plan; gone when everything went well.

        Raises:
            FileError: If it cannot be written, another fit is using it, or it belongs to another fit; says what differs.
                If ``out`` is anything but a new file or an earlier fit of the same kind.
        """
        if out is None:
            yield cls(None)
            return
        if Path(out).is_dir():
            raise FileError(f"out must be a file, but {str(out)!r} is a folder. Name a file in it.")
        check_free(out, kind, "out")
        with claim(f"{out}.parts", _FIT, {"of": kind, **plan}) as store:
            yield cls(store)
            store.dissolve()

    def __bool__(self) -> bool:
        return self._store is not None

    def read(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and facts of a layer that is finished; one whose file was damaged is not, which is warned of."""
        path = None if self._store is None else self._store.sound(f"{name}.safetensors")
        if path is None:
            return None
        way_out = "Remove it; its layer is then learned again."
        tensors, texts = unpack(path, _PARTS, argument="out", what="layers of a fit", way_out=way_out)
        return tensors, json.loads(texts["facts"])

    def write(self, name: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Keep a finished layer."""
        if self._store is not None:
            self._store.write(f"{name}.safetensors", pack(_PARTS, tensors, {"facts": json.dumps(dict(facts))}))
