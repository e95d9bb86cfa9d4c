"""Pascal VOC 2007 and 2012: several classes a picture, a box for each object."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from backlit._errors import FileError, InputError, check_type, is_word, nearest, shown
from backlit._files import check_path, refusals
from backlit.data.annotations import Annotated, Annotation, read_annotation
from backlit.data.images import load_image
from backlit.data.sample import Dataset, Sample

VOC_CLASSES = tuple(
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep "
    "sofa train tvmonitor".split()
)


class VOC(Dataset):
    """Pascal VOC: a sample for each picture and each class in it, since the class to explain differs.

    The sample of ``000005.jpg`` and its chairs is named ``000005 chair``; its boxes are those of the chairs, its labels
    all classes in the picture. VOC writes the first and last pixel, counted from 1: xmin..xmax becomes the half-open
    ``xmin - 1`` to ``xmax``. Pictures are taken as they are stored, as they were annotated.

    Args:
        root: The folder with ``JPEGImages``, ``Annotations`` and ``ImageSets`` (``VOCdevkit/VOC2007``, for example).
        split: Name of a list in ``ImageSets/Main``: "train", "val", "trainval", "test".
        difficult: Keep objects that are marked as difficult. Without them, a class of which a picture has no other
            object is neither a sample nor a label of it.
        scaled: The pictures are copies of the annotated ones in another size, uncropped: their boxes are scaled with
            them, each axis by its own factor.

    Raises:
        InputError: An unknown split or class, or a box outside of its picture; names the file.
        FileError: A folder or a file is missing or cannot be read; an annotation is truncated.
    """

    class_names = VOC_CLASSES

    def __init__(self, root: str | Path, split: str = "val", *, difficult: bool = True, scaled: bool = False) -> None:
        check_path(root, "root")
        for name, value in (("difficult", difficult), ("scaled", scaled)):
            check_type(name, value, bool, "True or False")
        self.root, self.split, self.difficult, self.scaled = Path(root), split, difficult, scaled
        self._entries: list[tuple[Annotation, int, tuple[int, ...]]] = []
        for stem in _read_split(self.root, split):
            annotation = read_annotation(self.root / "Annotations" / f"{stem}.xml", first=1)
            present = sorted({_class(annotation, found) for found in annotation.objects if self._counts(found)})
            self._entries += [(annotation, target, tuple(present)) for target in present]
        self.targets = np.array([target for _, target, _ in self._entries], np.int64)

    def _counts(self, found: Annotated) -> bool:
        return self.difficult or not found.difficult

    def load(self, index: int) -> Sample:
        """The sample at ``index``, with the boxes of its target."""
        annotation, target, labels = self._entries[index]
        path = self.root / "JPEGImages" / f"{annotation.path.stem}.jpg"
        image = load_image(path, upright=False)
        name, size = VOC_CLASSES[target], (image.height, image.width)
        boxes = annotation.boxes(
            lambda found: found.name == name and self._counts(found), size, path, scaled=self.scaled
        )
        return Sample(image, f"{path.stem} {name}", target, labels, boxes)


def _read_split(root: Path, split: str) -> list[str]:
    folder = root / "ImageSets" / "Main"
    with refusals("root"):
        there = folder.is_dir()
    if not there:
        raise FileError(
            f"root: {str(root)!r} must hold JPEGImages, Annotations and ImageSets/Main, but ImageSets/Main is missing. "
            "Give the folder VOC2007 or VOC2012 itself."
        )
    # A class's own lists, "cat_val.txt", mark each picture with 1, 0 or -1: they are no splits.
    known = sorted(path.stem for path in folder.glob("*.txt") if "_" not in path.stem)
    if not is_word(split, known):
        hint = nearest(split, known) if isinstance(split, str) else ""
        raise InputError(f"split must be one of {', '.join(known)}, but is {shown(split)}.{hint}")
    path = folder / f"{split}.txt"
    try:
        stems = path.read_text("utf-8").split()
    except (OSError, ValueError) as error:
        raise FileError(f"split: cannot read {str(path)!r} ({error}).") from error
    if not stems:
        raise FileError(f"split: {str(path)!r} lists no picture. Copy it again.")
    return stems


def _class(annotation: Annotation, found: Annotated) -> int:
    if found.name not in VOC_CLASSES:
        raise InputError(
            f"annotations: {str(annotation.path)!r} has an object of class {found.name!r}, which is none of VOC's "
            f"{len(VOC_CLASSES)}.{nearest(found.name, VOC_CLASSES)}"
        )
    return VOC_CLASSES.index(found.name)
