"""The app in a browser: every control, bad uploads, several users, what it serves and what it fetches."""

from __future__ import annotations

import importlib.util
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import backlit
from _commands import command

pytest.importorskip("gradio", reason="the extra backlit[app] is not installed")
pytest.importorskip("playwright", reason="playwright is not installed")

LONG = 60_000  # milliseconds


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    from backlit.app import serve

    app = serve(backlit.load_model("digits"), browser=False, block=False)
    yield app.local_url
    app.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    there = os.environ.get("BACKLIT_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        there = there or playwright.chromium.executable_path
        if not Path(there).is_file():
            pytest.skip(f"no chromium at {there}; BACKLIT_CHROMIUM names one")
        made = playwright.chromium.launch(executable_path=there, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield made
        made.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    made = browser.new_page(viewport={"width": 1400, "height": 1600})
    made.set_default_timeout(LONG)
    made.fetched, made.errors = [], []  # type: ignore[attr-defined]
    made.on("request", lambda r: made.fetched.append(r.url))
    made.on("console", lambda m: made.errors.append(m.text) if m.type == "error" else None)
    made.goto(address)
    made.wait_for_selector("#map2 img")
    yield made
    made.close()


def choose(page: Any, box: str, text: str) -> None:
    page.click(f"#{box} input")
    page.fill(f"#{box} input", text)
    page.keyboard.press("Enter")


def wait(page: Any, script: str) -> None:
    page.wait_for_function(script, timeout=LONG)


def tab(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name).last.click(force=True)


def code_says(page: Any, text: str) -> None:
    """Wait until the page's Python code, which is in a tab of its own, holds a text."""
    tab(page, "Take it with you")
    wait(page, f"(document.querySelector('#code')?.innerText ?? '').includes({text!r})")


def picture(page: Any, where: str) -> str:
    return page.get_attribute(f"#{where} img", "src")


def test_the_first_view_is_there_and_nothing_is_fetched(page: Any, address: str) -> None:
    assert all("forward passes" in page.inner_text(f"#facts{i}") for i in range(3))
    assert "Adds up" in page.inner_text("#facts2")
    page.wait_for_selector("#curve img")
    assert "the probability is" in page.inner_text("#curvetext")
    assert [url for url in page.fetched if not url.startswith((address, "data:", "blob:"))] == []
    assert page.errors == []


@pytest.mark.parametrize("width", [390, 1400])
def test_nothing_is_wider_than_the_page(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 1200})
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_methods_classes_looks_and_files(page: Any) -> None:
    choose(page, "method2", "Saliency")
    choose(page, "against", "5")
    page.click("#go")
    wait(page, "document.querySelector('#facts0').innerText.includes(\"difference\")")
    code_says(page, "Saliency")
    assert "against=5" in page.input_value("#link textarea, #link input")
    before = picture(page, "map1")
    page.locator("#sign").get_by_label("against").check()
    wait(page, f"document.querySelector('#map1 img').src !== {before!r}")
    now = picture(page, "map1")
    page.locator("#sign").get_by_label("both").check()
    wait(page, f"document.querySelector('#map1 img').src !== {now!r}")
    before = [picture(page, f"map{i}") for i in range(3)]
    page.get_by_label("One colour scale for all").check()
    wait(page, f"[0, 1, 2].some(i => document.querySelector(`#map${{i}} img`).src !== {before!r}[i])")
    tab(page, "Trust")
    page.click("#forget")
    wait(page, "document.querySelector('#forgotten').innerText.includes('rank correlation')")
    tab(page, "Take it with you")
    page.click("#make")
    page.wait_for_selector("#numbersfile a")
    with urllib.request.urlopen(page.get_attribute("#numbersfile a", "href")) as file:
        assert file.read(200)[8:].startswith(b'{"')


def test_options_examples_and_the_keyboard(page: Any) -> None:
    choose(page, "method0", "LPR")
    tab(page, "Options")
    page.get_by_text("LPR", exact=True).last.click()
    page.locator("#lpr-steps input").fill("2")
    page.keyboard.press("Tab")
    time.sleep(1)
    page.locator("#go").focus()
    page.keyboard.press("Enter")
    code_says(page, "steps=2")
    now = page.input_value("#target input")
    other = next(name for name in _examples() if name.startswith("digit") and name[-1] != now)
    choose(page, "examples", other)
    wait(page, f"document.querySelector('#target input').value === {other[-1]!r}")
    code_says(page, repr(other[-1]))


def _examples() -> list[str]:
    from backlit.app.handlers import examples

    return list(examples())


@pytest.mark.parametrize("kind", ["text", "truncated"])
def test_a_bad_upload_is_said_and_the_app_goes_on(page: Any, kind: str, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    Image.new("RGB", (64, 64)).save(bad)
    bad.write_bytes(b"no picture" if kind == "text" else bad.read_bytes()[:60])
    page.set_input_files("#image input[type=file]", bad)
    page.wait_for_selector(".toast-wrap, [data-testid=toast-body]")
    page.reload()
    page.wait_for_selector("#map0 img")
    page.click("#go")
    wait(page, "document.querySelector('#facts0').innerText.includes('forward passes')")


@pytest.mark.parametrize("mode", ["CMYK", "I;16", "LA", "1x1"])
def test_odd_pictures_are_taken_or_refused_in_words(page: Any, mode: str, tmp_path: Path) -> None:
    path = tmp_path / ("odd.jpg" if mode == "CMYK" else "odd.png")
    Image.new("RGB" if mode == "1x1" else mode, (1, 1) if mode == "1x1" else (60, 40)).save(path)
    page.set_input_files("#image input[type=file]", path)
    says = page.inner_text("#says")
    wait(
        page,
        f"document.querySelector('#says').innerText !== {says!r} || document.querySelector('[data-testid=toast-body]')",
    )
    assert page.locator("#map0 img").count() == 1


def test_a_link_opens_the_same_questions(browser: Any, address: str) -> None:
    page = browser.new_page()
    page.goto(f"{address}?network=digits&methods=saliency;lrp;nope&target=7")
    page.wait_for_selector("#map2 img")
    wait(page, "document.querySelector('#method0 input').value === 'Saliency'")
    assert page.input_value("#method1 input") == "LRP"
    assert page.input_value("#target input") == "7"
    page.close()


def test_files_of_this_machine_are_not_served(address: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    for path in ("/etc/passwd", str(secret), "../../../../etc/passwd", str(Path(backlit.__file__))):
        with pytest.raises(urllib.error.HTTPError, match=r"403|404"):
            urllib.request.urlopen(f"{address}gradio_api/file={path}")


@pytest.mark.slow
def test_four_users_at_once_get_their_own(browser: Any, address: str) -> None:
    """Each asks for another class and method, again and again: nothing is lost, nothing is mixed."""
    pages = [browser.new_page() for _ in range(4)]
    asked = [("1", "Saliency"), ("4", "LRP"), ("7", "DeepLIFT"), ("9", "Grad-CAM")]
    for page in pages:
        page.set_default_timeout(LONG)
        page.goto(address)
        page.wait_for_selector("#map2 img")
    for turn in range(25):
        for page, (digit, method) in zip(pages, asked, strict=True):
            choose(page, "target", str((int(digit) + turn) % 10))
            choose(page, "method0", method)
            page.click("#go")
        for page, (digit, _) in zip(pages, asked, strict=True):
            code_says(page, f"'{(int(digit) + turn) % 10}'")
    for page in pages:
        page.close()


def test_the_command_helps_and_names_the_extra() -> None:
    done = command("app", "--help")
    assert done.returncode == 0
    assert "127.0.0.1" in done.stdout


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from backlit.app import build

    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(backlit.InputError, match=r"The app needs gradio: pip install 'backlit\[app\]'"):
        build()
    assert importlib.util.find_spec("backlit.app.page")
