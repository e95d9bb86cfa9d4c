"""A warning where photographs are explained as digits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from backlit._errors import BacklitError
from backlit.cli.console import console, shown
from backlit.data.images import check_file, load_image
from backlit.data.listing import list_images
from backlit.models.pixels import open_image

_DIGIT = 128  # pixels a side at most of a picture that may show a digit
_COLOUR = 24  # levels of 256 between a grey pixel's channels, which JPEG moves a little


def warn_of_photographs(paths: list[Path]) -> None:
    """Say where a photograph is explained as a digit because no model was named, and what to add.

    Raises:
        FileError: If there is no image.
    """
    found = [(image, why) for image in list_images(paths)[0] if (why := _no_digit(image))]
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
