"""ImageNet's validation images."""

from __future__ import annotations

from pathlib import Path

from backlit._errors import FileError, InputError
from backlit._files import check_path, refusals
from backlit.data.annotations import read_annotation
from backlit.data.classes import Classes, class_index
from backlit.data.folder import ImageFolder, class_folders
from backlit.data.images import load_image
from backlit.data.sample import Sample

CLASSES = 1000


class ImageNet(ImageFolder):
    """ImageNet (ILSVRC 2012), in folders named by wnid, ``root/n01440764/ILSVRC2012_val_00000293.JPEG``.

    Pictures are taken as they are stored, without their EXIF orientation, as the annotations and torchvision do.

    Args:
        root: The folder of the wnid folders, of all classes or of some.
        annotations: The folder of the annotations, ``Annotations/CLS-LOC/val``, one XML file a picture; None for no boxes.
            A sample gets the boxes of the picture's own wnid. ImageNet counts pixels from 0.
        classes: A JSON file with {"index", "wnid", "name"} of each class; None if ``root`` holds all 1,000, whose sorted
            order is the order of the indices.
        scaled: The pictures are copies of the annotated ones in another size, uncropped: their boxes are scaled with
            them, each axis by its own factor.

    Raises:
        InputError: Some of the classes without a class index; a folder that is no class. When a sample is loaded: a box
            outside of its picture, or a picture of another size than the one annotated that is not said to be scaled.
        FileError: A folder or a file is missing or cannot be read.
    """

    def __init__(
        self,
        root: str | Path,
        annotations: str | Path | None = None,
        classes: Classes | None = None,
        *,
        scaled: bool = False,
    ) -> None:
        if scaled and annotations is None:
            raise InputError(
                "scaled says how boxes lie in the pictures, but there are no annotations. Give their folder."
            )
        check_path(root, "root")
        if annotations is not None:
            check_path(annotations, "annotations")
        self.root = Path(root)
        folders = class_folders(self.root)
        if classes is None and len(folders) != CLASSES:
            raise InputError(
                f"classes: {str(root)!r} holds {len(folders)} of ImageNet's {CLASSES} classes, so their order does not tell "
                'their indices. Give a JSON file with {"index", "wnid", "name"} of each class (--class-index on the command line).'
            )
        self.annotations, self.scaled = None if annotations is None else Path(annotations), scaled
        with refusals("annotations"):
            there = self.annotations is None or self.annotations.is_dir()
        if not there:
            raise FileError(f"annotations: {str(annotations)!r} must be a folder of XML files, but is none.")
        self._fill(folders, class_index(folders if classes is None else classes))

    def load(self, index: int) -> Sample:
        """The sample at ``index``, with the boxes of its own class."""
        path, boxes = self.paths[index], None
        image = load_image(path, upright=False)
        if self.annotations is not None:
            wnid = path.relative_to(self.root).parts[0]
            annotation = read_annotation(self.annotations / f"{path.stem}.xml", first=0)
            size = image.height, image.width
            boxes = annotation.boxes(lambda found: found.name == wnid, size, path, scaled=self.scaled)
        return Sample(image, self.name(index), int(self.targets[index]), boxes=boxes)
