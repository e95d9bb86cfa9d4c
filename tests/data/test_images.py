from __future__ import annotations

import os
import stat
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from backlit._errors import FileError, InputError
from backlit.data import find_images, load_batch, load_image, to_image
from backlit.models import Preprocess

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)


def _pixels(path: Path) -> np.ndarray:
    image = load_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("kind", ["png", "bmp", "tiff", "ppm"])
def test_colour_comes_back(tmp_path, kind: str) -> None:
    Image.fromarray(COLOUR).save(tmp_path / f"a.{kind}")
    assert np.array_equal(_pixels(tmp_path / f"a.{kind}"), COLOUR)
    assert np.array_equal(np.asarray(load_image(str(tmp_path / f"a.{kind}"))), COLOUR)


UPRIGHT = {
    1: COLOUR,
    2: COLOUR[:, ::-1],
    3: COLOUR[::-1, ::-1],
    4: COLOUR[::-1],
    5: COLOUR.transpose(1, 0, 2),
    6: COLOUR.transpose(1, 0, 2)[:, ::-1],
    7: COLOUR.transpose(1, 0, 2)[::-1, ::-1],
    8: COLOUR.transpose(1, 0, 2)[::-1],
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation(tmp_path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(COLOUR).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(_pixels(tmp_path / "a.png"), UPRIGHT[orientation])


def test_orientation_of_a_palette_picture(tmp_path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("P", (4, 2)).save(tmp_path / "a.png", exif=exif)
    assert load_image(tmp_path / "a.png").size == (2, 4)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("exif", [b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\xff", b"Exif\0\0neither order"])
def test_damaged_exif_is_ignored(tmp_path, exif: bytes) -> None:
    Image.fromarray(COLOUR).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(_pixels(tmp_path / "a.png"), COLOUR)


def test_grey(tmp_path) -> None:
    Image.fromarray(COLOUR[:, :, 0]).save(tmp_path / "a.png")
    assert np.array_equal(_pixels(tmp_path / "a.png"), np.repeat(COLOUR[:, :, :1], 3, 2))


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_16_bit_grey_is_scaled(tmp_path, kind: str) -> None:
    values = np.array([[0, 257, 32768, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{kind}")
    assert _pixels(tmp_path / f"a.{kind}")[0, :, 1].tolist() == [0, 1, 128, 255]


def test_big_endian_tiff(tmp_path) -> None:
    image = Image.frombytes("I;16B", (2, 1), np.array([257, 65535], ">u2").tobytes())
    image.save(tmp_path / "a.tif")
    assert _pixels(tmp_path / "a.tif")[0, :, 0].tolist() == [1, 255]


def test_32_bit_grey_is_refused(tmp_path) -> None:
    Image.fromarray(np.array([[0, 1 << 20]], np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(FileError, match=r"a\.tif' cannot be used: .*integers must fit 16 bits"):
        load_image(tmp_path / "a.tif")


def test_alpha_on_white(tmp_path) -> None:
    rgba = np.array([[[10, 20, 30, 0], [10, 20, 30, 255]]], np.uint8)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    assert _pixels(tmp_path / "a.png").tolist() == [[[255, 255, 255], [10, 20, 30]]]


@pytest.mark.parametrize("kind", ["png", "gif"])
def test_palette_with_transparency(tmp_path, kind: str) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    image.save(tmp_path / f"a.{kind}", transparency=0)
    assert _pixels(tmp_path / f"a.{kind}").tolist() == [[[255, 255, 255], [40, 50, 60]]]


def test_cmyk(tmp_path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    red = _pixels(tmp_path / "a.jpg")[4, 4]
    assert red[0] > 240
    assert red[1:].max() < 20


def test_first_frame_of_an_animation(tmp_path) -> None:
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert _pixels(tmp_path / "a.gif")[0, 0].tolist() == [255, 0, 0]


class TestUnreadable:
    def test_missing(self, tmp_path) -> None:
        with pytest.raises(FileError, match=r"image: '.*no\.png' does not exist"):
            load_image(tmp_path / "no.png")

    def test_folder(self, tmp_path) -> None:
        with pytest.raises(FileError, match="is a folder, not a file"):
            load_image(tmp_path)

    def test_empty(self, tmp_path) -> None:
        (tmp_path / "a.png").touch()
        with pytest.raises(FileError, match=r"a\.png' is empty \(0 bytes\)"):
            load_image(tmp_path / "a.png")

    def test_not_an_image(self, tmp_path) -> None:
        (tmp_path / "a.jpg").write_text("words, not pixels")
        with pytest.raises(FileError, match=r"a\.jpg' is not an image that Pillow can read; convert it"):
            load_image(tmp_path / "a.jpg")

    @pytest.mark.parametrize("kind", ["png", "jpg", "webp", "tiff", "bmp"])
    def test_truncated(self, tmp_path, kind: str) -> None:
        path = tmp_path / f"a.{kind}"
        Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        # A format that keeps its directory at the end (TIFF) or is decoded at once (WebP) is not even recognised.
        with pytest.raises(FileError, match=r"may be truncated or damaged|is not an image that Pillow can read"):
            load_image(path)

    @pytest.mark.parametrize("kind", ["png", "jpg", "bmp"])
    def test_truncation_is_named(self, tmp_path, kind: str) -> None:
        path = tmp_path / f"a.{kind}"
        Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:-300])
        with pytest.raises(
            FileError, match=r"cannot be decoded \(.*\); it may be truncated or damaged\. Copy it again"
        ):
            load_image(path)

    @pytest.mark.parametrize("side", [11_000, 60_000], ids=["warned of", "refused"])
    @pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
    def test_decompression_bomb(self, tmp_path, side: int) -> None:
        def chunk(name: bytes, content: bytes) -> bytes:
            return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

        header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
        content = (
            b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
        )
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(FileError, match=r"a\.png' is too large to be opened safely"):
            load_image(tmp_path / "a.png")

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
    def test_pipe(self, tmp_path) -> None:
        os.mkfifo(tmp_path / "a.png")
        with pytest.raises(FileError, match=r"a\.png' is not a regular file"):
            load_image(tmp_path / "a.png")

    def test_forbidden(self, tmp_path) -> None:
        (tmp_path / "a.png").write_bytes(b"x")
        (tmp_path / "a.png").chmod(stat.S_IWUSR)
        if os.access(tmp_path / "a.png", os.R_OK):
            pytest.skip("this user may read everything")
        with pytest.raises(FileError, match=r"a\.png' cannot be opened"):
            load_image(tmp_path / "a.png")

    def test_impossible_name(self) -> None:
        with pytest.raises(FileError, match=r"cannot be opened|does not exist"):
            load_image("a\0.png")


class TestFind:
    @pytest.fixture(name="folder")
    def _folder(self, tmp_path) -> Path:
        for name in ["b.png", "a.JPG", "deep/er/c.webp", "deep/d.tif", "notes.txt", ".hidden.png", ".git/e.png"]:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        return tmp_path

    def test_folder_is_searched_in_order(self, folder) -> None:
        expected = ["a.JPG", "b.png", "deep/d.tif", "deep/er/c.webp"]
        assert find_images([folder]) == [folder / name for name in expected]
        assert find_images(folder) == find_images(str(folder)) == find_images([folder])

    def test_files_keep_their_place_and_count_once(self, folder) -> None:
        found = find_images([folder / "notes.txt", folder / "deep", folder / "deep" / "d.tif", folder / "b.png"])
        assert found == [folder / name for name in ("notes.txt", "deep/d.tif", "deep/er/c.webp", "b.png")]

    def test_folder_without_images(self, tmp_path) -> None:
        (tmp_path / "a.txt").touch()
        with pytest.raises(FileError, match=r"holds no image; looked, in all levels, for \.jpg, \.jpeg, \.png"):
            find_images(tmp_path)

    def test_missing(self, tmp_path) -> None:
        with pytest.raises(FileError, match=r"image: '.*no' does not exist"):
            find_images([tmp_path / "no"])

    def test_nothing(self) -> None:
        with pytest.raises(InputError, match="images: need at least one file or folder, found none"):
            find_images([])

    def test_forbidden_folder(self, folder) -> None:
        (folder / "deep").chmod(0)
        if os.access(folder / "deep", os.R_OK):
            pytest.skip("this user may read everything")
        try:
            with pytest.raises(FileError, match="deep' cannot be read"):
                find_images(folder)
        finally:
            (folder / "deep").chmod(stat.S_IRWXU)

    def test_links_to_folders_do_not_loop(self, folder) -> None:
        (folder / "deep" / "loop").symlink_to(folder, target_is_directory=True)
        assert len(find_images(folder)) == 4


def test_batch(tmp_path) -> None:
    preprocess = Preprocess(size=(5, 5))
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path, array in zip(paths, (COLOUR, COLOUR[::-1]), strict=True):
        Image.fromarray(array).save(path)
    batch = load_batch(paths, preprocess)
    assert batch.shape == (2, 3, 5, 5)
    assert torch.equal(batch[1], preprocess(to_image(np.ascontiguousarray(COLOUR[::-1]))))


def test_batch_names_the_file_that_fails(tmp_path) -> None:
    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    with pytest.raises(FileError, match=r"no\.png' does not exist"):
        load_batch([tmp_path / "a.png", tmp_path / "no.png"], Preprocess(size=(5, 5)))


def test_empty_batch() -> None:
    with pytest.raises(InputError, match="images: need at least one, found none"):
        load_batch([], Preprocess(size=(5, 5)))
