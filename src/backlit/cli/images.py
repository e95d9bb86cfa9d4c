"""The images of a command: which files they are, how what is made of them is called, and which failed."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
from PIL import Image

from backlit._errors import BacklitError, FileError
from backlit.cli.console import console, shown
from backlit.data.images import check_file, find_images, load_image
from backlit.models.pixels import open_image

_LONGEST = 120  # bytes of a name, before method and class: file systems take 255 for all


@dataclass(frozen=True)
class Failure:
    """An image that could not be used, by one method or at all, and why."""

    image: str
    error: str
    method: str | None = None


def found_images(paths: list[Path]) -> tuple[list[Path], list[Failure]]:
    """The images of all paths; what has none or cannot be read is a failure of its own, unless it is the only path."""
    images: dict[Path, None] = {}
    failures: list[Failure] = []

    def unreadable(folder: str, error: FileError) -> None:
        failures.append(Failure(shown(folder), str(error)))

    for path in paths:
        try:
            images |= dict.fromkeys(find_images([path], unreadable=unreadable))
        except BacklitError as error:
            if len(paths) == 1:
                raise
            failures.append(Failure(shown(path), str(error)))
    if not images:
        raise FileError("images: none of the paths holds an image: " + " ".join(f.error for f in failures))
    return list(images), failures


_DIGIT = 128  # pixels a side at most of a picture that may show a digit
_COLOUR = 24  # levels of 256 between a grey pixel's channels, which JPEG moves a little


def warn_of_photographs(paths: list[Path]) -> None:
    """Say where a photograph is explained as a digit because no model was named, and what to add.

    Raises:
        FileError: If there is no image.
    """
    found = [(image, why) for image in found_images(paths)[0] if (why := _no_digit(image))]
    if not found:
        return
    image, why = found[0]
    more = f" ({len(found) - 1} more likewise)" if len(found) > 1 else ""
    console(stderr=True).print(
        f"warning: {shown(image)!r} is {why}, and is explained as a digit{more}: the network that Backlit brings along, digits, "
        "knows handwritten digits alone. Name one that knows what is in the picture, --model resnet50 --weights FILE.safetensors "
        "for example, or say --model digits if that is what you want."
    )


def _no_digit(image: Path) -> str | None:
    """What tells a picture from a handwritten digit; None of one that may be a digit, or cannot be read at all."""
    try:
        check_file(image)
        with open_image(image) as picture:
            width, height = picture.size
        if max(width, height) > _DIGIT:
            return f"{width} x {height} pixels large"
        pixels = np.asarray(load_image(image)).astype(int)
    except (BacklitError, OSError, ValueError, Image.DecompressionBombError):
        return None
    return "in colour" if int(np.ptp(pixels, axis=2).max()) > _COLOUR else None


def stems(images: list[Path]) -> dict[Path, str]:
    """A file name for each image, made unique where two folders hold the same one."""
    names: dict[Path, str] = {}
    taken = set()
    for image in images:
        stem = short_name(image)
        name = next(n for i in count(1) if (n := stem if i == 1 else f"{stem}-{i}") not in taken)
        taken.add(name)
        names[image] = name
    return names


def short_name(image: Path) -> str:
    """An image's name without its ending, as every file system takes it: no control characters, unique where it is cut."""
    whole = shown(image.stem)
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
