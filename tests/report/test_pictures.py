"""Pictures: which colour means what, how strong, and what a page holds."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from backlit import Attribution, FileError
from backlit.report.figure import grey_of, png, render_image, save_png, scale_text
from backlit.report.kinds import PALETTES

HEAT = torch.tensor([[[2.0, -2.0], [0.0, 1.0]]])


def test_large_pictures_keep_their_size_and_channels_their_meaning() -> None:
    assert render_image(torch.zeros(1, 300, 200)).shape == (300, 200, 3)
    rgb = torch.tensor([1.0, 0.0, 0.0])[:, None, None].expand(3, 2, 2)
    assert render_image(rgb)[0, 0].tolist() == [255, 0, 0]
    assert grey_of(rgb)[0, 0] == pytest.approx(0.299)
    assert render_image(torch.full((1, 2, 2), 0.5))[0, 0].tolist() == [128, 128, 128]


def test_png_files_hold_the_picture(tmp_path: Path) -> None:
    picture = render_image(torch.rand(3, 4, 5))
    save_png(tmp_path / "map.png", picture)
    assert np.array_equal(np.array(Image.open(tmp_path / "map.png")), picture)
    assert np.array_equal(np.array(Image.open(io.BytesIO(png(picture)))), picture)
    with pytest.raises(FileError, match="cannot write"):
        save_png(tmp_path / "none" / "map.png", picture)


def test_both_signs_are_as_far_from_white_and_red_speaks_for() -> None:
    far = np.abs(PALETTES["signed"].colour(np.linspace(-1, 1, 257)) - 1).sum(1)
    assert far[128] == 0
    assert (far[:128] > 0).all()
    assert (far[129:] > 0).all()
    assert np.abs(far[:128][::-1] - far[129:]).max() < 0.25 * far.max()
    against, for_it = PALETTES["signed"].colour(np.array([-1.0, 1.0]))
    assert against[2] > against[0] + 0.2
    assert for_it[0] > for_it[2] + 0.2


def test_small_pictures_are_enlarged_pixel_by_pixel() -> None:
    pixels = torch.tensor([[[0.0, 1.0], [0.5, 0.25]]])
    large = render_image(pixels)
    assert large.shape == (256, 256, 3)
    small = (pixels[0] * 255).round().to(torch.uint8).numpy()
    assert np.array_equal(large[::128, ::128, 0], small)
    assert np.array_equal(large[127::128, 127::128, 0], small)


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
