"""MNIST and CIFAR-10, and any dataset of small pictures as whole arrays, for training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor

from backlit._errors import FileError, InputError, check_type
from backlit._files import check_path, refusals
from backlit.data.binary import read_cifar, read_idx, read_parquet
from backlit.data.sample import Dataset, Sample, Subset
from backlit.models.pixels import open_image, to_planes, to_rgb

CIFAR10_CLASSES = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())
_BATCHES = {True: tuple(f"data_batch_{i}.bin" for i in range(1, 6)), False: ("test_batch.bin",)}


class _Small(Dataset):
    """Pictures that fit in memory: an array (n, h, w[, c]), or each one's encoded bytes."""

    split: str
    images: np.ndarray | list[bytes]

    def _set(self, path: Path, images: np.ndarray | list[bytes], labels: np.ndarray) -> None:
        if len(images) != len(labels) or not len(labels):
            raise FileError(f"root: {str(path)!r} must hold a label for each image, but has {len(images)} images and "
                            f"{len(labels)} labels.")  # fmt: skip
        if labels.min() < 0 or labels.max() >= len(self.class_names):
            raise FileError(
                f"root: the labels of {str(path)!r} must be from 0 to {len(self.class_names) - 1}, but reach from "
                f"{labels.min()} to {labels.max()}. It is damaged or another data set."
            )
        self.path, self.images, self.targets = path, images, labels

    def pixels(self, index: int) -> UInt8[np.ndarray, "h w *c"]:
        """The picture at ``index``."""
        image = self.images[index]
        if not isinstance(image, bytes):
            return image
        try:
            with open_image(image) as picture:
                return np.asarray(to_rgb(picture))
        except Exception as error:  # Pillow's decoders raise many types on damaged data
            raise FileError(f"root: image {index} of {str(self.path)!r} cannot be decoded ({error}).") from error

    def load(self, index: int) -> Sample:
        """The sample at ``index``."""
        return Sample(self.pixels(index), f"{self.split} {index}", int(self.targets[index]))


class MNIST(_Small):
    """MNIST from its idx files, plain or gzipped: grey pictures of 28 x 28, white on black.

    Args:
        root: The folder of the files, or the one above that torchvision takes (``root/MNIST/raw``).
        train: The 60,000 for training; else the 10,000 for testing.

    Raises:
        FileError: A file is missing, truncated, or no idx file.
    """

    class_names = tuple(str(digit) for digit in range(10))

    def __init__(self, root: str | Path, *, train: bool = False) -> None:
        _check(root, train)
        self.split = "train" if train else "test"
        stem = "train" if train else "t10k"
        images = _find(Path(root), ("", "raw", "MNIST/raw"), (f"{stem}-images-idx3-ubyte",))[0]
        labels = _find(images.parent, ("",), (f"{stem}-labels-idx1-ubyte",))[0]
        self._set(images, read_idx(images, 3), read_idx(labels, 1).astype(np.int64))


class CIFAR10(_Small):
    """CIFAR-10 from its binary version or from parquet: colour pictures of 32 x 32.

    The Python version is a pickle, which runs whatever code it holds, so it is refused. Parquet needs polars (``pip
    install 'backlit[compare]'``) and the columns image{bytes, path} and label; its pictures are decoded when asked for.

    Args:
        root: The folder of ``data_batch_1.bin`` ... ``test_batch.bin`` or of ``train.parquet`` and ``test.parquet``, the
            one above ``cifar-10-batches-bin``, or a parquet file itself (``train`` then only names the samples).
        train: The images for training; else those for testing.

    Raises:
        InputError: The Python version, polars is missing, or a parquet file with other columns.
        FileError: A file is missing or truncated, or an image cannot be decoded.
    """

    class_names = CIFAR10_CLASSES

    def __init__(self, root: str | Path, *, train: bool = False) -> None:
        _check(root, train)
        root, self.split = Path(root), "train" if train else "test"
        parquet = root if root.suffix == ".parquet" else root / f"{self.split}.parquet"
        if parquet.is_file():
            self._set(parquet, *read_parquet(parquet))
            return
        try:
            paths = _find(root, ("", "cifar-10-batches-bin"), _BATCHES[train])
        except FileError as error:
            if (root / "cifar-10-batches-py").is_dir() or (root / "batches.meta").is_file():
                raise InputError(
                    f"root: {str(root)!r} holds CIFAR-10's Python version, a pickle, which can run any code and is never "
                    "loaded. Get its binary version, or parquet."
                ) from error
            raise
        batches = [read_cifar(path) for path in paths]
        self._set(paths[0].parent, np.concatenate([b[0] for b in batches]), np.concatenate([b[1] for b in batches]))


