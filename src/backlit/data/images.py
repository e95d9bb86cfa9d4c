"""Images from files and folders; every file that cannot be read gets its own reason."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from backlit._claim import written_in
from backlit._errors import FileError, InputError, check, is_several
from backlit._files import check_path
from backlit.models.files import check_file, load_image
from backlit.models.pixels import to_image

if TYPE_CHECKING:
    from backlit.models.preprocess import Preprocess

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")

__all__ = ["EXTENSIONS", "check_file", "find_images", "load_batch", "load_image", "to_image"]


def find_images(
    paths: str | Path | Iterable[str | Path], *, unreadable: Callable[[str, FileError], None] | None = None
) -> list[Path]:
    """Return the image files among ``paths``: files as they are, folders searched through all levels, in sorted order.

    A file named outright is taken whatever its name; in folders the extension decides, and hidden entries, links to
    folders and pictures that Backlit wrote there are passed over. A file found twice is returned once.

    Args:
        paths: Files and folders.
        unreadable: Called with each folder inside of another that cannot be read, and why; None makes it an error.

    Raises:
        InputError: no paths.
        FileError: a path does not exist, or a folder cannot be read or holds no image.

    """
    listed = _paths(paths)
    if not listed:
        raise InputError("images: need at least one file or folder, found none.")
    found: list[Path] = []
    for path in listed:
        try:
            folder, there = path.is_dir(), path.exists()
        except OSError as error:  # a name that is too long; a folder that may not be entered
            raise FileError(f"image: {str(path)!r} cannot be opened: {error.strerror or error}.") from error
        if not there:
            raise FileError(f"image: {str(path)!r} does not exist.")
        found += _in_folder(path, unreadable) if folder else [path]
    return list(dict.fromkeys(found))


def _paths(given: str | Path | Iterable[str | Path]) -> list[Path]:
    """Return one path or several as a list.

    Raises:
        InputError: If it is neither.
    """
    if isinstance(given, str | Path):
        return [Path(given)]
    check(is_several(given), "images", given, "paths of files or folders")
    listed = list(given)
    for path in listed:
        check_path(path, "images")
    return [Path(path) for path in listed]


def _in_folder(folder: Path, unreadable: Callable[[str, FileError], None] | None) -> list[Path]:
    def stop(error: OSError) -> None:
        refused = FileError(f"image: folder {error.filename!r} cannot be read: {error.strerror}.")
        if unreadable is None or Path(error.filename) == folder:
            raise refused from error
        unreadable(error.filename, refused)

    found = []
    for root, folders, files in os.walk(folder, onerror=stop):
        folders[:] = [name for name in folders if not name.startswith(".")]
        made = written_in(Path(root))
        wanted = (n for n in files if n.lower().endswith(EXTENSIONS) and not n.startswith(".") and n not in made)
        found += [Path(root, name) for name in wanted]
    if not found:
        raise FileError(
            f"image: folder {str(folder)!r} holds no image; looked, in all levels, for {', '.join(EXTENSIONS)}."
        )
    return sorted(found)


def load_batch(paths: Iterable[str | Path], preprocess: Preprocess) -> Float[Tensor, "n c h w"]:
    """Return the files' pictures as one normalised batch, float32.

    Raises:
        InputError: no paths.
        FileError: a file cannot be read (see `load_image`) or its picture not be used; the first one is named.

    """
    loaded = [_prepared(path, preprocess) for path in _paths(paths)]
    if not loaded:
        raise InputError("images: need at least one, found none.")
    return torch.stack(loaded)


def _prepared(path: str | Path, preprocess: Preprocess) -> Float[Tensor, "c h w"]:
    picture = load_image(path)
    try:
        return preprocess(picture)
    except InputError as error:
        raise FileError(f"image: {str(path)!r} cannot be used: {str(error).removeprefix('image: ')}") from error
