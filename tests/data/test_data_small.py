from __future__ import annotations

import gzip
import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from backlit._errors import FileError, InputError
from backlit.data import CIFAR10, CIFAR10_CLASSES, MNIST, Sample, arrays, select

RNG = np.random.default_rng(0)
DIGITS = RNG.integers(0, 256, (3, 28, 28), dtype=np.uint8)
PHOTOS = RNG.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
LABELS = np.array([7, 0, 9, 1, 2, 3])


def _idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(side.to_bytes(4, "big") for side in array.shape)
    return header + array.astype(np.uint8).tobytes()


def _mnist(folder: Path, images: np.ndarray = DIGITS, labels: np.ndarray = LABELS[:3], stem: str = "t10k") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{stem}-images-idx3-ubyte").write_bytes(_idx(images))
    (folder / f"{stem}-labels-idx1-ubyte").write_bytes(_idx(labels))
    return folder


def _cifar(path: Path, chosen: slice) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [bytes([label]) + image.transpose(2, 0, 1).tobytes() for image, label in zip(PHOTOS, LABELS, strict=True)]
    path.write_bytes(b"".join(rows[chosen]))


class TestMNIST:
    @pytest.mark.parametrize("below", ["", "raw", "MNIST/raw"])
    def test_layouts(self, tmp_path, below) -> None:
        _mnist(tmp_path / below)
        _mnist(tmp_path / below, DIGITS[::-1], LABELS[3:], "train")
        test, train = MNIST(tmp_path), MNIST(str(tmp_path), train=True)
        assert [(s.name, s.target) for s in test] == [("test 0", 7), ("test 1", 0), ("test 2", 9)]
        assert [(s.name, s.target) for s in train] == [("train 0", 1), ("train 1", 2), ("train 2", 3)]
        assert np.array_equal(test[1].image, DIGITS[1])
        assert np.array_equal(train[0].image, DIGITS[2])
        assert test.class_names[9] == "9"

    def test_gzipped(self, tmp_path) -> None:
        for path in list(_mnist(tmp_path).iterdir()):
            path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
        assert np.array_equal(MNIST(tmp_path)[2].image, DIGITS[2])

    def test_gzip_that_is_truncated_or_none(self, tmp_path) -> None:
        path = _mnist(tmp_path) / "t10k-images-idx3-ubyte"
        packed = gzip.compress(path.read_bytes())
        path.unlink()
        for content in (packed[:1000], b"words"):
            path.with_name(path.name + ".gz").write_bytes(content)
            with pytest.raises(FileError, match=r"idx3-ubyte\.gz' cannot be read .* may be truncated"):
                MNIST(tmp_path)

    @pytest.mark.parametrize("change", [-1, 1], ids=["short", "long"])
    def test_wrong_length(self, tmp_path, change) -> None:
        path = _mnist(tmp_path) / "t10k-images-idx3-ubyte"
        path.write_bytes((path.read_bytes() + b"x")[: change - 1 or None])
        with pytest.raises(FileError, match=r"images-idx3-ubyte' must hold 2352 bytes .* but holds (only 2351|more)"):
            MNIST(tmp_path)

    @pytest.mark.parametrize("content", [b"", bytes([0, 0, 8]), _idx(LABELS), bytes([0, 0, 9, 3]) + bytes(12)])
    def test_no_idx_file(self, tmp_path, content) -> None:
        (_mnist(tmp_path) / "t10k-images-idx3-ubyte").write_bytes(content)
        with pytest.raises(FileError, match=r"is no idx file of unsigned bytes in 3 dimension"):
            MNIST(tmp_path)

    def test_impossible_shape(self, tmp_path) -> None:
        (_mnist(tmp_path) / "t10k-images-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3]) + b"\xff" * 12)
        with pytest.raises(FileError, match="claims the shape"):
            MNIST(tmp_path)

    def test_missing(self, tmp_path) -> None:
        with pytest.raises(FileError, match=r"root: no 't10k-images-idx3-ubyte' \(nor \.gz\) in .*MNIST/raw"):
            MNIST(tmp_path)
        (_mnist(tmp_path) / "t10k-labels-idx1-ubyte").unlink()
        with pytest.raises(FileError, match=r"root: no 't10k-labels-idx1-ubyte'"):
            MNIST(tmp_path)

    def test_labels_that_do_not_fit(self, tmp_path) -> None:
        with pytest.raises(FileError, match="has 3 images and 2 labels"):
            MNIST(_mnist(tmp_path, labels=LABELS[:2]))
        with pytest.raises(FileError, match="must be from 0 to 9, but reach from 1 to 10"):
            MNIST(_mnist(tmp_path, labels=np.array([1, 2, 10])))
        with pytest.raises(FileError, match="has 0 images and 0 labels"):
            MNIST(_mnist(tmp_path, DIGITS[:0], LABELS[:0]))


class TestCIFAR10Binary:
    @pytest.mark.parametrize("below", ["", "cifar-10-batches-bin"])
    def test_batches(self, tmp_path, below) -> None:
        for i in range(5):
            _cifar(tmp_path / below / f"data_batch_{i + 1}.bin", slice(i, i + 1))
        _cifar(tmp_path / below / "test_batch.bin", slice(4, 6))
        train, test = CIFAR10(tmp_path, train=True), CIFAR10(tmp_path)
        assert train.targets.tolist() == [7, 0, 9, 1, 2]
        assert [s.target for s in test] == [2, 3]
        assert np.array_equal(train[3].image, PHOTOS[3])
        assert np.array_equal(test[1].image, PHOTOS[5])
        assert test[1].name == "test 1"
        assert train.class_names[7] == "horse"

    def test_truncated(self, tmp_path) -> None:
        _cifar(tmp_path / "test_batch.bin", slice(0, 2))
        path = tmp_path / "test_batch.bin"
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(
            FileError, match=r"test_batch\.bin' must hold a whole number of records of 3073 bytes, but holds 6145"
        ):
            CIFAR10(tmp_path)

    def test_a_batch_is_missing(self, tmp_path) -> None:
        for i in (1, 2, 4):
            _cifar(tmp_path / f"data_batch_{i}.bin", slice(0, 1))
        with pytest.raises(FileError, match=r"lacks data_batch_3\.bin, data_batch_5\.bin"):
            CIFAR10(tmp_path, train=True)

    def test_missing(self, tmp_path) -> None:
        with pytest.raises(FileError, match=r"root: no 'test_batch\.bin'"):
            CIFAR10(tmp_path)

    def test_pickles_are_never_loaded(self, tmp_path) -> None:
        folder = tmp_path / "cifar-10-batches-py"
        folder.mkdir()
        (folder / "batches.meta").write_bytes(b"")
        for root in (tmp_path, folder):
            with pytest.raises(InputError, match="a pickle, which can run any code and is never loaded"):
                CIFAR10(root)


def _encoded(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def _parquet(path: Path, **columns) -> Path:
    polars = pytest.importorskip("polars")
    rows = [{"bytes": _encoded(image), "path": None} for image in PHOTOS]
    polars.DataFrame({"image": rows, "label": LABELS} | columns).write_parquet(path)
    return path


class TestCIFAR10Parquet:
    def test_folder_and_file(self, tmp_path) -> None:
        path = _parquet(tmp_path / "test.parquet")
        for root in (tmp_path, path):
            data = CIFAR10(root)
            assert [s.target for s in data] == LABELS.tolist()
            assert all(np.array_equal(s.image, image) for s, image in zip(data, PHOTOS, strict=True))

    def test_truncated(self, tmp_path) -> None:
        path = _parquet(tmp_path / "test.parquet")
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(FileError, match=r"test\.parquet' cannot be read as parquet .*may be truncated"):
            CIFAR10(tmp_path)

    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            ({"image": [1] * 6}, "must have the columns image"),
            ({"label": ["cat"] * 6}, "must have the columns image"),
            ({"image": [{"path": "a"}] * 6}, "must have a field bytes"),
            ({"image": [{"bytes": None, "path": "a"}] + [{"bytes": b"a", "path": "a"}] * 5}, "every row"),
            ({"label": [None, 1, 2, 3, 4, 5]}, "every row"),
        ],
    )
    def test_other_columns(self, tmp_path, columns, message) -> None:
        _parquet(tmp_path / "test.parquet", **columns)
        with pytest.raises(InputError, match=message):
            CIFAR10(tmp_path)

    def test_labels_out_of_range(self, tmp_path) -> None:
        _parquet(tmp_path / "test.parquet", label=[0, 1, 2, 3, 4, 10])
        with pytest.raises(FileError, match="must be from 0 to 9, but reach from 0 to 10"):
            CIFAR10(tmp_path)

    def test_damaged_image_is_named(self, tmp_path) -> None:
        _parquet(tmp_path / "test.parquet", image=[{"bytes": b"words", "path": None}] * 6)
        with pytest.raises(FileError, match=r"image 2 of '.*test\.parquet' cannot be decoded"):
            CIFAR10(tmp_path)[2]

    def test_without_polars(self, tmp_path, monkeypatch) -> None:
        _parquet(tmp_path / "test.parquet")
        monkeypatch.setitem(sys.modules, "polars", None)
        with pytest.raises(InputError, match=r"needs polars: pip install 'backlit\[compare\]'"):
            CIFAR10(tmp_path)


