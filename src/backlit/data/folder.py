"""A folder for each class."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from backlit._errors import FileError
from backlit._files import check_path, path_text
from backlit.data.classes import Classes, ClassIndex, class_index
from backlit.data.images import find_images, load_image
from backlit.data.sample import Dataset, Sample


class ImageFolder(Dataset):
    """Pictures in a folder for each class, ``root/<class>/**/<picture>``.

    With a class index, a subset of the classes keeps its full indices (all 1,000 of ImageNet, for example). Without one
    the folders are numbered in sorted order, as torchvision does. A picture's name is its path below ``root``. Hidden
    entries, and files beside the folders, are passed over.

    Args:
        root: The folder of the class folders.
        classes: A JSON file, or what it holds: a list of {"index", "wnid", "name"}, a list of folder names, or
            {folder name: index}.

    Raises:
        InputError: A folder that is not in the class index; lists all of them and the nearest classes.
        FileError: A folder is missing or holds no picture.
    """

    def __init__(self, root: str | Path, classes: Classes | None = None) -> None:
        check_path(root, "root")
        self.root = Path(root)
        folders = class_folders(self.root)
        index = class_index(folders) if classes is None else class_index(classes)
        self._fill(folders, index)

    def _fill(self, folders: list[str], index: ClassIndex) -> None:
        index.check(folders)
        found = [(path, index.indices[folder]) for folder in folders for path in find_images(self.root / folder)]
        self.paths = tuple(path for path, _ in found)
        self.targets = np.array([target for _, target in found], np.int64)
        self.class_names = index.names

    def name(self, index: int) -> str:
        """The picture's path below ``root``."""
        return path_text(self.paths[index].relative_to(self.root).as_posix())

    def load(self, index: int) -> Sample:
        """The sample at ``index``, its picture upright."""
        return Sample(load_image(self.paths[index]), self.name(index), int(self.targets[index]))


def class_folders(root: Path) -> list[str]:
    """The names of the folders in ``root``, sorted.

    Raises:
        FileError: ``root`` is no folder, cannot be read, or holds no folder.
    """
    try:
        found = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except (OSError, ValueError) as error:  # a NUL byte in the name
        why = getattr(error, "strerror", None) or error
        raise FileError(
            f"root: cannot read the folder {str(root)!r} ({why}). It must hold a folder for each class."
        ) from error
    if not found:
        raise FileError(f"root: {str(root)!r} must hold a folder for each class, but holds no folder.")
    return found
