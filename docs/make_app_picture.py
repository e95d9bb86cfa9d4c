"""Draw the app's picture: start it on this machine, explain a photograph, take a screenshot of the page.

    uv run python docs/make_app_picture.py --model squeezenet1_0 --weights squeezenet1_0.safetensors

Needs Chromium (BACKLIT_CHROMIUM names another one than the PATH's).
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

import backlit
from backlit.app import serve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="digits")
    parser.add_argument("--weights")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("app.jpg"))
    asked = parser.parse_args()
    app = serve(backlit.load_model(asked.model, weights=asked.weights), browser=False, block=False)
    there = os.environ.get("BACKLIT_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=there, args=["--no-sandbox", "--disable-dev-shm-usage"])
        page = browser.new_page(viewport={"width": 1400, "height": 1200})
        page.goto(app.local_url)
        page.wait_for_selector("#map2 img")
        page.wait_for_selector("#curve img")
        page.wait_for_timeout(1000)
        picture = page.screenshot(full_page=True)
        browser.close()
    app.close()
    Image.open(io.BytesIO(picture)).convert("RGB").save(asked.out, quality=80, optimize=True)
    print(asked.out, asked.out.stat().st_size)


if __name__ == "__main__":
    main()
