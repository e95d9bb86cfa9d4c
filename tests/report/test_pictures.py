"""Pictures: which colour means what, how strong, and what a page holds."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from backlit import Attribution, FileError, InputError
from backlit.report.figure import (
    colour,
    grey_of,
    png,
    render_image,
    render_map,
    render_overlay,
    save_png,
    scale_text,
)

HEAT = torch.tensor([[[2.0, -2.0], [0.0, 1.0]]])


def test_red_speaks_for_blue_against_white_says_nothing() -> None:
    picture = colour(HEAT, 2.0).astype(int)
    red, blue, white = picture[0, 0], picture[0, 1], picture[1, 0]
    assert red[0] > red[2] + 50
    assert blue[2] > blue[0] + 50
    assert white.min() > 240
    assert np.array_equal(colour(HEAT * 5, 2.0)[0, 0], colour(HEAT, 2.0)[0, 0])  # clipped, not wrapped
    assert (colour(HEAT * 0, 0.0) > 240).all()


def test_overlays_leave_the_image_where_the_map_is_silent() -> None:
    image = torch.tensor([[[0.2, 0.2], [0.9, 0.2]]])
    picture = render_overlay(image, HEAT, scale=2.0).astype(int)
    assert picture.shape == (256, 256, 3)
    silent, strong = picture[255, 0], picture[0, 0]
    assert silent[0] == silent[1] == silent[2]
    assert strong[0] > strong[2] + 50
    assert np.array_equal(render_overlay(image, HEAT * 0, scale=0.0)[255, 0], silent)
    assert render_overlay(image, HEAT, scale=2.0, opacity=0)[0, 0].std() == 0
    assert np.array_equal(render_overlay(image, HEAT * 5, scale=2.0)[0, 0], strong)


def test_large_pictures_keep_their_size_and_channels_their_meaning() -> None:
    assert render_map(torch.zeros(1, 300, 200), scale=1.0).shape == (300, 200, 3)
    rgb = torch.tensor([1.0, 0.0, 0.0])[:, None, None].expand(3, 2, 2)
    assert render_image(rgb)[0, 0].tolist() == [255, 0, 0]
    assert grey_of(rgb)[0, 0] == pytest.approx(0.299)
    assert render_image(torch.full((1, 2, 2), 0.5))[0, 0].tolist() == [128, 128, 128]


def test_bad_arguments() -> None:
    with pytest.raises(InputError, match=r"image must be as large as the map \(2, 2\), but is \(3, 3\)"):
        render_overlay(torch.zeros(1, 3, 3), HEAT, scale=1.0)
    with pytest.raises(InputError, match="opacity must be from 0 to 1, but is 2"):
        render_overlay(torch.zeros(1, 2, 2), HEAT, scale=1.0, opacity=2)


def test_png_files_hold_the_picture(tmp_path: Path) -> None:
    picture = render_map(HEAT, scale=2.0)
    save_png(tmp_path / "map.png", picture)
    assert np.array_equal(np.array(Image.open(tmp_path / "map.png")), picture)
    assert np.array_equal(np.array(Image.open(io.BytesIO(png(picture)))), picture)
    with pytest.raises(FileError, match="cannot write"):
        save_png(tmp_path / "none" / "map.png", picture)


def test_both_signs_are_as_far_from_white() -> None:
    levels = torch.linspace(-1, 1, 257)[None, None]
    far = np.abs(colour(levels, 1.0)[0].astype(int) - colour(levels * 0, 1.0)[0, 0]).sum(1)
    assert far[128] == 0
    assert (far[:128] > 0).all()
    assert (far[129:] > 0).all()
    assert np.abs(far[:128][::-1] - far[129:]).max() < 0.25 * far.max()
    weak = torch.tensor([[[-0.001, 0.0, 0.001]]])
    assert len({tuple(level) for level in colour(weak, 1.0)[0].tolist()}) == 1
    tiny = torch.tensor([[[1e-300, -1e-300]]], dtype=torch.float64)  # below float32's smallest
    assert np.array_equal(colour(tiny, 1e-300), colour(torch.tensor([[[1.0, -1.0]]]), 1.0))


def test_half_precision_is_drawn_as_full() -> None:
    image = torch.tensor([[[0.25, 0.5], [0.75, 1.0]]])
    full = render_overlay(image, HEAT, scale=2.0)
    assert np.array_equal(render_overlay(image.bfloat16(), HEAT.bfloat16(), scale=2.0), full)
    assert np.array_equal(render_map(HEAT.bfloat16(), scale=2.0), render_map(HEAT, scale=2.0))


def test_small_pictures_are_enlarged_pixel_by_pixel() -> None:
    small, large = colour(HEAT, 2.0), render_map(HEAT, scale=2.0)
    assert large.shape == (256, 256, 3)
    assert np.array_equal(large[::128, ::128], small)
    assert np.array_equal(large[127::128, 127::128], small)


@pytest.mark.parametrize(
    ("scale", "percentile", "text"),
    [
        (0.0123, 99.5, "colour scale ±0.0123 (99.5th percentile of |map|)"),
        (2, 100, "colour scale ±2 (largest |map|)"),
        (2, 91, "colour scale ±2 (91st percentile of |map|)"),
        (2, 12, "colour scale ±2 (12th percentile of |map|)"),
        (0, 99.5, "the map is zero everywhere: shown white"),
    ],
)
def test_the_scale_is_said(scale: float, percentile: float, text: str) -> None:
    assert scale_text(scale, percentile) == text


def test_masks_are_drawn_black_to_white_and_other_parts_in_the_maps_colours() -> None:
    maps = torch.linspace(-500, 500, 16).view(1, 1, 4, 4)
    mask = torch.linspace(0, 1, 16).view(1, 1, 4, 4)
    one = torch.zeros(1, dtype=torch.int64)
    drawn = Attribution(maps, one, one.float(), parts={"mask_positive": mask, "positive": maps.clamp(min=0)}).figure()
    cells = {axis.get_title(): np.asarray(axis.images[0].get_array()) for axis in drawn.axes if axis.get_title()}
    masked, positive = cells["mask_positive"], cells["positive"]
    assert masked[0, 0].tolist() == [0, 0, 0]
    assert masked[-1, -1].tolist() == [255, 255, 255]
    assert positive[0, 0].min() > 240  # zero is white in the map's colours
    assert positive[-1, -1][0] > positive[-1, -1][2]
