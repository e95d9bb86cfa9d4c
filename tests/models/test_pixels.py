from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from backlit._errors import InputError
from backlit.models.pixels import to_image, to_planes, to_rgb

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)


def test_rgb_comes_back_unchanged() -> None:
    image = Image.fromarray(COLOUR)
    assert to_rgb(image) is image


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "1", "YCbCr"])
def test_other_modes_become_rgb(mode: str) -> None:
    assert to_rgb(Image.fromarray(COLOUR).convert(mode)).mode == "RGB"


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_composited_on_white(mode: str) -> None:
    image = Image.new("L", (3, 1), 0).convert(mode)
    image.putalpha(Image.fromarray(np.array([[0, 128, 255]], np.uint8)))
    assert np.asarray(to_rgb(image))[0, :, 0].tolist() == [255, 127, 0]


def test_transparent_palette_entry_becomes_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    image.info["transparency"] = 0
    assert np.asarray(to_rgb(image))[0].tolist() == [[255, 255, 255], [40, 50, 60]]


def test_transparent_rgb_colour_becomes_white() -> None:
    image = Image.new("RGB", (1, 1), (1, 2, 3))
    image.info["transparency"] = (1, 2, 3)
    assert np.asarray(to_rgb(image))[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("dtype", ["uint16", ">u2", "int32"])
def test_deep_grey_is_scaled_not_clipped(dtype: str) -> None:
    values = np.array([[0, 257, 32768, 65535]], np.int32)
    if dtype == "int32":
        image = Image.fromarray(values)
    else:
        raw = values.astype(dtype).tobytes()
        image = Image.frombytes("I;16B" if dtype == ">u2" else "I;16", (4, 1), raw)
    assert np.asarray(to_rgb(image))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_float_image_counts_from_0_to_1() -> None:
    image = Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32))
    assert np.asarray(to_rgb(image))[0, :, 2].tolist() == [0, 128, 255]


def test_deeper_than_16_bits_is_refused() -> None:
    with pytest.raises(InputError, match=r"mode 'I' with values 0\.\.70000; integers must fit 16 bits"):
        to_rgb(Image.fromarray(np.array([[0, 70000]], np.int32)))


@pytest.mark.parametrize(
    "array",
    [COLOUR, COLOUR.transpose(2, 0, 1), torch.from_numpy(COLOUR), torch.from_numpy(COLOUR).permute(2, 0, 1)],
    ids=["array hwc", "array chw", "tensor hwc", "tensor chw"],
)
def test_colour_layouts(array) -> None:
    assert np.array_equal(np.asarray(to_image(array)), COLOUR)


@pytest.mark.parametrize("array", [GREY, GREY[:, :, None], GREY[None], torch.from_numpy(GREY)[None]])
def test_grey_layouts(array) -> None:
    image = np.asarray(to_image(array))
    assert image.shape == (5, 7, 3)
    assert all(np.array_equal(image[:, :, channel], GREY) for channel in range(3))


def test_ambiguous_layout_follows_the_type() -> None:
    square = RNG.integers(0, 256, (3, 3, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(to_image(square)), square)
    assert np.array_equal(np.asarray(to_image(torch.from_numpy(square))), square.transpose(1, 2, 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_floats_count_from_0_to_1(dtype: torch.dtype) -> None:
    image = np.asarray(to_image(torch.tensor([[0.0, 0.25, 1.0]], dtype=dtype)))
    assert image[0, :, 0].tolist() == [0, 64, 255]


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_uint16_counts_to_65535(dtype: str) -> None:
    assert np.asarray(to_image(np.array([[0, 32768, 65535]], dtype)))[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("scale", [1, 255])
def test_alpha_plane_of_arrays(scale: int) -> None:
    pixel = np.zeros((1, 1, 4))
    pixel[..., 3] = 0.2 * scale
    array = pixel.astype(np.uint8) if scale == 255 else pixel
    assert np.asarray(to_image(array))[0, 0].tolist() == [204, 204, 204]


def test_deep_white_is_one() -> None:
    assert to_planes(np.full((1, 1), 65535, np.uint16)).item() == 1


def test_floats_keep_their_precision_as_planes() -> None:
    planes = to_planes(np.full((2, 2), 0.123456, np.float32))
    assert planes.shape == (2, 2, 1)
    assert planes.dtype == np.float32
    assert planes[0, 0, 0] == np.float32(0.123456)


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (np.zeros((2, 3, 4, 4), np.uint8), r"found shape \(2, 3, 4, 4\)\. Pass the images of a batch one by one"),
        (np.zeros((5, 5, 2), np.uint8), r"must be \(h, w\).*found shape \(5, 5, 2\)"),
        (np.zeros(5, np.uint8), r"found shape \(5,\)"),
        (np.zeros((0, 4), np.uint8), r"has no pixels, found shape \(0, 4, 1\)"),
        (np.zeros((4, 4), np.int64), "pixels of type int64 have no known scale.*Give uint8"),
        (np.zeros((4, 4), bool), "pixels of type bool have no known scale"),
        (np.array([[0.0, 255.0]]), r"floats must lie in \[0, 1\], found 0\.\.255"),
        (torch.tensor([[-1.0, 1.0]]), r"found -1\.\.1\..*already normalised goes straight to the method"),
        (np.array([[0.0, np.nan]]), "1 of 2 values are NaN or Inf"),
        (torch.tensor([[np.inf, -np.inf, 0.5]]), "2 of 3 values are NaN or Inf"),
        ([[1, 2]], "must be a Pillow image, a numpy array or a tensor, found list"),
    ],
)
def test_refuses_what_it_would_have_to_guess(array, match: str) -> None:
    with pytest.raises(InputError, match=match):
        to_image(array)
