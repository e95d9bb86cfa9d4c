"""MNIST's idx files and CIFAR-10's binary and parquet files, read without a pickle."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from jaxtyping import Int64, UInt8

from backlit._errors import FileError, InputError

_UNSIGNED_BYTES = 8  # idx's code for them
_LARGEST = 1 << 32  # bytes: a damaged header must not make us ask for all memory
_SIDE = 32
_RECORD = 1 + 3 * _SIDE * _SIDE  # a label, then the red, green and blue planes


def _refuse(path: Path, reason: str, error: Exception | None = None) -> NoReturn:
    raise FileError(f"root: {str(path)!r} {reason}") from error


def read_idx(path: Path, dimensions: int) -> UInt8[np.ndarray, ...]:
    """The array of unsigned bytes in an idx file, plain or gzipped (``.gz``).

    Raises:
        FileError: It cannot be read, is no idx file of ``dimensions`` dimensions, or is truncated.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            header = file.read(4 + 4 * dimensions)
            if len(header) < 4 + 4 * dimensions or tuple(header[:4]) != (0, 0, _UNSIGNED_BYTES, dimensions):
                _refuse(path, f"is no idx file of unsigned bytes in {dimensions} dimension(s). Copy it again.")
            shape = tuple(int(side) for side in np.frombuffer(header, ">u4", offset=4))
            size = math.prod(shape)
            if size > _LARGEST:
                _refuse(path, f"claims the shape {shape}; it is damaged. Copy it again.")
            data = file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        if isinstance(error, FileError):
            raise
        _refuse(path, f"cannot be read ({error}); it may be truncated. Copy it again.", error)
    if len(data) != size:
        found = f"only {len(data)}" if len(data) < size else "more"
        _refuse(path, f"must hold {size} bytes for its shape {shape}, but holds {found}; it is damaged. Copy it again.")
    return np.frombuffer(data, np.uint8).reshape(shape).copy()


def read_cifar(path: Path) -> tuple[UInt8[np.ndarray, "n 32 32 3"], Int64[np.ndarray, " n"]]:
    """The images and labels of one batch of CIFAR-10's binary version.

    Raises:
        FileError: It cannot be read or is truncated.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        _refuse(path, f"cannot be read ({error.strerror or error}).", error)
    if not data or len(data) % _RECORD:
        _refuse(path, f"must hold a whole number of records of {_RECORD} bytes, but holds {len(data)}. Copy it again.")
    records = np.frombuffer(data, np.uint8).reshape(-1, _RECORD)
    images = records[:, 1:].reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), records[:, 0].astype(np.int64)


def read_parquet(path: Path) -> tuple[list[bytes], Int64[np.ndarray, " n"]]:
    """The encoded images and the labels of a parquet file with columns image{bytes, path} and label.

    Raises:
        InputError: polars is not installed, or the file has other columns, or rows without an image or a label.
        FileError: The file cannot be read or is truncated.
    """
    try:
        import polars
    except ImportError as error:
        raise InputError(
            f"root: {str(path)!r} is parquet, which needs polars: pip install 'backlit[compare]'"
        ) from error
    try:
        table: Any = polars.read_parquet(path)
    except (OSError, polars.exceptions.PolarsError) as error:
        _refuse(path, f"cannot be read as parquet ({error}); it may be truncated. Copy it again.", error)
    images = table.schema.get("image")
    if not isinstance(images, polars.Struct) or "label" not in table.columns or not table.schema["label"].is_integer():
        raise InputError(
            f"root: {str(path)!r} must have the columns image (a struct with bytes) and label (integers), but has "
            f"{dict(table.schema)}."
        )
    if "bytes" not in [field.name for field in images.fields]:
        raise InputError(f"root: column image of {str(path)!r} must have a field bytes, but has {images.fields}.")
    encoded, labels = table["image"].struct.field("bytes"), table["label"]
    if not len(table) or encoded.null_count() or labels.null_count():
        raise InputError(
            f"root: every row of {str(path)!r} must have an image and a label, but some (or all) are missing."
        )
    return encoded.to_list(), labels.to_numpy().astype(np.int64)