def _check(root: object, train: object) -> None:
    check_path(root, "root")
    check_type("train", train, bool, "True or False")
    with refusals("root"):  # a name that no file can have
        Path(str(root)).exists()


def _find(root: Path, folders: Sequence[str], names: Sequence[str]) -> list[Path]:
    """The files of these names, plain or gzipped, in the first of the folders that has the first of them."""
    for folder in folders:
        found = [
            next((p for p in (root / folder / name, root / folder / f"{name}.gz") if p.is_file()), None)
            for name in names
        ]
        if found[0] is not None:
            missing = [name for name, path in zip(names, found, strict=True) if path is None]
            if missing:
                raise FileError(f"root: {str(root / folder)!r} lacks {', '.join(missing)}.")
            return [path for path in found if path is not None]
    places = ", ".join(repr(str(root / folder)) for folder in folders)
    raise FileError(f"root: no {names[0]!r} (nor .gz) in {places}. Give the folder that holds it.")


def arrays(dataset: Sequence[Sample]) -> tuple[UInt8[Tensor, "n h w *c"], Int64[Tensor, " n"]]:
    """All pictures and targets of a dataset as two tensors: uint8 (n, h, w) if grey, else (n, h, w, 3); int64 (n,).

    Raises:
        InputError: No pictures, or they differ in size, channels, or are not uint8; names the first that does.
    """
    check_type("dataset", dataset, Sequence, "a sequence of samples, such as a data set")
    if isinstance(dataset, _Small) and isinstance(dataset.images, np.ndarray):
        return torch.from_numpy(dataset.images.copy()), torch.from_numpy(dataset.targets.copy())
    if isinstance(dataset, Subset) and isinstance(dataset.samples, _Small):
        whole, chosen = dataset.samples, list(dataset.indices)
        return _stacked([(whole.pixels(i), f"{whole.split} {i}") for i in chosen]), torch.from_numpy(
            whole.targets[chosen]
        )
    samples = [dataset[i] for i in range(len(dataset))]
    for i, sample in enumerate(samples):
        check_type(f"dataset[{i}]", sample, Sample, "a Sample")
    pictures = [(np.asarray(s.image) if isinstance(s.image, Image.Image) else s.image, s.name) for s in samples]
    return _stacked(pictures), torch.tensor([s.target for s in samples], dtype=torch.int64)


def _stacked(pictures: Sequence[tuple[np.ndarray | Tensor, str]]) -> Tensor:
    if not pictures:
        raise InputError("dataset must hold at least one picture, but holds none.")
    planes = [to_planes(picture) for picture, _ in pictures]
    for plane, (_, name) in zip(planes, pictures, strict=True):
        if plane.dtype != np.uint8 or plane.shape != planes[0].shape:
            raise InputError(
                f"dataset must hold uint8 pictures of one shape (h, w, c), {planes[0].shape} as its first, but {name!r} is "
                f"{plane.dtype} of shape {plane.shape}. Use load_examples, which scales and crops them."
            )
    stacked = torch.from_numpy(np.stack(planes))
    return stacked[..., 0] if stacked.shape[-1] == 1 else stacked
