"""Boxes from Pascal VOC's XML, which ImageNet uses as well."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from xml.etree import ElementTree

import torch
from jaxtyping import Float
from torch import Tensor

from backlit._errors import FileError, InputError
from backlit.data.sample import checked_boxes

LARGEST = 1 << 20  # bytes: a thousand objects need a tenth of it
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class Annotated:
    """One object of a picture.

    Attributes:
        name: Its class.
        box: Its box, x0, y0, x1, y1 with half-open edges in pixels of the picture.
        difficult: Whether the annotators found it hard to recognise.
    """

    name: str
    box: tuple[float, float, float, float]
    difficult: bool = False


@dataclass(frozen=True)
class Annotation:
    """The objects of one picture, and the size (height, width) of the picture that was annotated."""

    path: Path
    size: tuple[int, int] | None
    objects: tuple[Annotated, ...]

    def boxes(
        self, wanted: Callable[[Annotated], bool], size: tuple[int, int], picture: Path, *, scaled: bool
    ) -> Float[Tensor, "b 4"]:
        """The boxes of the wanted objects, (b, 4), in pixels of the picture, whose ``size`` is (height, width).

        Raises:
            InputError: The picture has another size than the annotated one and is not said to be ``scaled``, or it is and
                the annotation tells no size.
        """
        boxes = torch.tensor([o.box for o in self.objects if wanted(o)], dtype=torch.float32).reshape(-1, 4)
        if scaled and self.size is None:
            raise InputError(
                f"scaled: {str(self.path)!r} does not say of which size its picture was, so its boxes cannot be scaled to "
                f"{str(picture)!r}. Give the original pictures, with scaled=False."
            )
        if self.size is None or self.size == size:
            return boxes
        if not scaled:
            raise InputError(
                f"annotations: {str(self.path)!r} is for a picture of {self.size[1]} x {self.size[0]} pixels (width x "
                f"height), but {str(picture)!r} has {size[1]} x {size[0]}. Its boxes would lie wrong: give the original "
                "pictures, or scaled=True (--scaled) if this is a scaled copy, uncropped."
            )
        # Edges are half-open, from 0 to the picture's width and height: each axis is only stretched. What reaches over the
        # annotated picture by rounding is cut before it grows.
        height, width = self.size
        inside = torch.minimum(boxes.clamp(min=0), torch.tensor([width, height, width, height], dtype=boxes.dtype))
        down, across = size[0] / height, size[1] / width
        return inside * torch.tensor([across, down, across, down])


def read_annotation(path: Path, first: int) -> Annotation:
    """Read an annotation file.

    The file holds the first and the last pixel of each object, counted from ``first`` (1 in VOC, 0 in ImageNet). The
    half-open box of both reaches from ``min - first`` to ``max - first + 1``.

    Raises:
        FileError: Missing, truncated, no annotation, or with a document type (whose entities may expand without end).
        InputError: A box that is empty or outside of the picture; names the file.
    """
    root = _parse(path)
    size = _size(path, root)
    objects = tuple(_object(path, element, first) for element in root.iter("object"))
    if size is not None and objects:
        boxes = torch.tensor([o.box for o in objects], dtype=torch.float64)
        checked_boxes(boxes, *size, f"annotations: boxes in {str(path)!r}")
    return Annotation(path, size, objects)


def _refuse(path: Path, reason: str, error: Exception | None = None) -> NoReturn:
    raise FileError(f"annotations: {str(path)!r} {reason}") from error


def _parse(path: Path) -> ElementTree.Element:
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        _refuse(
            path, f"cannot be read ({error.strerror or error}). There must be one XML file for each picture.", error
        )
    if len(data) > LARGEST:
        _refuse(path, f"is larger than {LARGEST} bytes; an annotation never is.")
    parser = ElementTree.XMLParser(target=_Builder())
    try:
        parser.feed(data)
        return parser.close()
    except _DocumentTypeError as error:
        _refuse(
            path, "has a document type, which annotations do not need and attacks do. Remove it if you trust it.", error
        )
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        _refuse(path, f"is not whole XML ({error}); it may be truncated. Copy it again.", error)


class _DocumentTypeError(Exception):
    pass


class _Builder(ElementTree.TreeBuilder):
    """Stops at a document type, before any of its entities is declared.

    The parser itself says that there is one: a search of the bytes can be led astray by the file's encoding.
    """

    def doctype(self, *_: object) -> NoReturn:
        raise _DocumentTypeError


def _size(path: Path, root: ElementTree.Element) -> tuple[int, int] | None:
    if root.find("size") is None:
        return None
    return int(_number(path, root, "size/height")), int(_number(path, root, "size/width"))


def _object(path: Path, element: ElementTree.Element, first: int) -> Annotated:
    name = (element.findtext("name") or "").strip()
    if not name:
        _refuse(path, "has an object without a name.")
    x0, y0, x1, y1 = (_number(path, element, f"bndbox/{corner}") - first for corner in _CORNERS)
    return Annotated(name, (x0, y0, x1 + 1, y1 + 1), (element.findtext("difficult") or "0").strip() == "1")


def _number(path: Path, element: ElementTree.Element, place: str) -> float:
    text = element.findtext(place) or ""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        _refuse(path, f"must have a number at {place}, but has {text.strip()!r}.")
    return value
