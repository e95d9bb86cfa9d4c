"""Figures and what a notebook shows: titles that say class and method, bars of the map's kind, a row an image."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import backlit
from backlit import Attribution, InputError

LOADED = backlit.load_model("digits")
X = LOADED.preprocess.batch(backlit.models.digits.digits_images()[0][:3])


def texts(figure: object) -> list[str]:
    return [t.get_text() for a in figure.axes for t in (a.title, a.xaxis.label)]  # type: ignore[attr-defined]


def test_titles_say_method_and_class_and_rows_are_images() -> None:
    found = backlit.GradCAM(LOADED)(X, ["1", "7", "2"])
    assert {"Grad-CAM: 1", "Grad-CAM: 7", "Grad-CAM: 2"} <= set(texts(found.figure()))
    names = [f"digit <{k}> $x$" for k in range(10)]
    assert r"Grad-CAM: digit <7> \$x\$" in texts(found.figure(class_names=names))
    bare = replace(found, labels=None)
    assert "Grad-CAM: class 7" in texts(bare.figure())
    found.figure(class_names=names).savefig(io.BytesIO())
    with pytest.raises(
        InputError, match="class_names must have a name for each output of the network, and at least 8, but has 7"
    ):
        found.figure(class_names=names[:7])


@pytest.mark.parametrize(("method", "low"), [(backlit.GradCAM, 0), (backlit.Saliency, 0), (backlit.LRP, -1)])
def test_bars_have_the_sides_that_the_kind_has(method: type, low: float) -> None:
    figure = method(LOADED)(X[:1]).figure()
    (image,) = [i for a in figure.axes for i in a.get_images() if a.get_title().startswith(method.title)]
    bottom, top = image.get_clim()
    assert bottom == low * top
    assert top > 0


def test_rows_share_a_scale_on_request() -> None:
    found = backlit.LRP(LOADED)(X)

    def limits(**look: object) -> list[float]:
        return [i.get_clim()[1] for a in found.figure(**look).axes for i in a.get_images() if "LRP" in a.get_title()]  # type: ignore[arg-type]

    own = limits()
    assert len(set(own)) == 3
    assert limits(scale="shared") == [max(own)] * 3
    assert limits(scale=0.25) == [0.25] * 3
    for wrong in ("image", -1, float("nan")):
        with pytest.raises(InputError, match="scale must be 'own', 'shared', or a number from 0"):
            found.figure(scale=wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="opacity must be from 0 to 1"):
        found.figure(opacity=2)


def test_a_map_near_nothing_is_faint_in_a_figure_and_says_why() -> None:
    found = backlit.LRP(LOADED)(X[:1], 2)
    seen, unseen = replace(found, probability=torch.tensor([0.5])), replace(found, probability=torch.tensor([1e-5]))
    said = " ".join(texts(unseen.figure())).replace("\n", " ")
    assert "The network does not see this class: p = 0.00." in said
    assert "does not see" not in " ".join(texts(seen.figure()))
    maps = [
        next(i for a in one.figure().axes for i in a.get_images() if "LRP" in a.get_title()) for one in (seen, unseen)
    ]
    strong, weak = (i.get_cmap()(1.0)[1] for i in maps)
    assert weak > strong + 0.4
    broken = replace(found, values=found.values * torch.nan)
    assert any("NaN" in text for text in texts(broken.figure()))


def test_a_notebook_shows_cards_with_their_numbers_in_words() -> None:
    found = backlit.LRP(LOADED)(X[:2], ["1", "7"])
    shown = found._repr_html_()
    assert shown.count("<img") == 2
    alts = re.findall(r'alt="([^"]*)"', shown)
    assert alts[0].startswith("LRP for 1, p = ")
    assert "of the logit" in alts[1]
    pictures = [Image.open(io.BytesIO(base64.b64decode(d))) for d in re.findall(r"base64,([^\"]*)", shown)]
    assert all(min(p.size) > 256 for p in pictures)
    assert not re.search(r"https?:|<script|<link", shown)
    png = found._repr_png_()
    assert png is not None
    stacked = Image.open(io.BytesIO(png))
    assert stacked.height == sum(p.height for p in pictures)


def test_a_notebook_shows_few_of_many_and_escapes_names() -> None:
    values = torch.rand(30, 1, 8, 8)
    many = Attribution(values, torch.zeros(30).long(), torch.ones(30), labels=('<script>"&',) * 30)
    shown = many._repr_html_()
    assert shown.count("<img") == 4
    assert "26 more" in shown
    assert "<script" not in shown
    assert len(shown) < 1_000_000
    assert many[:0]._repr_png_() is None
    assert "<img" not in many[:0]._repr_html_()


def test_a_png_of_images_without_pictures_holds_the_maps_alone() -> None:
    one = Attribution(torch.rand(1, 1, 32, 32), torch.zeros(1).long(), torch.ones(1))
    png = one._repr_png_()
    assert png is not None
    assert np.array(Image.open(io.BytesIO(png))).shape[1] < 3 * 256
