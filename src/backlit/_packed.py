"""Tensors and texts in one safetensors file with a checksum of its content: damage is an error, never other numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from backlit._errors import FileError
from backlit._files import check_path, refusals
from backlit._fingerprint import tensor_digest
from backlit._warn import warn

CHECKED = "2"
"""The format of files with a checksum; format 1 had none."""
_KNOWN = ("1", CHECKED)
_SUM = "sha256"


def pack(kind: str, tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> bytes:
    """Return the bytes of a file of a kind ("backlit.attribution"), with the sha256 of all that is in it."""
    plain = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    metadata = {kind: CHECKED, **texts}
    return save(plain, {**metadata, _SUM: _digest(plain, metadata)})


def unpack(
    path: str | Path, kind: str, *, argument: str, what: str, way_out: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors and texts that :func:`pack` wrote, to the CPU.

    Args:
        path: The file.
        kind: What it must be.
        argument: What errors call it.
        what: What it must hold, in words.
        way_out: What to do if it cannot be used, as a sentence.

    Raises:
        FileError: If the file is missing, cut short, changed since it was written, or of another kind or format.
    """
    check_path(path, argument)
    with refusals(argument):
        if not Path(path).is_file():
            raise FileError(f"{argument}: there is no file {str(path)!r}. {way_out}")
    try:
        with safe_open(str(path), "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise FileError(
            f"{argument}: {str(path)!r} is no whole safetensors file ({error}); it may be truncated. {way_out}"
        ) from error
    found = metadata.get(kind)
    if found not in _KNOWN:
        other = f"holds no {what}" if found is None else f"is of format {found}, and this Backlit reads {CHECKED}"
        raise FileError(f"{argument}: {str(path)!r} {other}. {way_out}")
    stated = metadata.pop(_SUM, None)
    if found == CHECKED and stated != _digest(tensors, metadata):
        raise FileError(
            f"{argument}: {str(path)!r} is damaged: its content was changed since it was written, for it does not match its "
            f"checksum. {way_out}"
        )
    if found != CHECKED:
        warn(
            f"{path} was written without a checksum, by an earlier version: damage to it would not be noticed. {way_out}"
        )
    return tensors, metadata


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    content = [sorted((name, tensor_digest(t)) for name, t in tensors.items()), sorted(metadata.items())]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
