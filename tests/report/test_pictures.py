"""Pictures: which colour means what, how strong, and what a page holds."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from backlit import Attribution, FileError, InputError
from backlit.report.figure import colour, grey_of, png, render_image, render_map, render_overlay, save_png
from backlit.report.page import Page, render, row, write_page

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


def page(label: str = "7") -> Page:
    made = Attribution(
        HEAT[None],
        torch.tensor([7]),
        torch.tensor([1.5]),
        completeness={"gap": torch.tensor([0.25])},
        provenance={"seconds": 2},
    )
    explained = row(
        torch.zeros(1, 2, 2), f"digit, explained for {label}", "probability 0.9", {"DMBP": made, "Gradient": made}
    )
    return Page("Title", "Intro", (("DMBP", "masks"), ("Gradient", "plain")), (explained,), {"seed": 0})


def test_a_page_is_data_first() -> None:
    (explained,) = page().rows
    assert [c.method for c in explained.cells] == ["DMBP", "Gradient"]
    assert dict(explained.cells[0].facts) == {"logit": "1.500", "gap": "0.25", "sites": "", "seconds": "2"}
    assert explained.cells[0].scale.startswith("colour scale ±")


def test_a_page_loads_nothing_and_escapes_what_it_shows() -> None:
    html = render(page("<script>alert(1)</script>"))
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert "http:" not in html
    assert "https:" not in html
    assert html.count("data:image/png;base64,") == 1 + 2 * 2
    assert html.count("<img") == html.count(" alt=")


def test_a_page_is_written_whole(tmp_path: Path) -> None:
    write_page(tmp_path / "new" / "index.html", page())
    assert (tmp_path / "new" / "index.html").read_text(encoding="utf-8") == render(page())
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match=r"out: cannot write to .*Choose another folder"):
        write_page(tmp_path / "file" / "index.html", page())
