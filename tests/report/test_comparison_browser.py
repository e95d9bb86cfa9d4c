"""The report in a browser: from a file, without a network, by keyboard, on a phone and in the dark."""

from __future__ import annotations

import io
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from test_comparison import BAD, facts, synthetic  # noqa: E402

from backlit.report.comparison import write_report  # noqa: E402
from backlit.report.kinds import PALETTES  # noqa: E402

PLACES = ("/usr/bin/chromium", "chromium", "google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    named = os.environ.get("BACKLIT_CHROMIUM")
    found = named or next((path for place in PLACES if (path := shutil.which(place))), None)
    with api.sync_playwright() as playwright:
        found = found or playwright.chromium.executable_path
        if not Path(found).exists():
            pytest.skip(f"no chromium at {found}; BACKLIT_CHROMIUM names one")
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    long = "a_network_whose_name_has_no_end_" * 4
    made = synthetic(size=140, images=("cat", "a_file_name_without_any_space_in_it_" * 4, BAD))
    write_report(path, replace(made, model=long))
    return path


@pytest.fixture
def opened(browser: Any, file: Path) -> Iterator[Any]:
    """Opens the report; at the end the browser must have complained of nothing and asked for nothing."""
    contexts, complaints, requests = [], [], []

    def opened(**options: Any) -> Any:
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(file.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []
    assert {url.partition(":")[0] for url in requests} <= {"file", "data"}
    assert {url for url in requests if url.startswith("file:")} == {file.as_uri()}


def style(page: Any, selector: str, name: str) -> str:
    return page.locator(selector).first.evaluate(f"element => getComputedStyle(element)['{name}']")


def test_the_opacity_follows_the_slider_by_keyboard(opened: Any) -> None:
    page = opened()
    assert style(page, ".map", "opacity") == "0.9"
    page.focus("#opacity")
    page.keyboard.press("ArrowLeft")
    assert style(page, ".map", "opacity") == "0.85"
    page.keyboard.press("Home")
    assert style(page, ".map", "opacity") == "0"
    assert page.locator("#opacity-shown").text_content() == "0 %"


def test_map_and_image_alone(opened: Any) -> None:
    page = opened()
    page.focus("#view-over")
    page.keyboard.press("ArrowRight")
    assert style(page, ".map", "opacity") == "1"
    assert style(page, ".cell .photo", "visibility") == "hidden"
    page.keyboard.press("ArrowRight")
    assert style(page, ".map", "visibility") == "hidden"
    assert style(page, ".cell .photo", "filter") == "none"


def test_maps_of_an_unseen_class_stay_faint(browser: Any, tmp_path: Path) -> None:
    made = synthetic(images=("cat",), classes=1)
    (image,) = made.images
    unseen = replace(image, classes=(replace(image.classes[0], probability=1e-9),))
    write_report(tmp_path / "report.html", replace(made, images=(unseen,)))
    page = browser.new_page()
    page.goto((tmp_path / "report.html").as_uri())
    assert float(style(page, "#image-0 .map", "opacity")) < 0.3
    page.check("#view-map")
    assert float(style(page, "#image-0 .map", "opacity")) < 0.3
    page.close()


def shown_maps(page: Any, image: int) -> list[str]:
    return page.locator(f"#image-{image} .map").evaluate_all(
        "all => all.filter(m => m.offsetParent !== null).map(m => m.src)"
    )


def test_another_class_shows_other_maps(opened: Any) -> None:
    page = opened()
    first, neighbour = shown_maps(page, 0), shown_maps(page, 1)
    assert len(first) == 3
    page.focus("input[name=class-0]")
    page.keyboard.press("ArrowRight")
    second = shown_maps(page, 0)
    assert [a == b for a, b in zip(first, second, strict=True)] == [False, False, True]  # the last are zeros
    assert shown_maps(page, 1) == neighbour
    assert page.locator("input[name=all-classes]:checked").count() == 0
    page.check("input[name=all-classes][value='1']")
    assert shown_maps(page, 0) == second
    assert shown_maps(page, 1) != neighbour


def test_a_method_can_be_put_aside(opened: Any) -> None:
    page = opened()
    assert page.locator("#methods-shown").text_content() == "3 of 3"
    page.uncheck("#show-1")
    assert page.locator("#methods-shown").text_content() == "2 of 3"
    assert [page.locator(f"#image-0 .m{i}").is_visible() for i in range(3)] == [True, False, True]
    assert style(page, ".curve.m1", "display") == "none"


def transforms(page: Any, image: int) -> set[tuple[float, ...]]:
    """How the pictures of an image are enlarged, and moved in shares of their sides: (scale, x, y)."""
    found = page.locator(f"#image-{image} .stage").evaluate_all(
        """all => all.map(s => {
          const m = new DOMMatrix(getComputedStyle(s).transform);
          return [m.a, m.e / s.offsetWidth, m.f / s.offsetHeight].map(v => Number(v.toFixed(2)));
        })"""
    )
    return {tuple(one) for one in found}


def test_all_maps_of_an_image_zoom_and_move_together(opened: Any) -> None:
    page = opened()
    (still,) = transforms(page, 0)
    assert style(page, "#image-0 .map", "imageRendering") == "auto"
    page.locator("#image-0 [data-zoom=in]").click()
    assert style(page, "#image-0 .map", "imageRendering") == "pixelated"  # each pixel is to be seen
    assert style(page, "#image-1 .map", "imageRendering") == "auto"
    (closer,) = transforms(page, 0)
    assert closer != still
    assert transforms(page, 1) == {still}
    page.focus("#image-0 .cells")
    page.keyboard.press("ArrowRight")
    (moved,) = transforms(page, 0)
    assert moved != closer
    page.keyboard.press("0")
    assert transforms(page, 0) == {still}
    page.keyboard.press("+")
    assert transforms(page, 0) != {still}
    page.locator("#image-0 [data-zoom=reset]").click()
    assert transforms(page, 0) == {still}


def test_the_wheel_zooms_at_the_pointer_and_dragging_moves(opened: Any) -> None:
    page = opened()
    view = page.locator("#image-0 .cell .view").first
    view.scroll_into_view_if_needed()
    box = view.bounding_box()
    x, y = box["x"] + box["width"] * 0.25, box["y"] + box["height"] * 0.5
    (still,) = transforms(page, 0)
    page.mouse.move(x, y)
    page.keyboard.down("Control")
    page.mouse.wheel(0, -100)
    page.keyboard.up("Control")
    page.wait_for_selector("#image-0.zoomed")
    (zoomed,) = transforms(page, 0)
    scale, left, top = zoomed
    assert scale > 1.5
    assert left == pytest.approx(0.25 * (1 - scale), abs=0.02)
    assert top == pytest.approx(0.5 * (1 - scale), abs=0.02)
    page.mouse.down()
    page.mouse.move(x + 20, y, steps=3)
    page.mouse.up()
    (dragged,) = transforms(page, 0)
    assert dragged[1] == pytest.approx(left + 20 / box["width"], abs=0.02)
    assert transforms(page, 0) != {still}


def test_two_fingers_zoom_and_one_moves(opened: Any) -> None:
    page = opened(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    view = page.locator("#image-0 .cell .view").first
    view.scroll_into_view_if_needed()
    box = view.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    fingers = page.context.new_cdp_session(page)

    def touch(kind: str, *places: float) -> None:
        points = [{"x": place, "y": y, "id": i} for i, place in enumerate(places)]
        fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", x - 15, x + 15)
    for reach in (20, 25, 30):
        touch("touchMove", x - reach, x + reach)
    touch("touchEnd")
    (zoomed,) = transforms(page, 0)
    scale, left, _ = zoomed
    assert scale == pytest.approx(2, rel=0.1)
    assert left == pytest.approx((1 - scale) / 2, abs=0.1)  # the middle stays
    touch("touchStart", x)
    for reach in (5, 10, 15):
        touch("touchMove", x + reach)
    touch("touchEnd")
    (moved,) = transforms(page, 0)
    assert moved[1] == pytest.approx(left + 15 / box["width"], abs=0.02)


def test_every_control_is_reached_by_tab_and_shows_its_focus(opened: Any) -> None:
    page = opened()
    reached = []
    for _ in range(120):
        page.keyboard.press("Tab")
        found = page.evaluate(
            """() => {
              const e = document.activeElement;
              if (e === document.body) return null;
              const seen = getComputedStyle(e);
              return [e.id || e.dataset.zoom || e.className || e.name || e.tagName, seen.outlineStyle];
            }"""
        )
        if found is None:
            break
        reached.append(found)
    names = [name for name, _ in reached]
    for expected in (
        "skip",
        "view-over",
        "opacity",
        "all-classes",
        "show-0",
        "class-0",
        "enlarge needs-js",
        "in",
        "cells",
        "SUMMARY",
        "scroll",
    ):
        assert expected in names
    assert {outline for _, outline in reached} <= {"solid", "auto"}
    assert names.index("skip") == 0


def test_a_phone_needs_no_sideways_scrolling(opened: Any) -> None:
    page = opened(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    page.locator("details").evaluate_all("all => all.forEach(d => { d.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.evaluate("window.innerWidth") == 360
    text = page.locator(".chart text").first.evaluate("t => t.getBoundingClientRect().height")
    assert text > 10


def test_the_dark_page_is_dark_and_its_maps_stay_on_white(opened: Any) -> None:
    page = opened(color_scheme="dark")
    assert style(page, "body", "backgroundColor") == "rgb(18, 20, 23)"
    assert style(page, "body", "color") == "rgb(233, 235, 238)"
    assert style(page, ".view", "backgroundColor") == "rgb(255, 255, 255)"
    line = style(page, ".c0 .line", "stroke")
    assert line != style(opened(color_scheme="light"), ".c0 .line", "stroke")


def test_without_its_script_the_page_can_be_read(opened: Any) -> None:
    page = opened(java_script_enabled=False)
    assert page.locator("#image-0 .cell .map.k0").first.is_visible()
    assert not page.locator("#image-0 .cell .map.k1").first.is_visible()
    assert page.locator(".chart svg").first.is_visible()
    assert page.locator(".ranking").first.is_visible()
    assert not page.locator("#opacity").is_visible()
    page.check("input[name=class-0][value='1']")  # choices need no script
    assert page.locator("#image-0 .cell .map.k1").first.is_visible()


def columns(page: Any) -> int:
    tops = page.locator("#image-0 figure").evaluate_all(
        "all => all.filter(f => f.offsetParent !== null).map(f => f.getBoundingClientRect().top)"
    )
    return tops.count(tops[0])


@pytest.mark.parametrize(("width", "most"), [(1400, 6), (390, 2)])
def test_the_grid_fills_the_width_at_any_number_of_methods(browser: Any, tmp_path: Path, width: int, most: int) -> None:
    """From one method to thirty: no column stays empty in the first row, and rows are as even as can be."""
    many = synthetic(images=("cat",), classes=1)
    methods = tuple(facts(f"method {i}") for i in range(30))
    maps = {(m.name, "cat", 0): many.maps["dmbp", "cat", 0] for m in methods}
    write_report(tmp_path / "report.html", replace(many, methods=methods, maps=maps, strips=()))
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.goto((tmp_path / "report.html").as_uri())
    assert page.locator("#methods-shown").text_content() == "5 of 30"
    page.locator(".choose summary").click()
    page.click("[data-methods=all]")
    for shown in (30, 11, 7, 5, 2, 1):
        for i in range(30):
            page.locator(f"#show-{i}").evaluate("(box, on) => { if (box.checked !== on) box.click(); }", i < shown)
        per_row = columns(page)
        assert 1 < per_row <= shown + 1
        assert math.ceil((shown + 1) / per_row) == math.ceil((shown + 1) / most)  # no more rows than it takes
        box = page.locator("#image-0 .cells").bounding_box()
        last = page.locator("#image-0 figure").nth(per_row - 1).bounding_box()
        assert last["x"] + last["width"] == pytest.approx(box["x"] + box["width"], abs=1.5)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.close()


def test_a_click_enlarges_a_map_beside_its_image_and_the_keyboard_goes_on(opened: Any) -> None:
    page = opened(viewport={"width": 1400, "height": 1000})
    small = page.locator("#image-0 .cell .view").first.bounding_box()["width"]
    page.locator("#image-0 .cell .view").first.click()
    large = page.locator("#large")
    assert large.is_visible()
    assert page.locator("#large .view").count() == 2
    assert page.locator("#large .cell .view").bounding_box()["width"] > 1.5 * small
    assert page.locator("#large .photo").first.evaluate("p => getComputedStyle(p).backgroundImage").startswith("url")
    assert (page.locator("#large-name").text_content() or "").startswith("DMBP: cat")
    assert "Insertion0.800" in (page.locator("#large-scores").text_content() or "")
    first = page.locator("#large .map").evaluate("m => m.src")
    page.keyboard.press("ArrowRight")
    assert (page.locator("#large-name").text_content() or "").startswith("GRADIENT: cat")
    assert page.locator("#large .map").evaluate("m => m.src") != first
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert (page.locator("#large-name").text_content() or "").startswith("RANDOM: cat")
    page.keyboard.press("+")
    assert "zoomed" in page.locator("#large").get_attribute("class").split()
    page.keyboard.press("ArrowRight")  # moves what is zoomed
    assert (page.locator("#large-name").text_content() or "").startswith("RANDOM: cat")
    page.keyboard.press("Escape")
    assert not large.is_visible()


def test_a_map_is_enlarged_by_the_keyboard_alone_and_the_focus_comes_back(opened: Any) -> None:
    page = opened()
    page.focus("#image-0 .m1 .enlarge")
    assert style(page, "#image-0 .m1 .enlarge", "opacity") == "1"
    page.keyboard.press("Enter")
    assert page.locator("#large").is_visible()
    assert (page.locator("#large-name").text_content() or "").startswith("GRADIENT: cat")
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.closest('.m1') !== null")


def test_a_drag_of_zoomed_maps_enlarges_nothing(opened: Any) -> None:
    page = opened()
    page.locator("#image-0 [data-zoom=in]").click()
    box = page.locator("#image-0 .cell .view").first.bounding_box()
    page.mouse.move(box["x"] + 30, box["y"] + 30)
    page.mouse.down()
    page.mouse.move(box["x"] + 60, box["y"] + 40, steps=3)
    page.mouse.up()
    assert not page.locator("#large").is_visible()


def shown_methods(page: Any, table: str) -> list[str]:
    return [t.strip() for t in page.locator(f"{table} tbody th").all_text_contents()]


def test_columns_sort_by_mouse_and_keyboard(opened: Any) -> None:
    page = opened()
    assert shown_methods(page, ".overview") == ["DMBP", "GRADIENT", "RANDOM"]
    reset = page.locator(".overview th", has_text="Reset")
    reset.locator("button").click()
    assert shown_methods(page, ".overview") == ["RANDOM", "DMBP", "GRADIENT"]
    assert reset.get_attribute("aria-sort") == "descending"
    page.keyboard.press("Enter")
    assert shown_methods(page, ".overview") == ["GRADIENT", "DMBP", "RANDOM"]
    assert reset.get_attribute("aria-sort") == "ascending"
    page.locator("#metric-0 .ranking th", has_text="Difference").locator("button").click()
    assert shown_methods(page, "#metric-0 .ranking") == ["GRADIENT", "RANDOM", "DMBP"]  # the best has no number
    page.locator(".overview th", has_text="Method").locator("button").click()
    assert shown_methods(page, ".overview") == ["DMBP", "GRADIENT", "RANDOM"]
    assert reset.get_attribute("aria-sort") is None


def test_images_fold_one_by_one_and_all_together(opened: Any) -> None:
    page = opened()
    folded = page.locator("#image-2 .cells")
    assert not folded.is_visible()
    page.focus("#image-2 > summary")
    page.keyboard.press("Enter")
    assert folded.is_visible()
    section = page.locator("section", has=page.locator("#maps"))
    section.locator("[data-fold=shut]").click()
    assert page.locator("details.image[open]").count() == 0
    assert page.locator("#image-0 .thumb").is_visible()
    section.locator("[data-fold=open]").click()
    assert page.locator("details.image[open]").count() == 3
    assert page.locator("details.metric[open]").count() == 1


@pytest.mark.parametrize("width", [1400, 390])
def test_twenty_images_are_no_endless_page(browser: Any, tmp_path: Path, width: int) -> None:
    """20 images, 8 methods, 2 classes: under 10 MB, and as long as a few screens until images are opened."""
    images = tuple(f"image {i}" for i in range(20))
    made = synthetic(size=64, images=images)
    methods = tuple(facts(f"method {i}") for i in range(8))
    maps = {(m.name, n, c): made.maps["dmbp", n, c] for m in methods for n in images for c in (0, 1)}
    write_report(tmp_path / "report.html", replace(made, methods=methods, maps=maps))
    assert (tmp_path / "report.html").stat().st_size < 10e6
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.goto((tmp_path / "report.html").as_uri())
    assert page.evaluate("document.documentElement.scrollHeight") < (6000 if width == 1400 else 9000)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.close()


def test_smooth_maps_have_no_bands_and_the_figures_colours(browser: Any, tmp_path: Path) -> None:
    comparison = synthetic(size=224, images=("cat",), classes=1)
    ramp = torch.linspace(-1, 1, 224).expand(224, 224)
    write_report(tmp_path / "report.html", replace(comparison, maps=dict.fromkeys(comparison.maps, ramp), strips=()))
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.goto((tmp_path / "report.html").as_uri())
    page.check("#view-map")
    view = page.locator("#image-0 .m0 .stage").first
    view.scroll_into_view_if_needed()
    row = np.array(Image.open(io.BytesIO(view.screenshot())).convert("RGB"))[100].astype(int)
    assert len(row) > 200
    steps = np.abs(np.diff(row[4:-4], axis=0)).max(1)
    assert steps.max() <= 14  # 8 bits over some 250 pixels: a band of 31 levels is a step of 30 and more
    strength = np.linspace(-1, 1, len(row))
    wanted = PALETTES["signed"].colour(strength) * 255
    assert np.abs(row - wanted)[8:-8].mean() < 4
    assert np.abs(row - wanted)[8:-8].max() < 16
    page.close()
