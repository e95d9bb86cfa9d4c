"""The page: data first, rendered last, alone in one file."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import FrozenInstanceError, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from backlit import Attribution, FileError, InputError
from backlit.capture import Coverage, CoverageRow
from backlit.report.kinds import PALETTES
from backlit.report.page import Cell, NoCell, Page, cell, ramp, render, row, write_page

HEAT = torch.tensor([[[2.0, -2.0], [0.0, 1.0]]])
COVERAGE = Coverage((CoverageRow("relu[0]", "relu", "activation", "features.1", "nn.functional.relu", "guided"),))


def page(label: str = "7") -> Page:
    made = Attribution(
        HEAT[None],
        torch.tensor([7]),
        torch.tensor([1.5]),
        coverage=COVERAGE,
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
    assert dict(explained.cells[0].facts) == {
        "logit": "1.500",
        "gap": "0.25",
        "colours": PALETTES[None].legend,
        "rules": "guided x1",
        "seconds, whole batch": "2",
    }
    assert explained.coarse
    assert explained.cells[0].scale.startswith("colour scale ±")


def test_a_page_loads_nothing_and_escapes_what_it_shows() -> None:
    html = render(page("<script>alert(1)</script>"))
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert "//" not in re.sub(r"base64,[^\"]+", "", html)  # no address, with or without a scheme
    assert "url(" not in html
    assert html.count("data:image/png;base64,") == 1 + 2 * 2
    assert html.count("<img") == html.count(" alt=")


def test_a_page_is_written_whole(tmp_path: Path) -> None:
    write_page(tmp_path / "new" / "index.html", page())
    assert (tmp_path / "new" / "index.html").read_text(encoding="utf-8") == render(page())
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match=r"out: cannot write to .*Choose another folder"):
        write_page(tmp_path / "file" / "index.html", page())


class Tags(HTMLParser):
    """The start tags of a document, and whether each one is closed in its order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.starts: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.starts.append((tag, dict(attrs)))
        if tag not in {"meta", "img", "input"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def made(heat: torch.Tensor, n: int = 1) -> Attribution:
    return Attribution(heat[None].expand(n, -1, -1, -1), torch.arange(n), torch.zeros(n))


def test_every_place_escapes() -> None:
    bad = "<script>'\"&"
    explained = row(torch.zeros(1, 2, 2), bad, bad, {bad: made(HEAT)})
    html = render(Page(bad, bad, ((bad, bad),), (explained,), {bad: bad, "each": {bad: bad}}))
    assert "<script" not in html
    assert "&lt;script&gt;&#39;&#34;&amp;" in html
    assert {tag for tag, _ in Tags(html).starts}.isdisjoint({"script", "link", "iframe"})


def test_the_document_is_well_formed_and_can_be_used_from_the_keyboard() -> None:
    found = Tags(render(page()))
    assert found.open == []
    radios = [a for tag, a in found.starts if tag == "input"]  # two methods: nothing to choose from
    assert [(a["type"], a["name"], a["id"]) for a in radios] == [("radio", "view", "over"), ("radio", "view", "alone")]
    assert ("summary", {}) in found.starts
    (region,) = [a for _, a in found.starts if a.get("role") == "region"]
    assert region["tabindex"] == "0"
    assert region["aria-label"]


def test_the_pictures_on_the_page_are_the_cells() -> None:
    shown = page()
    sources = [a["src"] or "" for tag, a in Tags(render(shown)).starts if tag == "img"]
    pictures = [np.array(Image.open(io.BytesIO(base64.b64decode(s.partition("base64,")[2])))) for s in sources]
    (explained,) = shown.rows
    expected = [explained.image, *(p for c in explained.cells for p in (c.overlay, c.alone))]
    assert all(np.array_equal(a, b) for a, b in zip(pictures, expected, strict=True))


def test_two_classes_of_one_image_stand_together() -> None:
    scene, other = torch.zeros(1, 2, 2), torch.ones(1, 2, 2)
    for_6, for_0, single = (
        row(picture, title, "", {"DMBP": made(heat)})
        for picture, title, heat in ((scene, "for 6", HEAT), (scene, "for 0", -HEAT), (other, "digit", HEAT))
    )
    shown = Page("", "", (("DMBP", ""),), (for_6, for_0, single), {})
    assert [[r.title for r in group] for group in shown.groups] == [["for 6", "for 0"], ["digit"]]
    assert render(shown).count("<tbody>") == 2
    assert not np.array_equal(for_6.cells[0].alone, for_0.cells[0].alone)


def test_the_legend_has_the_colours_of_the_maps() -> None:
    first, middle, last = (ramp(3)).split(", ")
    levels = PALETTES["signed"].colour(np.array([-1.0, 0.0, 1.0])) * 255
    assert [first, middle, last] == ["#" + bytes(level).hex() for level in levels.round().astype(np.uint8)]
    assert ramp() in render(page())


def test_a_zero_map_and_a_sparse_one_say_so() -> None:
    sparse = torch.zeros(1, 40, 40)
    sparse[0, 0, 0] = 3
    picture = torch.zeros(1, 40, 40)
    zero = cell("", made(sparse * 0), picture)
    assert zero.scale.startswith("the map is zero everywhere: shown white")
    assert isinstance(zero.alone, np.ndarray)
    assert (zero.alone > 240).all()
    assert cell("", made(sparse), picture).scale.startswith("colour scale ±3 (largest |map|). ")


def test_a_broken_map_and_a_missing_one_say_why() -> None:
    picture = torch.zeros(1, 2, 2)
    assert cell("", made(HEAT * torch.nan), picture).scale.startswith("the map holds NaN or infinity")
    explained = row(picture, "digit", "", {"DMBP": made(HEAT), "MIP-IN": "it learns from data first"})
    missing = explained.cells[1]
    assert missing == NoCell("MIP-IN", "it learns from data first")
    html = render(Page("", "", (("DMBP", ""), ("MIP-IN", "")), (explained,), {}))
    assert '<span class="none">it learns from data first</span>' in html
    assert html.count("<img") == 3


def test_of_many_methods_the_first_are_shown_and_the_others_are_a_choice() -> None:
    names = tuple((f"method {i}", "") for i in range(7))
    explained = row(torch.zeros(1, 2, 2), "digit", "", {name: made(HEAT) for name, _ in names})
    boxes = [a for tag, a in Tags(render(Page("", "", names, (explained,), {}))).starts if a.get("type") == "checkbox"]
    assert ["checked" in box for box in boxes] == [True] * 5 + [False] * 2


def test_few_methods_have_large_maps() -> None:
    one = page()
    names = [tuple((f"m{i}", "") for i in range(n)) for n in (0, 1, 4, 6, 30)]
    sides = [replace(one, methods=methods, rows=()).side for methods in names]
    assert sides == [24, 24, 14, 11, 11]  # of more, five are shown at first
    assert replace(one, methods=names[-1], rows=(), at_first=30).side == 10
    assert ":root { --side: 24rem; }" in render(one)


def test_photographs_are_written_small() -> None:
    large = row(torch.rand(3, 400, 400), "photo", "", {"DMBP": made(torch.randn(3, 400, 400))})
    (drawn,) = large.cells
    assert isinstance(drawn, Cell)
    assert isinstance(drawn.overlay, bytes)
    assert max(Image.open(io.BytesIO(drawn.overlay)).size) == 256
    html = render(Page("", "", (("DMBP", ""),), (large,), {}))
    assert html.count("data:image/jpeg") == 3
    assert html.count("data:image/png") == 0


def test_photographs_are_not_shown_as_squares() -> None:
    large = row(torch.zeros(3, 224, 224), "photo", "", {"DMBP": made(torch.zeros(3, 224, 224))})
    assert not large.coarse
    assert 'class="coarse"' not in render(Page("", "", (("DMBP", ""),), (large,), {}))
    assert 'class="coarse"' in render(page())


def test_the_footer_lists_numbers_of_each_method() -> None:
    html = render(replace(page(), footer={"torch": "2.6", "seconds": {"DMBP": 3.75, "Gradient": 0.5}}))
    assert "<dt>torch</dt><dd>2.6</dd>" in html
    assert "<dt>seconds</dt><dd>DMBP 3.75, Gradient 0.5</dd>" in html


def test_pages_and_cells_are_checked() -> None:
    with pytest.raises(FrozenInstanceError, match="cannot assign"):
        page().title = "other"  # type: ignore[misc]
    with pytest.raises(
        InputError, match=r"one cell for each of the methods \['Gradient'\].*'digit.*has \['DMBP', 'Grad"
    ):
        replace(page(), methods=(("Gradient", ""),))
    with pytest.raises(InputError, match=r"must be of one image, but is of 2\. Take explanation\[i\]"):
        cell("DMBP", made(HEAT, n=2), torch.zeros(1, 2, 2))