class TestArrays:
    def test_grey(self, tmp_path) -> None:
        images, labels = arrays(MNIST(_mnist(tmp_path)))
        assert (images.dtype, images.shape) == (torch.uint8, (3, 28, 28))
        assert np.array_equal(images.numpy(), DIGITS)
        assert (labels.dtype, labels.tolist()) == (torch.int64, [7, 0, 9])

    def test_what_it_gives_is_the_callers(self, tmp_path) -> None:
        data = MNIST(_mnist(tmp_path))
        images, labels = arrays(data)
        images.zero_()
        labels.zero_()
        assert np.array_equal(data[0].image, DIGITS[0])
        assert data[0].target == 7

    def test_encoded_and_chosen(self, tmp_path) -> None:
        data = CIFAR10(_parquet(tmp_path / "test.parquet"))
        for part, chosen in ((data, range(6)), (select(data, [4, 1]), [4, 1]), (select(data[2:], [2, 0]), [4, 2])):
            images, labels = arrays(part)
            assert np.array_equal(images.numpy(), PHOTOS[list(chosen)])
            assert labels.tolist() == LABELS[list(chosen)].tolist()

    def test_pillow_and_tensors(self) -> None:
        image = Image.fromarray(PHOTOS[0])
        images, labels = arrays([Sample(image, "a", 3), Sample(torch.from_numpy(PHOTOS[1]).permute(2, 0, 1), "b", 4)])
        assert np.array_equal(images.numpy(), PHOTOS[:2])
        assert labels.tolist() == [3, 4]

    def test_sizes_differ(self) -> None:
        with pytest.raises(
            InputError, match=r"one shape .*, \(28, 28, 1\) as its first, but 'b' is uint8 of shape \(32"
        ):
            arrays([Sample(DIGITS[0], "a", 3), Sample(PHOTOS[0], "b", 3)])

    def test_floats(self) -> None:
        with pytest.raises(InputError, match="'a' is float32"):
            arrays([Sample(np.zeros((4, 4), np.float32), "a", 3)])

    def test_none(self) -> None:
        with pytest.raises(InputError, match="at least one picture, but holds none"):
            arrays([])


class TestShared:
    def test_mnist(self, shared) -> None:
        test, train = MNIST(shared / "data"), MNIST(shared / "data", train=True)
        assert (len(test), len(train)) == (10_000, 60_000)
        # The counts of the digits, as the data set's page gives them for zeros and ones.
        assert np.bincount(train.targets)[:2].tolist() == [5923, 6742]

    def test_cifar(self, shared) -> None:
        pytest.importorskip("polars")
        test = CIFAR10(shared / "data" / "cifar10")
        assert len(test) == 10_000
        assert np.bincount(test.targets).tolist() == [1000] * 10
        assert test[9999].image.shape == (32, 32, 3)
        assert list(CIFAR10_CLASSES) == sorted(CIFAR10_CLASSES)
