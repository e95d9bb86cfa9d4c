"""Images named by paths: which files they are, what files made of them are called, and which failed."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from backlit._errors import BacklitError, FileError
from backlit._files import path_text
from backlit.data.images import find_images

_LONGEST = 120  # bytes of a name, before method and class: file systems take 255 for all
_SAMPLES = ("chelsea.png", "coffee.png", "rocket.jpg")  # photographs under CC0 that scikit-image brings along


@dataclass(frozen=True)
class Failure:
    """An image that could not be used, by one method or at all, and why."""

    image: str
    error: str
    method: str | None = None


def list_images(paths: Sequence[Path]) -> tuple[list[Path], list[Failure]]:
    """List the images of all paths; one that has none or cannot be read is a failure, unless it is the only path.

    Raises:
        FileError: If there is no image at all.
    """
    images: dict[Path, None] = {}
    failures: list[Failure] = []

    def unreadable(folder: str, error: FileError) -> None:
        failures.append(Failure(path_text(folder), str(error)))

    for path in paths:
        try:
            images |= dict.fromkeys(find_images([path], unreadable=unreadable))
        except BacklitError as error:
            if len(paths) == 1:
                raise
            failures.append(Failure(path_text(path), str(error)))
    if not images:
        raise FileError("images: none of the paths holds an image: " + " ".join(f.error for f in failures))
    return list(images), failures


def sample_photographs() -> list[Path]:
    """List the photographs of scikit-image; none if it is not installed."""
    package = importlib.util.find_spec("skimage")
    folders = [Path(place) / "data" for place in (package.submodule_search_locations or ())] if package else []
    return [file for folder in folders for name in _SAMPLES if (file := folder / name).is_file()]


def stems(images: Iterable[Path]) -> dict[Path, str]:
    """Choose a file name for each image, made unique where two folders hold the same one."""
    names: dict[Path, str] = {}
    taken = set()
    for image in images:
        stem = short_name(image)
        name = next(n for i in count(1) if (n := stem if i == 1 else f"{stem}-{i}") not in taken)
        taken.add(name)
        names[image] = name
    return names


def short_name(image: Path) -> str:
    """Return an image's name without its ending, as every file system takes it: no control characters, unique where it is cut."""
    whole = path_text(image.stem)
    stem = "".join(c if c.isprintable() and _can_be_in_a_name(c) else "_" for c in whole)
    if len(stem.encode()) <= _LONGEST:
        return stem
    digest = hashlib.sha256(whole.encode()).hexdigest()[:12]
    return f"{stem.encode()[: _LONGEST - 13].decode(errors='ignore')}-{digest}"


def _can_be_in_a_name(character: str) -> bool:
    try:
        os.fsencode(character)
    except UnicodeEncodeError:
        return False
    return True
