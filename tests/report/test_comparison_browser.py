"""The report in a browser: from a file, without a network, by keyboard, on a phone and in the dark."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from test_comparison import BAD, synthetic  # noqa: E402

from backlit.report.comparison import write_report  # noqa: E402

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
    assert style(page, ".map", "opacity") == "0.85"
    page.focus("#opacity")
    page.keyboard.press("ArrowLeft")
    assert style(page, ".map", "opacity") == "0.8"
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
    page.uncheck("#show-1")
    assert [page.locator(f"#image-0 .m{i}").is_visible() for i in range(3)] == [True, False, True]
    assert style(page, ".curve.m1", "display") == "none"


def transforms(page: Any, image: int) -> set[str]:
    return set(
        page.locator(f"#image-{image} .stage").evaluate_all("all => all.map(s => getComputedStyle(s).transform)")
    )


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
    scale, _, _, _, left, top = (float(v) for v in zoomed.removeprefix("matrix(").rstrip(")").split(","))
    assert scale > 1.5
    assert left / box["width"] == pytest.approx(0.25 * (1 - scale), abs=0.01)
    assert top / box["height"] == pytest.approx(0.5 * (1 - scale), abs=0.01)
    page.mouse.down()
    page.mouse.move(x + 20, y, steps=3)
    page.mouse.up()
    (dragged,) = transforms(page, 0)
    assert float(dragged.rstrip(")").split(",")[4]) == pytest.approx(left + 20, abs=0.5)
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
    scale, _, _, _, left, _ = (float(v) for v in zoomed.removeprefix("matrix(").rstrip(")").split(","))
    assert scale == pytest.approx(2, rel=0.1)
    assert left / box["width"] == pytest.approx((1 - scale) / 2, abs=0.1)  # the middle stays
    touch("touchStart", x)
    for reach in (5, 10, 15):
        touch("touchMove", x + reach)
    touch("touchEnd")
    (moved,) = transforms(page, 0)
    assert float(moved.rstrip(")").split(",")[4]) == pytest.approx(left + 15, abs=2)


def test_every_control_is_reached_by_tab_and_shows_its_focus(opened: Any) -> None:
    page = opened()
    reached = []
    for _ in range(80):
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
