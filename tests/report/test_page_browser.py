"""The demo's page in a browser: few columns at first, on a phone without sideways scrolling, by keyboard, in the dark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

import test_comparison_browser
import torch
from test_page import made

from backlit.report.page import Page, row, write_page

browser = test_comparison_browser.browser
TITLES = [f"method {i}" for i in range(20)]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "index.html"
    rows = tuple(
        row(
            torch.rand(3, 64, 64),
            f"why {c}?",
            "a_file_name_without_any_space_in_it_" * 3,
            dict.fromkeys(TITLES, made(torch.randn(1, 64, 64))),
        )
        for c in "ab"
    )
    write_page(path, Page("Demo", "Intro", tuple((t, "what it is") for t in TITLES), rows, {"seed": 0}))
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 390])
def test_few_columns_are_shown_at_first_and_others_when_asked(
    browser: Any, file: Path, width: int, scheme: str
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    complaints: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(file.as_uri())
    first = page.locator("tbody tr").first.locator("td")
    assert sum(first.nth(i).is_visible() for i in range(20)) == 5
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    dark = page.locator("body").evaluate("b => getComputedStyle(b).backgroundColor") == "rgb(18, 20, 23)"
    assert dark == (scheme == "dark")
    for _ in range(12):  # by keyboard alone: to the list of methods, open it, and to the sixth
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('.choose summary')"):
            break
    page.keyboard.press("Enter")
    for _ in range(6):
        page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert page.locator("#show-5").is_checked()
    assert first.nth(5).is_visible()
    tops = {round(first.nth(i).bounding_box()["y"]) for i in range(6)}
    assert len(tops) == (1 if width == 1400 else 3)  # two beside each other on a phone
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert complaints == []
    assert {url.partition(":")[0] for url in requests} <= {"file", "data"}
    page.close()
