"""A picture from a file; a file that cannot be read gets its own reason."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from backlit._errors import FileError, InputError
from backlit._files import check_path
from backlit.models.pixels import FORMATS, open_image, to_rgb


def load_image(path: str | Path, *, upright: bool = True) -> Image.Image:
    """Return the file's (first) picture, upright and as 8-bit RGB.

    The EXIF orientation is applied, unless ``upright`` is False, because boxes refer to the stored pixels. Grey, palette
    and CMYK become RGB; transparency is composited on white; 16-bit grey is scaled by 65535.

    Raises:
        FileError: missing, a folder, not readable, empty, truncated, not an image, or larger than Pillow's limit for
            decompression bombs.

    """
    check_path(path, "image")
    path = Path(path)
    check_file(path)
    try:
        with open_image(path) as image:
            image.load()
            return to_rgb(_upright(image) if upright else image)
    except UnidentifiedImageError as error:
        raise FileError(
            f"image: {str(path)!r} is not an image that Pillow can read; convert it to PNG or JPEG. Files are read as "
            f"{', '.join(FORMATS)}, whatever their names."
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise FileError(
            f"image: {str(path)!r} is too large to be opened safely ({error}). Scale it down, or raise "
            "PIL.Image.MAX_IMAGE_PIXELS if you trust it."
        ) from error
    except MemoryError as error:
        raise FileError(
            f"image: {str(path)!r} needs more memory to be decoded than there is. Scale it down with another program."
        ) from error
    except InputError as error:
        raise FileError(f"image: {str(path)!r} cannot be used: {error}") from error
    except Exception as error:  # Pillow's decoders raise many types on damaged files
        raise FileError(
            f"image: {str(path)!r} cannot be decoded ({error}); it may be truncated or damaged. Copy it again."
        ) from error


def check_file(path: Path) -> None:
    """See that there is a file with bytes to be read: opening something else may never end.

    Raises:
        FileError: missing, a folder, a device or a pipe, empty, or not readable.
    """
    try:
        if path.is_dir():
            raise FileError(f"image: {str(path)!r} is a folder, not a file.")
        if not path.exists():
            raise FileError(f"image: {str(path)!r} does not exist.")
        if not path.is_file():
            raise FileError(f"image: {str(path)!r} is not a regular file.")
        if path.stat().st_size == 0:
            raise FileError(f"image: {str(path)!r} is empty (0 bytes). Copy or download it again.")
        with path.open("rb"):
            pass
    except FileError:
        raise
    except (OSError, ValueError) as error:  # no permission; a NUL byte in the name
        raise FileError(f"image: {str(path)!r} cannot be opened: {error}") from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF data; every viewer shows such a picture as it is stored
        return image.copy()
