"""Makes docs/assets/page.png: the top of the page that `isthmus demo` writes.

isthmus demo --out /tmp/demo
python docs/tools/screenshot.py /tmp/demo/report.html docs/assets/page.png
"""

from __future__ import annotations

import io
import os
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright


def screenshot(page: Path, picture: Path, *, width: int = 1280, height: int = 1530) -> None:
    """The top of a page in the light theme."""
    with sync_playwright() as playwright:
        program = os.environ.get("ISTHMUS_CHROMIUM") or shutil.which("chromium") or playwright.chromium.executable_path
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"])
        view = browser.new_page(viewport={"width": width, "height": height}, color_scheme="light")
        view.goto(page.resolve().as_uri())
        view.wait_for_selector("html[data-charts=ready]", state="attached", timeout=120_000)
        taken = io.BytesIO(view.screenshot())
        browser.close()
    Image.open(taken).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(picture, optimize=True)


if __name__ == "__main__":
    screenshot(Path(sys.argv[1]), Path(sys.argv[2]))
